// SPDX-License-Identifier: Apache-2.0
#include "core/own_descriptors.h"

#include <dirent.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>

#include "base/text.h"

namespace sockalarm::detail {

Result<std::vector<int>> own_descriptors() {
  std::vector<int> descriptors;
#if SOCKALARM_LINUX
  const auto close_directory = [](DIR* directory) { ::closedir(directory); };
  const std::unique_ptr<DIR, decltype(close_directory)> directory(::opendir("/proc/self/fd"),
                                                                  close_directory);
  if (!directory) return fail(Error::from_errno(errno, "/proc/self/fd"));
  while (const dirent* entry = ::readdir(directory.get())) {
    const auto fd = parse_number<int>(entry->d_name);
    if (fd && *fd != ::dirfd(directory.get())) descriptors.push_back(*fd);
  }
  std::sort(descriptors.begin(), descriptors.end());
#else
  const long limit = ::sysconf(_SC_OPEN_MAX);
  for (int fd = 0; fd < limit; ++fd)
    if (::fcntl(fd, F_GETFD) >= 0) descriptors.push_back(fd);
#endif
  return descriptors;
}

}  // namespace sockalarm::detail
