// SPDX-License-Identifier: Apache-2.0
#include "harness/counted_malloc.h"

#include <atomic>
#include <cerrno>
#include <cstddef>

// Takes the place of malloc(3) and its relatives, as glibc's manual allows ("Replacing malloc"), and counts.
// What does the work is glibc's own, by its second names.
extern "C" {
void* __libc_malloc(std::size_t);                 // NOLINT(bugprone-reserved-identifier)
void* __libc_calloc(std::size_t, std::size_t);    // NOLINT(bugprone-reserved-identifier)
void* __libc_realloc(void*, std::size_t);         // NOLINT(bugprone-reserved-identifier)
void* __libc_memalign(std::size_t, std::size_t);  // NOLINT(bugprone-reserved-identifier)
void __libc_free(void*);                          // NOLINT(bugprone-reserved-identifier)
}

namespace {

constinit std::atomic<std::uint64_t> made{0};
constinit std::atomic<long> live{0};

void* counted(void* block) noexcept {
  made.fetch_add(1, std::memory_order_relaxed);
  if (block != nullptr) live.fetch_add(1, std::memory_order_relaxed);
  return block;
}

}  // namespace

std::uint64_t sockalarm::test::allocations() noexcept { return made.load(std::memory_order_relaxed); }
long sockalarm::test::live_blocks() noexcept { return live.load(std::memory_order_relaxed); }

extern "C" {

void* malloc(std::size_t size) { return counted(__libc_malloc(size)); }
void* calloc(std::size_t count, std::size_t size) { return counted(__libc_calloc(count, size)); }
void* memalign(std::size_t alignment, std::size_t size) { return counted(__libc_memalign(alignment, size)); }
void* aligned_alloc(std::size_t alignment, std::size_t size) { return memalign(alignment, size); }

int posix_memalign(void** block, std::size_t alignment, std::size_t size) {
  void* const there = memalign(alignment, size);
  if (there == nullptr) return ENOMEM;
  *block = there;
  return 0;
}

void free(void* block) {
  if (block != nullptr) live.fetch_sub(1, std::memory_order_relaxed);
  __libc_free(block);
}

void* realloc(void* block, std::size_t size) {
  if (block == nullptr) return malloc(size);
  made.fetch_add(1, std::memory_order_relaxed);
  void* const there = __libc_realloc(block, size);
  if (there == nullptr && size == 0) live.fetch_sub(1, std::memory_order_relaxed);  // it was free()
  return there;
}
}
