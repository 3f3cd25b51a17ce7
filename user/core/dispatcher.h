// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <signal.h>
#include <sockalarm/watcher.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "core/helpers.h"
#include "core/log_hook.h"
#include "core/source.h"

namespace sockalarm::detail {

struct AlarmRecord;

// The one background thread: waits on the source and on timers, hands news on, and runs chains. A chain that
// sleeps is parked on a timer, and an action that may block is run by a helper thread, which hands the chain
// back, so no chain waits for another. All signals are blocked in all these threads.
// Its mutex is a leaf: nothing else is locked under it, and callbacks run without it.
class Dispatcher {
 public:
  using Clock = std::chrono::steady_clock;
  // Called after every wait, also without news.
  using NewsHandler = std::function<void(const std::vector<News>& news, bool some_lost)>;
  // Orders by time; the number keeps equal times apart and says which timer.
  using TimerId = std::pair<Clock::time_point, std::uint64_t>;
  static constexpr TimerId kNoTimer{};

  // So long from now; at most some decades, since times that far away cannot be counted in ns.
  template <class Rep, class Period>
  static Clock::time_point in(std::chrono::duration<Rep, Period> delay) noexcept {
    constexpr std::chrono::hours kLongest{24 * 365 * 50};
    return Clock::now() + (delay > kLongest ? Clock::duration(kLongest) : Clock::duration(delay));
  }

  Dispatcher(Source& source, const Options& options)
      : source_(source),
        log_(options.log),
        waking_(options.waking),
        spin_for_(options.spin_for),
        helpers_(options.helper_threads) {}
  Dispatcher(const Dispatcher&) = delete;
  Dispatcher& operator=(const Dispatcher&) = delete;

  // Starts the thread, which keeps `owner` alive. Errors: the thread limit.
  Result<void> start(std::shared_ptr<void> owner, NewsHandler on_news);
  // SCHED_FIFO with that priority. Programs that are started do not inherit it. Errors: EPERM, with the
  // remedy.
  Result<void> make_realtime(int priority);
  // From here on stopped(): the first half of stop().
  void refuse() noexcept { stopping_.store(true); }
  // Ends the threads after the actions that are just running. Called on one of them it only asks that one.
  void stop() noexcept;
  // In a forked child there is no thread to stop.
  void abandon() noexcept { refuse(); }

  bool stopped() const noexcept { return stopping_.load(); }
  bool on_this_thread() const noexcept { return thread_id_.load() == std::this_thread::get_id(); }

  // Run the chain of an alarm that has fired (its phase is `queued` in that generation). Any thread.
  struct Job {
    std::shared_ptr<AlarmRecord> alarm;
    std::uint32_t generation = 0;
    int index = 0;  // of the first action to run
  };
  void post(const Job& job) EXCLUDES(mutex_);
  // `callback` runs on the dispatcher thread. Any thread.
  TimerId add_timer(Clock::time_point when, std::function<void()> callback) EXCLUDES(mutex_);
  void cancel_timer(TimerId timer) noexcept EXCLUDES(mutex_);

  void log(LogLevel level, std::string_view text) const noexcept;
  std::uint64_t actions_run() const noexcept { return actions_run_.load(std::memory_order_relaxed); }
  std::uint64_t wakeups() const noexcept { return wakeups_.load(std::memory_order_relaxed); }
  std::uint64_t actions_failed() const noexcept { return actions_failed_.load(std::memory_order_relaxed); }

 private:
  void loop(const NewsHandler& on_news);
  bool wait(std::vector<News>& news);
  bool look(std::optional<Clock::time_point> until) const;
  std::optional<Clock::time_point> wait_until();
  void run_due_timers();
  void run_jobs();
  void run_chain(const Job& job);
  bool hand_over(const Job& job);

  Source& source_;
  const LogHook log_;
  const Waking waking_;
  const std::chrono::microseconds spin_for_;
  Clock::time_point last_news_{};  // the thread's
  sigset_t program_mask_{};        // the creator's; programs that are started get it back
  std::weak_ptr<void> owner_;      // of this
  std::thread thread_;
  std::atomic<std::thread::id> thread_id_{};
  std::atomic<bool> stopping_{false};
  std::atomic<bool> has_slice_{false};  // set once by the thread, as far as the kernel lets it
  std::atomic<std::uint64_t> actions_run_{0}, actions_failed_{0}, wakeups_{0};

  Mutex mutex_;
  std::deque<Job> jobs_ GUARDED_BY(mutex_);
  std::map<TimerId, std::function<void()>> timers_ GUARDED_BY(mutex_);
  std::uint64_t next_timer_ GUARDED_BY(mutex_) = 1;
  bool over_ GUARDED_BY(mutex_) = false;  // the thread takes no more jobs

  Helpers helpers_;
};

}  // namespace sockalarm::detail
