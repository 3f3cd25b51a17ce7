// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <signal.h>
#include <sockalarm/event.h>
#include <sockalarm/result.h>
#include <sys/types.h>

#include <chrono>
#include <optional>
#include <string>

namespace sockalarm::detail {

// What an action may know when it runs.
struct ActionContext {
  const Event& event;            // what set the alarm off
  pid_t arming_thread = 0;       // kernel thread id of the thread that armed
  const sigset_t& program_mask;  // signal mask for programs that are started: the Watcher's creator's
};

// What the runner does next. The runner owns everything else: order, timers, counting, logging.
struct Outcome {
  enum class Next { proceed, pause, stop } next = Next::proceed;
  std::chrono::nanoseconds pause_for{0};  // with pause: go on with the next action after this long
  std::optional<Error> failure;           // counted and logged; the chain still does what `next` says

  static Outcome proceed() { return {}; }
  static Outcome failed(Error error) { return {Next::proceed, {}, std::move(error)}; }
};

// One action's behaviour. Immutable after construction, shared between threads.
class ActionImpl {
 public:
  virtual ~ActionImpl() = default;
  // On the dispatcher thread, where it must not block (only call() may take the time its function takes).
  // Must not throw.
  virtual Outcome run(const ActionContext& context) const = 0;
  // True: run() is called on a helper thread instead and may block; it must not answer `pause`. Until it has
  // returned the action is running, so who waits for the alarm's end waits for it too.
  virtual bool may_block() const noexcept { return false; }
  virtual std::string text() const = 0;
  // The number, if all it does is to send a signal to the thread that armed; else 0.
  virtual int thread_signal() const noexcept { return 0; }
  // Why this action could never run; decided when it is built.
  const std::optional<Error>& error() const noexcept { return error_; }

 protected:
  std::optional<Error> error_;
};

}  // namespace sockalarm::detail
