// SPDX-License-Identifier: Apache-2.0
#include <signal.h>
#include <sockalarm/request.h>

namespace sockalarm {
namespace {

sigset_t only_sigpipe() noexcept {
  sigset_t set;
  ::sigemptyset(&set);
  ::sigaddset(&set, SIGPIPE);
  return set;
}

bool is_pending() noexcept {
  sigset_t pending;
  return ::sigpending(&pending) == 0 && ::sigismember(&pending, SIGPIPE) == 1;
}

}  // namespace

// The kernel sends SIGPIPE to the thread that writes (write(2)), so blocking it there is enough.
SigpipeGuard::SigpipeGuard() noexcept {
  const sigset_t set = only_sigpipe();
  sigset_t before;
  ::pthread_sigmask(SIG_BLOCK, &set, &before);
  was_blocked_ = ::sigismember(&before, SIGPIPE) == 1;
  was_pending_ = is_pending();
}

SigpipeGuard::SigpipeGuard(Request& request) noexcept : SigpipeGuard() { request_ = &request; }

SigpipeGuard::~SigpipeGuard() {
  if (raised() && request_ != nullptr) request_->note_broken_pipe();
  if (was_blocked_) return;
  const sigset_t set = only_sigpipe();
  ::pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
}

bool SigpipeGuard::raised() noexcept {
  // One that was pending before hides ours. Each is taken, also after the first, or the last one would come
  // when the guard ends.
  if (was_pending_ || !is_pending()) return raised_;
  const sigset_t set = only_sigpipe();
  int number = 0;
  ::sigwait(&set, &number);
  return raised_ = true;
}

}  // namespace sockalarm
