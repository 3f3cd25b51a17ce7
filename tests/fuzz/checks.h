// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <cstdlib>

// What the fuzz targets check by: a failed one ends the process, which the fuzzer reports.
namespace sockalarm::fuzz {

inline void require(bool holds) {
  if (!holds) std::abort();
}

// The lowest free number: the same before and after, unless something leaked.
inline int lowest_free() {
  const int fd = ::fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 0);
  require(fd >= 0);
  ::close(fd);
  return fd;
}

}  // namespace sockalarm::fuzz
