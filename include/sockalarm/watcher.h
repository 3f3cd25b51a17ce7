// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/action.h>
#include <sockalarm/event.h>
#include <sockalarm/result.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <stop_token>
#include <string>
#include <string_view>
#include <vector>

namespace sockalarm {

namespace detail {
class Core;
struct AlarmRecord;
struct Socket;
struct WatchHandle;
}  // namespace detail

// Where events come from. All mean the same; docs/sources.md lists the differences.
enum class SourceKind : std::uint8_t { automatic, kernel, epoll, poll, daemon };
std::string_view to_string(SourceKind kind) noexcept;
[[nodiscard]] Result<SourceKind> parse_source(std::string_view text);

// Who sends the signal of a chain that begins with send_signal() to the arming thread. The rest of such a
// chain, and every other chain, runs on the dispatcher, in order. docs/delivery.md compares them.
enum class Delivery {
  automatic,  // task_work if it is to be had, else dispatcher
  task_work,  // the kernel, in the thread itself: exact. Kernel or daemon source, Linux >= 6.18
  sigio,  // the kernel by signal-driven I/O (fcntl(2), F_SETSIG) and a handler of this library. Any Linux, no
          // privilege; takes a real-time signal, and interrupts the thread for ordinary data too
  dispatcher,  // the background thread, by tgkill(2)
};
std::string_view to_string(Delivery delivery) noexcept;
[[nodiscard]] Result<Delivery> parse_delivery(std::string_view text);

// How the dispatcher thread waits for news.
enum class Waking {
  sleep,     // until there is some: costs nothing meanwhile
  adaptive,  // after each news it looks again and again for Options::spin_for, then sleeps
  spin,      // it never sleeps: the shortest delay, and one core is given away
};
std::string_view to_string(Waking waking) noexcept;
[[nodiscard]] Result<Waking> parse_waking(std::string_view text);

enum class LogLevel { debug, info, warning, error };

struct Options {
  SourceKind source = SourceKind::automatic;  // the best one to be had; anything else: that one or an error
  std::size_t max_watches = 0;  // room in the kernel table; 0: as many as this process may have descriptors.
                                // Sockets beyond it are watched by epoll
  std::size_t ring_bytes =
      256 * 1024;  // rounded up to a power of two >= a page; at most 2 GiB. Smaller is only slower
  std::string daemon_socket = "/run/sockalarm/sockalarmd.sock";  // where sockalarmd listens
  std::chrono::milliseconds closed_check{500};  // how often alarms on `closed` compare descriptor and socket
  Delivery delivery = Delivery::automatic;      // anything else: that one or an error
  Waking waking = Waking::sleep;
  std::chrono::microseconds spin_for{50};  // with Waking::adaptive
  int realtime_priority =
      0;  // 1 to 99: the dispatcher runs under SCHED_FIFO; needs CAP_SYS_NICE or RLIMIT_RTPRIO,
          // and where that is refused describe() says so. 0: as the creating thread
  int helper_threads = 8;  // at most so many, started when first needed, run what may block: call_blocking()
                           // and the database actions. 1 to 1024
  std::function<void(LogLevel, std::string_view)>
      log;  // called on any thread, also the dispatcher; may be empty
};

// Which source serves, and why no better one does.
struct Description {
  SourceKind source = SourceKind::automatic;
  Delivery delivery = Delivery::dispatcher;  // in force for alarms that signal their thread
  std::string text;                          // one line for people
  std::vector<std::string> why_not;  // one line for each better source or delivery that was refused, and for
                                     // what was wished and not granted: the exact reason
};

// Counters since the Watcher was made; each only grows but `watches`.
struct Stats {
  std::uint64_t watches = 0;         // sockets registered now
  std::uint64_t fired = 0;           // alarms that went off
  std::uint64_t fired_directly = 0;  // of these: whose signal did not come from the dispatcher
  std::uint64_t wakeups = 0;         // times the dispatcher began to wait and was woken
  std::uint64_t actions_run = 0;
  std::uint64_t actions_failed = 0;  // the log hook was told why
  std::uint64_t records = 0;         // read from the kernel's ring
  std::uint64_t records_lost = 0;    // the ring was full: the table was swept instead, nothing was missed
  std::uint64_t records_bad = 0;     // malformed or unknown kind
};

struct ArmOptions {
  Events on = events::shut;
  std::chrono::nanoseconds deadline{0};  // fire with events::deadline after this long; 0: never
};

// What a cancel() found. As a truth value (changed_anything()) it is the ancestor's return value.
enum class Cancelled {
  prevented,    // it was armed: nothing of it ran or ever will
  interrupted,  // it had fired: what had not started never will
  inactive,     // not armed, or its chain had ended: nothing changed
};
constexpr bool changed_anything(Cancelled c) noexcept { return c != Cancelled::inactive; }

// An action chain armed on a watch; disarmed by its destructor, which then waits for an action that is just
// running (not when called from inside that action), so nothing of it runs after the scope.
// One thread at a time may call start() and destroy; every other function may be called from any thread,
// also from inside an action. The chain runs at most once per start().
// After fork() the child's copy is inert: it answers, changes nothing, and start() says false. Moved from, it
// is no alarm any more: never active or triggered, without events and actions, fd() -1, and start() says
// false.
class Alarm {
 public:
  Alarm(Alarm&&) noexcept;
  Alarm& operator=(Alarm&&) noexcept;
  ~Alarm();

  // Arm again, for the calling thread. False: it was armed or its chain is under way. If the peer is gone
  // already it fires at once.
  bool start();
  // cancel(), but only if it has not fired: else its chain goes on. True: nothing of it ran or will.
  bool disarm() noexcept;
  // When it returns, no further action of this alarm starts.
  Cancelled cancel() noexcept;
  // And none is running either.
  Cancelled cancel_and_wait() noexcept;

