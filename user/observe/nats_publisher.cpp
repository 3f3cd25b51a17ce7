// SPDX-License-Identifier: Apache-2.0
#include "observe/nats_publisher.h"

#include <algorithm>
#include <unordered_map>
#include <vector>

#include "base/blocked_signals.h"
#include "base/text.h"

namespace sockalarm::observe {
namespace {

constexpr auto kLook =
    std::chrono::seconds(1);  // for what is too old, and for a connection that came or went

// The windows that callbacks may still find. They run under its lock, so none goes on after remove().
class Table {
 public:
  std::uintptr_t add(NatsWindow& window) {
    const std::lock_guard lock(mutex_);
    windows_[++last_] = &window;
    return last_;
  }
  void remove(std::uintptr_t key) {
    const std::lock_guard lock(mutex_);
    windows_.erase(key);
  }
  template <class Use>
  void with(void* key, Use use) {
    const std::lock_guard lock(mutex_);
    const auto found = windows_.find(reinterpret_cast<std::uintptr_t>(key));
    if (found != windows_.end()) use(*found->second);
  }

 private:
  std::mutex mutex_;
  std::uintptr_t last_ = 0;
  std::unordered_map<std::uintptr_t, NatsWindow*> windows_;
};
Table& table() {
  static Table windows;
  return windows;
}

void on_acknowledged(jsCtx*, natsMsg* message, jsPubAck* acknowledgement, jsPubAckErr*, void* key) {
  const NatsOwned<natsMsg> owned(message);
  const char* id = nullptr;
  if (natsMsgHeader_Get(message, "Nats-Msg-Id", &id) == NATS_OK)
    table().with(key, [&](NatsWindow& window) { window.settled(id, acknowledgement); });
}

void on_connection(natsConnection*, void* key) {
  table().with(key, [](NatsWindow& window) { window.news(); });
}

Error nats_error(natsStatus status, const std::string& what) {
  return Error(std::make_error_code(std::errc::not_connected), what + ": " + natsStatus_GetText(status));
}

}  // namespace

std::optional<NatsMessage> NatsMessage::decoded(const std::string& bytes) {
  const auto first = bytes.find('\n');
  const auto second = first == std::string::npos ? first : bytes.find('\n', first + 1);
  if (second == std::string::npos) return std::nullopt;
  return NatsMessage{bytes.substr(0, first), bytes.substr(first + 1, second - first - 1),
                     bytes.substr(second + 1)};
}

NatsWindow::Clock::duration NatsWindow::backoff(unsigned failures) {
  constexpr unsigned kMostDoublings = 16;
  const std::int64_t whole = std::min<std::int64_t>(
      options_.most_backoff.count(), options_.least_backoff.count() << std::min(failures, kMostDoublings));
  return std::chrono::milliseconds(std::uniform_int_distribution<std::int64_t>(whole / 2, whole)(random_));
}

void NatsWindow::put_off(const std::string& id, Waiting& waiting, Clock::time_point until) {
  due_.erase(waiting.due);
  waiting.due = due_.emplace(until, id);
}

std::optional<NatsMessage> NatsWindow::next(Clock::time_point now) {
  const std::lock_guard lock(mutex_);
  if (!due_.empty() && due_.begin()->first <= now) {
    const auto found = waiting_.find(due_.begin()->second);
    put_off(found->first, found->second, now + 2 * options_.max_wait);
    return found->second.message;
  }
  if (waiting_.size() >= options_.window) return std::nullopt;
  for (auto entries = spool_.read(1); !entries.empty(); entries = spool_.read(1)) {
    auto message = NatsMessage::decoded(entries[0].bytes);
    if (!message || waiting_.contains(message->id)) {  // the second of the same is the same
      spool_.acknowledge(entries[0].number);
      continue;
    }
    // The library tells of each within max_wait; should it not, the message is sent again all the same.
    const auto due = due_.emplace(now + 2 * options_.max_wait, message->id);
    waiting_.emplace(message->id, Waiting{entries[0].number, *message, 0, due});
    figures_.waiting = waiting_.size();
    return message;
  }
  return std::nullopt;
}

void NatsWindow::settled(const std::string& id, const jsPubAck* acknowledgement) {
  const std::lock_guard lock(mutex_);
  const auto found = waiting_.find(id);
  if (found == waiting_.end()) return;  // sent twice, and both are told of
  if (acknowledgement == nullptr) {
    ++figures_.retried;
    put_off(id, found->second, Clock::now() + backoff(found->second.failures++));
  } else {
    ++figures_.acknowledged;
    if (acknowledgement->Duplicate) ++figures_.duplicates;
    spool_.acknowledge(found->second.number);
    due_.erase(found->second.due);
    waiting_.erase(found);
    figures_.waiting = waiting_.size();
  }
  news_ = true;
  changed_.notify_one();
}

void NatsWindow::news() {
  const std::lock_guard lock(mutex_);
  news_ = true;
  changed_.notify_one();
}

void NatsWindow::wait(Clock::time_point at_most, bool for_due) {
  std::unique_lock lock(mutex_);
  if (for_due && !due_.empty()) at_most = std::min(at_most, due_.begin()->first);
  changed_.wait_until(lock, at_most, [&] { return news_ || ending_; });
  news_ = false;
}

void NatsWindow::end() {
  const std::lock_guard lock(mutex_);
  ending_ = true;
  changed_.notify_one();
}

bool NatsWindow::ending() const {
  const std::lock_guard lock(mutex_);
  return ending_;
}

NatsPublisher::NatsPublisher(NatsOptions options, Spool& spool, std::chrono::seconds replay,
                             NatsSink::ErrorHook on_error)
    : options_(std::move(options)),
      spool_(spool),
      replay_(replay),
      on_error_(std::move(on_error)),
      window_(options_, spool, figures_),
      key_(table().add(window_)) {}

NatsPublisher::~NatsPublisher() {
  table().remove(key_);
  window_.end();
  if (thread_.joinable()) thread_.join();
  context_.reset();
  connection_.reset();
}

Result<void> NatsPublisher::start() {
  if (auto connected = connect(); !connected) return connected;
  const BlockedSignals blocked;
  thread_ = std::thread([this] { run(); });
  return {};
}

// The library connects again by itself, to any of the servers; the jitter keeps hosts apart.
Result<void> NatsPublisher::connect() {
  std::vector<std::string> servers;
  for (std::string_view left = options_.servers; !left.empty();) {
    const auto server = left.substr(0, left.find(','));
    left.remove_prefix(std::min(left.size(), server.size() + 1));
    if (!trim(server).empty()) servers.emplace_back(trim(server));
  }
  std::vector<const char*> urls;
  urls.reserve(servers.size());
  for (const auto& server : servers) urls.push_back(server.c_str());

  natsOptions* made = nullptr;
  natsStatus status = natsOptions_Create(&made);
  const NatsOwned<natsOptions> owned(made);
  void* const key =
      reinterpret_cast<void*>(key_);  // NOLINT(performance-no-int-to-ptr): a number, never followed
  const auto also = [&](natsStatus next) { status = status == NATS_OK ? next : status; };
  also(natsOptions_SetServers(made, urls.data(), static_cast<int>(urls.size())));
  also(natsOptions_SetName(made, "sockalarmd"));
  also(natsOptions_SetTimeout(made, 2000));
  also(natsOptions_SetMaxReconnect(made, -1));
  also(natsOptions_SetReconnectWait(made, options_.least_backoff.count()));
  also(natsOptions_SetReconnectJitter(made, options_.least_backoff.count() * 4,
                                      options_.least_backoff.count() * 8));
  also(natsOptions_SetRetryOnFailedConnect(made, true, on_connection, key));
  also(natsOptions_SetReconnectedCB(made, on_connection, key));
  also(natsOptions_SetPingInterval(made, 5000));  // a server that vanished without a word
  also(natsOptions_SetMaxPingsOut(made, 2));
  if (!options_.credentials.empty())
    also(natsOptions_SetUserCredentialsFromFiles(made, options_.credentials.c_str(), nullptr));
  if (!options_.authorities.empty())
    also(natsOptions_LoadCATrustedCertificates(made, options_.authorities.c_str()));
  if (status != NATS_OK)
    return fail(nats_error(status, "options for the NATS servers " + sockalarm::quoted(options_.servers)));

  natsConnection* connection = nullptr;
  status = natsConnection_Connect(&connection, made);
  connection_.reset(connection);
  if (status != NATS_OK && status != NATS_NOT_YET_CONNECTED)
    return fail(nats_error(status, "the NATS servers " + sockalarm::quoted(options_.servers)));
  jsOptions js;
  status = jsOptions_Init(&js);
  js.PublishAsync.AckHandler = on_acknowledged;
  js.PublishAsync.AckHandlerClosure = key;
  jsCtx* context = nullptr;
  also(natsConnection_JetStream(&context, connection, &js));
  context_.reset(context);
  if (status != NATS_OK) return fail(nats_error(status, "natsConnection_JetStream()"));
  return {};
}

natsStatus NatsPublisher::send(const NatsMessage& message) {
  jsPubOptions publish;
  jsPubOptions_Init(&publish);
  publish.MsgId = message.id.c_str();
  publish.MaxWait = options_.max_wait.count();
  ++figures_.sent;
  return js_PublishAsync(context_.get(), message.subject.c_str(), message.json.data(),
                         static_cast<int>(message.json.size()), &publish);
}

void NatsPublisher::report(bool good, const std::string& what) {
  if (!good && !failing_ && on_error_) on_error_(Error(std::make_error_code(std::errc::not_connected), what));
  failing_ = !good;
}

// Nothing is given to a connection that is not up: the library would keep it, beside the spool.
bool NatsPublisher::usable() {
  const bool up = natsConnection_Status(connection_.get()) == NATS_CONN_STATUS_CONNECTED;
  if (up != figures_.connected) {
    figures_.connected = up;
    report(up, "no connection to the NATS servers " + sockalarm::quoted(options_.servers) +
                   "; the spool keeps what comes");
  }
  if (up && !stream_checked_) check_stream();
  return up;
}

// Once, and only to tell: an agent may lack the right to ask.
void NatsPublisher::check_stream() {
  jsStreamInfo* info = nullptr;
  jsErrCode code{};
  const natsStatus status = js_GetStreamInfo(&info, context_.get(), options_.stream.c_str(), nullptr, &code);
  if (status == NATS_TIMEOUT || status == NATS_NO_RESPONDERS) return;  // no leader yet
  stream_checked_ = true;
  if (!on_error_) return;
  if (status == NATS_NOT_FOUND)
    on_error_(nats_error(status, "the stream " + sockalarm::quoted(options_.stream) +
                                     "; make it with the subject sockalarm.v1.>"));
  else if (status == NATS_OK && info->Config->Duplicates < std::chrono::nanoseconds(replay_).count())
    on_error_(Error(Errc::invalid_options,
                    "the stream " + sockalarm::quoted(options_.stream) + " knows duplicates for " +
                        std::to_string(info->Config->Duplicates / 1'000'000'000) +
                        " s, but the spool sends again for " + std::to_string(replay_.count()) +
                        " s: events may come twice; raise its duplicate window"));
  jsStreamInfo_Destroy(info);
}

void NatsPublisher::run() {
  while (!window_.ending()) {
    const auto now = NatsWindow::Clock::now();
    if (usable()) {
      while (auto message = window_.next(NatsWindow::Clock::now())) {
        const natsStatus status = send(*message);
        if (status != NATS_OK) window_.settled(message->id, nullptr);
        if (status != NATS_OK || window_.ending()) break;
      }
    }
    spool_.drop_too_old();
    // What is due cannot be sent without a connection, so that is not waited for.
    window_.wait(now + kLook, figures_.connected);
  }
  nats_ReleaseThreadMemory();
}

}  // namespace sockalarm::observe
