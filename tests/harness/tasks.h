// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/types.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <vector>

namespace sockalarm::test {

// What /proc says of a thread, as "CapEff:", "NoNewPrivs:" (proc_pid_status(5)).
using TaskStatus = std::map<std::string, std::string>;

#if defined(__SANITIZE_THREAD__)
inline constexpr bool kSecondIsOfSanitizer = true;
#else
inline constexpr bool kSecondIsOfSanitizer = false;
#endif

// Of each thread of a process. Without that of the thread sanitizer, which is there before main().
inline std::vector<TaskStatus> tasks_of(pid_t pid) {
  std::vector<TaskStatus> all;
  std::size_t number = 0;
  for (const auto& task : std::filesystem::directory_iterator("/proc/" + std::to_string(pid) + "/task")) {
    if (number++ == 1 && kSecondIsOfSanitizer) continue;
    std::ifstream file(task.path() / "status");
    TaskStatus& status = all.emplace_back();
    for (std::string name, value; file >> name && std::getline(file >> std::ws, value);) status[name] = value;
  }
  return all;
}

}  // namespace sockalarm::test
