// SPDX-License-Identifier: Apache-2.0
#include "core/fork.h"

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <utility>
#include <vector>

#include "base/mutex.h"

namespace sockalarm::detail {
namespace {

std::atomic<std::uint64_t> generation{0};

// Never destroyed: a fork may come while the process exits.
struct Handlers {
  Mutex mutex;  // held across fork, so that the child finds the list whole
  std::vector<const ForkHandler*> list GUARDED_BY(mutex);
};
Handlers& handlers() {
  static auto* const all = [] {
    auto* made = new Handlers;
    ::pthread_atfork([]() ACQUIRE(handlers().mutex) { handlers().mutex.lock(); },
                     []() RELEASE(handlers().mutex) { handlers().mutex.unlock(); },
                     []() RELEASE(handlers().mutex) {
                       generation.fetch_add(1);
                       for (const ForkHandler* handler : handlers().list) handler->in_child();
                       handlers().list.clear();
                       handlers().mutex.unlock();
                     });
    return made;
  }();
  return *all;
}

}  // namespace

std::uint64_t fork_generation() noexcept { return generation.load(std::memory_order_relaxed); }

ForkHandler::ForkHandler(std::function<void()> in_child) : in_child_(std::move(in_child)) {
  const MutexLock lock(handlers().mutex);
  handlers().list.push_back(this);
}

ForkHandler::~ForkHandler() {
  const MutexLock lock(handlers().mutex);
  std::erase(handlers().list, this);
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
