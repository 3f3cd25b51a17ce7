// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/request.h>

#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

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

  std::mutex mutex;  // the rest
  std::uint64_t serial = 0;
  bool active = false;
  Record record;
  Clock::time_point deadline = kNever;  // of the request
  std::optional<Stop> stop;
  std::optional<std::size_t> sounded;  // its limit: the place in record.sounded
  bool asked = false;                  // the handler, about that one
  std::optional<std::stop_source> source;
  CallFrame* innermost = nullptr;
  // Of calls that the request was ended in: until the outermost one has left.
  std::shared_ptr<RequestService> kept;
  std::size_t shields = 0;
  Clock::time_point shielded_since{};

  // Stop callbacks are running, on this thread.
  bool firing = false;
  std::thread::id firing_thread;
  std::condition_variable fired;

  PokedThread* thread = nullptr;  // while a call is under way
  Clock::time_point next_poke = kNever;
  Clock::duration poke_interval{};
  Clock::time_point lost_at{};  // when one that is outstanding counts as lost
  Clock::duration lost_after{};
  bool poked = false;         // since the thread last took what was pending
  bool signal_taken = false;  // by the program: it cannot be poked

  bool waiting = false;  // in wait()
  std::optional<WakePipe> wake_pipe;

 private:
  using Sources = std::vector<std::stop_source>;
  // With the mutex held:
  void take_due(Clock::time_point now, Sources& to_stop);
  std::optional<Stop> due_stop(Clock::time_point now) const;
  const Stop* stop_frames(CallFrame* frame, Clock::time_point now, Sources& to_stop);
  std::size_t note_sounded(const Stop& stop);
  bool is_poking() const noexcept;
  Clock::time_point next_due() const noexcept;
  const Stop* current_stop() const noexcept;
  void await_callbacks(std::unique_lock<std::mutex>& lock);
  void run_callbacks(std::unique_lock<std::mutex>& lock, Sources& to_stop);
  bool stop_here(std::unique_lock<std::mutex>& lock);
  void release_due(Clock::time_point now, Sources& to_stop);
  void poke(Clock::time_point now) noexcept;

  // Without it:
  bool ask_handler(std::size_t which, ValueSlot value);
  bool forgive_request_limit();
  void tell_end(std::size_t shields_left, bool call_open);
  void hold_alarms() noexcept;
  void resume_alarms() noexcept;
  void run_cleanups();
};

std::optional<Error> error_of(const Stop* stop);
Error error_inert();

}  // namespace sockalarm::detail
