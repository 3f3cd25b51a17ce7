// SPDX-License-Identifier: Apache-2.0
// The rest of RequestState: shields, the alarms they hold back, waiting, and the end.
#include <poll.h>
#include <signal.h>

#include <algorithm>
#include <cerrno>
#include <exception>
#include <utility>

#include "core/action_impl.h"
#include "request/request_service.h"
#include "request/request_state.h"

namespace sockalarm::detail {

// ---- Shields.

std::uint64_t RequestState::begin_shield() {
  if (service.inert()) return 0;
  bool first = false, some_pending = false;
  std::uint64_t of = 0;
  {
    const MutexLock lock(mutex);
    await_callbacks();  // what was just about to go off does so before the shield
    of = serial;
    if (!active) return of;
    first = shields++ == 0;
    if (first) shielded_since = Clock::now();
    some_pending = std::exchange(poked, false);
  }
  if (some_pending) service.poker.take_pending();
  if (first) hold_alarms();
  return of;
}

void RequestState::end_shield(std::uint64_t of) noexcept {
  if (service.inert()) return;
  Sources to_stop;
  Clock::time_point due = kNever;
  {
    const MutexLock lock(mutex);
    if (of != serial || shields == 0) return;
    --shields;
    if (shields > 0) return;
    const auto now = Clock::now();
    record.shielded += now - shielded_since;
    release_due(now, to_stop);
    if (is_poking()) next_poke = now + std::chrono::milliseconds(1);
    due = next_due();
    if (service.planned_by(due)) due = kNever;
  }
  for (const std::stop_source& one : to_stop) one.request_stop();
  resume_alarms();
  service.look_at(due);
}

// What the shield held back goes off, and how long it did is noted.
void RequestState::release_due(Clock::time_point now, Sources& to_stop) {
  const std::size_t before = record.sounded.size();
  const bool was_stopped = stop.has_value();
  take_due(now, to_stop);
  const auto held_since = [&](Clock::time_point when) REQUIRES(mutex) {
    const auto held = now - std::max(when, shielded_since);
    record.held_back = std::max<std::chrono::nanoseconds>(record.held_back, held);
    return held;
  };
  for (std::size_t i = before; i < record.sounded.size(); ++i)
    record.sounded[i].held = held_since(record.start + record.sounded[i].after);
  if (!was_stopped && stop) held_since(stop->at);
}

Result<void> RequestState::arm(const ActionChain& actions, Events on) {
  if (service.inert()) return fail(error_inert());
  if (watch == nullptr)
    return fail(Error(Errc::invalid_use, "Request::arm() of a request that was begun without a Watch"));
  {
    const MutexLock lock(mutex);
    if (!active || shields > 0)
      return fail(Error(Errc::invalid_use, active ? "Request::arm() under a shield: arm before it begins"
                                                  : "Request::arm(): the request has ended"));
  }
  auto armed = watch->arm(actions, {.on = on, .deadline = {}});
  if (!armed) return fail(armed.error());
  if (alarms.empty()) {
    ::sigemptyset(&alarm_signals);
    has_alarm_signals = false;
  }
  for (std::size_t i = 0; i < actions.size(); ++i) {
    const int number = actions[i].impl().thread_signal();
    if (number == 0) continue;
    ::sigaddset(&alarm_signals, number);
    has_alarm_signals = true;
  }
  alarms.push_back({std::move(*armed), false});
  return {};
}

// Disarmed, they cannot go off. Of one that has, the chain goes on, so its signals to this thread are
// blocked.
void RequestState::hold_alarms() noexcept {
  if (alarms.empty()) return;
  ::sigemptyset(&blocked_by_shield);
  if (has_alarm_signals) {
    sigset_t before;
    ::pthread_sigmask(SIG_BLOCK, &alarm_signals, &before);
    blocked_by_shield = alarm_signals;
    for (int number = 1; number < NSIG; ++number)
      if (::sigismember(&before, number) == 1) ::sigdelset(&blocked_by_shield, number);
  }
  for (HeldAlarm& one : alarms) one.held = one.alarm.disarm();
}

void RequestState::resume_alarms() noexcept {
  if (alarms.empty()) return;
  for (HeldAlarm& one : alarms)
    if (std::exchange(one.held, false)) one.alarm.start();
  if (has_alarm_signals) ::pthread_sigmask(SIG_UNBLOCK, &blocked_by_shield, nullptr);
}

// ---- Waiting.

namespace {

int poll_until(pollfd* entries, nfds_t count, Clock::time_point until) noexcept {
  const auto left = std::max<Clock::duration>(until - Clock::now(), Clock::duration::zero());
#if SOCKALARM_LINUX
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(left);
  const timespec timeout{static_cast<time_t>(seconds.count()), static_cast<long>((left - seconds).count())};
  return ::ppoll(entries, count, until == kNever ? nullptr : &timeout, nullptr);
#else
  const auto ms = std::chrono::ceil<std::chrono::milliseconds>(left).count();
  return ::poll(entries, count, until == kNever ? -1 : static_cast<int>(std::min<long long>(ms, 1'000'000)));
#endif
}

}  // namespace

// The pipe is written to as long as `waiting`, and stays readable: so it does not matter when poll() begins.
Result<bool> RequestState::wait(int fd, Clock::time_point until) {
  if (service.inert()) return fail(error_inert());
  if (!wake_pipe) {
    auto made = WakePipe::make();
    if (!made) return fail(made.error().with_context("waking a waiting request"));
    wake_pipe.emplace(std::move(*made));
  }
  for (;;) {
    {
      const MutexLock lock(mutex);
      if (!active) return fail(Error(Errc::invalid_use, "the request has ended"));
      if (shields == 0) {
        stop_here();
        if (auto why = error_of(current_stop())) return fail(std::move(*why));
      }
      waiting = true;
    }
    pollfd entries[] = {{wake_pipe->fd(), POLLIN, 0}, {fd, POLLIN, 0}};
    const int ready = poll_until(entries, fd >= 0 ? 2 : 1, until);
    const int error = errno;
    {
      const MutexLock lock(mutex);
      waiting = false;  // from here on nothing is written to it
    }
    if (ready > 0 && entries[0].revents != 0) wake_pipe->clear();
    if (ready < 0 && error != EINTR) return fail(Error::from_errno(error, "poll()"));
    if (ready > 0 && entries[1].revents != 0) {
      if ((entries[1].revents & POLLNVAL) != 0)
        return fail(Error::from_errno(EBADF, "descriptor " + std::to_string(fd)));
      return true;
    }
    if (Clock::now() >= until) return false;
  }
}

// ---- The end.

Result<void> RequestState::finish() {
  if (service.inert()) {
    cleanups.clear();  // the parent's
    return fail(error_inert());
  }
  std::size_t left = 0;
  bool call_open = false, some_pending = false;
  {
    const MutexLock lock(mutex);
    if (!active) return {};
    await_callbacks();
    active = false;
    ++serial;  // calls and shields that are left find out
    left = record.shields_left = std::exchange(shields, 0);
    call_open = std::exchange(innermost, nullptr) != nullptr;
    if (call_open) kept = service.shared_from_this();
    thread = nullptr;
    next_poke = deadline = kNever;
    some_pending = std::exchange(poked, false);
    record.stop = Clock::now();
    record.total = record.stop - record.start;
    if (left > 0) record.shielded += record.stop - shielded_since;
  }
  if (some_pending) service.poker.take_pending();
  peer_alarm.reset();
  if (!alarms.empty()) {
    if (left > 0 && has_alarm_signals) ::pthread_sigmask(SIG_UNBLOCK, &blocked_by_shield, nullptr);
    alarms.clear();
  }
  tell_end(left, call_open);
  const std::string& path = settled_record().path;
  if (left > 0)
    return fail(Error(Errc::invalid_use, std::to_string(left) + " shield(s) outlived the request " +
                                             (path.empty() ? "" : "for " + path) +
                                             ": end each one before its request"));
  if (call_open) return fail(Error(Errc::invalid_use, "the request was ended inside one of its calls"));
  return {};
}

void RequestState::tell_end(std::size_t shields_left, bool call_open) {
  try {
    forgive_request_limit();
  } catch (...) {
    service.log_error("the handler of a request's limit threw at the end of the request");
  }
  {
    const MutexLock lock(mutex);
    record.cause = gone();
    record.aborted = static_cast<bool>(record.cause);
    if (record.aborted) {
      record.error = record.cause & (events::shut - events::fin) ? watch->error() : 0;
      const auto since = std::max(gone_since(record.stop), record.start);
      record.busy = std::max<Clock::duration>(record.stop - since, Clock::duration::zero());
    }
  }
  run_cleanups();
  cleaned_up = true;
  if (service.policy.on_end) {
    try {
      service.policy.on_end(settled_record());
    } catch (...) {
      service.log_error("Policy::on_end threw");
    }
  }
  if (shields_left > 0)
    service.log_error(std::to_string(shields_left) + " shield(s) outlived the request " +
                      settled_record().path);
  if (call_open) service.log_error("a request was ended inside one of its calls: " + settled_record().path);
}

// The state is used again: what is left here would be the next request's.
void RequestState::on_cleanup(std::function<void(bool)> cleanup) {
  if (service.inert()) return;
  cleanups.push_back(std::move(cleanup));
  if (cleaned_up) run_cleanups();
}

void RequestState::run_cleanups() {
  std::size_t run = 0, failed = 0;
  while (!cleanups.empty()) {
    const auto cleanup = std::move(cleanups.back());
    cleanups.pop_back();
    ++run;
    try {
      cleanup(settled_record().aborted);
    } catch (const std::exception& error) {
      ++failed;
      service.log_error(std::string("a cleanup of a request threw: ") + error.what());
    } catch (...) {
      ++failed;
      service.log_error("a cleanup of a request threw");
    }
  }
  const MutexLock lock(mutex);
  record.cleanups_run += run;
  record.cleanups_failed += failed;
}

}  // namespace sockalarm::detail
