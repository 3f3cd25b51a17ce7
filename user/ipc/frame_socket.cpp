// SPDX-License-Identifier: Apache-2.0
#include "ipc/frame_socket.h"

#include <utility>

#include "ipc/scm_rights.h"

namespace sockalarm::ipc {

Arrival receive_frame(int socket, std::span<std::byte> buffer, Frame& frame) noexcept {
  frame = {};
  auto received = receive_with_fds(socket, buffer, 1);
  if (!received) {
    if (would_block(received.error())) return Arrival::nothing;
    frame.error = received.error().code().value();
    return Arrival::closed;
  }
  if (received->fds_truncated || received->data_truncated) return Arrival::violation;
  if (received->size == 0) return Arrival::closed;
  frame.bytes = buffer.first(received->size);
  if (!received->fds.empty()) frame.descriptor = std::move(received->fds.front());
  return Arrival::frame;
}

int send_frame(int socket, std::span<const std::byte> bytes, int descriptor) noexcept {
  const auto sent = send_with_fds(socket, bytes, std::span<const int>(&descriptor, descriptor >= 0 ? 1 : 0));
  return sent ? 0 : sent.error().code().value();
}

}  // namespace sockalarm::ipc
