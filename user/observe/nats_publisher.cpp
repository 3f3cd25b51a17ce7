// SPDX-License-Identifier: Apache-2.0
#include "observe/nats_publisher.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "base/blocked_signals.h"
#include "base/text.h"

namespace sockalarm::observe {
namespace {

constexpr auto kLook = std::chrono::seconds(1);    // for what is too old
constexpr auto kAgain = std::chrono::seconds(10);  // for a stream without a leader, or if memory was short
constexpr std::size_t kMostTold = 8;               // of a connection that there is not

// The publishers that callbacks may still find. They run under its lock, so none goes on after remove().
class Table {
 public:
  std::uintptr_t add(NatsPublisher& publisher) {
    const MutexLock lock(mutex_);
    publishers_[++last_] = &publisher;
    return last_;
  }
  void remove(std::uintptr_t key) {
    const MutexLock lock(mutex_);
    publishers_.erase(key);
  }
  // For C, which no exception may pass. What is not heard of is asked for again, or sent again.
  template <class Use>
  void with(void* key, Use use) noexcept {
    try {
      const MutexLock lock(mutex_);
      const auto found = publishers_.find(reinterpret_cast<std::uintptr_t>(key));
      if (found != publishers_.end()) use(*found->second);
    } catch (...) {
    }
  }

