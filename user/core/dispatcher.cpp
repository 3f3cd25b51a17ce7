// SPDX-License-Identifier: Apache-2.0
#include "core/dispatcher.h"

#include <pthread.h>

#include <algorithm>
#include <exception>
#include <string>

#include "base/blocked_signals.h"
#include "core/action_impl.h"
#include "core/alarm_record.h"
#include "core/time_slice.h"

namespace sockalarm::detail {
namespace {

constexpr std::chrono::microseconds kSlice{100};  // the shortest one that the kernel knows

// Tells the processor that this is a loop that waits.
void relax() noexcept {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

Result<void> Dispatcher::start(std::shared_ptr<void> owner, NewsHandler on_news) {
  owner_ = owner;
  const BlockedSignals blocked;
  program_mask_ = blocked.before();
  try {
    thread_ = std::thread([this, owner = std::move(owner), handler = std::move(on_news)] { loop(handler); });
  } catch (const std::system_error& error) {
    return fail(Error(error.code(), std::string("starting the dispatcher thread: ") + error.what()));
  }
  return {};
}

Result<void> Dispatcher::make_realtime([[maybe_unused]] int priority) {
#if SOCKALARM_LINUX
  has_slice_.wait(false);  // asking for a slice would take the priority away
  const sched_param parameters{priority};
  const int failed =
      ::pthread_setschedparam(thread_.native_handle(), SCHED_FIFO | SCHED_RESET_ON_FORK, &parameters);
  if (failed == 0) return {};
  return fail(
      Error::from_errno(failed, "SCHED_FIFO with priority " + std::to_string(priority) +
                                    " for the dispatcher (needs CAP_SYS_NICE, or ulimit -r / LimitRTPRIO=)"));
#else
  return fail(Error(Errc::unsupported, "Options::realtime_priority is only on Linux"));
#endif
}

void Dispatcher::stop() noexcept {
  refuse();
  source_.wake();
  if (thread_.joinable()) {
    if (on_this_thread())
      thread_.detach();
    else
      thread_.join();
  }
  helpers_.stop();  // the last one to give them work has ended, or is here
}

void Dispatcher::post(const Job& job) {
  bool taken = false, first = false;
  {
    const MutexLock lock(mutex_);
    taken = !over_;
    first = jobs_.empty();
    if (taken) jobs_.push_back(job);
  }
  if (!taken) return job.alarm->cut_short();
  if (first && !on_this_thread()) source_.wake();
}

Dispatcher::TimerId Dispatcher::add_timer(Clock::time_point when, std::function<void()> callback) {
  bool earliest = false;
  TimerId id;
  {
    const MutexLock lock(mutex_);
    id = {when, next_timer_++};
    timers_.emplace(id, std::move(callback));
    earliest = timers_.begin()->first == id;
  }
  if (earliest && !on_this_thread()) source_.wake();
  return id;
}

void Dispatcher::cancel_timer(TimerId timer) noexcept {
  if (timer == kNoTimer) return;
  std::function<void()> callback;  // what it holds is let go of without the mutex
  const MutexLock lock(mutex_);
  const auto found = timers_.find(timer);
  if (found == timers_.end()) return;
  callback = std::move(found->second);
  timers_.erase(found);
}

void Dispatcher::log(LogLevel level, std::string_view text) const noexcept { tell(log_, level, text); }

std::optional<Dispatcher::Clock::time_point> Dispatcher::wait_until() {
  const MutexLock lock(mutex_);
  if (!jobs_.empty()) return Clock::time_point{};
  if (timers_.empty()) return std::nullopt;
  return timers_.begin()->first.first;
}

void Dispatcher::loop(const NewsHandler& on_news) {
  thread_id_.store(std::this_thread::get_id());
#if SOCKALARM_LINUX
  ::pthread_setname_np(::pthread_self(), "sockalarm");
#endif
  // On a busy machine news must not wait for the end of somebody's turn; without it they only come later.
  [[maybe_unused]] const auto granted = set_time_slice(kSlice, Heirs::none);
  has_slice_.store(true);
  has_slice_.notify_all();
  std::vector<News> news;
  last_news_ = Clock::now();
  while (!stopped()) {
    news.clear();
    const bool some_lost = wait(news);
    if (stopped()) break;
    if (waking_ == Waking::adaptive && (some_lost || !news.empty())) last_news_ = Clock::now();
    on_news(news, some_lost);
    run_due_timers();
    run_jobs();
  }
  std::deque<Job> left;
  std::map<TimerId, std::function<void()>> timers_left;
  {
    const MutexLock lock(mutex_);
    over_ = true;
    left.swap(jobs_);
    timers_left.swap(timers_);
  }
  for (const Job& job : left) job.alarm->cut_short();
}

bool Dispatcher::wait(std::vector<News>& news) {
  const auto until = wait_until();
  if (waking_ != Waking::sleep) {
    source_.looking(true);  // also while what is found is served: we shall look again
    if (look(until)) return source_.wait(Clock::time_point{}, news);
    source_.looking(false);
  }
  const bool some_lost = source_.wait(until, news);
  wakeups_.fetch_add(1, std::memory_order_relaxed);
  return some_lost;
}

// Looks again and again until it is time to call wait(). False: for long enough, it should sleep.
bool Dispatcher::look(std::optional<Clock::time_point> until) const {
  if (until && *until == Clock::time_point{}) return true;  // there are jobs
  if (!source_.looks_cheaply()) return waking_ == Waking::spin || Clock::now() - last_news_ <= spin_for_;
  // What has_news() cannot tell: sockets that the kernel side does not report.
  constexpr std::chrono::microseconds kInterval{20};
  const auto begin = Clock::now();
  for (;;) {
    // The clock costs more than a look.
    for (int i = 0; i < 16; ++i) {
      if (source_.has_news()) return true;
      relax();
    }
    const auto now = Clock::now();
    if (waking_ == Waking::adaptive && now - last_news_ > spin_for_) return false;
    if (now - begin >= kInterval || (until && now >= *until) || stopped()) return true;
  }
}

void Dispatcher::run_due_timers() {
  const auto now = Clock::now();
  for (;;) {
    std::function<void()> callback;
    {
      const MutexLock lock(mutex_);
      if (timers_.empty() || timers_.begin()->first.first > now) return;
      callback = std::move(timers_.begin()->second);
      timers_.erase(timers_.begin());
    }
    callback();
  }
}

void Dispatcher::run_jobs() {
  // Only those that are there now: news that comes while they run is read in between.
  std::size_t count = 0;
  {
    const MutexLock lock(mutex_);
    count = jobs_.size();
  }
  for (; count > 0 && !stopped(); --count) {
    Job job;
    {
      const MutexLock lock(mutex_);
      job = std::move(jobs_.front());
      jobs_.pop_front();
    }
    run_chain(job);
  }
}

void Dispatcher::run_chain(const Job& job) {
  AlarmRecord& alarm = *job.alarm;
  for (int index = job.index; const auto cause = alarm.begin_action(job.generation, index); ++index) {
    if (static_cast<std::size_t>(index) == alarm.chain.size()) return alarm.end(true);
    if (stopped()) return alarm.end(false);
    const Action& action = alarm.chain[static_cast<std::size_t>(index)];
    // One that may block is not for this thread, and any other one is for this thread alone.
    if (action.impl().may_block() == on_this_thread() && hand_over({job.alarm, job.generation, index}))
      return;
    const Outcome outcome = action.impl().run({*cause, alarm.arming_thread.load(), program_mask_});
    actions_run_.fetch_add(1, std::memory_order_relaxed);
    if (outcome.failure) {
      actions_failed_.fetch_add(1, std::memory_order_relaxed);
      log(LogLevel::warning, "action " + std::to_string(index) + " (" + to_string(action) +
                                 ") of the alarm on descriptor " + std::to_string(alarm.fd) +
                                 " failed: " + outcome.failure->message());
    }
    if (outcome.next == Outcome::Next::stop) return alarm.end(false);
    if (outcome.next == Outcome::Next::pause) {
      const Job rest{job.alarm, job.generation, index + 1};
      const TimerId timer = add_timer(Clock::now() + outcome.pause_for, [this, rest] { post(rest); });
      if (!alarm.park(timer)) cancel_timer(timer);
      return;
    }
  }
}

// Gives the chain, whose next action has begun, to a helper, or by a helper back to the dispatcher. False: no
// thread can be started; then it is done here, late for others, rather than never.
bool Dispatcher::hand_over(const Job& job) {
  if (on_this_thread() && !helpers_.ready(owner_)) return false;
  if (!job.alarm->hand_over()) return true;  // cancelled
  if (on_this_thread())
    helpers_.post([this, job] { run_chain(job); });
  else
    post(job);
  return true;
}

}  // namespace sockalarm::detail
