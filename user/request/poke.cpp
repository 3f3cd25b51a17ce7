// SPDX-License-Identifier: Apache-2.0
#include "request/poke.h"

#include <signal.h>

#include <cerrno>
#include <cstdint>

#include "base/mutex.h"
#include "base/signal_text.h"
#include "core/fork.h"

namespace sockalarm::detail {
namespace {

// Without a constructor or destructor: the handler may look at it at any time.
constinit thread_local PokedThread poked_thread;
// The signal that it was let receive, and in which process: a child has other threads, and nothing pending.
constinit thread_local int let_in = 0;
constinit thread_local std::uint64_t let_in_generation = 0;

void on_signal(int) { poked_thread.outstanding.store(false, std::memory_order_relaxed); }

bool has_our_handler(int number) noexcept {
  struct sigaction now{};
  return ::sigaction(number, nullptr, &now) == 0 && (now.sa_flags & SA_SIGINFO) == 0 &&
         now.sa_handler == on_signal;
}

sigset_t only(int number) noexcept {
  sigset_t set;
  ::sigemptyset(&set);
  ::sigaddset(&set, number);
  return set;
}

}  // namespace

Result<Poker> Poker::acquire() {
  static Mutex mutex;
  static int taken GUARDED_BY(mutex) = 0;
  const MutexLock lock(mutex);
  if (taken != 0 && has_our_handler(taken)) return Poker(taken);
  const int number = free_realtime_signal();
  if (number == 0)
    return fail(Error(Errc::unsupported,
                      "Requests need a real-time signal for themselves, and every one has a handler or is "
                      "ignored; expected one with its default action"));
  struct sigaction ours{};
  ours.sa_handler = on_signal;
  ::sigemptyset(&ours.sa_mask);
  ours.sa_flags = SA_ONSTACK;  // not SA_RESTART
  if (::sigaction(number, &ours, nullptr) != 0)
    return fail(Error::from_errno(errno, "sigaction() for the signal of Requests"));
  taken = number;
  return Poker(number);
}

PokedThread& Poker::this_thread() const noexcept {
  if (let_in != signal_ || let_in_generation != fork_generation()) {
    poked_thread.thread = ::pthread_self();
    poked_thread.outstanding.store(false, std::memory_order_relaxed);
    const sigset_t set = only(signal_);
    ::pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
    let_in = signal_;
    let_in_generation = fork_generation();
  }
  return poked_thread;
}

bool Poker::is_ours() const noexcept { return has_our_handler(signal_); }

bool Poker::send(PokedThread& to) const noexcept {
  to.outstanding.store(true, std::memory_order_relaxed);
  if (::pthread_kill(to.thread, signal_) == 0) return true;
  to.outstanding.store(false, std::memory_order_relaxed);
  return false;
}

void Poker::take_pending() const noexcept {
  // A signal that is pending and not blocked is delivered on the way out of any system call, so this one
  // takes delivery of all; what it then still reports is blocked.
  sigset_t pending;
  while (::sigpending(&pending) == 0 && ::sigismember(&pending, signal_) == 1) {
    const sigset_t set = only(signal_);
    int number = 0;
    ::sigwait(&set, &number);
  }
  poked_thread.outstanding.store(false, std::memory_order_relaxed);
}

}  // namespace sockalarm::detail
