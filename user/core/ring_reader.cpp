// SPDX-License-Identifier: Apache-2.0
#include "core/ring_reader.h"

#include <cstring>

namespace sockalarm::detail {
namespace {

// include/uapi/linux/bpf.h
constexpr std::uint32_t kBusy = 1U << 31, kDiscarded = 1U << 30;
constexpr std::size_t kHeader = 8;

}  // namespace

RingReader::RingReader(std::uint64_t* consumer, const std::uint64_t* producer, std::size_t page,
                       std::size_t size) noexcept
    : consumer_(consumer),
      producer_(producer),
      data_(reinterpret_cast<const std::byte*>(producer) + page),
      size_(size) {}

void RingReader::drain(std::vector<sockalarm_record>& out) {
  std::uint64_t position = __atomic_load_n(consumer_, __ATOMIC_RELAXED);  // only we write it
  // The producer's position is stored with release after the header's BUSY bit is set, the header with
  // release after the record is whole.
  for (;;) {
    const std::uint64_t end = __atomic_load_n(producer_, __ATOMIC_ACQUIRE);
    if (end - position < kHeader || end - position > size_)
      break;  // empty; or nonsense, and then nothing is safe
    const std::byte* header = data_ + (position & (size_ - 1));
    const auto word = __atomic_load_n(reinterpret_cast<const std::uint32_t*>(header), __ATOMIC_ACQUIRE);
    if ((word & kBusy) != 0) break;  // its writer will wake us
    const std::uint64_t length = word & ~kDiscarded;
    const std::uint64_t step = (length + kHeader + 7) & ~std::uint64_t{7};
    if (step > end - position) {  // cannot be: give up what is there rather than read beyond it
      ++bad_;
      position = end;
    } else {
      if ((word & kDiscarded) == 0) {
        if (length == sizeof(sockalarm_record))
          std::memcpy(&out.emplace_back(), header + kHeader, sizeof(sockalarm_record));
        else
          ++bad_;
      }
      position += step;
    }
    // Sequentially consistent: our next look at the producer's position must not be older than this (the
    // kernel wakes us only if we had caught up), nor the caller's look at the count of lost records.
    __atomic_store_n(consumer_, position, __ATOMIC_SEQ_CST);
  }
}

}  // namespace sockalarm::detail
