// SPDX-License-Identifier: Apache-2.0
#include "observe/nats_reader.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <nlohmann/json.hpp>
#include <thread>
#include <unordered_set>

#include "base/blocked_signals.h"
#include "base/text.h"
#include "observe/nats_connection.h"

namespace sockalarm::observe {
namespace {

using std::chrono::milliseconds;

constexpr std::int64_t kAskMilliseconds = 5000;
constexpr auto kTemporary = std::chrono::minutes(5);  // after its reader was killed

struct InfoDeleter {
  void operator()(jsConsumerInfo* info) const noexcept { jsConsumerInfo_Destroy(info); }
  void operator()(jsMsgMetaData* data) const noexcept { jsMsgMetaData_Destroy(data); }
};
template <class T>
using OwnedInfo = std::unique_ptr<T, InfoDeleter>;

// A list that a fetch fills, and what of it was not taken.
struct List {
  natsMsgList list{};
  List() = default;
  List(const List&) = delete;
  List& operator=(const List&) = delete;
  ~List() { natsMsgList_Destroy(&list); }
};

std::string subject_of(const StreamOptions& options) {
  const auto part = [](const std::string& name) { return name.empty() ? "*" : nats_token(name); };
  return "sockalarm.v1." + part(options.region) + "." + part(options.host) + ".*";
}

// The ids of the last records, bounded.
class Remembered {
 public:
  explicit Remembered(std::size_t most) : most_(most) {}
  bool is_new(const std::string& id) {
    if (!known_.insert(id).second) return false;
    order_.push_back(id);
    if (order_.size() > most_) {
      known_.erase(order_.front());
      order_.pop_front();
    }
    return true;
  }

 private:
  const std::size_t most_;
  std::unordered_set<std::string> known_;
  std::deque<std::string> order_;
};

}  // namespace

std::string durable_name(std::string_view text) {
  std::string name = nats_token(text);
  std::replace_if(name.begin(), name.end(), [](char c) { return c == '/' || c == '\\'; }, '_');
  return name;
}

struct StreamReader::Impl {
  explicit Impl(StreamOptions given) : options(std::move(given)), remembered(options.remembered) {}
  ~Impl() {
    if (temporary_made && natsConnection_Status(connection.get()) == NATS_CONN_STATUS_CONNECTED)
      js_DeleteConsumer(context.get(), options.stream.c_str(), options.durable.c_str(), nullptr, nullptr);
  }

  Result<void> connect();
  Result<OwnedInfo<jsConsumerInfo>> info();  // an empty one: there is none of that name
  Result<void> make_durable();
  Result<void> subscribe();
  Error explain(natsStatus status, jsErrCode code, const std::string& what) const;
  std::optional<StreamRecord> record_of(natsMsg* message);

