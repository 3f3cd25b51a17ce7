// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/request.h>

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "core/dispatcher.h"
#include "request/poke.h"
#include "request/request_state.h"

namespace re2 {
class RE2;
}

namespace sockalarm::detail {

class Core;

// What Requests stand for: the policy, the states of its requests, and one timer on the dispatcher for all of
// them.
//
// `planned` is when the dispatcher looks at all states next. Setting a deadline costs nothing but a load, as
// long as it is not earlier than that: calls that end in time never touch the timer, and the dispatcher finds
// out when it looks. Every state is looked at each time, so that is O(requests that ever were at the same
// time), as often as limits are short.
class RequestService final : public std::enable_shared_from_this<RequestService> {
 public:
  static Result<std::shared_ptr<RequestService>> create(std::shared_ptr<Core> core, Policy policy);
  ~RequestService();

  Result<RequestState*> take(const Watch* watch, std::string_view path);
  void give_back(RequestState& state) noexcept;

  // Have the dispatcher look at `when` or earlier. Not under a state's mutex.
  void look_at(Clock::time_point when);
  bool planned_by(Clock::time_point when) const noexcept {
    return planned_.load(std::memory_order_relaxed) <= when.time_since_epoch().count();
  }

  std::optional<Error> refusal() const;
  bool inert() const noexcept;
  void log_error(const std::string& text) const noexcept;

  // The limit for a path, and the expression that says so.
  std::chrono::nanoseconds limit_of(std::string_view path, std::string& matched) const;

  const Policy policy;
  const Poker poker;

 private:
  RequestService(std::shared_ptr<Core> core, Policy checked, Poker reserved);
  void look();

  const std::shared_ptr<Core> core_;
  std::vector<std::unique_ptr<re2::RE2>> paths_;  // as policy.overrides

  std::atomic<Clock::rep> planned_{kNever.time_since_epoch().count()};  // changed under mutex_
  std::atomic<RequestState*> states_{nullptr};                          // all; only ever prepended to
  Mutex mutex_;
  std::vector<RequestState*> free_ GUARDED_BY(mutex_);
  Dispatcher::TimerId timer_ GUARDED_BY(mutex_){};
};

}  // namespace sockalarm::detail
