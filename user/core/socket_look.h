// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <poll.h>
#include <sockalarm/event.h>

namespace sockalarm::detail {

// 0 where poll(2) cannot tell a FIN. SOCKALARM_WITHOUT_POLLRDHUP: build as for such a system.
#if defined(POLLRDHUP) && !defined(SOCKALARM_WITHOUT_POLLRDHUP)
inline constexpr short kPollRdhup = POLLRDHUP;
#else
inline constexpr short kPollRdhup = 0;
#endif

// What kind of stream a descriptor is, found out once when it is registered.
struct StreamKind {
  bool tcp = false;  // plain TCP over IPv4 or IPv6: TCP_INFO tells its state, the kernel source can watch it
  bool connecting = false;  // not connected yet, but on its way (SYN_SENT)
};

// Is `fd` a stream that has or had a peer? Errors: errno (EBADF), not_a_socket, not_a_stream, not_connected.
Result<StreamKind> examine_stream(int fd);

// How poll(2) reports, which differs between systems.
enum class PollStyle {
  rdhup,     // POLLRDHUP tells FIN (Linux)
  read_only  // FIN is known only once everything before it was read
};

// What had happened to the socket by now; only the sticky events. Never reads SO_ERROR nor data: either would
// take the error away from the program.
Events look(int fd, StreamKind kind, PollStyle style) noexcept;

// The same by the flags of poll(2) or epoll alone, for a descriptor that can no longer be asked.
Events events_of_flags(short flags) noexcept;

// Nothing left to read before the end of the stream?
bool all_was_read(int fd) noexcept;

// Of a socket of which poll() had said no more than POLLIN: nothing, if that was data; else how the stream
// ended. A reset may have come since, after which nothing is left to be read, either.
Events end_of_stream(int fd) noexcept;

}  // namespace sockalarm::detail
