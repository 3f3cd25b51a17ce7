// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/address.h>
#include <sockalarm/event.h>
#include <sys/types.h>

#include <chrono>
#include <functional>
#include <initializer_list>
#include <memory>
#include <stop_token>
#include <string>
#include <string_view>
#include <vector>

namespace sockalarm {

namespace detail {
class ActionImpl;
struct AlarmRecord;
}  // namespace detail

// What a called function answers: go on with the chain, or end it here.
enum class Verdict { proceed, stop };

// One step of a chain. Immutable, cheap to copy, may be shared by any number of alarms and threads. Moving
// copies, so none is ever without its meaning.
// An action that could never run (signal 99, a program that is not there) keeps its error(), and arming a
// chain that has one fails with it. A failure at run time is counted and logged, and the chain goes on.
class Action {
 public:
  explicit Action(std::shared_ptr<const detail::ActionImpl> impl) noexcept : impl_(std::move(impl)) {}
  Action(const Action&) = default;
  Action& operator=(const Action&) = default;
  ~Action() = default;

  const Error* error() const noexcept;  // null: it can run
  const detail::ActionImpl& impl() const noexcept { return *impl_; }

 private:
  std::shared_ptr<const detail::ActionImpl> impl_;
};

// The text form, which parse_action() takes back. call(), call_blocking() and request_stop() have one for
// people only ("call", "call_blocking", "stop"): code cannot be written down.
std::string to_string(const Action& action);
bool operator==(const Action& a, const Action& b);

enum class SignalTarget { arming_thread, process };

// A signal to the thread that armed the alarm (tgkill(2)), or to this process (kill(2)). "sig:ALRM",
// "sig:ALRM:process". An alarm armed to signal its thread must not outlive that thread. The signal does what
// the process has it do: without a handler most, SIGALRM too, end the process, and a handler with SA_RESTART
// lets the system call go on (signal(7)). To end the call with EINTR: sigaction(2) without SA_RESTART.
Action send_signal(int signal, SignalTarget target = SignalTarget::arming_thread);
// A signal to any process. The pidfd is taken now (Linux >= 5.3), so a later process with the same number is
// never hit. Signal first, as in the shell. "kill:TERM:1234"
Action kill_process(int signal, pid_t pid);
// Close or shut down a descriptor of this process. Which file it is, is remembered now; if the number means
// another file when the alarm fires, nothing is touched and the failure says so. "close:7", "shut_r:7",
// "shut_w:7", "shut_rw:7"
Action close_fd(int fd);
Action shutdown_read(int fd);
Action shutdown_write(int fd);
Action shutdown_both(int fd);
// The same for every socket of this process that is connected to `peer` when the alarm fires.
// "close:127.0.0.1:3306", "shut_rw:[::1]:80", "shut_rw:unix:/run/db.sock"
Action close_peer(SocketAddress peer);
Action shutdown_read(SocketAddress peer);
Action shutdown_write(SocketAddress peer);
Action shutdown_both(SocketAddress peer);
// Start a program, detached: not our child, stdin from /dev/null, stdout and stderr shared, no SIGCHLD. It is
// looked up in PATH now. If it cannot be executed when the alarm fires, stderr and the log say why.
// "run:mysql -e 'kill 42'" (words quoted as for a shell; nothing is expanded)
Action run(std::vector<std::string> argv);
// Replace this process by a program: no destructors, no atexit. "exec:/usr/bin/env"
Action exec(std::vector<std::string> argv);
// Wait before the next action. No other alarm waits with it. "sleep:2s", "sleep:250ms", "sleep:1.5"
Action sleep_for(std::chrono::nanoseconds duration);
// Call a function on the dispatcher thread. While it runs no other alarm of this Watcher is served, so keep
// it short. An exception stops the chain and is counted as a failure. All signals are blocked there.
Action call(std::function<Verdict(const Event&)> function);
Action call(std::function<void()> function);
// Call a function that may block, on a helper thread (Options::helper_threads): no other alarm waits for it,
// but those that need a helper too, when all of them are busy. The chain goes on when it has returned, and
// the end of the alarm's scope waits for that. An exception and signals are treated as by call().
Action call_blocking(std::function<Verdict(const Event&)> function);
Action call_blocking(std::function<void()> function);
Action request_stop(std::stop_source source);
// Add 1 to an eventfd(2) that the caller keeps open. "notify:9"
Action notify(int eventfd);

// One action from its text form. Errc::invalid_text or invalid_action; the message shows the text, what is
// wrong with it and what was expected.
[[nodiscard]] Result<Action> parse_action(std::string_view text);

// An immutable list of actions, run in order, once per firing. Copying and moving share it. Any thread.
class ActionChain {
 public:
  ActionChain() = default;            // empty: firing is recorded, nothing runs
  ActionChain(const Action& action);  // NOLINT(google-explicit-constructor): one action is a chain of one
  ActionChain(std::initializer_list<Action> actions);
  explicit ActionChain(std::vector<Action> actions);
  ActionChain(const ActionChain&) = default;
  ActionChain& operator=(const ActionChain&) = default;
  ~ActionChain() = default;

  // Actions separated by ';' (quote one inside run/exec): "sig:ALRM; sleep:2s; run:mysql -e 'kill 42'". One
  // close or shut action may name several targets, "close:5,7": it becomes several actions.
  [[nodiscard]] static Result<ActionChain> parse(std::string_view text);

  std::size_t size() const noexcept { return actions_ ? actions_->size() : 0; }
  bool empty() const noexcept { return size() == 0; }
  const Action& operator[](std::size_t index) const noexcept { return (*actions_)[index]; }
  const Error* error() const noexcept;  // of the first action that could never run; null: all can

 private:
  friend struct detail::AlarmRecord;
  std::shared_ptr<const std::vector<Action>> actions_;
  const Error* error_ = nullptr;  // points into *actions_
  int first_signal_ = 0;          // of a chain that begins with a signal to the arming thread
};

// `action` so many times, with pauses in between that double from `pause` on, up to a second: for what may
// come too early once, such as a signal before the system call that it is to end. What is left of it ends
// with the alarm's scope.
ActionChain repeated(const Action& action, int times = 16,
                     std::chrono::nanoseconds pause = std::chrono::milliseconds(20));

std::string to_string(const ActionChain& chain);  // the form that ActionChain::parse() takes

}  // namespace sockalarm
