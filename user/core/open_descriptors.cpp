// SPDX-License-Identifier: Apache-2.0
#include "core/open_descriptors.h"

#include <dirent.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <memory>

namespace sockalarm::detail {

#if SOCKALARM_LINUX

Result<std::vector<int>> open_descriptors() {
  struct CloseDirectory {
    void operator()(DIR* directory) const { ::closedir(directory); }
  };
  const std::unique_ptr<DIR, CloseDirectory> directory(::opendir("/proc/self/fd"));
  if (!directory)
    return fail(
        Error::from_errno(errno, "listing the open descriptors in /proc/self/fd (is /proc mounted?)"));
  std::vector<int> open;
  while (const dirent* entry = ::readdir(directory.get())) {
    int fd = -1;
    const char* const end = entry->d_name + std::strlen(entry->d_name);
    if (std::from_chars(entry->d_name, end, fd).ptr == end && fd != ::dirfd(directory.get()))
      open.push_back(fd);
  }
  return open;
}

#else

Result<std::vector<int>> open_descriptors() {
  // Asked one by one, so a limit of billions, or none, must not keep the dispatcher busy for minutes.
  constexpr long kMost = 1L << 20;
  const long limit = ::sysconf(_SC_OPEN_MAX);
  const int end = static_cast<int>(limit < 0 ? kMost : std::min(limit, kMost));
  std::vector<int> open;
  for (int fd = 0; fd < end; ++fd)
    if (::fcntl(fd, F_GETFD) >= 0) open.push_back(fd);
  return open;
}

#endif

}  // namespace sockalarm::detail
