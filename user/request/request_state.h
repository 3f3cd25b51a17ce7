// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/request.h>

#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "base/mutex.h"
#include "base/wake_pipe.h"
#include "request/poke.h"

namespace sockalarm::detail {

using Clock = std::chrono::steady_clock;
inline constexpr Clock::time_point kNever = Clock::time_point::max();
inline Clock::time_point later(Clock::time_point from, std::chrono::nanoseconds by) noexcept {
  return by >= kNever - from ? kNever : from + by;
}

// What a Request stands for. Belongs to its service, which hands it to one Request after the other; each has
// another serial, so a Shield or a call that outlived its Request finds out.
//
// Two threads meet here: the request's own, and the dispatcher, which calls look() when something is due.
// Both take `mutex` for what is under it. No function of the program is called under it: stop callbacks run
// with `firing` set instead, and the end of the request and the beginning of a shield wait for that. The
// service's mutex is never taken under it. See docs/requests.md for why no wake-up is lost and none stays.
// NOLINTNEXTLINE(clang-analyzer-optin.performance.Padding): grouped by who writes them
struct RequestState {
  explicit RequestState(RequestService& owner);
  RequestState(const RequestState&) = delete;
  RequestState& operator=(const RequestState&) = delete;

  // The request's thread.
  Result<void> begin(const Watch* of, std::string_view path);
  Result<void> finish();
  std::optional<Error> enter(CallFrame& frame);
  std::optional<Error> leave(CallFrame& frame, ValueSlot value);
  std::uint64_t begin_shield();
  void end_shield(std::uint64_t of) noexcept;
  void on_cleanup(std::function<void(bool)> cleanup);
  Result<void> arm(const ActionChain& chain, Events on);
  // Until `fd` (or none, -1) is readable: true; the time is over: false; or a stop.
  Result<bool> wait(int fd, Clock::time_point until);
  void off() noexcept;

  // The dispatcher. What is due at `now` goes off; answers when to look again.
  Clock::time_point look(Clock::time_point now);

  // Any thread.
  bool aborted() const noexcept { return static_cast<bool>(gone()); }
  Events gone() const noexcept;
  Clock::time_point gone_since(Clock::time_point now) const noexcept;  // if it has
  std::optional<Stop> stopped();
  std::stop_token stop_token();
  Record copy_record();

  RequestService& service;
  RequestState* next = nullptr;  // of all of the service's; written before it is published
  const ActionChain chain;       // of the alarm on the peer: look()

  // The request's thread's.
  const Watch* watch = nullptr;  // also read by the dispatcher, while active
  std::optional<Alarm> peer_alarm;
  std::vector<std::function<void(bool)>> cleanups;
  bool cleaned_up = false;  // after the end
  struct HeldAlarm {
    Alarm alarm;
    bool held = false;
  };
  std::vector<HeldAlarm> alarms;
  sigset_t alarm_signals{};  // that their chains send to the thread
  bool has_alarm_signals = false;
  sigset_t blocked_by_shield{};

  Mutex mutex;
  std::uint64_t serial GUARDED_BY(mutex) = 0;
  bool active GUARDED_BY(mutex) = false;
  Record record GUARDED_BY(mutex);
  Clock::time_point deadline GUARDED_BY(mutex) = kNever;  // of the request
  std::optional<Stop> stop GUARDED_BY(mutex);
  std::optional<std::size_t> sounded GUARDED_BY(mutex);  // its limit: the place in record.sounded
  bool asked GUARDED_BY(mutex) = false;                  // the handler, about that one
  std::optional<std::stop_source> source GUARDED_BY(mutex);
  CallFrame* innermost GUARDED_BY(mutex) = nullptr;
  // Of calls that the request was ended in: until the outermost one has left.
  std::shared_ptr<RequestService> kept GUARDED_BY(mutex);
  std::size_t shields GUARDED_BY(mutex) = 0;
  Clock::time_point shielded_since GUARDED_BY(mutex){};

  // Stop callbacks are running, on this thread.
  bool firing GUARDED_BY(mutex) = false;
  std::thread::id firing_thread GUARDED_BY(mutex);
  ConditionVariable fired;

  PokedThread* thread GUARDED_BY(mutex) = nullptr;  // while a call is under way
  Clock::time_point next_poke GUARDED_BY(mutex) = kNever;
  Clock::duration poke_interval GUARDED_BY(mutex){};
  Clock::time_point lost_at GUARDED_BY(mutex){};  // when one that is outstanding counts as lost
  Clock::duration lost_after GUARDED_BY(mutex){};
  bool poked GUARDED_BY(mutex) = false;         // since the thread last took what was pending
  bool signal_taken GUARDED_BY(mutex) = false;  // by the program: it cannot be poked

  bool waiting GUARDED_BY(mutex) = false;  // in wait()
  std::optional<WakePipe> wake_pipe;       // used by the dispatcher while `waiting`

 private:
  using Sources = std::vector<std::stop_source>;
  void take_due(Clock::time_point now, Sources& to_stop) REQUIRES(mutex);
  std::optional<Stop> due_stop(Clock::time_point now) const REQUIRES(mutex);
  const Stop* stop_frames(CallFrame* frame, Clock::time_point now, Sources& to_stop) REQUIRES(mutex);
  std::size_t note_sounded(const Stop& stop) REQUIRES(mutex);
  bool is_poking() const noexcept REQUIRES(mutex);
  Clock::time_point next_due() const noexcept REQUIRES(mutex);
  const Stop* current_stop() const noexcept REQUIRES(mutex);
  void release_due(Clock::time_point now, Sources& to_stop) REQUIRES(mutex);
  void poke(Clock::time_point now) noexcept REQUIRES(mutex);
  // These let go of it meanwhile.
  void await_callbacks() REQUIRES(mutex);
  void run_callbacks(Sources& to_stop) REQUIRES(mutex);
  bool stop_here() REQUIRES(mutex);

  // The record, where nobody writes it but the calling thread: that of a request which has ended, or the only
  // one of a forked child.
  const Record& settled_record() const NO_THREAD_SAFETY_ANALYSIS { return record; }
  bool ask_handler(std::size_t which, ValueSlot value) EXCLUDES(mutex);
  bool forgive_request_limit() EXCLUDES(mutex);
  void tell_end(std::size_t shields_left, bool call_open) EXCLUDES(mutex);
  void hold_alarms() noexcept;
  void resume_alarms() noexcept;
  void run_cleanups() EXCLUDES(mutex);
};

std::optional<Error> error_of(const Stop* stop);
Error error_inert();

}  // namespace sockalarm::detail
