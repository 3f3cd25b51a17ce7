// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/result.h>
#include <sockalarm/unique_fd.h>

#include <cstddef>
#include <vector>

#include "ipc/frame.h"

namespace sockalarm::ipc {

// As many descriptors as one sendmsg(2) may carry so that the receiver can take them without losing one.
#if SOCKALARM_LINUX
inline constexpr std::size_t kFdsPerFrame = kMaxFdsPerFrame;
#else
inline constexpr std::size_t kFdsPerFrame = 1;  // the receiver has room for one in reserve
#endif

// Reads a socket into a FrameDecoder, never further than to the end of a message, and never takes from the
// kernel a descriptor that finds no room here.
//
// On Linux recvmsg(2) with MSG_PEEK installs the descriptors and leaves the message where it is. Only when
// all of them are here is the message consumed; else those that came are closed, and it is tried again later.
// Whatever other threads do in between, a descriptor is always in one place at least.
//
// Elsewhere a peek gives no descriptors. One number is kept in reserve and given up for the one descriptor
// that a frame may carry, then taken anew; without it nothing is received. Another thread that takes the
// number in this instant costs the descriptor; that is seen (MSG_CTRUNC) and is an error.
class FrameReader {
 public:
  enum class Outcome { message, progress, nothing, no_room, end };

  // Errors: errno.
  static Result<FrameReader> create();
  // At most one read. Errors: those of FrameDecoder, descriptors_lost, errno; and malformed_frame at an end
  // amid a message.
  Result<Outcome> read(int socket, FrameDecoder& decoder);
  // Where nobody wants messages: has the peer ended? `progress`: there are messages.
  static Result<Outcome> look(int socket, const FrameDecoder& decoder);

 private:
  FrameReader() = default;
  Result<Outcome> read_header(int socket, FrameDecoder& decoder);
  Result<Outcome> read_payload(int socket, FrameDecoder& decoder);
#if !SOCKALARM_LINUX
  bool have_reserve() noexcept;
  UniqueFd reserve_;
#endif
  std::vector<std::byte> buffer_;
};

}  // namespace sockalarm::ipc
