// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/sockalarm_c.h>

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <utility>

#include "base/mutex.h"
#include "base/wake_pipe.h"
#include "core/fork.h"

namespace sockalarm::c_abi {

// What post actions put down for an event loop. Its descriptor is readable while it is not empty: the pipe
// holds one byte then and none else, and both change under the mutex, so neither can get ahead of the other.
// In a forked child the mutex may be in the hands of a thread that is not there, and the pipe is the
// parent's: nothing of it is touched there before renew().
class NewsQueue {
 public:
  explicit NewsQueue(WakePipe pipe) : state_(std::make_unique<State>(std::move(pipe))) {}

  int fd() const noexcept { return state_->pipe.fd(); }
  bool inherited() const noexcept { return made_in_ != detail::fork_generation(); }

  // False: it is the parent's.
  bool put(const sockalarm_news& one) {
    if (inherited()) return false;
    const MutexLock lock(state_->mutex);
    state_->waiting.push_back(one);
    if (state_->waiting.size() == 1) state_->pipe.wake();
    return true;
  }

  std::optional<sockalarm_news> take() {
    const MutexLock lock(state_->mutex);
    if (state_->waiting.empty()) return std::nullopt;
    const sockalarm_news oldest = state_->waiting.front();
    state_->waiting.pop_front();
    if (state_->waiting.empty()) state_->pipe.clear();
    return oldest;
  }

  // In a forked child, by its only thread that knows of it: empty, with a pipe of its own. Actions that were
  // made before the fork serve from then on, too.
  void renew(WakePipe pipe) {
    auto fresh = std::make_unique<State>(std::move(pipe));
    state_->pipe.close();
    abandoned_ = state_.release();
    state_ = std::move(fresh);
    made_in_ = detail::fork_generation();
  }

 private:
  struct State {
    explicit State(WakePipe ours) noexcept : pipe(std::move(ours)) {}
    WakePipe pipe;
    Mutex mutex;
    std::deque<sockalarm_news> waiting GUARDED_BY(mutex);
  };
  std::unique_ptr<State> state_;
  State* abandoned_ = nullptr;  // never destroyed: the parent may have been in the middle of it
  std::uint64_t made_in_ = detail::fork_generation();
};

}  // namespace sockalarm::c_abi
