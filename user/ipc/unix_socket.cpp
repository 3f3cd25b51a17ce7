// SPDX-License-Identifier: Apache-2.0
#include "ipc/unix_socket.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace sockalarm::ipc {
namespace {

#if SOCKALARM_LINUX
// Since Linux 6.5; <asm-generic/socket.h> of older headers lacks them.
constexpr int kSoPassPidfd = 76;
constexpr int kSoPeerPidfd = 77;
#endif

void close_on_exec(int fd) noexcept { ::fcntl(fd, F_SETFD, FD_CLOEXEC); }

Result<UniqueFd> stream_socket() {
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM, 0));
  if (!fd) return fail(Error::from_errno(errno, "socket"));
  close_on_exec(fd.get());
  return fd;
}

Result<sockaddr_un> address_of(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path || path.find('\0') != std::string::npos)
    return fail(Error::from_errno(path.empty() ? ENOENT : ENAMETOOLONG,
                                  "the path '" + path + "' of a socket must have 1 to " +
                                      std::to_string(sizeof address.sun_path - 1) + " bytes"));
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

void set_nonblocking(int fd, bool on) noexcept {
  const int flags = ::fcntl(fd, F_GETFL);
  ::fcntl(fd, F_SETFL, on ? flags | O_NONBLOCK : flags & ~O_NONBLOCK);
}

}  // namespace

void make_plain([[maybe_unused]] int socket) noexcept {
  [[maybe_unused]] const int off = 0, on = 1;
#ifdef SO_NOSIGPIPE
  ::setsockopt(socket, SOL_SOCKET, SO_NOSIGPIPE, &on, sizeof on);
#endif
#if SOCKALARM_LINUX
  for (const int option : {SO_PASSCRED, SO_PASSSEC, kSoPassPidfd})
    ::setsockopt(socket, SOL_SOCKET, option, &off, sizeof off);
  const int nowhere = -1;
  ::setsockopt(socket, SOL_SOCKET, SO_PEEK_OFF, &nowhere, sizeof nowhere);
#endif
}

Result<std::pair<UniqueFd, UniqueFd>> socket_pair() {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM, 0, ends) != 0) return fail(Error::from_errno(errno, "socketpair"));
  std::pair<UniqueFd, UniqueFd> both{UniqueFd(ends[0]), UniqueFd(ends[1])};
  close_on_exec(ends[0]);
  close_on_exec(ends[1]);
  return both;
}

Result<UniqueFd> listen_at(const std::string& path, int backlog) {
  const auto address = address_of(path);
  if (!address) return fail(address.error());
  auto fd = stream_socket();
  if (!fd) return fd;
  set_nonblocking(fd->get(), true);  // accept(2) takes no flag
  if (::bind(fd->get(), reinterpret_cast<const sockaddr*>(&*address), sizeof *address) != 0)
    return fail(Error::from_errno(errno, "binding to " + path));
  if (::listen(fd->get(), backlog) != 0) {
    const int number = errno;
    ::unlink(path.c_str());
    return fail(Error::from_errno(number, "listening at " + path));
  }
  return fd;
}

Result<UniqueFd> connect_to(const std::string& path) {
  const auto address = address_of(path);
  if (!address) return fail(address.error());
  auto fd = stream_socket();
  if (!fd) return fd;
  // A blocking connect(2) would wait for room in the backlog.
  set_nonblocking(fd->get(), true);
  if (::connect(fd->get(), reinterpret_cast<const sockaddr*>(&*address), sizeof *address) != 0)
    return fail(Error::from_errno(errno, "connecting to " + path));
  set_nonblocking(fd->get(), false);
  return fd;
}

Result<UniqueFd> accept_from(int listener) {
  for (;;) {
    UniqueFd fd(::accept(listener, nullptr, nullptr));
    if (fd) {
      close_on_exec(fd.get());
      set_nonblocking(fd.get(), false);  // BSD's inherits it
      return fd;
    }
    if (errno == EAGAIN || errno == EWOULDBLOCK) return UniqueFd();
    if (errno != EINTR && errno != ECONNABORTED) return fail(Error::from_errno(errno, "accept"));
  }
}

Result<void> check_connected(int socket) {
  int type = 0;
  socklen_t length = sizeof type;
  if (::getsockopt(socket, SOL_SOCKET, SO_TYPE, &type, &length) != 0) {
    if (errno == ENOTSOCK)
      return fail(Error(Errc::not_a_socket, "descriptor " + std::to_string(socket) + " is not a socket"));
    return fail(Error::from_errno(errno, "descriptor " + std::to_string(socket)));
  }
  sockaddr_storage address{};
  length = sizeof address;
  if (::getsockname(socket, reinterpret_cast<sockaddr*>(&address), &length) != 0)
    return fail(Error::from_errno(errno, "getsockname() of descriptor " + std::to_string(socket)));
  if (type != SOCK_STREAM || address.ss_family != AF_UNIX)
    return fail(
        Error(Errc::not_a_stream, "descriptor " + std::to_string(socket) + " is no AF_UNIX stream socket"));
  length = sizeof address;
  if (::getpeername(socket, reinterpret_cast<sockaddr*>(&address), &length) != 0) {
    if (errno != ENOTCONN)
      return fail(Error::from_errno(errno, "getpeername() of descriptor " + std::to_string(socket)));
    return fail(Error(Errc::not_connected, "descriptor " + std::to_string(socket) + " is not connected"));
  }
  return {};
}

Result<PeerCredentials> peer_credentials(int socket) {
  PeerCredentials peer{};
#ifdef __linux__
  ucred credentials{};
  socklen_t length = sizeof credentials;
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &length) != 0)
    return fail(Error::from_errno(errno, "SO_PEERCRED"));
  peer.uid = credentials.uid;
  peer.gid = credentials.gid;
#if SOCKALARM_LINUX
  peer.pid = credentials.pid;
  int pidfd = -1;
  length = sizeof pidfd;
  // ENOPROTOOPT before Linux 6.5, ESRCH (before 6.16) when that process has gone: then there is none.
  if (::getsockopt(socket, SOL_SOCKET, kSoPeerPidfd, &pidfd, &length) == 0)
    peer.pidfd.reset(pidfd);  // close-on-exec, pidfd_open(2)
#endif
#else
  if (::getpeereid(socket, &peer.uid, &peer.gid) != 0) return fail(Error::from_errno(errno, "getpeereid"));
#endif
  return peer;
}

}  // namespace sockalarm::ipc
