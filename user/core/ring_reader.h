// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "sockalarm_abi.h"

namespace sockalarm::detail {

// Reads records from a mapped BPF ring buffer (layout: kernel/bpf/ringbuf.c; Documentation/bpf/ringbuf.rst).
// Whatever stands in the data is checked before it is believed. One thread.
class RingReader {
 public:
  // consumer: the page with the consumer's position, writable. producer: the page with the producer's
  // position, followed by the data, mapped twice in a row so that no record wraps. Both are lent.
  RingReader(std::uint64_t* consumer, const std::uint64_t* producer, std::size_t page,
             std::size_t size) noexcept;

  // Appends all complete records and frees their room.
  void drain(std::vector<sockalarm_record>& out);

  // Is there a record, even one that is not whole yet?
  bool pending() const noexcept {
    return __atomic_load_n(producer_, __ATOMIC_SEQ_CST) != __atomic_load_n(consumer_, __ATOMIC_RELAXED);
  }

  std::uint64_t bad() const noexcept { return bad_; }

 private:
  std::uint64_t* consumer_;
  const std::uint64_t* producer_;
  const std::byte* data_;
  std::size_t size_;
  std::uint64_t bad_ = 0;  // of another length than ours
};

}  // namespace sockalarm::detail
