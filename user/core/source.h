// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/event.h>
#include <sockalarm/watcher.h>

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/core_mutex.h"
#include "core/socket_look.h"

namespace sockalarm::detail {

struct Socket;

// Something happened to a registered socket.
struct News {
  std::uint64_t cookie = 0;
  Events what;
  int error = 0;
  std::uint64_t at = 0;  // ns, CLOCK_MONOTONIC; 0: just now
  enum class Certainty {
    recorded,  // already in the socket's WatchState
    exact,     // it is what it says: readable, urgent
    hint,      // by poll flags: look at the socket; `what` stands if its descriptor can no longer be asked
    unseen     // the kernel side was not looking for a while: look at the socket, whoever serves it
  } certainty = Certainty::hint;
  enum class Direct {
    none,
    scheduled,  // the arming thread will take the alarm when it runs next
    done,       // it did; the dispatcher goes on with the rest of the chain
    failed      // it took it, but could not be signalled: the dispatcher runs the whole chain
  } direct = Direct::none;
};

struct SourceStats {
  std::uint64_t records = 0, lost = 0, bad = 0;
  std::uint64_t delivered = 0;  // alarms whose signal the kernel side sent
};

// Where events come from. It owns the waiting of the dispatcher thread. What is called with the Core's mutex
// held is called by any thread; wait by the dispatcher alone, without it; wake by any thread.
class Source {
 public:
  virtual ~Source() = default;

  virtual SourceKind kind() const noexcept = 0;
  virtual PollStyle poll_style() const noexcept { return PollStyle::rdhup; }

  // What making it took, if that is worth a line in a log.
  virtual std::string times() const { return {}; }

  // Begins to report the sticky events of the socket behind `fd` and gives it its WatchState.
  virtual Result<void> add(Socket& socket, int fd) REQUIRES(core_mutex) = 0;
  virtual void remove(Socket& socket) noexcept REQUIRES(core_mutex) = 0;
  // Report readable and urgent too, from now on; of what is so already as well.
  virtual void want(Socket& socket, Events momentary) REQUIRES(core_mutex) = 0;
  // socket.registered_fd was closed, `fd` is another descriptor of the same socket: ask through that from now
  // on.
  virtual void move(Socket& socket, int fd) REQUIRES(core_mutex) = 0;
  // Report eof of a socket with data pending after the FIN. False: it cannot, the caller must check on a
  // timer.
  virtual bool watch_reads(Socket&, bool /*on*/) REQUIRES(core_mutex) { return false; }

  // From now on report `closed` at once, if it can; else the caller's timer finds out.
  virtual void watch_closing() REQUIRES(core_mutex) {}
  // Has the kernel side left out something since the last call, so that every socket must be asked?
  virtual bool missed_some() noexcept REQUIRES(core_mutex) { return false; }

  // Whether the kernel side delivers signals by task work; else why not.
  virtual Result<void> delivers() const {
    return fail(Error(Errc::unsupported, "only the kernel and the daemon source have task work"));
  }
  // The calling thread's id in the initial pid namespace, for direct delivery; 0: not to be had. Costs a
  // system call the first time that a thread asks.
  virtual std::uint32_t direct_thread() noexcept { return 0; }

  // Sleeps until there is news, wake() was called, or `until`. Appends to `news`; true: also look at every
  // registered socket's WatchState, since news was lost.
  virtual bool wait(std::optional<std::chrono::steady_clock::time_point> until, std::vector<News>& news) = 0;
  virtual void wake() noexcept = 0;

  // For a dispatcher that looks by itself instead of sleeping; by the dispatcher alone. looks_cheaply:
  // has_news() costs no system call, and wait() is needed only now and then, for what has_news() cannot tell.
  virtual bool looks_cheaply() const noexcept { return false; }
  virtual bool has_news() noexcept { return true; }
  // True: it looks, so the kernel side need not wake it.
  virtual void looking(bool) noexcept {}

  virtual SourceStats stats() const noexcept { return {}; }
  // In a forked child: let go of the descriptors, touch nothing that the parent shares.
  virtual void after_fork() noexcept = 0;
};

}  // namespace sockalarm::detail
