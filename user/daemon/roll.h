// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/types.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <list>
#include <memory>
#include <vector>

#include "base/mutex.h"

namespace sockalarm::daemon {

// What anybody may be told of a client. Written by its lane, read by all.
struct Entry {
  uid_t uid = 0;
  pid_t pid = 0;
  std::uint32_t index = 0, slots = 0, ring_bytes = 0;
  std::atomic<std::uint64_t> watches{0};
  std::atomic<bool> connected{true};  // else it is awaited after this daemon was started anew
};

// The list of all clients, whichever lane they are in. Any thread.
class Roll {
 public:
  void add(const std::shared_ptr<Entry>& entry) {
    const MutexLock lock(mutex_);
    entries_.push_back(entry);
  }
  void remove(const std::shared_ptr<Entry>& entry) {
    const MutexLock lock(mutex_);
    entries_.remove(entry);
  }
  std::vector<std::shared_ptr<Entry>> all() const {
    const MutexLock lock(mutex_);
    return {entries_.begin(), entries_.end()};
  }

  // Counters since the start.
  std::atomic<std::uint64_t> accepted{0}, refused{0}, violations{0}, resumed{0};

 private:
  mutable Mutex mutex_;
  std::list<std::shared_ptr<Entry>> entries_ GUARDED_BY(mutex_);
};

}  // namespace sockalarm::daemon
