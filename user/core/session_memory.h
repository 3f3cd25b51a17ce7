// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/result.h>
#include <sockalarm/unique_fd.h>
#include <sys/mman.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "core/ring_reader.h"
#include "core/watch_state.h"

namespace sockalarm::detail {

// Memory of a file or of the kernel.
class Mapping {
 public:
  Mapping() = default;
  Mapping(Mapping&& other) noexcept;
  Mapping& operator=(Mapping&& other) noexcept;
  ~Mapping();

  static Result<Mapping> of(int fd, std::size_t length, int protection, std::size_t offset, const char* what,
                            int flags = MAP_SHARED);
  void* get() const noexcept { return address_; }

  // From here on memory of this process alone, with the first `used` bytes as they are now. For a forked
  // child.
  void detach(std::size_t used) noexcept;

 private:
  Mapping(void* address, std::size_t length) noexcept : address_(address), length_(length) {}
  void* address_ = nullptr;
  std::size_t length_ = 0;
};

std::size_t page_size() noexcept;

// The table and the ring of this process, mapped, whoever made them.
class SessionMemory {
 public:
  // table is lent. ring_bytes: a power of two >= a page.
  static Result<std::unique_ptr<SessionMemory>> map(int table, std::uint32_t slots, UniqueFd ring,
                                                    std::size_t ring_bytes);

  std::span<WatchState> table() const noexcept { return table_; }
  int ring_fd() const noexcept { return ring_.get(); }
  RingReader& reader() noexcept { return reader_; }

  // The slot is that generation's from here on.
  void remember(std::uint32_t slot, std::uint32_t generation) noexcept;
  // The child's objects still read the table, but its slots will be other sockets' of the parent's, so it
  // gets a copy.
  void after_fork() noexcept;

  SessionMemory(const SessionMemory&) = delete;
  SessionMemory& operator=(const SessionMemory&) = delete;

 private:
  SessionMemory(Mapping table, std::uint32_t slots, UniqueFd ring, Mapping consumer, Mapping producer,
                std::size_t ring_bytes);

  UniqueFd ring_;
  Mapping table_memory_, consumer_, producer_;
  std::span<WatchState> table_;
  std::atomic<std::uint32_t> highest_slot_{0};  // ever used
  std::vector<std::uint32_t> generations_;      // of the slots, in memory that a forked child has as it was
  RingReader reader_;
};

}  // namespace sockalarm::detail
