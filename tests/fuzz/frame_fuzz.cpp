// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <utility>
#include <vector>

#include "fuzz/checks.h"
#include "ipc/frame.h"

// The frame decoder against any peer. The first byte of the input says in pieces of which size the rest
// comes; of a piece that may carry descriptors, the peer decides by the top bits of its first byte how many
// do. Checked: no limit is passed, what is promised of wanted_bytes() holds, and no descriptor leaks.
namespace {

using sockalarm::UniqueFd;
using sockalarm::fuzz::lowest_free;
using sockalarm::fuzz::require;
using sockalarm::ipc::FrameDecoder;

constexpr FrameDecoder::Limits kLimits{.bytes = 512, .fds = 12};

std::vector<UniqueFd> descriptors(std::size_t count) {
  std::vector<UniqueFd> made;
  for (; count > 0; --count) made.emplace_back(::fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 0));
  return made;
}

void decode(std::span<const std::byte> input) {
  FrameDecoder decoder(kLimits);
  const std::size_t piece = 1 + std::to_integer<std::size_t>(input.front());
  for (std::size_t at = 1; at < input.size();) {
    const std::size_t wanted = decoder.wanted_bytes();
    require(wanted > 0 && decoder.wanted_fds() <= kLimits.fds);
    const auto bytes = input.subspan(at, std::min({piece, wanted, input.size() - at}));
    std::size_t fds = std::to_integer<std::size_t>(bytes.front()) >> 6;
    // An honest frame: as many as it announces.
    if (decoder.in_header() && bytes.size() == sockalarm::ipc::kHeaderSize && fds == 1)
      fds = std::to_integer<std::size_t>(bytes[6]) % 16;
    const auto complete = decoder.feed(bytes, descriptors(fds));
    if (!complete) return;
    if (*complete) {
      const auto message = decoder.take();
      require(decoder.between_messages());
      require(message.payload.size() <= kLimits.bytes && message.fds.size() <= kLimits.fds);
      for (const UniqueFd& fd : message.fds) require(::fcntl(fd.get(), F_GETFD) >= 0);
    }
    at += bytes.size();
  }
}

}  // namespace

// NOLINTNEXTLINE(readability-identifier-naming): libFuzzer's name
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const int before = lowest_free();
  decode(std::as_bytes(std::span(data, size)));
  require(lowest_free() == before);
  return 0;
}
