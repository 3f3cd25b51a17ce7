// SPDX-License-Identifier: Apache-2.0
#include "core/alarm_record.h"

#include "core/core.h"
#include "core/socket.h"

namespace sockalarm::detail {

AlarmRecord::AlarmRecord(std::shared_ptr<Socket> of, int descriptor, bool first)
    : socket(std::move(of)),
      fd(descriptor),
      primary(first),
      control_(first ? &socket->state->control : &own_control_) {}

void AlarmRecord::set_chain(const ActionChain& new_chain) {
  // Mostly it is the same one again: compared, because a copy costs two atomic counts.
  if (new_chain.actions_ == chain.actions_) return;
  chain = new_chain;
  const auto signal = static_cast<std::uint32_t>(chain.first_signal_);
  signal_word.store(signal != 0 && chain.size() > 1 ? signal | SOCKALARM_TELL : signal);
}

bool AlarmRecord::only_signals() const noexcept {
  return (signal_word.load(std::memory_order_relaxed) & SOCKALARM_TELL) == 0 && !needs_help();
}

bool AlarmRecord::done_directly() const noexcept { return awaits_rest() && only_signals(); }

void AlarmRecord::await_delivery() const noexcept {
  // It runs inside the kernel, or in a handler with all signals blocked: a few microseconds, unless
  // preempted.
  while (load().state == Control::State::delivering) std::this_thread::yield();
}

void AlarmRecord::leave_alone() noexcept {
  self = shared_from_this();
  if ((use.fetch_or(kAlone) & kInUse) == 0) self.reset();
}

void AlarmRecord::give_back() noexcept {
  std::shared_ptr<AlarmRecord> last;
  if ((use.fetch_sub(kInUse) & kAlone) != 0) last = std::move(self);
}

AlarmRecord::~AlarmRecord() {
#if SOCKALARM_LINUX
  Sigio::leave(*this);
#endif
  socket->core->remove(*this);
}

bool AlarmRecord::try_fire(Events what, Control& fired) noexcept {
  std::uint64_t word = control().load();
  for (;;) {
    const Control now = Control::unpack(word);
    if (now.state != Control::State::armed || !(now.interest & what)) return false;
    fired = now;
    fired.state = Control::State::fired;
    if (control().compare_exchange_weak(word, fired.pack())) return true;
  }
}

bool AlarmRecord::queue(std::uint32_t generation, const Event& what_happened) {
  const MutexLock lock(mutex);
  // Between firing and now it may have been cancelled, and even armed again.
  const Control now = load();
  if (now.generation != generation || !now.has_fired()) return false;
  cause = what_happened;
  if (phase.load() == Phase::ended) return false;
  run_generation = generation;
  phase.store(Phase::queued);
  return true;
}

std::optional<Event> AlarmRecord::begin_action(std::uint32_t generation, int index) {
  const MutexLock lock(mutex);
  if (run_generation != generation || phase.load() == Phase::ended || phase.load() == Phase::waiting)
    return std::nullopt;
  resume = Dispatcher::kNoTimer;
  if (ended_by_cancel()) return std::nullopt;
  phase.store(Phase::running);
  runner = std::this_thread::get_id();
  current.store(index);
  return cause;
}

bool AlarmRecord::park(Dispatcher::TimerId until) {
  const MutexLock lock(mutex);
  if (ended_by_cancel()) return false;
  resume = until;
  phase.store(Phase::parked);
  return true;
}

bool AlarmRecord::hand_over() {
  const MutexLock lock(mutex);
  if (ended_by_cancel()) return false;
  phase.store(Phase::queued);
  return true;
}

bool AlarmRecord::runs_here() noexcept {
  return phase.load() == Phase::running && runner == std::this_thread::get_id();
}

void AlarmRecord::mark_ended() noexcept {
  phase.store(Phase::ended);
  ended.notify_all();
}

bool AlarmRecord::ended_by_cancel() noexcept {
  if (!cancel_requested) return false;
  mark_ended();
  return true;
}

void AlarmRecord::end(bool all_run) noexcept {
  const MutexLock lock(mutex);
  if (all_run) current.store(static_cast<int>(chain.size()));
  complete.store(all_run);
  mark_ended();
}

void AlarmRecord::cut_short() noexcept {
  const MutexLock lock(mutex);
  if (!load().has_fired() || phase.load() == Phase::running || done_directly()) return;
  mark_ended();
}

}  // namespace sockalarm::detail
