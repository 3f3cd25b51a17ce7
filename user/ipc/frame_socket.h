// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/unique_fd.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>

namespace sockalarm::ipc {

// One frame as it came.
struct Frame {
  std::span<const std::byte> bytes;  // in the buffer that was given
  UniqueFd descriptor;
  int error = 0;  // with Arrival::closed: of the socket; 0: the other end closed it

  // The frame as a T, if it has exactly that length.
  template <class T>
  std::optional<T> as() const noexcept {
    if (bytes.size() != sizeof(T)) return std::nullopt;
    T value;
    std::memcpy(&value, bytes.data(), sizeof value);
    return value;
  }
};

enum class Arrival : std::uint8_t {
  frame,
  nothing,    // would block
  closed,     // or an error of the socket
  violation,  // a frame beyond the buffer, or more than one descriptor; all that came was closed
};

// Never blocks on the socket. Closing what is not wanted may (a file of a hostile file system).
Arrival receive_frame(int socket, std::span<std::byte> buffer, Frame& frame) noexcept;

// 0 or an errno: EAGAIN where it would block. descriptor: lent; -1: none.
int send_frame(int socket, std::span<const std::byte> bytes, int descriptor = -1) noexcept;

template <class T>
int send_frame(int socket, const T& frame, int descriptor = -1) noexcept {
  return send_frame(socket, std::as_bytes(std::span(&frame, 1)), descriptor);
}

}  // namespace sockalarm::ipc
