// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sockalarm/unique_fd.h>
#include <sys/mount.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <functional>
#include <string>
#include <thread>

#include "harness/alarms.h"

namespace sockalarm::test {

// Calls `body` on a thread for which alone a file system of `bytes` is at `folder`; it goes with that thread,
// and so `body` closes what it opens there.
inline void on_small_disk(const std::string& folder, std::size_t bytes, const std::function<void()>& body) {
  std::string failed;
  std::thread([&] {
    const std::string size = "size=" + std::to_string(bytes);
    if (::unshare(CLONE_NEWNS) != 0 || ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
        ::mount("tmpfs", folder.c_str(), "tmpfs", MS_NOSUID | MS_NODEV, size.c_str()) != 0)
      failed = std::string("a tmpfs in a mount namespace: ") + std::strerror(errno);
    else
      body();
  }).join();
  if (failed.empty()) return;
  if (kernel_required()) FAIL() << failed;
  GTEST_SKIP() << failed;
}

// Until the disk takes no more.
inline void fill_disk(const std::string& file) {
  const UniqueFd fd(::open(file.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
  constexpr std::array<char, 4096> kPage{};
  while (::write(fd.get(), kPage.data(), kPage.size()) > 0) {
  }
  EXPECT_EQ(errno, ENOSPC);
}

}  // namespace sockalarm::test
