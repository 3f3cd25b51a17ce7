// SPDX-License-Identifier: Apache-2.0
#include "ipc/frame.h"

#include <algorithm>
#include <iterator>
#include <string>
#include <utility>

namespace sockalarm::ipc {
namespace {

constexpr std::array kMagic{std::byte{'S'}, std::byte{'F'}, std::byte{'D'}, std::byte{1}};
constexpr std::byte kMore{1};
constexpr std::size_t kMaxRead = 64 * 1024;

tl::unexpected<Error> malformed(const std::string& what) {
  return fail(Error(Errc::malformed_frame, "the peer sent what is no frame: " + what));
}

tl::unexpected<Error> too_large(std::size_t size, std::size_t limit, const char* of_what) {
  return fail(Error(Errc::message_too_large, "the peer's message has " + std::to_string(size) + " " +
                                                 of_what + " or more, the limit is " +
                                                 std::to_string(limit)));
}

std::uint32_t number(std::span<const std::byte> bytes) {
  std::uint32_t value = 0;
  for (std::size_t i = bytes.size(); i > 0; --i)
    value = value << 8 | std::to_integer<std::uint32_t>(bytes[i - 1]);
  return value;
}

}  // namespace

HeaderBytes encode(const FrameHeader& header) noexcept {
  HeaderBytes bytes{};
  std::copy(kMagic.begin(), kMagic.end(), bytes.begin());
  bytes[4] = header.more ? kMore : std::byte{0};
  for (unsigned i = 0; i < 2; ++i) bytes[6 + i] = static_cast<std::byte>(header.fds >> (8 * i));
  for (unsigned i = 0; i < 4; ++i) bytes[8 + i] = static_cast<std::byte>(header.length >> (8 * i));
  return bytes;
}

Result<FrameHeader> parse_header(std::span<const std::byte, kHeaderSize> bytes) {
  if (!std::equal(kMagic.begin(), kMagic.end() - 1, bytes.begin()))
    return malformed("it does not begin with SFD");
  if (bytes[3] != kMagic[3])
    return malformed("version " + std::to_string(std::to_integer<int>(bytes[3])) + ", this is version 1");
  if ((bytes[4] & ~kMore) != std::byte{0} || bytes[5] != std::byte{0}) return malformed("unknown flags");
  const FrameHeader header{.length = number(bytes.subspan(8, 4)),
                           .fds = static_cast<std::uint16_t>(number(bytes.subspan(6, 2))),
                           .more = bytes[4] == kMore};
  if (header.fds > kMaxFdsPerFrame)
    return malformed(std::to_string(header.fds) + " descriptors in one frame");
  if (header.more && header.fds == 0 && header.length == 0)
    return malformed("an empty frame with more to come");
  return header;
}

bool FrameDecoder::between_messages() const noexcept { return header_size_ == 0 && !continued_; }

std::size_t FrameDecoder::wanted_bytes() const noexcept {
  return in_header() ? kHeaderSize - header_size_ : std::min(missing_, kMaxRead);
}

std::size_t FrameDecoder::wanted_fds() const noexcept {
  if (!in_header()) return 0;
  return std::min(kMaxFdsPerFrame - frame_fds_, limits_.fds - message_.fds.size());
}

Result<bool> FrameDecoder::feed(std::span<const std::byte> bytes, std::vector<UniqueFd> fds) {
  if (bytes.size() > wanted_bytes()) return malformed("more bytes than wanted");
  if (!fds.empty() && !in_header()) return malformed("descriptors amid the payload");
  if (fds.size() > kMaxFdsPerFrame - frame_fds_) return malformed("too many descriptors in one frame");
  if (fds.size() > limits_.fds - message_.fds.size())
    return too_large(message_.fds.size() + fds.size(), limits_.fds, "descriptors");
  frame_fds_ += fds.size();
  std::move(fds.begin(), fds.end(), std::back_inserter(message_.fds));
  if (in_header()) {
    std::copy(bytes.begin(), bytes.end(), header_bytes_.begin() + static_cast<std::ptrdiff_t>(header_size_));
    header_size_ += bytes.size();
    return in_header() ? Result<bool>(false) : end_of_header();
  }
  message_.payload.insert(message_.payload.end(), bytes.begin(), bytes.end());
  missing_ -= bytes.size();
  return missing_ == 0 && end_of_frame();
}

Result<bool> FrameDecoder::end_of_header() {
  const auto header = parse_header(header_bytes_);
  if (!header) return fail(header.error());
  header_ = *header;
  if (frame_fds_ != header_.fds)
    return malformed(std::to_string(frame_fds_) + " descriptors came, " + std::to_string(header_.fds) +
                     " were announced");
  if (header_.length > limits_.bytes - message_.payload.size())
    return too_large(message_.payload.size() + header_.length, limits_.bytes, "bytes");
  missing_ = header_.length;
  return missing_ == 0 && end_of_frame();
}

bool FrameDecoder::end_of_frame() noexcept {
  header_size_ = 0;
  frame_fds_ = 0;
  continued_ = header_.more;
  return !continued_;
}

Message FrameDecoder::take() { return std::exchange(message_, {}); }

}  // namespace sockalarm::ipc
