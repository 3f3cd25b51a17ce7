// SPDX-License-Identifier: Apache-2.0
#include "core/session_memory.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

namespace sockalarm::detail {

Mapping::Mapping(Mapping&& other) noexcept
    : address_(std::exchange(other.address_, nullptr)), length_(std::exchange(other.length_, 0)) {}

Mapping& Mapping::operator=(Mapping&& other) noexcept {
  std::swap(address_, other.address_);
  std::swap(length_, other.length_);
  return *this;
}

Mapping::~Mapping() {
  if (address_ != nullptr) ::munmap(address_, length_);
}

Result<Mapping> Mapping::of(int fd, std::size_t length, int protection, std::size_t offset, const char* what,
                            int flags) {
  void* address = ::mmap(nullptr, length, protection, flags, fd, static_cast<off_t>(offset));
  if (address == MAP_FAILED) return fail(Error::from_errno(errno, std::string("mmap() of the ") + what));
  return Mapping(address, length);
}

void Mapping::detach(std::size_t used) noexcept {
  void* copy = ::mmap(nullptr, length_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (copy == MAP_FAILED) return;  // then it goes on seeing what the parent's slots mean
  std::memcpy(copy, address_, used);
  ::mremap(copy, length_, length_, MREMAP_MAYMOVE | MREMAP_FIXED, address_);
}

std::size_t page_size() noexcept { return static_cast<std::size_t>(::sysconf(_SC_PAGESIZE)); }

SessionMemory::SessionMemory(Mapping table, std::uint32_t slots, UniqueFd ring, Mapping consumer,
                             Mapping producer, std::size_t ring_bytes)
    : ring_(std::move(ring)),
      table_memory_(std::move(table)),
      consumer_(std::move(consumer)),
      producer_(std::move(producer)),
      table_{static_cast<WatchState*>(table_memory_.get()), slots},
      generations_(slots),
      reader_(static_cast<std::uint64_t*>(consumer_.get()),
              static_cast<const std::uint64_t*>(producer_.get()), page_size(), ring_bytes) {}

Result<std::unique_ptr<SessionMemory>> SessionMemory::map(int table, std::uint32_t slots, UniqueFd ring,
                                                          std::size_t ring_bytes) {
  const std::size_t page = page_size();
  auto table_memory =
      Mapping::of(table, sizeof(WatchState) * slots, PROT_READ | PROT_WRITE, 0, "watch table");
  if (!table_memory) return fail(table_memory.error());
  auto consumer = Mapping::of(ring.get(), page, PROT_READ | PROT_WRITE, 0, "ring's consumer page");
  if (!consumer) return fail(consumer.error());
  auto producer = Mapping::of(ring.get(), page + 2 * ring_bytes, PROT_READ, page, "ring's data");
  if (!producer) return fail(producer.error());
  return std::unique_ptr<SessionMemory>(new SessionMemory(std::move(*table_memory), slots, std::move(ring),
                                                          std::move(*consumer), std::move(*producer),
                                                          ring_bytes));
}

void SessionMemory::remember(std::uint32_t slot, std::uint32_t generation) noexcept {
  generations_[slot] = generation;
  if (slot > highest_slot_.load()) highest_slot_.store(slot);
}

void SessionMemory::after_fork() noexcept {
  ring_.reset();
  table_memory_.detach(sizeof(WatchState) * (highest_slot_.load() + 1));
  // Until the copy was made the parent may have given slots to other sockets.
  for (std::uint32_t slot = 1; slot <= highest_slot_.load(); ++slot) {
    const std::uint64_t mine = std::uint64_t{generations_[slot]} << 32;
    if ((table_[slot].seen ^ mine) >> 32 != 0) table_[slot].seen = mine;
  }
}

}  // namespace sockalarm::detail
