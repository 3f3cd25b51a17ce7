// SPDX-License-Identifier: Apache-2.0
#include "core/helpers.h"

#include <pthread.h>

#include <system_error>
#include <utility>

namespace sockalarm::detail {

bool Helpers::ready(const std::weak_ptr<void>& owner) {
  const MutexLock lock(mutex_);
  if (stopping_) return false;
  if (idle_ > waiting_.size() || threads_.size() >= limit_) return true;
  try {
    // It begins by waiting for the mutex, so it counts as idle from here on.
    threads_.emplace_back([this, keep = owner.lock()] { loop(); });
    ++idle_;
  } catch (const std::system_error&) {  // the limit of threads: those that there are must do
  }
  return !threads_.empty();
}

void Helpers::post(std::function<void()> work) {
  {
    const MutexLock lock(mutex_);
    waiting_.push_back(std::move(work));
  }
  changed_.notify_one();
}

void Helpers::stop() noexcept {
  std::vector<std::thread> ending;
  {
    const MutexLock lock(mutex_);
    stopping_ = true;
    ending.swap(threads_);
  }
  changed_.notify_all();
  for (std::thread& thread : ending) {
    if (thread.get_id() == std::this_thread::get_id())
      thread.detach();
    else
      thread.join();
  }
}

void Helpers::loop() {
#if SOCKALARM_LINUX
  ::pthread_setname_np(::pthread_self(), "sockalarm-help");
#endif
  MutexLock lock(mutex_);
  for (;;) {
    while (!stopping_ && waiting_.empty()) changed_.wait(mutex_);
    if (waiting_.empty()) return;
    std::function<void()> work = std::move(waiting_.front());
    waiting_.pop_front();
    --idle_;
    lock.unlock();
    work();
    work = nullptr;  // what it holds is let go of without the mutex
    lock.lock();
    ++idle_;
  }
}

}  // namespace sockalarm::detail
