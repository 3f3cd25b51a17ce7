// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/result.h>
#include <sys/socket.h>

#include <string>
#include <string_view>

namespace sockalarm {

// The name of one end of a connection: IPv4, IPv6 or AF_UNIX. A value; any thread.
class SocketAddress {
 public:
  // Copies `length` bytes; any family is taken, only the three above compare equal to anything.
  SocketAddress(const sockaddr* address, socklen_t length) noexcept;

  // "127.0.0.1:3306", "[::1]:80", "unix:/run/db.sock", "unix:@abstract". Numbers only, no name is looked up.
  // Errc::invalid_text says what was expected.
  [[nodiscard]] static Result<SocketAddress> parse(std::string_view text);

  const sockaddr* data() const noexcept { return reinterpret_cast<const sockaddr*>(&storage_); }
  socklen_t size() const noexcept { return length_; }
  int family() const noexcept { return storage_.ss_family; }

  // The same peer: an IPv4 address equals its v4-mapped IPv6 form.
  friend bool operator==(const SocketAddress& a, const SocketAddress& b) noexcept;

 private:
  sockaddr_storage storage_{};
  socklen_t length_ = 0;
};

// The form that parse() takes; "unix:" for an unnamed AF_UNIX socket.
std::string to_string(const SocketAddress& address);

}  // namespace sockalarm