 private:
  Mutex mutex_;
  std::uintptr_t last_ GUARDED_BY(mutex_) = 0;
  std::unordered_map<std::uintptr_t, NatsPublisher*> publishers_ GUARDED_BY(mutex_);
};
// Never destroyed: threads of the library call until the very end of the process.
Table& table() {
  static Table& publishers = *new Table;
  return publishers;
}

}  // namespace

struct NatsCallbacks {
  template <class Note>
  static void note(void* key, Note note) {
    table().with(key, [&](NatsPublisher& publisher) {
      {
        const MutexLock lock(publisher.heard_mutex_);
        note(publisher.heard_);
      }
      publisher.window_.news();
    });
  }
  static void connected(natsConnection*, void* key) {
    note(key, [](NatsPublisher::Heard& heard) { heard.connected = true; });
  }
  static void disconnected(natsConnection*, void* key) {
    note(key, [](NatsPublisher::Heard&) {});
  }
  // What the subject ends in says what was asked.
  static void answer(natsConnection*, natsSubscription*, natsMsg* message, void* key) {
    const NatsOwned<natsMsg> owned(message);
    const std::string_view subject = natsMsg_GetSubject(message);
    const auto number = parse_number<std::uint64_t>(subject.substr(subject.rfind('.') + 1));
    const std::string_view data =
        natsMsg_IsNoResponders(message)
            ? std::string_view()
            : std::string_view(natsMsg_GetData(message),
                               static_cast<std::size_t>(natsMsg_GetDataLength(message)));
    if (number)
      table().with(key,
                   [&](NatsPublisher& publisher) { publisher.window_.settled(*number, answer_in(data)); });
    else
      note(key, [&](NatsPublisher::Heard& heard) { heard.stream = data; });
  }
  // {"stream":"SOCKALARM","seq":7,"duplicate":true}, or an error.
  static NatsWindow::Answer answer_in(std::string_view data) {
    const auto json = nlohmann::json::parse(data, nullptr, false);
    if (!json.is_object() || json.contains("error") || !json.contains("seq"))
      return NatsWindow::Answer::failed;
    const auto duplicate = json.find("duplicate");
    return duplicate != json.end() && *duplicate == true ? NatsWindow::Answer::duplicate
                                                         : NatsWindow::Answer::acknowledged;
  }
  static void failed(natsConnection* connection, natsSubscription*, natsStatus status, void* key) {
    const char* text = nullptr;
    natsConnection_GetLastError(connection, &text);
    note(key, [&](NatsPublisher::Heard& heard) {
      heard.error = text != nullptr && *text != '\0' ? text : natsStatus_GetText(status);
    });
  }
};

std::optional<NatsMessage> NatsMessage::decoded(const std::string& bytes) {
  const auto first = bytes.find('\n');
  const auto second = first == std::string::npos ? first : bytes.find('\n', first + 1);
  if (second == std::string::npos) return std::nullopt;
  return NatsMessage{bytes.substr(0, first), bytes.substr(first + 1, second - first - 1),
                     bytes.substr(second + 1)};
}

std::chrono::milliseconds NatsBackoff::after(unsigned failures) {
  constexpr unsigned kMostDoublings = 16;
  const std::int64_t whole =
      std::min<std::int64_t>(most_.count(), least_.count() << std::min(failures, kMostDoublings));
  return std::chrono::milliseconds(std::uniform_int_distribution<std::int64_t>(whole / 2, whole)(random_));
}

void NatsWindow::put_off(Waiting& waiting, Clock::time_point until) {
  const auto due = due_.emplace(until, waiting.message.number);
  due_.erase(waiting.due);
  waiting.due = due;
}

void NatsWindow::failed(Waiting& waiting, Clock::time_point now) {
  ++figures_.retried;
  waiting.under_way = false;
  put_off(waiting, now + backoff_.after(waiting.failures++));
}

std::optional<NatsMessage> NatsWindow::next(Clock::time_point now) {
  const MutexLock lock(mutex_);
  while (!due_.empty() && due_.begin()->first <= now) {
    const auto found = waiting_.find(due_.begin()->second);
    if (found == waiting_.end()) {  // there was no memory for it
      due_.erase(due_.begin());
      continue;
    }
    Waiting& waiting = found->second;
    if (waiting.under_way) {  // nobody has answered
      failed(waiting, now);
      continue;
    }
    waiting.under_way = true;
    put_off(waiting, now + options_.max_wait);
    return waiting.message;
  }
  if (waiting_.size() >= options_.window) return std::nullopt;
  for (auto entries = spool_.read(1); !entries.empty(); entries = spool_.read(1)) {
    auto message = NatsMessage::decoded(entries[0].bytes);
    if (!message || ids_.contains(message->id)) {  // the second of the same is the same
      spool_.acknowledge(entries[0].number);
      continue;
    }
    message->number = entries[0].number;
    const auto due = due_.emplace(now + options_.max_wait, message->number);
    ids_.insert(message->id);
    waiting_.emplace(message->number, Waiting{*message, 0, true, due});
    figures_.waiting = waiting_.size();
    return message;
  }
  return std::nullopt;
}

void NatsWindow::settled(std::uint64_t number, Answer answer) {
  const MutexLock lock(mutex_);
  const auto found = waiting_.find(number);
  if (found == waiting_.end()) return;  // sent twice, and both are told of
  Waiting& waiting = found->second;
  if (answer == Answer::failed) {
    if (waiting.under_way) failed(waiting, Clock::now());
  } else {
    ++figures_.acknowledged;
    if (answer == Answer::duplicate) ++figures_.duplicates;
    spool_.acknowledge(number);
    due_.erase(waiting.due);
    ids_.erase(waiting.message.id);
    waiting_.erase(found);
    figures_.waiting = waiting_.size();
  }
  news_ = true;
  changed_.notify_one();
}

void NatsWindow::news() {
  const MutexLock lock(mutex_);
  news_ = true;
  changed_.notify_one();
}

void NatsWindow::wait(Clock::time_point at_most, bool for_due) {
  const MutexLock lock(mutex_);
  if (for_due && !due_.empty()) at_most = std::min(at_most, due_.begin()->first);
  while (!news_ && !ending_ && changed_.wait_until(mutex_, at_most)) {
  }
  news_ = false;
}

void NatsWindow::end() {
  const MutexLock lock(mutex_);
  ending_ = true;
  changed_.notify_one();
}

bool NatsWindow::ending() const {
  const MutexLock lock(mutex_);
  return ending_;
}

NatsPublisher::NatsPublisher(NatsOptions options, Spool& spool, std::chrono::seconds replay,
                             NatsSink::ErrorHook on_error)
    : options_(std::move(options)),
      spool_(spool),
      replay_(replay),
      on_error_(std::move(on_error)),
      window_(options_, spool, figures_),
      key_(table().add(*this)),
      inbox_("_INBOX.sockalarmd." + std::to_string(std::random_device{}()) +
             std::to_string(std::random_device{}())) {}

NatsPublisher::~NatsPublisher() {
  table().remove(key_);
  window_.end();
  if (thread_.joinable()) thread_.join();
}

// Connecting may take seconds for each server, which is the thread's time.
Result<void> NatsPublisher::start() {
  if (auto options = own_options(); !options) return fail(options.error());
  const BlockedSignals blocked;
  thread_ = std::thread([this] { run(); });
  return {};
}

Result<NatsOwned<natsOptions>> NatsPublisher::own_options() const {
  return nats_options({options_.servers, options_.credentials, options_.authorities, "sockalarmd"},
                      options_.least_backoff);
}

Result<void> NatsPublisher::connect() {
  auto options = own_options();
  if (!options) return fail(options.error());
  natsOptions* const made = options->get();
  void* const key =
      reinterpret_cast<void*>(key_);  // NOLINT(performance-no-int-to-ptr): a number, never followed
  natsStatus status = NATS_OK;
  const auto also = [&](natsStatus next) { status = status == NATS_OK ? next : status; };
  also(natsOptions_SetReconnectedCB(made, NatsCallbacks::connected, key));
  also(natsOptions_SetDisconnectedCB(made, NatsCallbacks::disconnected, key));
  also(natsOptions_SetErrorHandler(made, NatsCallbacks::failed, key));
  if (status != NATS_OK) return fail(nats_error(status, "options for NATS"));

  connection_.reset();
  answers_.reset();
  const std::string inboxes = inbox_ + ".*";
  // Not tried again by the library, which would give up when it is refused, and not say why
  // (natsOptions_SetRetryOnFailedConnect() of libnats 3.4).
  natsConnection* connected = nullptr;
  status = natsConnection_Connect(&connected, made);
  NatsOwned<natsConnection> connection(connected);
  if (status != NATS_OK) return fail(nats_error(status, no_connection(), true));
  natsSubscription* answers = nullptr;
  status = natsConnection_Subscribe(&answers, connected, inboxes.c_str(), NatsCallbacks::answer, key);
  // Both or neither: without a subscription no message would ever be acknowledged.
  if (status != NATS_OK) return fail(nats_error(status, no_connection() + ": natsConnection_Subscribe()"));
  answers_.reset(answers);
  connection_ = std::move(connection);
  const MutexLock lock(heard_mutex_);
  heard_.connected = true;  // of which no callback tells
  return {};
}

// Not by js_PublishAsync() (libnats 3.4): a write that takes longer than its time for an acknowledgement has
// the message given to a callback that owns it, while it is still being written.
natsStatus NatsPublisher::send(const NatsMessage& message) {
  natsMsg* made = nullptr;
  const std::string reply = inbox_ + "." + std::to_string(message.number);
  natsStatus status = natsMsg_Create(&made, message.subject.c_str(), reply.c_str(), message.json.data(),
                                     static_cast<int>(message.json.size()));
  const NatsOwned<natsMsg> owned(made);
  if (status == NATS_OK) status = natsMsgHeader_Set(made, "Nats-Msg-Id", message.id.c_str());
  if (status == NATS_OK) status = natsConnection_PublishMsg(connection_.get(), made);
  ++figures_.sent;
  return status;
}

void NatsPublisher::tell(const Error& error) const {
  if (on_error_) on_error_(error);
}

void NatsPublisher::tell_once(std::string& told, const Error& error) const {
  if (told == error.message()) return;
  told = error.message();
  tell(error);
}

std::string NatsPublisher::no_connection() const {
  return "no connection to the NATS servers " + shown_servers(options_.servers);
}

// Of one that the library tries to make again.
std::string NatsPublisher::lost_connection() const {
  const char* said = nullptr;
  if (!connection_ || natsConnection_GetLastError(connection_.get(), &said) == NATS_OK) said = nullptr;
  return no_connection() +
         (said == nullptr || *said == '\0' ? "" : " (" + escaped(without_logins(said)) + ")");
}

// Each state of affairs once, until there is a connection. Why may be known later than that.
void NatsPublisher::tell_not_connected() {
  const std::string text = refused_.empty() ? lost_connection() : refused_;
  if (told_not_connected_.size() < kMostTold && told_not_connected_.insert(text).second)
    tell(Error(std::make_error_code(std::errc::not_connected), text + "; the spool keeps what comes"));
}

NatsPublisher::Heard NatsPublisher::take_heard() {
  const MutexLock lock(heard_mutex_);
  return std::exchange(heard_, {});
}

// Nothing is given to a connection that is not up: the library would keep it, beside the spool.
bool NatsPublisher::usable() {
  // Also after two refusals of the same kind, as of credentials that have expired: then the library gives up.
  if ((!connection_ || natsConnection_IsClosed(connection_.get())) && connect_ <= Clock::now()) {
    connect_ = Clock::now() + kAgain;  // should it throw
    const auto connected = connect();
    refused_ = connected ? "" : connected.error().message();
    connect_ = Clock::now() + backoff_.after(connects_++);
  }
  const auto now = Clock::now();
  const Heard heard = take_heard();
  if (!heard.error.empty())
    tell_once(told_error_, Error(std::make_error_code(std::errc::operation_not_permitted),
                                 "the broker says: " + escaped(without_logins(heard.error))));
  if (heard.stream) judge_stream(*heard.stream);
  const bool up = connection_ && natsConnection_Status(connection_.get()) == NATS_CONN_STATUS_CONNECTED;
  figures_.connected = up;
  if (up) {
    connects_ = 0;
    told_not_connected_.clear();
  } else {
    tell_not_connected();
  }
  if (up && (heard.connected || (ask_ && *ask_ <= now))) ask_for_stream();
  return up;
}

// Once for each connection, only to tell, and without a wait: an agent may lack the right to ask, and then
// nobody answers.
void NatsPublisher::ask_for_stream() {
  ask_.reset();
  const std::string subject = "$JS.API.STREAM.INFO." + options_.stream;
  natsConnection_PublishRequest(connection_.get(), subject.c_str(), (inbox_ + ".stream").c_str(), nullptr, 0);
}

// Nobody may answer, or nobody lead the stream, for a moment after a start: that is told of the second time.
void NatsPublisher::judge_stream(const std::string& answer) {
  constexpr int kNotFound = 404, kUnavailable = 503;
  const auto json = nlohmann::json::parse(answer, nullptr, false);
  const auto error = json.is_object() ? json.value("error", nlohmann::json::object()) : nlohmann::json();
  const int code = error.is_object() ? error.value("code", 0) : 0;
  const std::string stream = "the stream " + sockalarm::quoted(escaped(options_.stream));
  const auto say = [&](std::error_code what, const std::string& text) {
    tell_once(told_stream_, Error(what, text));
  };
  if (answer.empty() || code == kUnavailable) {
    ask_ = Clock::now() + kAgain;
    if (std::exchange(unanswered_, true))
      say(std::make_error_code(std::errc::not_supported),
          "there is no JetStream for " + stream + " on " + shown_servers(options_.servers) + " (" +
              (answer.empty() ? "nobody answers" : escaped(error.value("description", ""))) +
              "); enable it, by `jetstream {}` in the configuration of nats-server and for the account, or "
              "see why the leaf node has no connection to its hub; the spool keeps what comes");
    return;
  }
  unanswered_ = false;
  if (!error.is_object()) return;
  if (code != 0)
    return say(std::make_error_code(std::errc::not_connected),
               stream + " on " + shown_servers(options_.servers) + ": " +
                   escaped(error.value("description", "")) +
                   (code == kNotFound ? "; make it: " + make_stream(options_.stream) : ""));
  const auto window = std::chrono::nanoseconds(
      json.value("config", nlohmann::json::object()).value("duplicate_window", std::int64_t{0}));
  if (window < replay_)
    return say(make_error_code(Errc::invalid_options),
               stream + " knows duplicates for " +
                   std::to_string(std::chrono::duration_cast<std::chrono::seconds>(window).count()) +
                   " s, but the spool sends again for " + std::to_string(replay_.count()) +
                   " s: events may come twice; raise its duplicate window, or lower the spool's age");
  told_stream_.clear();
}

void NatsPublisher::send_what_is_due() {
  while (auto message = window_.next(Clock::now())) {
    const natsStatus status = send(*message);
    if (status != NATS_OK) window_.settled(message->number, NatsWindow::Answer::failed);
    if (status != NATS_OK || window_.ending()) break;
  }
}

// What is thrown, as without memory, ends a round, not the process.
void NatsPublisher::run() noexcept {
  while (!window_.ending()) {
    const auto now = Clock::now();
    try {
      if (usable()) send_what_is_due();
      spool_.drop_too_old();
    } catch (...) {
    }
    // What is due cannot be sent without a connection, so that is not waited for.
    const auto next = connect_ > now ? std::min(now + kLook, connect_) : now + kLook;
    window_.wait(next, figures_.connected);
  }
  nats_ReleaseThreadMemory();
}

}  // namespace sockalarm::observe
