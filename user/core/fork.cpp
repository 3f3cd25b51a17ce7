// SPDX-License-Identifier: Apache-2.0
#include "core/fork.h"

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <vector>

namespace sockalarm::detail {
namespace {

std::atomic<std::uint64_t> generation{0};

// Never destroyed: a fork may come while the process exits.
struct Listeners {
  std::mutex mutex;  // held across fork, so that the child finds the list whole
  std::vector<ForkListener*> list;
};
Listeners& listeners() {
  static auto* const all = [] {
    auto* made = new Listeners;
    ::pthread_atfork([] { listeners().mutex.lock(); }, [] { listeners().mutex.unlock(); },
                     [] {
                       generation.fetch_add(1);
                       for (ForkListener* listener : listeners().list) listener->in_child();
                       listeners().list.clear();
                       listeners().mutex.unlock();
                     });
    return made;
  }();
  return *all;
}

}  // namespace

std::uint64_t fork_generation() noexcept { return generation.load(std::memory_order_relaxed); }

ForkListener::ForkListener() {
  const std::lock_guard lock(listeners().mutex);
  listeners().list.push_back(this);
}

ForkListener::~ForkListener() {
  const std::lock_guard lock(listeners().mutex);
  std::erase(listeners().list, this);
}

pid_t current_thread() noexcept {
#if SOCKALARM_LINUX
  struct Known {
    std::uint64_t generation = ~std::uint64_t{0};
    pid_t tid = 0;
  };
  static thread_local Known known;
  if (known.generation != fork_generation()) known = {fork_generation(), ::gettid()};
  return known.tid;
#else
  return 0;
#endif
}

}  // namespace sockalarm::detail
