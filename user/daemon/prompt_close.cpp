// SPDX-License-Identifier: Apache-2.0
#include "daemon/prompt_close.h"

#include <pthread.h>
#include <unistd.h>

#include <csignal>

namespace sockalarm::daemon {
namespace {

constexpr int kSignal = SIGALRM;
constexpr long kPatienceNs = 100'000;  // an ordinary close takes a tenth of it

}  // namespace

PromptClose::PromptClose() {
  struct sigaction nothing{};
  nothing.sa_handler = [](int) {};  // no SA_RESTART: it is there to interrupt
  sigset_t set;
  ::sigemptyset(&set);
  ::sigaddset(&set, kSignal);
  sigevent event{};
  event.sigev_notify = SIGEV_THREAD_ID;
  event.sigev_signo = kSignal;
  event._sigev_un._tid = ::gettid();  // glibc has no other name for it
  works_ = ::sigaction(kSignal, &nothing, nullptr) == 0 &&
           ::pthread_sigmask(SIG_UNBLOCK, &set, nullptr) == 0 &&
           ::timer_create(CLOCK_MONOTONIC, &event, &timer_) == 0;
}

PromptClose::~PromptClose() {
  if (works_) ::timer_delete(timer_);
}

void PromptClose::operator()(UniqueFd fd) const noexcept {
  // Again and again: the first one may come before the wait has begun.
  const itimerspec often{{0, kPatienceNs}, {0, kPatienceNs}}, never{};
  ::timer_settime(timer_, 0, &often, nullptr);
  fd.reset();
  ::timer_settime(timer_, 0, &never, nullptr);
}

}  // namespace sockalarm::daemon