  bool active() const noexcept;         // armed, or its chain is under way
  bool triggered() const noexcept;      // it fired since the last start()
  bool finished() const noexcept;       // and ran to the end of its chain
  int current_action() const noexcept;  // -1 not triggered; index of the action running; past the end: size
  std::size_t action_count() const noexcept;
  Event cause() const;  // what set it off; empty before triggered()
  Events events() const noexcept;
  const ActionChain& actions() const noexcept;
  int fd() const noexcept;

 private:
  friend class Watch;
  friend struct detail::WatchHandle;
  explicit Alarm(detail::AlarmRecord* record) noexcept : record_(record) {}
  detail::AlarmRecord* record_;  // given back by the destructor; null: moved from
};

// Descriptor, events, state and the numbered actions in words, for logs.
std::string to_string(const Alarm& alarm);

// What is known of a watched socket's peer: one pointer into shared memory, to be copied freely. Asking is
// one load and one branch. Any thread, also in signal handlers; only while the Watch it was taken from lives.
class Peer {
 public:
  bool gone() const noexcept { return (load() & events::shut.bits()) != 0; }
  Events seen() const noexcept { return Events(static_cast<std::uint32_t>(load())) & events::all; }
  // The word that is loaded, whose low bits are Events: for who loads it in another language, as gone() does.
  const std::uint64_t* word() const noexcept { return seen_; }

 private:
  friend class Watch;
  explicit Peer(const std::uint64_t* seen) noexcept : seen_(seen) {}
  std::uint64_t load() const noexcept { return __atomic_load_n(seen_, __ATOMIC_ACQUIRE); }
  const std::uint64_t* seen_;
};

// The registration of one socket, made once per connection; unregistered by the destructor. The descriptor
// stays the caller's: closing it while watched is allowed (see events::closed) and is seen by cookie, so a
// reused number never fires a stranger's alarm. Watching one socket twice, or a dup of it, is allowed.
// Any thread may call; destroying excludes other calls. Keeps the Watcher's machinery alive, but not running.
// Moving it is for one thread alone, and leaves the alarms armed. Moved from, it has seen nothing, fd() is
// -1, and arm() says `stopped`.
class Watch {
 public:
  Watch(Watch&&) noexcept;
  Watch& operator=(Watch&&) noexcept;
  ~Watch();

  // Has the peer gone (any of events::shut)? A load of shared memory; safe in a hot loop and in signal
  // handlers.
  bool peer_gone() const noexcept { return peer_.gone(); }
  Events seen() const noexcept { return peer_.seen(); }
  // The same question by value, for a register.
  Peer peer() const noexcept { return peer_; }
  // When the first of these happened, of events::shut; the epoch: none did.
  std::chrono::steady_clock::time_point seen_at(Events of = events::shut) const noexcept;
  int error() const noexcept;  // errno that came with a reset, timeout or error, if known

  // Arm a chain for the calling thread. If a wanted event has happened already it fires at once, so the
  // handler of a signal that it sends must be there before: see send_signal().
  // Errors: the chain's own error(), invalid_events, inert_after_fork, stopped.
  [[nodiscard]] Result<Alarm> arm(const ActionChain& chain, ArmOptions options = {}) const;
  // With send_signal(SIGALRM), off Linux to the process. SIGALRM needs a handler, made by sigaction(2)
  // without SA_RESTART: without one the signal ends the process.
  [[nodiscard]] Result<Alarm> arm(ArmOptions options = {}) const;

  // Stopped when one of `on` happens; every call returns the same token's state, the first call's `on`
  // counts. Empty (never stopped) where arming fails: after fork() or when the Watcher is gone.
  std::stop_token stop_token(Events on = events::shut) const;

  int fd() const noexcept;
  std::uint64_t cookie() const noexcept;
  SourceKind source() const noexcept;  // which one serves this socket: AF_UNIX, MPTCP and SCTP are epoll's

 private:
  friend class Watcher;
  explicit Watch(std::unique_ptr<detail::WatchHandle> handle) noexcept;
  Peer peer_;  // in the shared table; of a moved-from Watch, a zero
  std::unique_ptr<detail::WatchHandle> handle_;
};

// Knows the moment peers leave, on one background thread, and runs there what they set off; what may block,
// on a few more. All signals are blocked in these threads. Make one per process. Any thread may call.
// Destroying it ends all chains after their running action; Watches and Alarms may outlive it and then say
// `stopped`. After fork() the child's copy is inert; the child makes its own. Nothing is lost when the
// kernel's ring is full: the shared table is swept.
// Moved from, it watches nothing: watch() says `stopped`.
class Watcher {
 public:
  // Errors: invalid_options, what the forced source lacks (the text says which privilege or kernel feature),
  // thread or descriptor limits.
  [[nodiscard]] static Result<Watcher> create(Options options = {});
  Watcher(Watcher&&) noexcept;
  Watcher& operator=(Watcher&&) noexcept;
  ~Watcher();

  // Register a connected (or connecting) stream socket; `fd` is borrowed. What had already happened is seen.
  // Errors: errno (EBADF...), not_a_socket, not_a_stream, not_connected, inert_after_fork.
  [[nodiscard]] Result<Watch> watch(int fd) const;

  Description describe() const;
  Stats stats() const;

 private:
  friend class Requests;
  explicit Watcher(std::shared_ptr<detail::Core> core) noexcept;
  std::shared_ptr<detail::Core> core_;
};

}  // namespace sockalarm
