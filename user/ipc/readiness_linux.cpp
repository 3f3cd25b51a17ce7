// SPDX-License-Identifier: Apache-2.0
#include <poll.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>

#include <algorithm>
#include <cerrno>

#include "ipc/readiness.h"

// One epoll(7) instance, which the event loop sees, with the socket and a timer in it. epoll_ctl(2) takes
// effect on waits that have begun, so nobody needs to be woken.
namespace sockalarm::ipc {

Result<Readiness> Readiness::create() {
  Readiness made;
  made.epoll_.reset(::epoll_create1(EPOLL_CLOEXEC));
  if (!made.epoll_) return fail(Error::from_errno(errno, "epoll_create1"));
  made.timer_.reset(::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK));
  if (!made.timer_) return fail(Error::from_errno(errno, "timerfd_create"));
  epoll_event event{.events = EPOLLIN, .data = {.fd = made.timer_.get()}};
  if (::epoll_ctl(made.epoll_.get(), EPOLL_CTL_ADD, made.timer_.get(), &event) != 0)
    return fail(Error::from_errno(errno, "epoll_ctl"));
  return made;
}

void Readiness::detach() noexcept {
  want({});
  socket_ = -1;
}

bool Readiness::want(const Wanted& wanted) noexcept {
  const Wanted before = std::exchange(wanted_, wanted);
  if (before == wanted) return false;
  if (before.at != wanted.at) {
    itimerspec when{};  // all zero: off
    if (wanted.at) {
      // A time point is CLOCK_MONOTONIC's on Linux; one that has passed is due at once, zero would be never.
      const auto ns = std::max<long long>(
          1, std::chrono::duration_cast<std::chrono::nanoseconds>(wanted.at->time_since_epoch()).count());
      when.it_value = {ns / 1'000'000'000, ns % 1'000'000'000};
    }
    ::timerfd_settime(timer_.get(), TFD_TIMER_ABSTIME, &when, nullptr);  // also takes back what is due
  }
  if (!before.socket && !wanted.socket) return false;
  epoll_event event{.events = (wanted.read ? EPOLLIN : 0U) | (wanted.write ? EPOLLOUT : 0U),
                    .data = {.fd = socket_}};
  const int operation = !before.socket ? EPOLL_CTL_ADD : wanted.socket ? EPOLL_CTL_MOD : EPOLL_CTL_DEL;
  ::epoll_ctl(epoll_.get(), operation, socket_, &event);
  return false;
}

int Readiness::fd() const noexcept { return epoll_.get(); }
short Readiness::events() const noexcept { return POLLIN; }
std::optional<Readiness::Clock::time_point> Readiness::at() const noexcept { return std::nullopt; }

}  // namespace sockalarm::ipc
