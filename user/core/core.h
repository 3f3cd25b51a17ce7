// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/watcher.h>

#include <atomic>
#include <memory>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/mutex.h"
#include "core/alarm_record.h"
#include "core/core_mutex.h"
#include "core/dispatcher.h"
#include "core/fork.h"
#include "core/sigio.h"
#include "core/sources.h"

namespace sockalarm::detail {

struct Socket;
struct WatchHandle;

// Brings sockets, alarms, source and dispatcher together. Everything that is not on the fast path (arm and
// cancel of a socket's first alarm on events::shut) happens under one mutex. Locks are taken in the order
// Core, AlarmRecord, Dispatcher or Source; no action and no hook runs under any of them.
class Core final : public std::enable_shared_from_this<Core> {
 public:
  static Result<std::shared_ptr<Core>> create(Options options);
  static Result<std::shared_ptr<Core>> create(Options options, ChosenSource chosen);
  void stop() noexcept;

  // Inherited by fork(): nothing may be changed.
  bool inert() const noexcept { return fork_generation() != made_in_; }
  // Why nothing can be armed or watched any more.
  std::optional<Error> refusal() const;

  Result<std::shared_ptr<Socket>> watch(int fd);
  void link(WatchHandle& handle);
  void unlink(WatchHandle& handle) noexcept;
  // By its destructor; what it answers may be the last reference to this.
  [[nodiscard]] std::shared_ptr<Core> remove(Socket& socket) noexcept;

  std::shared_ptr<AlarmRecord> make_record(std::shared_ptr<Socket> socket, int fd);
  void remove(AlarmRecord& record) noexcept;  // by its destructor

  bool start(AlarmRecord& record);
  bool disarm(AlarmRecord& record) noexcept;  // false: it was not armed
  Cancelled cancel(AlarmRecord& record, bool wait) noexcept;

  // Signal-driven I/O, in a signal handler of the thread that armed: takes the alarm if what it waits for has
  // happened. Answers the number of the signal, or 0. Whoever gets it sends it, or runs its handler, in this
  // run of the handler; delivered_here() lets the rest of the chain go on, and may come before that.
  int deliver_here(AlarmRecord& record) noexcept;
  void delivered_here(AlarmRecord& record) noexcept;

  // What set it off; as far as is known while the chain is about to begin.
  Event cause(AlarmRecord& record) const;

  // For what is built on top: timers on its thread, the log hook.
  Dispatcher& dispatcher() noexcept { return dispatcher_; }

  Description describe() const;
  Stats stats() const;

 private:
  Core(Options options, ChosenSource chosen, std::shared_ptr<Sigio> sigio);
  void in_child() noexcept;

  void on_news(const News& news) REQUIRES(core_mutex);
  void found_eof(Socket& socket) REQUIRES(core_mutex);
  void move_if_closed(Socket& socket) REQUIRES(core_mutex);
  void fire_ready(Socket& socket, Events momentary, News::Direct direct = News::Direct::none)
      REQUIRES(core_mutex);
  bool fire(AlarmRecord& record, Events happened);
  Event event_of(const AlarmRecord& record, Events happened) const;
  void post(AlarmRecord& record, std::uint32_t generation, const Event& event, int first_action);
  void go_on(AlarmRecord& record, News::Direct direct) REQUIRES(core_mutex);
  bool expects_direct(const AlarmRecord& record, News::Direct direct) const noexcept REQUIRES(core_mutex);
  bool failed_directly(const AlarmRecord& record, News::Direct direct) const noexcept REQUIRES(core_mutex);
  void await_direct(Socket& socket) REQUIRES(core_mutex);
  void refresh(Socket& socket) REQUIRES(core_mutex);
  void await_eof(Socket& socket) REQUIRES(core_mutex);
  void stop_awaiting_eof(Socket& socket) noexcept REQUIRES(core_mutex);
  void schedule_eof_check(Socket& socket) REQUIRES(core_mutex);
  void schedule_closed_check() REQUIRES(core_mutex);
  void check_closed() REQUIRES(core_mutex);
  void schedule_missed_check() REQUIRES(core_mutex);
  void ask_all() REQUIRES(core_mutex);
  void add_deadline(AlarmRecord& record, std::uint32_t generation) REQUIRES(core_mutex);

  bool rearm_fired(AlarmRecord& record);
  void prepare_direct(AlarmRecord& record) noexcept;
  void disarm_all() noexcept EXCLUDES(core_mutex);
  void report(AlarmRecord& record) noexcept;
  void collect_reported() EXCLUDES(core_mutex);
  bool arm_with_help(AlarmRecord& record, std::uint64_t idle, std::uint64_t armed) EXCLUDES(core_mutex);
  void handle_news(const std::vector<News>& news, bool some_lost) EXCLUDES(core_mutex);
  void settle(AlarmRecord& record) noexcept EXCLUDES(core_mutex);

  const Options options_;
  const std::uint64_t made_in_ = fork_generation();
  const std::unique_ptr<Source> source_;
  std::vector<std::string> why_not_;
  const bool task_work_;                // in force
  const std::shared_ptr<Sigio> sigio_;  // null: not in force
  std::atomic<std::uint64_t> delivered_here_{0};
  std::atomic<AlarmRecord*> reported_{nullptr};  // pushed by signal handlers, taken whole by the dispatcher
  Dispatcher dispatcher_;
  std::atomic<std::uint64_t> fired_{0};

  mutable Mutex mutex_;                                                        // core_mutex stands for it
  std::unordered_map<std::uint64_t, Socket*> sockets_ GUARDED_BY(core_mutex);  // by cookie
  std::set<Socket*> closed_awaited_ GUARDED_BY(core_mutex);  // sockets with an alarm armed on `closed`
  bool closed_check_scheduled_ GUARDED_BY(core_mutex) = false;
  bool missed_check_scheduled_ GUARDED_BY(core_mutex) = false;
  std::size_t socket_count_ GUARDED_BY(core_mutex) = 0;  // with those that are just being destroyed
  std::shared_ptr<Core> self_ GUARDED_BY(core_mutex);    // while there are any

  const ForkHandler fork_handler_{[this] { in_child(); }};  // the last member
};

}  // namespace sockalarm::detail
