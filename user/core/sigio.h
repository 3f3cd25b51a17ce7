// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/result.h>
#include <sys/types.h>

#include <memory>

#include "core/core_mutex.h"

namespace sockalarm::detail {

struct AlarmRecord;
struct Socket;

// Signal-driven I/O (fcntl(2): O_ASYNC, F_SETSIG, F_SETOWN_EX): when something happens to a socket, the
// kernel sends a real-time signal to the thread that armed, and the handler of this class takes that thread's
// alarms, by the same compare-and-swap as everybody else, and sends the signals that they begin with. Where
// the kernel would only call a handler of the program, it is called here instead.
//
// A handler and a signal belong to the process, so there is one object for all Watchers that want it. It
// takes the highest real-time signal that nobody handles, and SIGIO, which the kernel sends instead when its
// queue of signals is full (and which would end the process); the program's own SIGIO handler is called as
// well.
//
// Each thread has a list of the alarms it armed, under a lock that the handler only tries. Whoever holds the
// lock meanwhile sends the thread another signal when done, so nothing is missed. The list may be changed by
// any thread.
class Sigio {
 public:
  // Errors: every real-time signal has a handler; sigaction(2).
  static Result<std::shared_ptr<Sigio>> acquire();
  explicit Sigio(int signal) noexcept : signal_(signal) {}
  Sigio(const Sigio&) = delete;
  Sigio& operator=(const Sigio&) = delete;

  int signal() const noexcept { return signal_; }
  // A socket was closed before its Watch, so that its flags could not be put back. A dup may still have them,
  // so the handlers stay until the process ends.
  static bool must_stay() noexcept;

  // The calling thread arms: from here on the handler takes the alarm. False: the socket cannot be made to
  // signal, the dispatcher has to do it. No system call if the thread armed the socket's last alarm too.
  bool enter(AlarmRecord& record) noexcept;
  // When it returns, no handler looks at the record, nor will. Any thread.
  static void leave(AlarmRecord& record) noexcept;
  // The socket's flags and owner as they were.
  static void release(Socket& socket) noexcept REQUIRES(core_mutex);

  // Changes of a socket's owner: two threads may arm alarms of one socket.
  static inline Mutex owner_mutex;

 private:
  Result<void> install();
  void uninstall() noexcept;

  const int signal_;
};

// Of one thread: the alarms that it armed and that are still to be looked at.
struct ThreadAlarms;

// What release() puts back.
struct SigioSaved;
struct SigioSavedDeleter {
  void operator()(SigioSaved* saved) const noexcept;
};

}  // namespace sockalarm::detail
