// SPDX-License-Identifier: Apache-2.0
#include "core/core.h"

#include <algorithm>
#include <cerrno>

#include "core/socket.h"
#include "core/socket_identity.h"

#if SOCKALARM_LINUX
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace sockalarm::detail {
namespace {

using Clock = Dispatcher::Clock;
constexpr Events kMomentary = events::readable | events::urgent;
constexpr int kFirstEofCheck = 1, kLongestEofCheck = 50;  // ms
// How long the arming thread may take to get to its signal before the dispatcher begins the chain instead: a
// thread in an uninterruptible sleep must not hold up the actions after the signal.
constexpr std::chrono::milliseconds kDirectGrace{10};
// How often the kernel side is asked whether it has left something out, while sockets are watched.
constexpr std::chrono::seconds kMissedCheck{1};

// A descriptor through which the socket can still be asked; -1: none is left.
int live_descriptor(const Socket& socket) noexcept REQUIRES(core_mutex) {
  const auto is_ours = [&](int fd) { return file_identity(fd) == socket.cookie; };
  for (const WatchHandle* watch = socket.watches; watch != nullptr; watch = watch->next)
    if (is_ours(watch->fd)) return watch->fd;
  for (const AlarmRecord* record = socket.alarms; record != nullptr; record = record->next)
    if (is_ours(record->fd)) return record->fd;
  return -1;
}

// What the armed alarms of a socket want; `further_only`: without the one the kernel program reads by itself.
Events wanted(const Socket& socket, bool further_only = false) noexcept REQUIRES(core_mutex) {
  Events all;
  for (const AlarmRecord* record = socket.alarms; record != nullptr; record = record->next) {
    const Control control = record->load();
    if (control.state == Control::State::armed && !(further_only && record->primary)) all |= control.interest;
  }
  return all;
}

// Out of a list that is linked by `next`.
template <class Link>
void erase(Link*& list, const Link& one) noexcept REQUIRES(core_mutex) {
  for (Link** link = &list; *link != nullptr; link = &(*link)->next) {
    if (*link != &one) continue;
    *link = one.next;
    return;
  }
}

int errno_of(Events found) noexcept {
  if (found & events::timeout) return ETIMEDOUT;
  return (found & events::reset) ? ECONNRESET : 0;
}

// What was found by asking the socket. False: nothing new. Also in a signal handler.
bool note(Socket& socket, Events found) noexcept {
  if (!(found - seen(*socket.state))) return false;
  mark_seen(*socket.state, found, errno_of(found), to_ns(Clock::now()));
  return true;
}

// A signal that was sent to this thread is delivered on the way out of a system call, so none is left pending
// when a lost cancel returns.
void take_pending_signal() noexcept {
#if SOCKALARM_LINUX
  ::syscall(SYS_gettid);
#endif
}

}  // namespace

Socket::~Socket() {
  const std::shared_ptr<Core> last = core->remove(*this);
  if (owns_state) delete state;
}

namespace {

Result<void> check(const Options& options) {
  const auto refuse = [](const std::string& what) {
    return fail(Error(Errc::invalid_options, "Options::" + what));
  };
  if (options.closed_check.count() <= 0)
    return refuse("closed_check is " + std::to_string(options.closed_check.count()) +
                  " ms; it must be at least 1 ms");
  if (options.spin_for.count() < 0)
    return refuse("spin_for is " + std::to_string(options.spin_for.count()) + " us; it must be 0 us or more");
  if (options.helper_threads < 1 || options.helper_threads > 1024)
    return refuse("helper_threads is " + std::to_string(options.helper_threads) +
                  "; it must be between 1 and 1024");
  if (options.realtime_priority < 0 || options.realtime_priority > 99)
    return refuse("realtime_priority is " + std::to_string(options.realtime_priority) +
                  "; it must be 1 to 99, or 0 for an ordinary thread");
  // max_entries of bpf(2) has 32 bits, and a ring's must be a power of two. Refused also where the source
  // that is chosen needs no ring.
  constexpr std::size_t kLargestRing = std::size_t{1} << 31;
  if (options.ring_bytes > kLargestRing)
    return refuse("ring_bytes is " + std::to_string(options.ring_bytes) + "; it must be at most " +
                  std::to_string(kLargestRing) + " (2 GiB)");
  // Values that are none of the enumeration's; their names would be "unknown".
  if (!parse_source(to_string(options.source)))
    return refuse("source is " + std::to_string(static_cast<int>(options.source)) +
                  "; it must be one of SourceKind");
  if (!parse_delivery(to_string(options.delivery)))
    return refuse("delivery is " + std::to_string(static_cast<int>(options.delivery)) +
                  "; it must be one of Delivery");
  if (!parse_waking(to_string(options.waking)))
    return refuse("waking is " + std::to_string(static_cast<int>(options.waking)) +
                  "; it must be one of Waking");
  return {};
}

// Refuses a delivery that was demanded and cannot be had; one that was only wished for goes on the list.
Result<std::shared_ptr<Sigio>> choose_delivery(const Options& options, ChosenSource& chosen) {
  if (options.delivery == Delivery::sigio) {
#if SOCKALARM_LINUX
    return Sigio::acquire();
#else
    return fail(Error(Errc::unsupported, "signal-driven I/O to a thread is only on Linux"));
#endif
  }
  const auto delivers = chosen.source->delivers();
  if (!delivers && options.delivery != Delivery::dispatcher) {
    Error why = delivers.error().with_context("no task work");
    if (options.delivery == Delivery::task_work) return fail(std::move(why));
    chosen.why_not.push_back(why.message());
  }
  return nullptr;
}

}  // namespace

Core::Core(Options options, ChosenSource chosen, std::shared_ptr<Sigio> sigio)
    : options_(std::move(options)),
      source_(std::move(chosen.source)),
      why_not_(std::move(chosen.why_not)),
      task_work_(source_->delivers().has_value()),
      sigio_(std::move(sigio)),
      dispatcher_(*source_, options_) {}

Result<std::shared_ptr<Core>> Core::create(Options options) {
  if (auto ok = check(options); !ok) return fail(ok.error());
  auto chosen = choose_source(options);
  if (!chosen) return fail(chosen.error());
  return create(std::move(options), std::move(*chosen));
}

Result<std::shared_ptr<Core>> Core::create(Options options, ChosenSource chosen) {
  auto sigio = choose_delivery(options, chosen);
  if (!sigio) return fail(sigio.error());
  auto core = std::shared_ptr<Core>(new Core(std::move(options), std::move(chosen), std::move(*sigio)));
  for (const std::string& why : core->why_not_) core->dispatcher_.log(LogLevel::info, why);
  if (const std::string times = core->source_->times(); !times.empty())
    core->dispatcher_.log(LogLevel::debug, times);
  Core* const self = core.get();
  auto started = core->dispatcher_.start(
      core, [self](const std::vector<News>& news, bool some_lost) { self->handle_news(news, some_lost); });
  if (!started) return fail(started.error());
  if (const int priority = core->options_.realtime_priority; priority > 0) {
    if (auto ok = core->dispatcher_.make_realtime(priority); !ok) {
      core->why_not_.push_back(ok.error().message());
      core->dispatcher_.log(LogLevel::warning, core->why_not_.back());
    }
  }
  return core;
}

void Core::stop() noexcept {
  if (inert()) return;
  dispatcher_.refuse();
  disarm_all();
  dispatcher_.stop();
  {
    const CoreLock lock(mutex_);
    for (const auto& [cookie, socket] : sockets_) {
      for (AlarmRecord* record = socket->alarms; record != nullptr; record = record->next)
        record->cut_short();
#if SOCKALARM_LINUX
      Sigio::release(*socket);
#endif
    }
  }
  collect_reported();  // they keep themselves alive, and with them us
}

// Who delivers directly does not ask whether there still is a dispatcher. The alarms stay armed, for nothing.
void Core::disarm_all() noexcept {
  const CoreLock lock(mutex_);
  for (const auto& [cookie, socket] : sockets_) {
    for (AlarmRecord* record = socket->alarms; record != nullptr; record = record->next) {
      std::uint64_t word = record->control().load();
      for (Control control = Control::unpack(word); control.state == Control::State::armed;
           control = Control::unpack(word)) {
        control.interest = events::none;
        if (record->control().compare_exchange_weak(word, control.pack())) break;
      }
      record->await_delivery();
#if SOCKALARM_LINUX
      Sigio::leave(*record);
#endif
    }
  }
}

void Core::in_child() noexcept {
  dispatcher_.abandon();
  source_->after_fork();
}

std::optional<Error> Core::refusal() const {
  if (inert())
    return Error(Errc::inert_after_fork,
                 "this Watcher was inherited by fork(); the child process must create its own");
  if (dispatcher_.stopped()) return Error(Errc::stopped, "the Watcher was destroyed");
  return std::nullopt;
}

Result<std::shared_ptr<Socket>> Core::watch(int fd) {
  if (auto refused = refusal()) return fail(std::move(*refused));
  const auto kind = examine_stream(fd);
  if (!kind) return fail(kind.error().with_context("watch()"));
  const auto identity = file_identity(fd);
  if (!identity) return fail(Error::from_errno(EBADF, "watch(): descriptor " + std::to_string(fd)));

  std::shared_ptr<Socket> socket;  // outside the lock: its destructor takes it
  const CoreLock lock(mutex_);
  if (const auto known = sockets_.find(*identity); known != sockets_.end()) {
    socket = known->second->weak_from_this().lock();
    if (socket) return socket;
    // Its last owner has gone but waits for our lock to unregister.
    source_->remove(*known->second);
    known->second->registered = false;
    sockets_.erase(known);
  }
  socket = std::make_shared<Socket>(*this, *identity, *kind);
  if (socket_count_++ == 0) self_ = shared_from_this();
  if (auto added = source_->add(*socket, fd); !added) return fail(added.error().with_context("watch()"));
  socket->registered = true;
  sockets_.emplace(*identity, socket.get());
  // Registered first, looked at second: what had happened is seen now, what happens from here on is reported.
  note(*socket, look(fd, *kind, source_->poll_style()));
  schedule_missed_check();
  return socket;
}

void Core::link(WatchHandle& handle) {
  const CoreLock lock(mutex_);
  handle.next = std::exchange(handle.socket->watches, &handle);
}

void Core::unlink(WatchHandle& handle) noexcept {
  if (inert()) return;
  const CoreLock lock(mutex_);
  Socket& socket = *handle.socket;
  erase(socket.watches, handle);
  // Its owner is about to close the descriptor; ask through another one that is watched, if there is.
  if (handle.fd != socket.registered_fd) return;
  for (const WatchHandle* other = socket.watches; other != nullptr; other = other->next)
    if (other->fd != handle.fd && file_identity(other->fd) == socket.cookie)
      return source_->move(socket, other->fd);
}

// The number that the source asks through was closed: another descriptor of the socket, if we know one,
// serves as well.
void Core::move_if_closed(Socket& socket) {
  if (file_identity(socket.registered_fd) == socket.cookie) return;
  if (const int fd = live_descriptor(socket); fd >= 0) source_->move(socket, fd);
}

std::shared_ptr<Core> Core::remove(Socket& socket) noexcept {
  if (inert()) return nullptr;
  const CoreLock lock(mutex_);
  closed_awaited_.erase(&socket);
  if (socket.registered) {
#if SOCKALARM_LINUX
    Sigio::release(socket);
#endif
    stop_awaiting_eof(socket);
    source_->remove(socket);
    sockets_.erase(socket.cookie);
  }
  return --socket_count_ == 0 ? std::move(self_) : nullptr;
}

std::shared_ptr<AlarmRecord> Core::make_record(std::shared_ptr<Socket> socket, int fd) {
  const CoreLock lock(mutex_);
  bool first = true;
  AlarmRecord** last = &socket->alarms;
  for (; *last != nullptr; last = &(*last)->next) first &= !(*last)->primary;
  auto record = std::make_shared<AlarmRecord>(std::move(socket), fd, first);
  *last = record.get();
  return record;
}

void Core::remove(AlarmRecord& record) noexcept {
  if (inert()) return;
  const CoreLock lock(mutex_);
  erase(record.socket->alarms, record);
}

bool Core::start(AlarmRecord& record) {
  if (inert() || dispatcher_.stopped()) return false;
  std::uint64_t idle = record.control().load();
  if (Control::unpack(idle).has_fired()) {
    if (!rearm_fired(record)) return false;
    idle = record.control().load();
  }
  Control control = Control::unpack(idle);
  if (control.state != Control::State::idle) return false;
  record.arming_thread.store(current_thread(), std::memory_order_relaxed);
  prepare_direct(record);
  ++control.generation;
  control.state = Control::State::armed;
  control.interest = record.options.on;
  if (record.options.deadline.count() > 0) control.interest |= events::deadline;
  if (record.needs_help()) return arm_with_help(record, idle, control.pack());

  // The fast path. Armed first, looked second; the reporting side does it the other way round.
  if (!record.control().compare_exchange_strong(idle, control.pack())) return false;
  if (dispatcher_.stopped()) {  // meanwhile; stop() may not have seen that it was armed
    cancel(record, true);
    return false;
  }
  if (const Events now = seen(*record.socket->state) & control.interest) fire(record, now);
  return true;
}

// Who is to be signalled, before the alarm can be seen as armed.
void Core::prepare_direct(AlarmRecord& record) noexcept {
  std::uint32_t word = record.signal_word.load(std::memory_order_relaxed), tid = 0;
#if SOCKALARM_LINUX
  if (sigio_ && word != 0 && sigio_->enter(record)) {
    word |= SOCKALARM_BY_SIGIO;
  } else if (sigio_) {
    Sigio::leave(record);
    word = 0;
  }
#endif
  if (!record.primary || (!sigio_ && !task_work_)) return;
  if (word != 0 && record.needs_help()) word |= SOCKALARM_TELL;
  if (word != 0 && task_work_ && !sigio_) tid = source_->direct_thread();
  WatchState& state = *record.socket->state;
  shared(state.tid).store(tid, std::memory_order_relaxed);
  shared(state.signal).store(word, std::memory_order_relaxed);
}

// From fired, with the chain at its end, back to idle.
bool Core::rearm_fired(AlarmRecord& record) {
  const MutexLock lock(record.mutex);
  if (!record.over()) return false;
  Control control = record.load();
  control.state = Control::State::idle;
  record.control().store(control.pack());
  record.phase.store(AlarmRecord::Phase::waiting);
  record.current.store(-1);
  record.complete.store(false);
  record.cancel_requested = false;
  return true;
}

bool Core::arm_with_help(AlarmRecord& record, std::uint64_t idle, std::uint64_t armed) {
  const CoreLock lock(mutex_);
  if (dispatcher_.stopped() || !record.control().compare_exchange_strong(idle, armed)) return false;
  if (record.options.deadline.count() > 0) add_deadline(record, Control::unpack(armed).generation);
  refresh(*record.socket);
  if (const Events now = seen(*record.socket->state) & record.options.on; now && fire(record, now))
    refresh(*record.socket);
  return true;
}

bool Core::disarm(AlarmRecord& record) noexcept {
  if (inert()) return false;
  std::uint64_t word = record.control().load();
  for (;;) {
    Control control = Control::unpack(word);
    if (control.state != Control::State::armed) return false;
    control.state = Control::State::idle;
    if (!record.control().compare_exchange_strong(word, control.pack())) continue;
    if (record.needs_help()) settle(record);
    return true;
  }
}

Cancelled Core::cancel(AlarmRecord& record, bool wait) noexcept {
  if (inert()) return Cancelled::inactive;
  for (;;) {
    if (disarm(record)) return Cancelled::prevented;
    const Control control = Control::unpack(record.control().load());
    if (control.state == Control::State::idle) return Cancelled::inactive;
    if (control.state == Control::State::armed) continue;
    MutexLock lock(record.mutex);
    if (Control::unpack(record.control().load()).generation != control.generation ||
        !record.load().has_fired())
      continue;
    if (wait) take_pending_signal();
    if (record.over()) return Cancelled::inactive;
    const Dispatcher::TimerId resume = std::exchange(record.resume, Dispatcher::kNoTimer);
    const bool sending = record.load().state == Control::State::delivering;  // in another thread
    if (sending && record.only_signals()) {  // nobody will tell when it has been sent
      lock.unlock();
      if (wait) record.await_delivery();
      return Cancelled::interrupted;
    }
    // While it is being sent the chain is under way too, and the dispatcher ends it when it takes over.
    if (record.phase.load() == AlarmRecord::Phase::running || sending) {
      record.cancel_requested = true;
      // Not from inside that action, nor on the dispatcher if it is the one that has to end it.
      if (wait && !record.runs_here() && !(sending && dispatcher_.on_this_thread()))
        while (record.phase.load() != AlarmRecord::Phase::ended) record.ended.wait(record.mutex);
    } else {
      record.mark_ended();
    }
    lock.unlock();
    dispatcher_.cancel_timer(resume);
    if (wait) take_pending_signal();
    return Cancelled::interrupted;
  }
}

// Armed -> fired, and its chain to the dispatcher. False: another won, or it does not want this.
bool Core::fire(AlarmRecord& record, Events happened) {
  Control fired;
  if (!record.try_fire(happened, fired)) return false;
  fired_.fetch_add(1, std::memory_order_relaxed);
  post(record, fired.generation, event_of(record, happened & fired.interest), 0);
  return true;
}

Event Core::event_of(const AlarmRecord& record, Events happened) const {
  WatchState& state = *record.socket->state;
  Event event;
  event.what = happened;
  event.cookie = record.socket->cookie;
  event.at = seen_at(state, happened);
  if (event.at == Clock::time_point{}) event.at = Clock::now();
  if (happened & (events::shut - events::fin)) event.error = static_cast<int>(shared(state.error).load());
  return event;
}

void Core::post(AlarmRecord& record, std::uint32_t generation, const Event& event, int first_action) {
  // Without an owner the Alarm has been destroyed meanwhile, after a cancel that ended it.
  auto owner = record.weak_from_this().lock();
  if (!owner) return;
  record.queue(generation, event);
  // Also if it was cancelled just now: the dispatcher finds that out, and our reference, perhaps the last
  // one, is let go of there and not under the mutex, which the record's destructor takes.
  dispatcher_.post({std::move(owner), generation, first_action});
}

// After its signal was sent without us.
void Core::go_on(AlarmRecord& record, News::Direct direct) {
  const Control control = record.load();
  const Event event = event_of(record, seen(*record.socket->state) & control.interest);
  post(record, control.generation, event, direct == News::Direct::failed ? 0 : 1);
}

Event Core::cause(AlarmRecord& record) const {
  const MutexLock held(record.mutex);
  const Control control = record.load();
  if (!control.has_fired()) return {};
  if (record.run_generation == control.generation) return record.cause;
  return event_of(record, seen(*record.socket->state) & control.interest);
}

void Core::settle(AlarmRecord& record) noexcept {
  const CoreLock lock(mutex_);
  dispatcher_.cancel_timer(std::exchange(record.deadline_timer, Dispatcher::kNoTimer));
  refresh(*record.socket);
}

void Core::add_deadline(AlarmRecord& record, std::uint32_t generation) {
  // The timer must not keep the Alarm's record alive, and an Alarm armed again is not meant.
  auto expire = [this, weak = record.weak_from_this(), generation] {
    const auto alarm = weak.lock();
    if (!alarm || alarm->load().generation != generation) return;
    const CoreLock lock(mutex_);
    if (fire(*alarm, events::deadline)) refresh(*alarm->socket);
  };
  record.deadline_timer = dispatcher_.add_timer(Dispatcher::in(record.options.deadline), std::move(expire));
}

int Core::deliver_here(AlarmRecord& record) noexcept {
#if SOCKALARM_LINUX
  const Control armed = record.load();
  if (armed.state != Control::State::armed) return 0;
  Socket& socket = *record.socket;
  // The kernel side has seen it before the signal was sent. Otherwise the socket is asked: the dispatcher may
  // not have got to it. It is told then, for the socket's other alarms: poll() does not ask for what has been
  // seen. Not before this alarm is taken, which it would do at once.
  const bool tell = socket.slot == 0 && !(seen(*socket.state) & armed.interest) &&
                    file_identity(record.fd) == socket.cookie &&
                    note(socket, look(record.fd, socket.kind, source_->poll_style()));
  int number = 0;
  if (seen(*socket.state) & armed.interest) {  // else ordinary data
    Control taken = armed;
    taken.state = Control::State::delivering;
    std::uint64_t word = armed.pack();
    const int signal = static_cast<int>(record.signal_word.load() & SOCKALARM_SIGNAL_MASK);
    if (signal != 0 && record.control().compare_exchange_strong(word, taken.pack())) number = signal;
  }
  if (tell) report(record);
  return number;
#else
  (void)record;
  return 0;
#endif
}

void Core::delivered_here(AlarmRecord& record) noexcept {
  Control taken = record.load();
  taken.state = Control::State::delivered;
  record.control().store(taken.pack());
  delivered_here_.fetch_add(1, std::memory_order_relaxed);
  if (!record.done_directly()) report(record);
}

// In a signal handler: onto a list that the dispatcher takes whole. What is on it is alive.
void Core::report(AlarmRecord& record) noexcept {
  if (!record.reported.exchange(true)) {
    record.reported_self = record.weak_from_this().lock();
    record.next_reported = reported_.load(std::memory_order_relaxed);
    while (!reported_.compare_exchange_weak(record.next_reported, &record)) {
    }
  }
  source_->wake();
}

void Core::collect_reported() {
  AlarmRecord* next = reported_.exchange(nullptr);
  while (next != nullptr) {
    AlarmRecord& record = *next;
    next = record.next_reported;
    const auto alive = std::move(record.reported_self);  // let go of without the mutex
    record.reported.store(false);                        // from here on it may be reported again
    if (!alive) continue;
    const CoreLock lock(mutex_);
    fire_ready(*alive->socket, events::none);
  }
}

void Core::handle_news(const std::vector<News>& news, bool some_lost) {
  if (reported_.load() != nullptr) collect_reported();
  if (news.empty() && !some_lost) return;
  const CoreLock lock(mutex_);
  for (const News& one : news) on_news(one);
  if (!some_lost) return;
  for (const auto& [cookie, socket] : sockets_)
    if (seen(*socket->state)) fire_ready(*socket, events::none);
}

void Core::on_news(const News& news) {
  const auto known = sockets_.find(news.cookie);
  if (known == sockets_.end()) return;  // unregistered meanwhile
  Socket& socket = *known->second;
  // With signal-driven I/O the thread has been signalled, or is just about to be.
  const News::Direct direct = sigio_ ? News::Direct::scheduled : news.direct;
  switch (news.certainty) {
    case News::Certainty::recorded:
      return fire_ready(socket, events::none, direct);
    case News::Certainty::exact:
      return fire_ready(socket, news.what, direct);
    case News::Certainty::hint:
      if (socket.slot != 0) return;  // the kernel side reports it, with more to say
      break;
    case News::Certainty::unseen:
      break;
  }
  move_if_closed(socket);
  const int fd = live_descriptor(socket);
  const Events now = fd >= 0 ? look(fd, socket.kind, source_->poll_style()) : news.what;
  note(socket, now);
  fire_ready(socket, events::none, direct);
}

void Core::found_eof(Socket& socket) {
  mark_seen(*socket.state, events::eof, 0, 0);
  fire_ready(socket, events::none);
}

void Core::fire_ready(Socket& socket, Events momentary, News::Direct direct) {
  const Events now = seen(*socket.state) | momentary;
  bool wait = false;
  for (AlarmRecord* record = socket.alarms; record != nullptr; record = record->next) {
    if (record->awaits_rest() ? !record->done_directly() : failed_directly(*record, direct))
      go_on(*record, direct);
    else if (expects_direct(*record, direct))
      wait = true;
    else
      fire(*record, now);
  }
  if (wait) await_direct(socket);
  refresh(socket);
}

// The thread that armed is just about to take it.
bool Core::expects_direct(const AlarmRecord& record, News::Direct direct) const noexcept {
  if (direct != News::Direct::scheduled) return false;
#if SOCKALARM_LINUX
  if (sigio_) {
    const Socket& socket = *record.socket;
    const Control control = record.load();
    return control.state == Control::State::armed && record.signal_word.load() != 0 &&
           (seen(*socket.state) & control.interest) &&
           socket.sigio_owner.load() == record.arming_thread.load();
  }
#endif
  return record.primary;
}

// It took it, but the kernel refused to send the signal: nobody has begun the chain.
bool Core::failed_directly(const AlarmRecord& record, News::Direct direct) const noexcept {
  return direct == News::Direct::failed && record.primary && record.load().state == Control::State::fired &&
         record.phase.load() == AlarmRecord::Phase::waiting;
}

// If it does not get to it in time, we do.
void Core::await_direct(Socket& socket) {
  // From the newest event on: we may have been told late.
  const std::uint64_t newest =
      std::max(shared(socket.state->fin_at).load(), shared(socket.state->end_at).load());
  const auto since = newest != 0 ? from_ns(newest) : Clock::now();
  dispatcher_.add_timer(since + kDirectGrace, [this, weak = socket.weak_from_this()] {
    const auto alive = weak.lock();
    if (!alive) return;
    const CoreLock lock(mutex_);
    fire_ready(*alive, events::none);
  });
}

// Brings what the socket's armed alarms need beside the shared words up to date.
void Core::refresh(Socket& socket) {
  for (AlarmRecord* record = socket.alarms; record != nullptr; record = record->next)
    if (record->deadline_timer != Dispatcher::kNoTimer && record->load().state != Control::State::armed)
      dispatcher_.cancel_timer(std::exchange(record->deadline_timer, Dispatcher::kNoTimer));

  shared(socket.state->extra).store(wanted(socket, true).bits());
  const Events all = wanted(socket);
  if (const Events momentary = all & kMomentary; momentary != socket.momentary) {
    socket.momentary = momentary;
    move_if_closed(socket);
    source_->want(socket, momentary);
  }
  const Events sticky = seen(*socket.state);
  if ((all & events::eof) && (sticky & events::fin) && !(sticky & events::eof))
    await_eof(socket);
  else
    stop_awaiting_eof(socket);
  if (all & events::closed) {
    if (closed_awaited_.insert(&socket).second) source_->watch_closing();
    schedule_closed_check();
  } else {
    closed_awaited_.erase(&socket);
  }
}

void Core::await_eof(Socket& socket) {
  const int fd = live_descriptor(socket);
  if (fd >= 0 && all_was_read(fd)) return found_eof(socket);
  if (socket.reads_watched || socket.eof_backoff_ms != 0) return;
  if (source_->watch_reads(socket, true)) {
    socket.reads_watched = true;
    // What was read before the program was attached.
    if (fd >= 0 && all_was_read(fd)) found_eof(socket);
  } else {
    socket.eof_backoff_ms = kFirstEofCheck;
    schedule_eof_check(socket);
  }
}

void Core::stop_awaiting_eof(Socket& socket) noexcept {
  if (std::exchange(socket.reads_watched, false)) source_->watch_reads(socket, false);
  socket.eof_backoff_ms = 0;
}

void Core::schedule_eof_check(Socket& socket) {
  dispatcher_.add_timer(Dispatcher::in(std::chrono::milliseconds(socket.eof_backoff_ms)),
                        [this, weak = socket.weak_from_this()] {
                          const auto alive = weak.lock();
                          if (!alive) return;
                          const CoreLock lock(mutex_);
                          if (alive->eof_backoff_ms == 0) return;
                          const int fd = live_descriptor(*alive);
                          if (fd >= 0 && all_was_read(fd)) return found_eof(*alive);
                          alive->eof_backoff_ms = static_cast<std::uint16_t>(
                              std::min(alive->eof_backoff_ms * 2, kLongestEofCheck));
                          schedule_eof_check(*alive);
                        });
}

void Core::schedule_closed_check() {
  if (std::exchange(closed_check_scheduled_, true)) return;
  dispatcher_.add_timer(Dispatcher::in(options_.closed_check), [this] {
    const CoreLock lock(mutex_);
    closed_check_scheduled_ = false;
    check_closed();
  });
}

// Per alarm: its descriptor no longer means its socket, although the socket may live on in a dup.
void Core::check_closed() {
  const std::vector<Socket*> sockets(closed_awaited_.begin(), closed_awaited_.end());
  for (Socket* socket : sockets) {
    for (AlarmRecord* record = socket->alarms; record != nullptr; record = record->next)
      if (record->load().interest.contains(events::closed) && file_identity(record->fd) != socket->cookie)
        fire(*record, events::closed);
    refresh(*socket);
  }
  if (!closed_awaited_.empty()) schedule_closed_check();
}

void Core::schedule_missed_check() {
  const bool by_programs = source_->kind() == SourceKind::kernel || source_->kind() == SourceKind::daemon;
  if (!by_programs || std::exchange(missed_check_scheduled_, true)) return;
  dispatcher_.add_timer(Dispatcher::in(kMissedCheck), [this] {
    const CoreLock lock(mutex_);
    missed_check_scheduled_ = false;
    if (source_->missed_some()) ask_all();
    if (!sockets_.empty()) schedule_missed_check();
  });
}

// Each socket itself, whatever the source has said of it.
void Core::ask_all() {
  for (const auto& [cookie, socket] : sockets_) {
    const int fd = live_descriptor(*socket);
    const Events now = fd >= 0 ? look(fd, socket->kind, source_->poll_style()) : events::none;
    note(*socket, now);
    if (now) fire_ready(*socket, events::none);
  }
}

Description Core::describe() const {
  Description description;
  description.source = source_->kind();
  description.delivery = sigio_ ? Delivery::sigio : task_work_ ? Delivery::task_work : Delivery::dispatcher;
  description.why_not = why_not_;
  switch (source_->kind()) {
    case SourceKind::kernel:
      description.text =
          "kernel: BPF programs on the TCP tracepoints; sockets that are not plain TCP by epoll";
      break;
    case SourceKind::daemon:
      description.text = "daemon: BPF programs of sockalarmd; sockets that are not plain TCP by epoll";
      break;
    case SourceKind::epoll:
      description.text = "epoll: one epoll instance";
      break;
    default:
      description.text =
          source_->poll_style() == PollStyle::rdhup
              ? "poll: one poll() over all sockets"
              : "poll: one poll() over all sockets; without POLLRDHUP, fin is known once all was read";
  }
#if SOCKALARM_LINUX
  if (sigio_) {
    description.text += "; signals by signal-driven I/O in the thread that armed, with real-time signal " +
                        std::to_string(sigio_->signal());
    return description;
  }
#endif
  description.text +=
      task_work_ ? "; signals by task work in the thread that armed" : "; signals by the dispatcher";
  return description;
}

Stats Core::stats() const {
  Stats stats;
  if (!inert()) {  // else another thread of the parent may have held the mutex when we were forked
    const CoreLock lock(mutex_);
    stats.watches = sockets_.size();
  }
  const SourceStats source = source_->stats();
  stats.fired_directly = source.delivered + delivered_here_.load(std::memory_order_relaxed);
  stats.wakeups = dispatcher_.wakeups();
  stats.fired = fired_.load(std::memory_order_relaxed) + stats.fired_directly;
  stats.actions_run = dispatcher_.actions_run() + stats.fired_directly;
  stats.actions_failed = dispatcher_.actions_failed();
  stats.records = source.records;
  stats.records_lost = source.lost;
  stats.records_bad = source.bad;
  return stats;
}

}  // namespace sockalarm::detail
