// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/result.h>
#include <sockalarm/unique_fd.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

// Frames of a stream with descriptors. A message is one frame or several, all but the last marked `more`:
//
//   byte 0  'S' 'F' 'D' 1      1 is the version
//        4  flags              bit 0: more; the others are 0
//        5  0
//        6  descriptors        16 bits, little-endian, at most 253
//        8  length             32 bits, little-endian: bytes of payload that follow
//
// The descriptors of a frame ride on its first byte. Nothing here does input or output.
namespace sockalarm::ipc {

inline constexpr std::size_t kHeaderSize = 12;
inline constexpr std::size_t kMaxFdsPerFrame = 253;

struct FrameHeader {
  std::uint32_t length = 0;
  std::uint16_t fds = 0;
  bool more = false;
};

using HeaderBytes = std::array<std::byte, kHeaderSize>;
HeaderBytes encode(const FrameHeader& header) noexcept;
// Errors: malformed_frame.
Result<FrameHeader> parse_header(std::span<const std::byte, kHeaderSize> bytes);

struct Message {
  std::vector<std::byte> payload;
  std::vector<UniqueFd> fds;
};

// Makes messages from bytes and descriptors of a hostile peer. Memory grows with what arrives, not with what
// is announced, and never beyond the limits. One thread. After an error it is not to be used any more.
class FrameDecoder {
 public:
  struct Limits {
    std::size_t bytes;
    std::size_t fds;
  };
  explicit FrameDecoder(Limits limits) : limits_(limits) {}

  bool in_header() const noexcept { return header_size_ < kHeaderSize; }  // only here descriptors may come
  bool between_messages() const noexcept;
  std::size_t wanted_bytes() const noexcept;  // at most so many now, never 0
  std::size_t wanted_fds() const noexcept;    // at most so many now

  // At most wanted_bytes(). True: a message is complete, take() it before the next.
  // Errors: malformed_frame, message_too_large.
  Result<bool> feed(std::span<const std::byte> bytes, std::vector<UniqueFd> fds);
  Message take();

 private:
  Result<bool> end_of_header();
  bool end_of_frame() noexcept;

  Limits limits_;
  HeaderBytes header_bytes_{};
  std::size_t header_size_ = 0;
  FrameHeader header_;
  std::size_t missing_ = 0;    // of the frame's payload
  std::size_t frame_fds_ = 0;  // come with this frame so far
  bool continued_ = false;     // the frame before said `more`
  Message message_;
};

}  // namespace sockalarm::ipc
