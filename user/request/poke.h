// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <pthread.h>
#include <sockalarm/result.h>

#include <atomic>

namespace sockalarm::detail {

// One thread that can be got out of its system calls, by a signal whose handler has no SA_RESTART and does
// nothing else.
//
// `outstanding`: a signal was sent and has not been handled. Set by the sender before it sends, cleared by
// the handler in the thread itself, or by the thread when it has taken what was pending. A second one is sent
// seldom meanwhile, since real-time signals queue up: a thread that blocks the signal finds a few, not
// thousands.
struct PokedThread {
  pthread_t thread{};
  std::atomic<bool> outstanding{false};
};

// The signal is the library's for the rest of the process's life: a late one must never meet the default
// action, which ends the process.
class Poker {
 public:
  // The one of this process; takes the signal the first time. Errc::unsupported: no real-time signal with its
  // default action is left.
  static Result<Poker> acquire();

  int signal() const noexcept { return signal_; }
  // The calling thread. The first time it is let receive the signal, should the program have blocked it.
  PokedThread& this_thread() const noexcept;
  // False: the program has taken the signal over.
  bool is_ours() const noexcept;
  // False: not sent, since no more signals may be queued (RLIMIT_SIGPENDING). The thread must be alive.
  bool send(PokedThread& to) const noexcept;
  // The calling thread takes what was sent to it and has not arrived. When it returns nothing is pending.
  void take_pending() const noexcept;

 private:
  explicit Poker(int signal) noexcept : signal_(signal) {}
  int signal_;
};

}  // namespace sockalarm::detail
