// SPDX-License-Identifier: Apache-2.0
#include "request/request_service.h"

#include <re2/re2.h>

#include <algorithm>

#include "core/core.h"
#include "request/path_expression.h"

namespace sockalarm::detail {

RequestService::RequestService(std::shared_ptr<Core> core, Policy checked, Poker reserved)
    : policy(std::move(checked)), poker(reserved), core_(std::move(core)) {
  for (const PathLimit& one : policy.overrides)
    paths_.push_back(std::make_unique<re2::RE2>(one.path, path_options()));
}

RequestService::~RequestService() {
  for (RequestState* state = states_.load(); state != nullptr;) delete std::exchange(state, state->next);
}

Result<std::shared_ptr<RequestService>> RequestService::create(std::shared_ptr<Core> core, Policy policy) {
  if (auto ok = check_policy(policy); !ok) return fail(ok.error());
  if (auto refused = core->refusal()) return fail(std::move(*refused));
  auto poker = Poker::acquire();
  if (!poker) return fail(poker.error());
  return std::shared_ptr<RequestService>(new RequestService(std::move(core), std::move(policy), *poker));
}

std::optional<Error> RequestService::refusal() const { return core_->refusal(); }
bool RequestService::inert() const noexcept { return core_->inert(); }
void RequestService::log_error(const std::string& text) const noexcept {
  core_->dispatcher().log(LogLevel::error, text);
}

Result<RequestState*> RequestService::take(const Watch* watch, std::string_view path) {
  if (auto refused = refusal()) return fail(std::move(*refused));
  RequestState* state = nullptr;
  {
    const MutexLock lock(mutex_);
    if (!free_.empty()) {
      state = free_.back();
      free_.pop_back();
    }
  }
  if (state == nullptr) {
    state = new RequestState(*this);
    state->next = states_.load(std::memory_order_relaxed);
    while (!states_.compare_exchange_weak(state->next, state, std::memory_order_release,
                                          std::memory_order_relaxed)) {
    }
  }
  if (auto begun = state->begin(watch, path); !begun) {
    give_back(*state);
    return fail(begun.error());
  }
  return state;
}

void RequestService::give_back(RequestState& state) noexcept {
  if (inert()) return;  // another thread of the parent may have held the mutex when we were forked
  const MutexLock lock(mutex_);
  free_.push_back(&state);
}

std::chrono::nanoseconds RequestService::limit_of(std::string_view path, std::string& matched) const {
  for (std::size_t i = 0; i < paths_.size(); ++i) {
    if (!re2::RE2::PartialMatch({path.data(), path.size()}, *paths_[i])) continue;
    matched = policy.overrides[i].path;
    return policy.overrides[i].limit;
  }
  return policy.limit;
}

void RequestService::look_at(Clock::time_point when) {
  if (when == kNever) return;
  Dispatcher& dispatcher = core_->dispatcher();
  const MutexLock lock(mutex_);
  if (planned_by(when)) return;
  planned_.store(when.time_since_epoch().count(), std::memory_order_relaxed);
  dispatcher.cancel_timer(timer_);
  timer_ = dispatcher.add_timer(when, [weak = weak_from_this()] {
    if (const auto alive = weak.lock()) alive->look();
  });
}

// `planned` becomes `never` first. Whoever sets a deadline does so under its state's mutex, and then loads
// `planned` there: if that was before we look at this state we see the deadline, and if it was after it sees
// `never`, or what was planned since, and asks for an earlier look.
void RequestService::look() {
  {
    const MutexLock lock(mutex_);
    planned_.store(kNever.time_since_epoch().count(), std::memory_order_relaxed);
  }
  Clock::time_point next = kNever;
  for (RequestState* state = states_.load(std::memory_order_acquire); state != nullptr; state = state->next)
    next = std::min(next, state->look(Clock::now()));
  look_at(next);
}

}  // namespace sockalarm::detail
