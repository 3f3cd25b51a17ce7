// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sockalarm/unique_fd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

// Sockets of the test's own, on loopback.
namespace sockalarm::test {

// A connection: `ours` is watched, `peer` is the one that leaves.
struct Connection {
  UniqueFd ours, peer;

  Connection() = default;
  Connection(UniqueFd watched, UniqueFd leaving) : ours(std::move(watched)), peer(std::move(leaving)) {}
  Connection(Connection&&) = default;
  Connection& operator=(Connection&&) = default;
  ~Connection() { abandon(); }

  // Ends with a reset, so that no TIME_WAIT of a minute stays behind: storms would use up all ports else.
  void abandon() {
    const linger hard{1, 0};
    if (ours) ::setsockopt(ours.get(), SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
    ours.reset();
    peer.reset();
  }
};

struct Listener {
  UniqueFd fd;
  sockaddr_storage address{};
  socklen_t length = 0;
};

inline void require(bool ok, const char* what) {
  if (!ok) throw std::runtime_error(std::string(what) + ": " + std::strerror(errno));
}

inline Listener listen_on(int family, int backlog = 64, int protocol = 0, const char* host = nullptr) {
  Listener listener;
  listener.fd = UniqueFd(::socket(family, SOCK_STREAM | SOCK_CLOEXEC, protocol));
  require(bool(listener.fd), "socket");
  const int on = 1;
  ::setsockopt(listener.fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (family == AF_INET) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    ::inet_pton(AF_INET, host != nullptr ? host : "127.0.0.1", &address.sin_addr);
    std::memcpy(&listener.address, &address, listener.length = sizeof address);
  } else {
    sockaddr_in6 address{};
    address.sin6_family = AF_INET6;
    address.sin6_addr = in6addr_loopback;
    std::memcpy(&listener.address, &address, listener.length = sizeof address);
  }
  require(::bind(listener.fd.get(), reinterpret_cast<sockaddr*>(&listener.address), listener.length) == 0,
          "bind");
  require(::listen(listener.fd.get(), backlog) == 0, "listen");
  ::getsockname(listener.fd.get(), reinterpret_cast<sockaddr*>(&listener.address), &listener.length);
  return listener;
}

inline UniqueFd connect_to(const Listener& listener, int protocol = 0) {
  UniqueFd fd(::socket(listener.address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, protocol));
  require(bool(fd), "socket");
  // So that its port, in TIME_WAIT for a minute after it closed, can be bound by a later listener: the storms
  // would use up all ports else.
  const int on = 1;
  ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  require(::connect(fd.get(), reinterpret_cast<const sockaddr*>(&listener.address), listener.length) == 0,
          "connect");
  return fd;
}

inline UniqueFd accept_from(const Listener& listener) {
  UniqueFd fd(::accept4(listener.fd.get(), nullptr, nullptr, SOCK_CLOEXEC));
  require(bool(fd), "accept");
  return fd;
}

inline Connection tcp_pair(int family = AF_INET, int protocol = 0) {
  const Listener listener = listen_on(family, 64, protocol);
  UniqueFd peer = connect_to(listener, protocol);
  return {accept_from(listener), std::move(peer)};
}

inline Connection unix_pair() {
  int ends[2];
  require(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0, "socketpair");
  return {UniqueFd(ends[0]), UniqueFd(ends[1])};
}

inline void send_text(int fd, const std::string& text) {
  require(::send(fd, text.data(), text.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(text.size()), "send");
}

// Until everything sent so far has arrived at `fd`.
inline void await_readable(int fd, short flags = POLLIN) {
  pollfd entry{fd, flags, 0};
  require(::poll(&entry, 1, 10'000) == 1, "poll");
}

// Leaves by RST instead of FIN.
inline void reset(UniqueFd& fd) {
  const linger hard{1, 0};
  ::setsockopt(fd.get(), SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
  fd.reset();
}

}  // namespace sockalarm::test
