// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <csignal>
#include <optional>

#include "core/core.h"
#include "core/socket.h"

namespace sockalarm {
namespace detail {
namespace {

Result<void> check(const ActionChain& chain, const ArmOptions& options) {
  if (const Error* error = chain.error()) return fail(*error);
  if (options.on.bits() & ~events::all.bits()) {
    return fail(Error(Errc::invalid_events,
                      "event mask " + std::to_string(options.on.bits()) +
                          " has bits that mean nothing; use the constants in sockalarm::events"));
  }
  if (options.deadline.count() < 0)
    return fail(Error(
        Errc::invalid_events,
        "the deadline is negative (" + std::to_string(options.deadline.count()) + " ns); use 0 for none"));
  if (!options.on && options.deadline.count() == 0)
    return fail(Error(Errc::invalid_events, "no events and no deadline: this alarm could never go off"));
  return {};
}

}  // namespace

struct WatchHandle::StopState {
  std::stop_source source;
  std::optional<Alarm> alarm;
};

WatchHandle::WatchHandle(std::shared_ptr<Socket> of, int descriptor) : socket(std::move(of)), fd(descriptor) {
  socket->core->link(*this);
}

WatchHandle::~WatchHandle() {
  stop_state.reset();
  socket->core->unlink(*this);
  if (spare_owner) spare_owner->leave_alone();
}

AlarmRecord* WatchHandle::take_record() {
  if (AlarmRecord* known = spare.load(std::memory_order_acquire);
      known != nullptr && (known->use.fetch_or(AlarmRecord::kInUse) & AlarmRecord::kInUse) == 0) {
    // Still running only if the Alarm was destroyed from inside its own action.
    if (!known->load().has_fired() || known->over()) return known;
    known->give_back();
  }
  auto record = socket->core->make_record(socket, fd);
  // The first of several threads that come here at once gives its record to the Watch.
  const MutexLock lock(giving);
  if (!spare_owner) {
    spare_owner = record;
    spare.store(record.get(), std::memory_order_release);
  } else {
    record->leave_alone();
  }
  return record.get();
}

std::stop_token WatchHandle::stop_token(Events on) {
  const MutexLock lock(making);
  if (!stop_state) {
    // Not with the spare record, which it would never give back.
    Core& core = *socket->core;
    auto state = std::make_unique<StopState>();
    const ActionChain chain{request_stop(state->source)};
    if (!check(chain, {.on = on, .deadline = {}}) || core.refusal()) return {};
    const auto record = core.make_record(socket, fd);
    record->leave_alone();
    record->set_chain(chain);
    record->options.on = on;
    state->alarm.emplace(Alarm(record.get()));
    state->alarm->start();
    stop_state = std::move(state);
  }
  return stop_state->source.get_token();
}

}  // namespace detail

namespace {

using detail::AlarmRecord;
using detail::Control;

constexpr std::uint64_t kNothingSeen = 0;

Error moved_from(const char* what) {
  return {Errc::stopped, std::string("this ") + what + " was moved from; use the one it was moved to"};
}

std::string describe_progress(const Alarm& alarm) {
  if (!alarm.triggered()) return alarm.active() ? "armed" : "not armed";
  const std::string cause = " (" + to_string(alarm.cause().what) + ")";
  if (alarm.finished()) return "finished" + cause;
  const std::string where =
      "action " + std::to_string(alarm.current_action() + 1) + " of " + std::to_string(alarm.action_count());
  return (alarm.active() ? "running " : "stopped at ") + where + cause;
}

}  // namespace

Watcher::Watcher(std::shared_ptr<detail::Core> core) noexcept : core_(std::move(core)) {}
Watcher::Watcher(Watcher&&) noexcept = default;
Watcher& Watcher::operator=(Watcher&& other) noexcept {
  if (this != &other) {
    if (core_) core_->stop();
    core_ = std::move(other.core_);
  }
  return *this;
}
Watcher::~Watcher() {
  if (core_) core_->stop();
}

Result<Watcher> Watcher::create(Options options) {
  auto core = detail::Core::create(std::move(options));
  if (!core) return fail(core.error());
  return Watcher(std::move(*core));
}

Result<Watch> Watcher::watch(int fd) const {
  if (!core_) return fail(moved_from("Watcher"));
  auto socket = core_->watch(fd);
  if (!socket) return fail(socket.error());
  return Watch(std::make_unique<detail::WatchHandle>(std::move(*socket), fd));
}

Description Watcher::describe() const {
  if (core_) return core_->describe();
  Description nothing;
  nothing.text = moved_from("Watcher").message();
  return nothing;
}
Stats Watcher::stats() const { return core_ ? core_->stats() : Stats{}; }

Watch::Watch(std::unique_ptr<detail::WatchHandle> handle) noexcept
    : peer_(&handle->socket->state->seen), handle_(std::move(handle)) {}
Watch::Watch(Watch&& other) noexcept
    : peer_(std::exchange(other.peer_, Peer(&kNothingSeen))), handle_(std::move(other.handle_)) {}
Watch& Watch::operator=(Watch&& other) noexcept {
  peer_ = std::exchange(other.peer_, Peer(&kNothingSeen));
  handle_ = std::move(other.handle_);
  return *this;
}
Watch::~Watch() = default;

std::chrono::steady_clock::time_point Watch::seen_at(Events of) const noexcept {
  if (!handle_) return {};
  return detail::seen_at(*handle_->socket->state, of);
}
int Watch::error() const noexcept {
  return handle_ ? static_cast<int>(detail::shared(handle_->socket->state->error).load()) : 0;
}
int Watch::fd() const noexcept { return handle_ ? handle_->fd : -1; }
std::uint64_t Watch::cookie() const noexcept { return handle_ ? handle_->socket->cookie : 0; }
SourceKind Watch::source() const noexcept {
  return handle_ ? handle_->socket->served_by : SourceKind::automatic;
}

Result<Alarm> Watch::arm(const ActionChain& chain, ArmOptions options) const {
  if (auto ok = detail::check(chain, options); !ok) return fail(ok.error());
  if (!handle_) return fail(moved_from("Watch"));
  if (auto refused = handle_->socket->core->refusal()) return fail(std::move(*refused));
  detail::AlarmRecord* record = handle_->take_record();
  record->set_chain(chain);
  record->options = options;
  Alarm alarm(record);
  alarm.start();
  return alarm;
}

Result<Alarm> Watch::arm(ArmOptions options) const {
  // Off Linux a thread cannot be named by number, so there the process gets it.
  static const ActionChain chain{
      send_signal(SIGALRM, SOCKALARM_LINUX ? SignalTarget::arming_thread : SignalTarget::process)};
  return arm(chain, options);
}

std::stop_token Watch::stop_token(Events on) const {
  if (!handle_ || handle_->socket->core->inert()) return {};
  return handle_->stop_token(on);
}

Alarm::Alarm(Alarm&& other) noexcept : record_(std::exchange(other.record_, nullptr)) {}
Alarm& Alarm::operator=(Alarm&& other) noexcept {
  if (this != &other) {
    const Alarm old(std::move(*this));
    record_ = std::exchange(other.record_, nullptr);
  }
  return *this;
}
Alarm::~Alarm() {
  if (record_ == nullptr) return;
  cancel_and_wait();
  record_->give_back();
}

bool Alarm::start() { return record_ != nullptr && record_->socket->core->start(*record_); }
bool Alarm::disarm() noexcept { return record_ != nullptr && record_->socket->core->disarm(*record_); }
Cancelled Alarm::cancel() noexcept {
  return record_ != nullptr ? record_->socket->core->cancel(*record_, false) : Cancelled::inactive;
}
Cancelled Alarm::cancel_and_wait() noexcept {
  return record_ != nullptr ? record_->socket->core->cancel(*record_, true) : Cancelled::inactive;
}

bool Alarm::active() const noexcept {
  if (record_ == nullptr) return false;
  const Control control = record_->load();
  if (control.has_fired()) return !record_->over();
  return control.state == Control::State::armed;
}
bool Alarm::triggered() const noexcept {
  if (record_ == nullptr) return false;
  const Control control = record_->load();
  // Just won by the library, and the cause not yet written down: a moment later.
  if (control.state == Control::State::fired && record_->phase.load() == AlarmRecord::Phase::waiting)
    return false;
  return control.has_fired();
}
bool Alarm::finished() const noexcept {
  if (!triggered()) return false;
  return record_->done_directly() ||
         (record_->phase.load() == AlarmRecord::Phase::ended && record_->complete.load());
}
int Alarm::current_action() const noexcept {
  if (!triggered()) return -1;
  return record_->done_directly() ? static_cast<int>(action_count()) : std::max(record_->current.load(), 0);
}
std::size_t Alarm::action_count() const noexcept { return actions().size(); }
Event Alarm::cause() const {
  // In a forked child the mutex may be in the hands of a thread that is not there.
  if (!triggered() || record_->socket->core->inert()) return {};
  return record_->socket->core->cause(*record_);
}
Events Alarm::events() const noexcept { return record_ != nullptr ? record_->options.on : Events(); }
const ActionChain& Alarm::actions() const noexcept {
  static const ActionChain none;
  return record_ != nullptr ? record_->chain : none;
}
int Alarm::fd() const noexcept { return record_ != nullptr ? record_->fd : -1; }

std::string to_string(const Alarm& alarm) {
  std::string text = "alarm on descriptor " + std::to_string(alarm.fd()) + " for " +
                     to_string(alarm.events()) + ", " + describe_progress(alarm) + ":";
  for (std::size_t i = 0; i < alarm.action_count(); ++i)
    text += (i == 0 ? " " : "; ") + std::to_string(i + 1) + " " + to_string(alarm.actions()[i]);
  return alarm.action_count() == 0 ? text + " no action" : text;
}

}  // namespace sockalarm
