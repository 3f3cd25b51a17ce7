// SPDX-License-Identifier: Apache-2.0
#include "core/socket_identity.h"

#include <sys/socket.h>
#include <sys/stat.h>

namespace sockalarm::detail {

std::optional<std::uint64_t> file_identity(int fd) noexcept {
#ifdef SO_COOKIE  // Linux 4.12
  std::uint64_t cookie = 0;
  socklen_t length = sizeof cookie;
  if (::getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &length) == 0 && cookie != 0) return cookie;
#endif
  struct stat status{};
  if (::fstat(fd, &status) != 0) return std::nullopt;
  // The top bit keeps these apart from cookies, which count up from 1.
  constexpr std::uint64_t kNotACookie = std::uint64_t{1} << 63;
  return kNotACookie |
         ((static_cast<std::uint64_t>(status.st_dev) << 40) ^ static_cast<std::uint64_t>(status.st_ino));
}

}  // namespace sockalarm::detail
