// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "core/ring_reader.h"
#include "fuzz/checks.h"

// The reader of a ring against any content: the daemon's clients share theirs with another process. The input
// is two positions, then what stands in the data. Checked: what is read lies within the ring (the sanitizer
// looks), the reader comes to an end, frees no more than was there, and reads a second time only what is new.
namespace {

using sockalarm::detail::RingReader;
using sockalarm::fuzz::require;

constexpr std::size_t kPage = 4096, kSize = 4096;

// As the kernel maps it: the producer's page, then the data twice in a row.
struct Ring {
  alignas(8) std::uint64_t consumer = 0;
  alignas(8) std::array<std::byte, kPage + 2 * kSize> mapped{};

  std::uint64_t* producer() { return reinterpret_cast<std::uint64_t*>(mapped.data()); }
};

void read(const std::uint8_t* data, std::size_t size) {
  const auto ring = std::make_unique<Ring>();  // on the heap: the sanitizer guards its ends
  std::uint64_t positions[2]{};
  const std::size_t head = std::min(size, sizeof positions);
  std::memcpy(positions, data, head);
  // The consumer's position is our own word: records begin at multiples of eight.
  ring->consumer = positions[0] & ~std::uint64_t{7};
  // Near each other as a rule, else hardly any input would be read.
  *ring->producer() = positions[1] >> 63 ? positions[1] : ring->consumer + (positions[1] & 0x1fff);
  const std::size_t length = std::min(size - head, kSize);
  for (std::size_t copy = 0; copy < 2; ++copy)
    if (length > 0) std::memcpy(ring->mapped.data() + kPage + copy * kSize, data + head, length);

  const std::uint64_t begin = ring->consumer, end = *ring->producer(), there = end - begin;
  RingReader reader(&ring->consumer, ring->producer(), kPage, kSize);
  std::vector<sockalarm_record> records;
  reader.drain(records);
  const std::uint64_t freed = ring->consumer - begin;
  require(freed == 0 || (there <= kSize && freed <= there));
  require(freed % 8 == 0 || freed == there);  // whole records, or given up
  require(records.size() * (sizeof(sockalarm_record) + 8) <= freed);
  require(reader.bad() <= freed);
  const std::size_t before = records.size();
  reader.drain(records);
  require(records.size() == before && ring->consumer == begin + freed);
}

}  // namespace

// NOLINTNEXTLINE(readability-identifier-naming): libFuzzer's name
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  read(data, size);
  return 0;
}
