// SPDX-License-Identifier: Apache-2.0
#include "request/request_state.h"

#include <algorithm>
#include <chrono>

#include "core/action_impl.h"
#include "request/request_service.h"

namespace sockalarm::detail {
namespace {

// The first signal may come before the system call that it is to end has begun. So there is another one soon.
constexpr std::chrono::milliseconds kFirstPoke{1}, kLongestPoke{10};
// One that was not handled by then may have been taken by somebody else: sigwait(3), a debugger, a sanitizer.
constexpr std::chrono::milliseconds kLost{100};

Clock::time_point after(Clock::time_point now, std::chrono::nanoseconds limit) noexcept {
  return limit.count() == 0 ? kNever : later(now, limit);
}

void stop_all(const std::vector<std::stop_source>& sources) {
  for (const std::stop_source& source : sources) source.request_stop();
}

}  // namespace

Error error_inert() {
  return {Errc::inert_after_fork, "this Request was inherited by fork(); it is the parent's"};
}

std::optional<Error> error_of(const Stop* stop) {
  if (stop == nullptr) return std::nullopt;
  Errc code = Errc::peer_gone;
  if (stop->cause == StopCause::call_limit) code = Errc::limit_passed;
  if (stop->cause == StopCause::request_limit) code = Errc::request_limit_passed;
  return Error(code, to_string(*stop));
}

RequestState::RequestState(RequestService& owner)
    : service(owner), chain{call([this] { service.look_at(look(Clock::now())); })} {}

Result<void> RequestState::begin(const Watch* of, std::string_view path) {
  Clock::time_point due;
  bool later = true;
  watch = of;
  cleaned_up = false;
  {
    const MutexLock lock(mutex);
    Record fresh;  // with the memory of the one before
    fresh.path = std::move(record.path);
    fresh.override_matched = std::move(record.override_matched);
    fresh.sounded = std::move(record.sounded);
    fresh.path.assign(path);
    fresh.override_matched.clear();
    fresh.sounded.clear();
    record = std::move(fresh);
    record.began = std::chrono::system_clock::now();
    record.start = Clock::now();
    record.limit = service.limit_of(path, record.override_matched);
    deadline = due = after(record.start, record.limit);
    stop.reset();
    sounded.reset();
    asked = false;
    source.reset();
    ++serial;
    active = true;
    later = service.planned_by(due);
  }
  if (!later) service.look_at(due);
  if (watch == nullptr) return {};
  auto armed = watch->arm(chain, {.on = service.policy.on, .deadline = {}});
  if (armed) {
    peer_alarm.emplace(std::move(*armed));
    return {};
  }
  const MutexLock lock(mutex);
  active = false;
  return fail(armed.error());
}

Events RequestState::gone() const noexcept {
  return watch != nullptr ? watch->seen() & service.policy.on : events::none;
}

// By an event that the policy has: others may have been there before.
Clock::time_point RequestState::gone_since(Clock::time_point now) const noexcept {
  const Clock::time_point at = watch->seen_at(service.policy.on);
  return at == Clock::time_point{} ? now : at;
}

// ---- What is due.

std::optional<Stop> RequestState::due_stop(Clock::time_point now) const {
  const Events seen = gone();
  Clock::time_point gone_at = kNever;
  if (seen) gone_at = gone_since(now);
  Stop due;
  if (deadline <= now && deadline < gone_at) {
    due.cause = StopCause::request_limit;
    due.limit = record.limit;
    due.at = deadline;
    return due;
  }
  if (!seen) return std::nullopt;
  due.cause = StopCause::peer_gone;
  due.events = seen;
  due.error = seen & (events::shut - events::fin) ? watch->error() : 0;
  due.at = gone_at;
  return due;
}

std::size_t RequestState::note_sounded(const Stop& of) {
  Sounded entry;
  entry.cause = of.cause;
  if (of.cause == StopCause::call_limit)
    entry.call = of.call;
  else if (innermost != nullptr)
    entry.call = innermost->name_;
  entry.limit = of.limit;
  entry.after = of.at - record.start;
  record.sounded.push_back(std::move(entry));
  return record.sounded.size() - 1;
}

// From the outermost call inwards: each stops for its own limit, or for what stopped the one around it,
// whichever was due first. Answers what the call stopped for.
const Stop* RequestState::stop_frames(CallFrame* frame, Clock::time_point now, Sources& to_stop) {
  if (frame == nullptr) return stop ? &*stop : nullptr;
  const Stop* const around = stop_frames(frame->outer_, now, to_stop);
  if (frame->stop_) return &*frame->stop_;
  if (frame->deadline_ <= now && (around == nullptr || frame->deadline_ < around->at)) {
    Stop own;
    own.call = frame->name_;
    own.limit = frame->limit_;
    own.at = frame->deadline_;
    frame->sounded_ = note_sounded(own);
    frame->stop_ = std::move(own);
  } else if (around != nullptr) {
    frame->stop_ = *around;
  } else {
    return nullptr;
  }
  to_stop.push_back(frame->source_);
  if (frame == innermost) {
    next_poke = now;
    poke_interval = kFirstPoke;
  }
  return &*frame->stop_;
}

void RequestState::take_due(Clock::time_point now, Sources& to_stop) {
  if (!active || shields > 0) return;
  if (!stop) {
    stop = due_stop(now);
    if (stop && stop->cause == StopCause::request_limit) sounded = note_sounded(*stop);
    if (stop && source) to_stop.push_back(*source);
  }
  stop_frames(innermost, now, to_stop);
}

bool RequestState::is_poking() const noexcept {
  return innermost != nullptr && innermost->stop_ && shields == 0;
}

Clock::time_point RequestState::next_due() const noexcept {
  if (!active || shields > 0) return kNever;
  Clock::time_point due = stop ? kNever : deadline;
  for (const CallFrame* frame = innermost; frame != nullptr; frame = frame->outer_)
    if (!frame->stop_) due = std::min(due, frame->deadline_);
  return is_poking() ? std::min(due, next_poke) : due;
}

const Stop* RequestState::current_stop() const noexcept {
  const std::optional<Stop>& current = innermost != nullptr ? innermost->stop_ : stop;
  return current ? &*current : nullptr;
}

// ---- The dispatcher.

Clock::time_point RequestState::look(Clock::time_point now) {
  MutexLock lock(mutex);
  if (!active) return kNever;
  if (firing) return now + kFirstPoke;  // the Watch's Watcher is another one, and its dispatcher is at it
  Sources to_stop;
  take_due(now, to_stop);
  // Tokens first: who comes out of a system call finds its token stopped.
  run_callbacks(to_stop);
  const bool refused = signal_taken;
  if (is_poking() && next_poke <= now) poke(now);
  if (waiting && shields == 0 && current_stop() != nullptr) wake_pipe->wake();
  const bool tell = signal_taken && !refused;
  const Clock::time_point due = next_due();
  lock.unlock();
  if (tell)
    service.log_error("signal " + std::to_string(service.poker.signal()) +
                      " was taken over by the program: threads of Requests are not got out of their system "
                      "calls any more. Handle another one, or make Requests after installing its handler");
  return due;
}

void RequestState::run_callbacks(Sources& to_stop) {
  if (to_stop.empty()) return;
  firing = true;
  firing_thread = std::this_thread::get_id();
  {
    const MutexUnlock unlocked(mutex);
    stop_all(to_stop);
  }
  firing = false;
  fired.notify_all();
}

// The request's thread waits for callbacks that the dispatcher runs. Not from inside one of them.
void RequestState::await_callbacks() {
  if (firing && firing_thread == std::this_thread::get_id()) return;
  while (firing) fired.wait(mutex);
}

// The mutex is held here and at the end of a call: so no signal is sent to a thread that has left it.
void RequestState::poke(Clock::time_point now) noexcept {
  const bool outstanding = thread->outstanding.load(std::memory_order_relaxed);
  if (!outstanding || now >= lost_at) {
    lost_after =
        outstanding ? lost_after * 2 : kLost;  // so a thread that blocks it finds a few, not thousands
    lost_at = now + lost_after;
    signal_taken = !service.poker.is_ours();
    if (!signal_taken && service.poker.send(*thread)) {  // else the next one is tried
      poked = true;
      ++record.pokes;
    }
  }
  next_poke = now + poke_interval;
  poke_interval = std::min<Clock::duration>(poke_interval * 2, kLongestPoke);
}

// ---- Calls.

// In the request's thread, what is due now. True: some was, and the mutex was let go of meanwhile.
bool RequestState::stop_here() {
  Sources to_stop;
  take_due(Clock::now(), to_stop);
  if (to_stop.empty()) return false;
  const MutexUnlock unlocked(mutex);
  stop_all(to_stop);
  return true;
}

std::optional<Error> RequestState::enter(CallFrame& frame) {
  if (service.inert()) return error_inert();
  PokedThread& here = service.poker.this_thread();
  Clock::time_point due = kNever;
  {
    MutexLock lock(mutex);
    if (!active) return Error(Errc::invalid_use, "the request has ended");
    if (innermost != nullptr && thread != &here)
      return Error(Errc::invalid_use, "call '" + std::string(frame.name_) +
                                          "' while another thread is in call '" +
                                          std::string(innermost->name_) + "': one thread at a time");
    if (shields == 0) {
      stop_here();
      if (innermost == nullptr && sounded && !asked) {
        lock.unlock();
        forgive_request_limit();
        lock.lock();
      }
      if (const Stop* const stopped_already = current_stop()) return error_of(stopped_already);
    }
    frame.serial_ = serial;
    frame.deadline_ = after(Clock::now(), frame.limit_);
    frame.outer_ = innermost;
    innermost = &frame;
    thread = &here;
    if (!service.planned_by(frame.deadline_)) due = frame.deadline_;
  }
  service.look_at(due);
  return std::nullopt;
}

std::optional<Error> RequestState::leave(CallFrame& frame, ValueSlot value) {
  if (service.inert()) return std::nullopt;  // forked inside; another thread may have had the mutex then
  std::shared_ptr<RequestService> last;      // if it is, we end with it: not under the mutex
  std::optional<Stop> why;
  bool outermost = false;
  {
    const MutexLock lock(mutex);
    if (frame.serial_ != serial) {  // the request ended inside
      if (frame.outer_ == nullptr) last = std::move(kept);
      return std::nullopt;
    }
    innermost = frame.outer_;
    outermost = innermost == nullptr;
    if (outermost) thread = nullptr;
    why = std::move(frame.stop_);
    frame.stop_.reset();
    if (!is_poking()) next_poke = kNever;
    if (!std::exchange(poked, false) && !why) return std::nullopt;
  }
  // What was sent may not have arrived yet. From here on nothing is sent for this call.
  service.poker.take_pending();
  if (!why) return std::nullopt;
  if (frame.sounded_ && !ask_handler(*frame.sounded_, value)) return std::nullopt;
  if (outermost && why->cause == StopCause::request_limit && forgive_request_limit()) return std::nullopt;
  return error_of(&*why);
}

// False: go on.
bool RequestState::ask_handler(std::size_t which, ValueSlot value) {
  if (!service.policy.handler) return true;
  Sounded entry;
  {
    const MutexLock lock(mutex);
    entry = record.sounded[which];
  }
  Sounding sounding(entry, value);
  service.policy.handler(sounding);
  const MutexLock lock(mutex);
  record.sounded[which].fatal = sounding.fatal;
  return sounding.fatal;
}

// Asks the handler, once, and outside of calls. True: it says that the request is to go on.
bool RequestState::forgive_request_limit() {
  std::size_t which = 0;
  {
    const MutexLock lock(mutex);
    if (!sounded || std::exchange(asked, true)) return false;
    which = *sounded;
  }
  if (ask_handler(which, {})) return false;
  {
    const MutexLock lock(mutex);
    stop.reset();
    source.reset();
    deadline = kNever;
  }
  // If it left meanwhile its alarm has fired, and found the request stopped.
  if (gone()) service.look_at(Clock::now());
  return true;
}

void RequestState::off() noexcept {
  if (service.inert()) return;
  const MutexLock lock(mutex);
  record.limits_off = true;
  deadline = kNever;
  for (CallFrame* frame = innermost; frame != nullptr; frame = frame->outer_) frame->deadline_ = kNever;
}

// ---- Questions.

std::optional<Stop> RequestState::stopped() {
  if (service.inert()) return std::nullopt;
  const MutexLock lock(mutex);
  const Stop* const current = current_stop();
  return current != nullptr ? std::optional<Stop>(*current) : std::nullopt;
}

std::stop_token RequestState::stop_token() {
  if (service.inert()) return {};
  MutexLock lock(mutex);
  if (!source) source.emplace();
  const std::stop_source mine = *source;
  const bool already = stop.has_value();
  lock.unlock();
  if (already) mine.request_stop();
  return mine.get_token();
}

Record RequestState::copy_record() {
  if (service.inert()) return settled_record();
  const MutexLock lock(mutex);
  return record;
}

}  // namespace sockalarm::detail
