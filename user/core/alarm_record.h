// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/watcher.h>
#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <thread>

#include "base/mutex.h"
#include "core/core_mutex.h"
#include "core/dispatcher.h"
#include "core/watch_state.h"

namespace sockalarm::detail {

struct Socket;
struct ThreadAlarms;

// What an Alarm stands for. Two parts, each with its own rule:
//
// The control word decides whether this generation fires: idle -> armed -> fired or back to idle, by
// compare-and-swap alone. The first record of a socket uses the word in the shared WatchState, where the
// kernel program sees it; further ones have their own, and their interest counts through WatchState::extra.
//
// It is won by the library, armed -> fired, or in the arming thread, which sends the signal that the chain
// begins with: armed -> delivering -> delivered. Then the dispatcher calls queue(), and from there on `phase`
// tells how far the chain is, under `mutex`:
//   waiting -> queued -> running -> (parked or queued -> running ...) -> ended
// A cancel that finds the alarm fired ends it at the next step. `idle` implies `waiting` with nothing under
// way.
struct AlarmRecord : std::enable_shared_from_this<AlarmRecord> {
  enum class Phase { waiting, queued, running, parked, ended };

  AlarmRecord(std::shared_ptr<Socket> of, int descriptor, bool first);
  ~AlarmRecord();
  AlarmRecord(const AlarmRecord&) = delete;
  AlarmRecord& operator=(const AlarmRecord&) = delete;

  // Unchanged while an Alarm refers to the record.
  const std::shared_ptr<Socket> socket;
  const int fd;
  const bool primary;  // uses the shared control word
  void set_chain(const ActionChain& new_chain);
  ActionChain chain;
  ArmOptions options;
  // Of the chain, as in WatchState::signal; 0: only the dispatcher can begin it.
  std::atomic<std::uint32_t> signal_word{0};
  AlarmRecord* next GUARDED_BY(core_mutex) = nullptr;  // of the same socket

  // Who has it. An Alarm uses it, and gives it back at its end: to its Watch, which hands it to the next one.
  // Without a Watch it keeps itself alive until then. One word, so that an end of both at once has one
  // winner; `self` is written before `alone` is set, and taken by the Alarm that finds it set.
  static constexpr std::uint32_t kInUse = 1, kAlone = 2;
  std::atomic<std::uint32_t> use{kInUse};
  std::shared_ptr<AlarmRecord> self;
  void leave_alone() noexcept;  // by a Watch that goes, or has none to give
  void give_back() noexcept;    // by an Alarm

  std::atomic<pid_t> arming_thread{0};

  std::atomic_ref<std::uint64_t> control() const noexcept {
    return std::atomic_ref<std::uint64_t>(*control_);
  }
  Control load() const noexcept { return Control::unpack(control().load()); }
  // armed -> fired of the generation that is armed now, if it wants one of `what`. The winner must call
  // queue().
  bool try_fire(Events what, Control& fired) noexcept;

  // The signal was sent directly and nobody has gone on with the chain yet.
  bool awaits_rest() const noexcept {
    return load().state == Control::State::delivered && phase.load() == Phase::waiting;
  }
  // Its signal is all there is to do, so nobody is told that it was sent.
  bool only_signals() const noexcept;
  // And nobody needs to, since it was all there was to do. Told to nobody: the alarm is over.
  bool done_directly() const noexcept;
  // Over, in the generation that is in the control word.
  bool over() const noexcept { return phase.load() == Phase::ended || done_directly(); }
  // Sleeps until a signal that is just being sent in another thread has been sent.
  void await_delivery() const noexcept;

  // Interests that need more than the shared words: a timer, a look at the descriptor, another epoll flag.
  bool needs_help() const noexcept {
    return !primary || options.deadline.count() > 0 || (options.on - events::shut) != events::none;
  }

  // The chain's course. `generation` names the firing; an older one is refused.
  bool queue(std::uint32_t generation, const Event& what_happened);  // false: over
  // Answers what set it off; nothing: over.
  std::optional<Event> begin_action(std::uint32_t generation, int index);
  bool park(Dispatcher::TimerId until);       // false: over
  bool hand_over();                           // what was begun is run by another thread. False: over
  bool runs_here() noexcept REQUIRES(mutex);  // the action that runs is the caller
  void end(bool complete) noexcept;
  void cut_short() noexcept;  // the dispatcher is gone
  void mark_ended() noexcept REQUIRES(mutex);

  Mutex mutex;
  ConditionVariable ended;                   // phase became `ended`
  std::atomic<Phase> phase{Phase::waiting};  // written under the mutex, or while idle
  std::atomic<int> current{-1};
  std::atomic<bool> complete{false};
  bool cancel_requested GUARDED_BY(mutex) = false;
  std::uint32_t run_generation GUARDED_BY(mutex) = 0;
  std::thread::id runner GUARDED_BY(mutex);  // while phase is `running`
  Event cause GUARDED_BY(mutex);
  Dispatcher::TimerId resume GUARDED_BY(mutex){};

  Dispatcher::TimerId deadline_timer GUARDED_BY(core_mutex){};

  // Sigio's: the list of the thread that armed; the next on it, under the list's lock.
  std::shared_ptr<ThreadAlarms> listed_in GUARDED_BY(mutex);
  AlarmRecord* next_listed = nullptr;
  // On the Core's list of those whose signal was sent by Sigio, which keeps them alive.
  std::atomic<bool> reported{false};
  AlarmRecord* next_reported = nullptr;
  std::shared_ptr<AlarmRecord> reported_self;

 private:
  bool ended_by_cancel() noexcept REQUIRES(mutex);

  std::uint64_t own_control_ = 0;
  std::uint64_t* control_;
};

}  // namespace sockalarm::detail
