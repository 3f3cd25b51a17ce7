// SPDX-License-Identifier: Apache-2.0
#include <sockalarm/request.h>

#include "core/action_text.h"
#include "request/request_service.h"
#include "request/request_state.h"

namespace sockalarm {
namespace detail {

CallFrame::CallFrame(RequestState& state, std::string_view name,
                     std::optional<std::chrono::nanoseconds> limit)
    : state_(state), name_(name), limit_(limit.value_or(state.service.policy.call_limit)) {
  if (!limit && limit_.count() == 0)
    refused_.emplace(Errc::invalid_policy, "call '" + std::string(name) +
                                               "' has no limit and the policy has no call_limit: give one");
  else if (limit_.count() < 0)
    refused_.emplace(Errc::invalid_use, "call '" + std::string(name) + "' has a limit of " +
                                            std::to_string(limit_.count()) + " ns; expected 0 or more");
  else
    refused_ = state.enter(*this);
  left_ = refused_.has_value();
}

CallFrame::~CallFrame() {
  if (left_) return;
  try {  // the function threw, and that is what passes through
    leave({});
  } catch (...) {
    state_.service.log_error("the handler of a call's limit threw while an exception passed");
  }
}

std::optional<Error> CallFrame::leave(ValueSlot value) {
  left_ = true;
  return state_.leave(*this, value);
}

}  // namespace detail

std::string to_string(const Stop& stop) {
  switch (stop.cause) {
    case StopCause::call_limit:
      return "limit of " + detail::duration_text(stop.limit) + " of the call '" + stop.call + "'";
    case StopCause::request_limit:
      return "limit of " + detail::duration_text(stop.limit) + " of the request";
    case StopCause::peer_gone:
      break;
  }
  const std::string what = to_string(stop.events);
  return "peer gone (" + (stop.error == 0 ? what : Error::from_errno(stop.error, what).message()) + ")";
}

std::vector<std::string> Record::failed() const {
  std::vector<std::string> names;
  names.reserve(sounded.size());
  for (const Sounded& one : sounded) names.push_back(one.call);
  return names;
}

Shield::Shield(std::shared_ptr<detail::RequestService> service, detail::RequestState* state,
               std::uint64_t serial) noexcept
    : service_(std::move(service)), state_(state), serial_(serial) {}
Shield::Shield(Shield&&) noexcept = default;
Shield& Shield::operator=(Shield&& other) noexcept {
  if (this == &other) return *this;
  end();
  service_ = std::move(other.service_);
  state_ = other.state_;
  serial_ = other.serial_;
  return *this;
}
Shield::~Shield() { end(); }
void Shield::end() noexcept {
  if (const auto service = std::move(service_)) state_->end_shield(serial_);
}

Request::Request(std::shared_ptr<detail::RequestService> service, detail::RequestState* state) noexcept
    : service_(std::move(service)), state_(state) {}
Request::Request(Request&& other) noexcept
    : service_(std::move(other.service_)), state_(std::exchange(other.state_, nullptr)) {}
Request::~Request() {
  if (state_ == nullptr) return;
  (void)state_->finish();  // the log hook was told
  service_->give_back(*state_);
}

bool Request::aborted() const noexcept { return state_->aborted(); }
std::optional<Stop> Request::stopped() const { return state_->stopped(); }
std::stop_token Request::stop_token() { return state_->stop_token(); }
void Request::off() noexcept { state_->off(); }
void Request::on_cleanup(std::function<void(bool aborted)> cleanup) {
  state_->on_cleanup(std::move(cleanup));
}
Shield Request::shield() { return {service_, state_, state_->begin_shield()}; }
Result<void> Request::arm(const ActionChain& chain, Events on) { return state_->arm(chain, on); }
Result<void> Request::finish() { return state_->finish(); }
Record Request::record() const { return state_->copy_record(); }
std::chrono::nanoseconds Request::forward_limit() const noexcept {
  const Policy& policy = service_->policy;
  return policy.forward ? policy.call_limit : std::chrono::nanoseconds(0);
}

Result<void> Request::sleep_for(std::chrono::nanoseconds duration) {
  const auto slept = state_->wait(-1, detail::later(detail::Clock::now(), duration));
  if (!slept) return fail(slept.error());
  return {};
}

Result<bool> Request::wait_readable(int fd, std::chrono::nanoseconds timeout) {
  if (fd < 0) return fail(Error::from_errno(EBADF, "descriptor " + std::to_string(fd)));
  return state_->wait(fd, detail::later(detail::Clock::now(), timeout));
}

void Request::note_broken_pipe() noexcept {
  if (service_->inert()) return;
  const MutexLock lock(state_->mutex);
  state_->record.broken_pipe = true;
}

Requests::Requests(std::shared_ptr<detail::RequestService> service) noexcept : service_(std::move(service)) {}

Result<Requests> Requests::create(const Watcher& watcher, Policy policy) {
  auto service = detail::RequestService::create(watcher.core_, std::move(policy));
  if (!service) return fail(service.error());
  return Requests(std::move(*service));
}

Result<Request> Requests::begin(const Watch& watch, std::string_view path) const {
  auto state = service_->take(&watch, path);
  if (!state) return fail(state.error());
  return Request(service_, *state);
}

Result<Request> Requests::begin(std::string_view path) const {
  auto state = service_->take(nullptr, path);
  if (!state) return fail(state.error());
  return Request(service_, *state);
}

const Policy& Requests::policy() const noexcept { return service_->policy; }
int Requests::signal() const noexcept { return service_->poker.signal(); }

}  // namespace sockalarm
