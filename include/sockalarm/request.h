// SPDX-License-Identifier: Apache-2.0
#pragma once

// The scope of one request: limits, an aborted flag, cleanups that always run, sections that are not torn.
//
//   auto requests = sockalarm::Requests::create(watcher, policy).value();    // one per policy
//   auto request = requests.begin(watch, "/report").value();                 // per request
//   request.on_cleanup([&](bool aborted) { release(connection, aborted); });
//   auto rows = request.call("query", 2s, [&](std::stop_token stop) { return query(stop); });
//   if (!rows) return log(rows.error().message());   // "limit of 2s of the call 'query'", "peer gone (fin)"
//
// When a limit passes or the peer leaves, the call's token is stopped, and its thread gets a signal again and
// again, until the function has returned: blocking system calls end with EINTR. docs/requests.md says which
// ones, and what else there is.

#include <sockalarm/action.h>
#include <sockalarm/policy.h>
#include <sockalarm/record.h>
#include <sockalarm/result.h>
#include <sockalarm/watcher.h>

#include <chrono>
#include <concepts>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <stop_token>
#include <string_view>
#include <type_traits>
#include <utility>

namespace sockalarm {

namespace detail {

class RequestService;
struct RequestState;

// One call under way. It lives on the stack of the thread that calls.
class CallFrame {
 public:
  // No limit: the policy's, which must be set.
  CallFrame(RequestState& state, std::string_view name, std::optional<std::chrono::nanoseconds> limit);
  ~CallFrame();
  CallFrame(const CallFrame&) = delete;
  CallFrame& operator=(const CallFrame&) = delete;

  const std::optional<Error>& refused() const noexcept { return refused_; }
  std::stop_token token() const noexcept { return source_.get_token(); }
  // The function has returned: why the call was stopped, if it was.
  std::optional<Error> leave(ValueSlot value);

 private:
  friend struct RequestState;
  RequestState& state_;
  const std::string_view name_;
  std::chrono::nanoseconds limit_{0};
  std::stop_source source_;
  std::optional<Error> refused_;
  bool left_ = false;
  // Under the state's mutex.
  std::chrono::steady_clock::time_point deadline_ = std::chrono::steady_clock::time_point::max();
  std::optional<Stop> stop_;
  std::optional<std::size_t> sounded_;  // own limit: its place in Record::sounded
  CallFrame* outer_ = nullptr;
  std::uint64_t serial_ = 0;
};

template <class F>
decltype(auto) invoke_with_token(F&& function, const CallFrame& frame) {
  if constexpr (std::invocable<F, std::stop_token>)
    return std::forward<F>(function)(frame.token());
  else
    return std::forward<F>(function)();
}

template <class F>
auto run_call(CallFrame& frame, F&& function)
    -> Result<std::decay_t<decltype(invoke_with_token(std::forward<F>(function), frame))>> {
  using Value = std::decay_t<decltype(invoke_with_token(std::forward<F>(function), frame))>;
  if (frame.refused()) return fail(*frame.refused());
  if constexpr (std::is_void_v<Value>) {
    invoke_with_token(std::forward<F>(function), frame);
    if (auto stopped = frame.leave({})) return fail(std::move(*stopped));
    return {};
  } else {
    std::optional<Value> value(invoke_with_token(std::forward<F>(function), frame));
    if (auto stopped = frame.leave({&value, &typeid(Value)})) return fail(std::move(*stopped));
    return std::move(*value);
  }
}

}  // namespace detail

// A critical section: while one is held, nothing of its request goes off. What was due meanwhile goes off at
// the end of the outermost one, in its destructor: stop tokens are stopped there, before it returns. Alarms
// of Request::arm() wait too. Keep it short. Ends in the thread that began it; must end before its request.
class [[nodiscard]] Shield {
 public:
  Shield(Shield&& other) noexcept;
  Shield& operator=(Shield&& other) noexcept;
  ~Shield();

 private:
  friend class Request;
  Shield(std::shared_ptr<detail::RequestService> service, detail::RequestState* state,
         std::uint64_t serial) noexcept;
  void end() noexcept;
  std::shared_ptr<detail::RequestService> service_;  // null: moved from
  detail::RequestState* state_;
  std::uint64_t serial_;
};

// One request, from Requests::begin() to its destructor. Of one thread at a time; aborted(), stop_token() and
// stopped() may be called from any. Its Watch must outlive it.
// After fork() the child's copy is inert: calls are refused, nothing is cleaned up; the call that it was
// forked in answers what its function returns. Moved from, it may only be destroyed.
class Request {
 public:
  Request(Request&& other) noexcept;
  Request& operator=(Request&&) = delete;
  ~Request();  // finish()

