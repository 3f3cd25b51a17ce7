// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <csignal>

namespace sockalarm {

// Blocks all signals of this thread for a scope. A thread that is made meanwhile inherits that, so no signal
// of the program can reach it, not even in its first moment (pthread_sigmask(3)).
class BlockedSignals {
 public:
  BlockedSignals() noexcept {
    sigset_t all;
    ::sigfillset(&all);
    ::pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~BlockedSignals() { ::pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  BlockedSignals(const BlockedSignals&) = delete;
  BlockedSignals& operator=(const BlockedSignals&) = delete;

  const sigset_t& before() const noexcept { return before_; }

 private:
  sigset_t before_;
};

}  // namespace sockalarm