  const StreamOptions options;
  NatsOwned<natsSubscription> subscription;
  NatsOwned<natsConnection> connection;  // ends before the subscription (see NatsDeleter)
  NatsOwned<jsCtx> context;
  std::vector<NatsOwned<natsMsg>> unacknowledged;  // to be acknowledged
  Remembered remembered;
  std::uint64_t duplicates = 0;
  bool goes_on = false, temporary_made = false;
};

Result<void> StreamReader::Impl::connect() {
  if (options.durable.empty() || options.durable.find_first_of(". *>/\\\t\r\n") != std::string::npos)
    return fail(Error(Errc::invalid_options,
                      "the name of the durable, " + sockalarm::quoted(escaped(options.durable)) +
                          ", must not be empty, nor have blanks or one of . * > / \\ in it"));
  auto made = nats_options({options.servers, options.credentials, options.authorities, "sockalarm"},
                           milliseconds(200));
  if (!made) return fail(made.error());
  // The default one prints to stderr what natsConnection_GetLastError() says as well.
  natsOptions_SetErrorHandler(
      made->get(), [](natsConnection*, natsSubscription*, natsStatus, void*) {}, nullptr);
  const BlockedSignals blocked;  // for the threads of the library
  natsConnection* opened = nullptr;
  const natsStatus status = natsConnection_Connect(&opened, made->get());
  connection.reset(opened);
  if (status != NATS_OK)
    return fail(nats_error(status, "cannot reach the NATS servers " + shown_servers(options.servers)));
  jsOptions js;
  jsOptions_Init(&js);
  js.Wait = kAskMilliseconds;
  jsCtx* made_context = nullptr;
  const natsStatus with_context = natsConnection_JetStream(&made_context, opened, &js);
  context.reset(made_context);
  if (with_context != NATS_OK) return fail(nats_error(with_context, "natsConnection_JetStream()"));
  return {};
}

Error StreamReader::Impl::explain(natsStatus status, jsErrCode code, const std::string& what) const {
  const auto error = [&](const std::string& text) {
    return Error(std::make_error_code(std::errc::not_connected), text);
  };
  const std::string stream = sockalarm::quoted(escaped(options.stream));
  if (code == JSStreamNotFoundErr)
    return error("there is no stream " + stream + " on " + shown_servers(options.servers) + "; make it:\n  " +
                 make_stream(options.stream));
  if (status == NATS_NO_RESPONDERS || code == JSNotEnabledErr || code == JSNotEnabledForAccountErr)
    return error("there is no JetStream on " + shown_servers(options.servers) +
                 ", or not for this account; enable it by `jetstream {}` in the configuration of "
                 "nats-server, and for the account");
  const char* said = nullptr;
  natsConnection_GetLastError(connection.get(), &said);
  if (status == NATS_TIMEOUT && said != nullptr && *said != '\0')
    return error(what + ": " + escaped(without_logins(said)));
  return nats_error(status, what);
}

Result<OwnedInfo<jsConsumerInfo>> StreamReader::Impl::info() {
  jsConsumerInfo* found = nullptr;
  jsErrCode code{};
  const natsStatus status = js_GetConsumerInfo(&found, context.get(), options.stream.c_str(),
                                               options.durable.c_str(), nullptr, &code);
  OwnedInfo<jsConsumerInfo> owned(found);
  if (status != NATS_OK && code == JSConsumerNotFoundErr) return OwnedInfo<jsConsumerInfo>();
  if (status != NATS_OK)
    return fail(explain(status, code, "the durable " + sockalarm::quoted(options.durable)));
  return owned;
}

Result<void> StreamReader::Impl::make_durable() {
  const std::string subject = subject_of(options);
  auto known = info();
  if (!known) return fail(known.error());
  if (*known) {
    const char* const filter = (*known)->Config->FilterSubject;
    if (filter == nullptr || subject != filter)
      return fail(Error(Errc::invalid_options,
                        "the durable " + sockalarm::quoted(options.durable) + " is for " +
                            sockalarm::quoted(filter == nullptr ? "all" : escaped(filter)) + ", not for " +
                            sockalarm::quoted(subject) + "; take another name for it, or delete it"));
    goes_on = true;
    return {};
  }
  jsConsumerConfig config;
  jsConsumerConfig_Init(&config);
  config.Durable = options.durable.c_str();
  config.FilterSubject = subject.c_str();
  config.AckPolicy = js_AckExplicit;
  config.MaxAckPending = 20'000;
  if (options.temporary) config.InactiveThreshold = std::chrono::nanoseconds(kTemporary).count();
  if (options.from == StreamOptions::From::since) {
    config.DeliverPolicy = js_DeliverByStartTime;
    const auto now = std::chrono::system_clock::now().time_since_epoch();
    config.OptStartTime = (std::chrono::duration_cast<std::chrono::nanoseconds>(now) - options.since).count();
  } else {
    config.DeliverPolicy = options.from == StreamOptions::From::all ? js_DeliverAll : js_DeliverNew;
  }
  jsErrCode code{};
  const natsStatus status =
      js_AddConsumer(nullptr, context.get(), options.stream.c_str(), &config, nullptr, &code);
  if (status != NATS_OK)
    return fail(explain(status, code, "making the durable " + sockalarm::quoted(options.durable)));
  temporary_made = options.temporary;
  return {};
}

// Bound to the durable, which the library therefore leaves alone at the end.
Result<void> StreamReader::Impl::subscribe() {
  jsSubOptions bound;
  jsSubOptions_Init(&bound);
  bound.Stream = options.stream.c_str();
  bound.Consumer = options.durable.c_str();
  natsSubscription* made = nullptr;
  jsErrCode code{};
  const natsStatus status = js_PullSubscribe(&made, context.get(), subject_of(options).c_str(),
                                             options.durable.c_str(), nullptr, &bound, &code);
  subscription.reset(made);
  if (status != NATS_OK)
    return fail(explain(status, code, "reading by the durable " + sockalarm::quoted(options.durable)));
  return {};
}

// Empty: it came before.
std::optional<StreamRecord> StreamReader::Impl::record_of(natsMsg* message) {
  StreamRecord record;
  record.json.assign(natsMsg_GetData(message), static_cast<std::size_t>(natsMsg_GetDataLength(message)));
  const auto json = nlohmann::json::parse(record.json, nullptr, false);
  if (const auto id = json.is_object() ? json.find("event.id") : json.end();
      id != json.end() && id->is_string())
    record.id = id->get<std::string>();
  if (!record.id.empty() && !remembered.is_new(record.id)) {
    ++duplicates;
    return std::nullopt;
  }
  jsMsgMetaData* data = nullptr;
  if (natsMsg_GetMetaData(&data, message) == NATS_OK) {
    const OwnedInfo<jsMsgMetaData> owned(data);
    record.stored = std::chrono::system_clock::time_point(std::chrono::nanoseconds(data->Timestamp));
  }
  return record;
}

StreamReader::StreamReader(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
StreamReader::~StreamReader() = default;

Result<std::unique_ptr<StreamReader>> StreamReader::open(StreamOptions options) {
  auto impl = std::make_unique<Impl>(std::move(options));
  for (const auto step : {&Impl::connect, &Impl::make_durable, &Impl::subscribe})
    if (auto done = (impl.get()->*step)(); !done) return fail(done.error());
  return std::unique_ptr<StreamReader>(new StreamReader(std::move(impl)));
}

Result<bool> StreamReader::remove(const StreamOptions& options) {
  Impl impl(options);
  if (auto connected = impl.connect(); !connected) return fail(connected.error());
  jsErrCode code{};
  const natsStatus status =
      js_DeleteConsumer(impl.context.get(), options.stream.c_str(), options.durable.c_str(), nullptr, &code);
  if (status != NATS_OK && code == JSConsumerNotFoundErr) return false;
  if (status != NATS_OK)
    return fail(impl.explain(status, code, "deleting the durable " + sockalarm::quoted(options.durable)));
  return true;
}

bool StreamReader::goes_on() const { return impl_->goes_on; }
bool StreamReader::connected() const {
  return natsConnection_Status(impl_->connection.get()) == NATS_CONN_STATUS_CONNECTED;
}
std::uint64_t StreamReader::duplicates() const { return impl_->duplicates; }

Result<std::uint64_t> StreamReader::pending() {
  auto info = impl_->info();
  if (!info) return fail(info.error());
  return *info ? (*info)->NumPending : 0;
}

Result<std::vector<StreamRecord>> StreamReader::fetch(std::size_t at_most, milliseconds patience) {
  std::vector<StreamRecord> records;
  List fetched;
  jsErrCode code{};
  const natsStatus status = natsSubscription_Fetch(&fetched.list, impl_->subscription.get(),
                                                   static_cast<int>(at_most), patience.count(), &code);
  if (status == NATS_OK) {
    for (int i = 0; i < fetched.list.Count; ++i) {
      NatsOwned<natsMsg> message(std::exchange(fetched.list.Msgs[i], nullptr));
      if (auto record = impl_->record_of(message.get())) records.push_back(std::move(*record));
      impl_->unacknowledged.push_back(std::move(message));
    }
    return records;
  }
  if (natsConnection_IsClosed(impl_->connection.get()))
    return fail(impl_->explain(status, code, "the connection was closed"));
  if (status == NATS_TIMEOUT) return records;
  // Without a connection, or a server that just came back and does not know its consumers yet.
  if (connected())
    if (auto info = impl_->info(); info && !*info)
      return fail(Error(std::make_error_code(std::errc::not_connected),
                        "the durable " + sockalarm::quoted(impl_->options.durable) + " was deleted"));
  std::this_thread::sleep_for(patience);
  return records;
}

// The last by asking whether it arrived, and so those before it.
Result<void> StreamReader::acknowledge() {
  const auto messages = std::exchange(impl_->unacknowledged, {});
  for (const auto& message : messages) {
    jsErrCode code{};
    const natsStatus status = message == messages.back() ? natsMsg_AckSync(message.get(), nullptr, &code)
                                                         : natsMsg_Ack(message.get(), nullptr);
    if (status != NATS_OK) return fail(impl_->explain(status, code, "an acknowledgement"));
  }
  return {};
}

}  // namespace sockalarm::observe
