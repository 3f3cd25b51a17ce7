// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bpf/bpf.h>
#include <dirent.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <sockalarm/unique_fd.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <optional>
#include <sstream>
#include <string>

#include "bench/support/basics.h"

namespace sockalarm::bench {

// A BPF map that this process has open, by its name: the registry of the Watcher that was just made. By our
// own descriptors and not by the host's map ids, among which another program's map of the same name may be.
inline UniqueFd own_map(const std::string& name) {
  UniqueFd found;
  DIR* fds = ::opendir("/proc/self/fd");
  if (fds == nullptr) return found;
  while (const dirent* entry = ::readdir(fds)) {
    if (entry->d_name[0] == '.') continue;
    const int fd = std::stoi(entry->d_name);
    char target[64] = {};
    if (::readlink(("/proc/self/fd/" + std::string(entry->d_name)).c_str(), target, sizeof target - 1) < 0)
      continue;
    if (std::strstr(target, "bpf-map") == nullptr) continue;
    bpf_map_info info{};
    std::uint32_t length = sizeof info;
    if (bpf_obj_get_info_by_fd(fd, &info, &length) != 0 || name != info.name) continue;
    found = UniqueFd(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
    break;
  }
  ::closedir(fds);
  return found;
}

inline bpf_map_info map_info(const UniqueFd& map) {
  bpf_map_info info{};
  std::uint32_t length = sizeof info;
  bpf_obj_get_info_by_fd(map.get(), &info, &length);
  return info;
}

// What the kernel says that the map takes now (since Linux 6.4 the real use; before, an estimate of the
// most).
inline std::optional<std::uint64_t> map_bytes(const UniqueFd& map) {
  std::ifstream facts("/proc/self/fdinfo/" + std::to_string(map.get()));
  for (std::string line; std::getline(facts, line);) {
    std::istringstream words(line);
    std::string name;
    std::uint64_t bytes = 0;
    if (words >> name >> bytes && name == "memlock:") return bytes;
  }
  return std::nullopt;
}

}  // namespace sockalarm::bench
