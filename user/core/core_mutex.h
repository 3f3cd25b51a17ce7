// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "base/mutex.h"

namespace sockalarm::detail {

// The Core's mutex, for clang's thread safety analysis. Sockets, Watches, alarms and sources are guarded by
// it, but know their Core by a pointer at best, and the analysis does not see that it is the Core which holds
// the mutex. So they all name this stand-in, which CoreLock takes together with the mutex itself. It is one
// for all Cores: who holds another Core's is not found out.
class CAPABILITY("Core's mutex") CoreMutexStandIn {};
inline constexpr CoreMutexStandIn core_mutex;

class SCOPED_CAPABILITY CoreLock {
 public:
  explicit CoreLock(Mutex& of_the_core) ACQUIRE(core_mutex) : lock_(of_the_core) {}
  ~CoreLock() RELEASE() {}
  CoreLock(const CoreLock&) = delete;
  CoreLock& operator=(const CoreLock&) = delete;

 private:
  const MutexLock lock_;
};

}  // namespace sockalarm::detail
