// SPDX-License-Identifier: Apache-2.0
#include "core/socket_look.h"

#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <cerrno>
#include <optional>
#include <string>

#if SOCKALARM_LINUX
#include <linux/tcp.h>
#include <netinet/in.h>
#endif

namespace sockalarm::detail {
namespace {

short poll_now(int fd) noexcept {
  pollfd entry{fd, static_cast<short>(POLLIN | kPollRdhup), 0};
  return ::poll(&entry, 1, 0) > 0 ? entry.revents : short{0};
}

int socket_option(int fd, int level, int name, int otherwise) noexcept {
  int value = 0;
  socklen_t length = sizeof value;
  return ::getsockopt(fd, level, name, &value, &length) == 0 ? value : otherwise;
}

#if SOCKALARM_LINUX
// include/net/tcp_states.h
enum TcpState { kSynSent = 2, kClose = 7, kCloseWait = 8, kLastAck = 9, kClosing = 11 };

std::optional<tcp_info> info_of(int fd) noexcept {
  tcp_info info{};
  socklen_t length = sizeof info;
  if (::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) != 0) return std::nullopt;
  return info;
}

// Without sk_err, which only reading it away would show, a connection that gave up is told from one that was
// reset by what it had been doing: unanswered retransmissions or probes.
bool was_retrying(const tcp_info& info) noexcept {
  return info.tcpi_retransmits != 0 || info.tcpi_probes != 0 || info.tcpi_backoff != 0;
}

Events look_at_tcp(int fd, const tcp_info& info, bool connecting) noexcept {
  const short flags = poll_now(fd);
  switch (info.tcpi_state) {
    case kCloseWait:
    case kLastAck:
    case kClosing:
      return events::fin;
    case kClose:
      if ((flags & kPollRdhup) == 0)
        return connecting ? events::reset : events::none;  // never was, or our own doing
      if ((flags & POLLERR) == 0) return events::fin;      // both FINs came; a TIME_WAIT stand-in took over
      return was_retrying(info) ? events::timeout : events::reset;
    default:
      break;
  }
  // An error that left the connection as it was is put in the queue that IP_RECVERR asked for. Without it ERR
  // is only a notification (MSG_ZEROCOPY, time stamps).
  const bool reports_errors = socket_option(fd, IPPROTO_IP, IP_RECVERR, 0) != 0 ||
                              socket_option(fd, IPPROTO_IPV6, IPV6_RECVERR, 0) != 0;
  return (flags & POLLERR) != 0 && reports_errors ? events::error : events::none;
}
#endif

Result<void> check_is_stream(int fd) {
  const std::string what = "descriptor " + std::to_string(fd);
  int type = 0;
  socklen_t length = sizeof type;
  if (::getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length) != 0) {
    if (errno == ENOTSOCK)
      return fail(
          Error(Errc::not_a_socket, what + " is open but not a socket; a connected stream socket is needed"));
    return fail(Error::from_errno(errno, what));
  }
  if (type != SOCK_STREAM && type != SOCK_SEQPACKET)
    return fail(
        Error(Errc::not_a_stream, what + " is a socket without connections (datagram or raw): it has no peer "
                                         "that could leave; a connected stream socket is needed"));
  if (socket_option(fd, SOL_SOCKET, SO_ACCEPTCONN, 0) != 0)
    return fail(Error(Errc::not_connected, what + " is a listening socket; watch what accept() returns"));
  return {};
}

Error not_connected(int fd) {
  return Error(Errc::not_connected, "descriptor " + std::to_string(fd) +
                                        " is not connected; watch it after connect() or accept()");
}

}  // namespace

Result<StreamKind> examine_stream(int fd) {
  if (auto ok = check_is_stream(fd); !ok) return fail(ok.error());
  StreamKind kind;
#if SOCKALARM_LINUX
  const int domain = socket_option(fd, SOL_SOCKET, SO_DOMAIN, 0);
  kind.tcp = (domain == AF_INET || domain == AF_INET6) &&
             socket_option(fd, SOL_SOCKET, SO_PROTOCOL, 0) == IPPROTO_TCP;
  if (const auto info = kind.tcp ? info_of(fd) : std::nullopt) kind.connecting = info->tcpi_state == kSynSent;
#endif
  sockaddr_storage peer{};
  socklen_t length = sizeof peer;
  if (kind.connecting || ::getpeername(fd, reinterpret_cast<sockaddr*>(&peer), &length) == 0) return kind;
  if (errno != ENOTCONN && errno != EINVAL)  // EINVAL: of a socket that was shut down, on BSDs
    return fail(Error::from_errno(errno, "getpeername() of descriptor " + std::to_string(fd)));
  // The kernel forgets the peer's name of a TCP socket that was reset, but goes on reporting its end.
  const short flags = poll_now(fd);
  if ((flags & kPollRdhup) != 0 || (kPollRdhup == 0 && (flags & POLLERR) != 0)) return kind;
  return fail(not_connected(fd));
}

Events events_of_flags(short flags) noexcept {
  if ((flags & POLLERR) != 0) return events::reset;
  if ((flags & (kPollRdhup | POLLHUP)) != 0) return events::fin;
  return events::none;
}

bool all_was_read(int fd) noexcept {
  int unread = 0;
  if (::ioctl(fd, FIONREAD, &unread) != 0 || unread > 1) return false;
  if (unread == 0) return true;
  // MPTCP says 1 at the end of the stream (mptcp_inq_hint(), net/mptcp/protocol.c). A peek tells it from a
  // byte; not with an error pending, which it would take away.
  char byte = 0;
  return (poll_now(fd) & POLLERR) == 0 && ::recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0;
}

Events end_of_stream(int fd) noexcept {
  if (!all_was_read(fd)) return events::none;
  return (poll_now(fd) & POLLERR) != 0 ? events::reset : events::fin | events::eof;
}

Events look(int fd, StreamKind kind, PollStyle style) noexcept {
  Events found;
  if (style == PollStyle::read_only) {
    const auto flags = static_cast<short>(poll_now(fd) & ~kPollRdhup);
    found = events_of_flags(flags);
    if (!found && (flags & POLLIN) != 0) found = end_of_stream(fd);
  } else {
#if SOCKALARM_LINUX
    if (const auto info = kind.tcp ? info_of(fd) : std::nullopt)
      found = look_at_tcp(fd, *info, kind.connecting);
    else
#endif
      found = events_of_flags(poll_now(fd));
  }
  (void)kind;
  if ((found & events::fin) && all_was_read(fd)) found |= events::eof;
  return found;
}

}  // namespace sockalarm::detail
