// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "base/mutex.h"

namespace sockalarm::detail {

// A few threads that run what may block, so that the dispatcher need not. They are started when all others
// are busy, up to a limit, and stay; beyond it work waits in order. They inherit the signal mask of the
// thread that calls ready(): the dispatcher's, with all signals blocked, and not its SCHED_FIFO. Its mutex is
// a leaf; work runs without it.
class Helpers {
 public:
  explicit Helpers(int limit) : limit_(static_cast<std::size_t>(limit)) {}
  Helpers(const Helpers&) = delete;
  Helpers& operator=(const Helpers&) = delete;

  // Sees to it that there is a thread for the next post(). Each one keeps `owner`, of which this is a part,
  // alive. False: not one could be started.
  bool ready(const std::weak_ptr<void>& owner);
  // Only after ready() said yes, by the same thread. Must not throw.
  void post(std::function<void()> work);
  // After the last post(). What is still waiting is run first, so it should find out that all is over. Called
  // from inside `work` that one thread ends by itself.
  void stop() noexcept;

 private:
  void loop();

  const std::size_t limit_;
  Mutex mutex_;
  ConditionVariable changed_;
  std::deque<std::function<void()>> waiting_ GUARDED_BY(mutex_);
  std::vector<std::thread> threads_ GUARDED_BY(mutex_);
  std::size_t idle_ GUARDED_BY(mutex_) = 0;
  bool stopping_ GUARDED_BY(mutex_) = false;
};

}  // namespace sockalarm::detail