  // Runs `function`, with a std::stop_token if it takes one, in this thread and answers what it returns.
  // After `limit` (0: only the limits around it count) or when the peer has gone, the token is stopped and
  // the thread poked. If that happened before the function returned, the answer is Errc::limit_passed,
  // request_limit_passed or peer_gone, and the message says which limit; the policy's handler may have it
  // otherwise. What the function throws passes through. Calls may be nested; a stop of the outer one stops
  // the inner one too. A request that was stopped for good, or an outer call that was, runs nothing more: the
  // same error at once. Other errors: invalid_use (another thread's call is under way; a negative limit),
  // inert_after_fork.
  template <class F>
  [[nodiscard]] auto call(std::string_view name, std::chrono::nanoseconds limit, F&& function) {
    detail::CallFrame frame(*state_, name, limit);
    return detail::run_call(frame, std::forward<F>(function));
  }
  // With the policy's call_limit. Errc::invalid_policy if it has none.
  template <class F>
  [[nodiscard]] auto call(std::string_view name, F&& function) {
    detail::CallFrame frame(*state_, name, std::nullopt);
    return detail::run_call(frame, std::forward<F>(function));
  }
  // With the policy's call_limit if it says `forward`, else without a limit of its own.
  template <class F>
  [[nodiscard]] auto forward(std::string_view name, F&& function) {
    detail::CallFrame frame(*state_, name, forward_limit());
    return detail::run_call(frame, std::forward<F>(function));
  }

  // Has the client left, by an event of Policy::on? A load of shared memory; writes nothing to the client.
  bool aborted() const noexcept;
  // What stopped the innermost call, or outside of calls the request.
  std::optional<Stop> stopped() const;
  // Stopped by the request's limit or when the peer has gone, also outside of calls. Callbacks run on the
  // dispatcher thread, or where a shield ends: keep them short.
  std::stop_token stop_token();

  // Turns all limits off: the request's, and those of calls that are under way. Later calls have theirs
  // again. The peer is still watched.
  void off() noexcept;
  void snooze() noexcept { off(); }

  // Runs at the end of the request, however it ends, in reverse order; told whether the client had left.
  // After the end it runs at once. What it throws stops none of the others, and is counted and told to
  // Options::log.
  void on_cleanup(std::function<void(bool aborted)> cleanup);
  [[nodiscard]] Shield shield();
  // An alarm of this request: disarmed at its end, held back by its shields. Errors: those of Watch::arm();
  // invalid_use without a Watch, or under a shield.
  [[nodiscard]] Result<void> arm(const ActionChain& chain, Events on = events::shut);

  // Waits, but not beyond a stop: then the error says why, as call() does. No signal is needed, and a stop
  // is not missed. Under a shield they wait their time.
  [[nodiscard]] Result<void> sleep_for(std::chrono::nanoseconds duration);
  // Until a read would not block (true) or the time is over (false). errno of poll(2); EBADF: not open.
  [[nodiscard]] Result<bool> wait_readable(
      int fd, std::chrono::nanoseconds timeout = std::chrono::nanoseconds::max());

  // For those who set a flag on the record themselves; SigpipeGuard does.
  void note_broken_pipe() noexcept;

  // Ends the request: cancels its alarms, runs the cleanups, tells Policy::on_end. Errc::invalid_use: shields
  // were left, or a call was under way; the rest is done all the same. The second time it does nothing.
  Result<void> finish();
  Record record() const;

 private:
  friend class Requests;
  Request(std::shared_ptr<detail::RequestService> service, detail::RequestState* state) noexcept;
  std::chrono::nanoseconds forward_limit() const noexcept;
  std::shared_ptr<detail::RequestService> service_;
  detail::RequestState* state_;  // given back by the destructor; null: moved from
};

// Makes requests under one policy. Cheap to copy; any thread. Limits are watched by the Watcher's dispatcher
// thread: if the Watcher ends, they no longer go off.
class Requests {
 public:
  Requests(const Requests&) = default;  // also when moved
  Requests& operator=(const Requests&) = default;
  // Takes a real-time signal that has its default action for the rest of the process's life, one for all;
  // no signal that the program handles or ignores is touched. One that it only waits for (sigwait(3),
  // signalfd(2)) looks unused: give that a handler first. Errors: invalid_policy; unsupported: no such
  // signal is left; inert_after_fork; stopped.
  [[nodiscard]] static Result<Requests> create(const Watcher& watcher, Policy policy = {});

  // Errors: those of Watch::arm(). Without a Watch there is no peer, only limits. A Watch of another Watcher
  // is as good.
  [[nodiscard]] Result<Request> begin(const Watch& watch, std::string_view path) const;
  [[nodiscard]] Result<Request> begin(std::string_view path) const;

  const Policy& policy() const noexcept;
  // The signal that pokes.
  int signal() const noexcept;

 private:
  explicit Requests(std::shared_ptr<detail::RequestService> service) noexcept;
  std::shared_ptr<detail::RequestService> service_;
};

// While it lives, SIGPIPE does not reach this thread: write(2) fails with EPIPE, and the signal is a fact to
// be asked for. The destructor takes what came, notes it on the request, and restores the signal mask; a
// SIGPIPE that was pending before stays so. Other threads and the process's handler are not touched. Ends in
// the thread that made it; may be nested.
class SigpipeGuard {
 public:
  SigpipeGuard() noexcept;
  explicit SigpipeGuard(Request& request) noexcept;  // which must outlive it
  ~SigpipeGuard();
  SigpipeGuard(const SigpipeGuard&) = delete;
  SigpipeGuard& operator=(const SigpipeGuard&) = delete;

  bool raised() noexcept;  // by now

 private:
  Request* request_ = nullptr;
  bool was_blocked_ = false;
  bool was_pending_ = false;
  bool raised_ = false;
};

}  // namespace sockalarm
