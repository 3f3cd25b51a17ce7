// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/sockalarm_c.h>

#include <deque>
#include <mutex>
#include <optional>
#include <utility>

#include "base/wake_pipe.h"

namespace sockalarm::c_abi {

// What post actions put down for an event loop. Its descriptor is readable while it is not empty: the pipe
// holds one byte then and none else, and both change under the mutex, so neither can get ahead of the other.
// Never touched in a forked child, where the mutex may be in the hands of a thread that is not there, and the
// pipe is the parent's.
class NewsQueue {
 public:
  explicit NewsQueue(WakePipe pipe) noexcept : pipe_(std::move(pipe)) {}

  int fd() const noexcept { return pipe_.fd(); }

  void put(const sockalarm_news& one) {
    const std::lock_guard lock(mutex_);
    waiting_.push_back(one);
    if (waiting_.size() == 1) pipe_.wake();
  }

  std::optional<sockalarm_news> take() {
    const std::lock_guard lock(mutex_);
    if (waiting_.empty()) return std::nullopt;
    const sockalarm_news oldest = waiting_.front();
    waiting_.pop_front();
    if (waiting_.empty()) pipe_.clear();
    return oldest;
  }

 private:
  const WakePipe pipe_;
  std::mutex mutex_;
  std::deque<sockalarm_news> waiting_;
};

}  // namespace sockalarm::c_abi
