// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <nats/nats.h>

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <unordered_map>
#include <unordered_set>

#include "base/mutex.h"
#include "observe/nats_connection.h"
#include "observe/nats_sink.h"

namespace sockalarm::observe {

// What a record of the spool says.
struct NatsMessage {
  std::string subject, id, json;
  std::uint64_t number = 0;  // in the spool

  std::string encoded() const { return subject + '\n' + id + '\n' + json; }
  static std::optional<NatsMessage> decoded(const std::string& bytes);
};

// How long to wait before something is tried again: longer each time, and not as long as others do.
class NatsBackoff {
 public:
  explicit NatsBackoff(const NatsOptions& options)
      : least_(options.least_backoff), most_(options.most_backoff) {}
  std::chrono::milliseconds after(unsigned failures);

 private:
  const std::chrono::milliseconds least_, most_;
  std::mt19937 random_{std::random_device{}()};
};

// What was sent, and waits for its acknowledgement or for being sent again.
class NatsWindow {
 public:
  using Clock = std::chrono::steady_clock;

  NatsWindow(const NatsOptions& options, Spool& spool, NatsFigures& figures)
      : options_(options), spool_(spool), figures_(figures), backoff_(options) {}

  // From the spool, and of those that waited long enough; empty: none to be sent now.
  std::optional<NatsMessage> next(Clock::time_point now);
  enum class Answer { acknowledged, duplicate, failed };
  void settled(std::uint64_t number, Answer answer);
  void news();                                         // there may be more in the spool
  void wait(Clock::time_point at_most, bool for_due);  // for news, the end, or what is due to be sent again
  void end();
  bool ending() const;

 private:
  struct Waiting {
    NatsMessage message;
    unsigned failures = 0;
    bool under_way = true;  // else it waits to be sent again
    std::multimap<Clock::time_point, std::uint64_t>::iterator
        due;  // not acknowledged by then; to be sent then
  };
  void put_off(Waiting& waiting, Clock::time_point until) REQUIRES(mutex_);
  void failed(Waiting& waiting, Clock::time_point now) REQUIRES(mutex_);

  const NatsOptions& options_;
  Spool& spool_;
  NatsFigures& figures_;
  mutable Mutex mutex_;
  ConditionVariable changed_;
  bool news_ GUARDED_BY(mutex_) = false, ending_ GUARDED_BY(mutex_) = false;
  std::unordered_map<std::uint64_t, Waiting> waiting_ GUARDED_BY(mutex_);   // by number
  std::unordered_set<std::string> ids_ GUARDED_BY(mutex_);                  // of those
  std::multimap<Clock::time_point, std::uint64_t> due_ GUARDED_BY(mutex_);  // the same
  NatsBackoff backoff_ GUARDED_BY(mutex_);
};

// The connection and the thread that sends. Callbacks of the library reach it by a number in a table, never
// by a pointer: they may come while the connection is being destroyed.
class NatsPublisher {
 public:
  NatsPublisher(NatsOptions options, Spool& spool, std::chrono::seconds replay, NatsSink::ErrorHook on_error);
  NatsPublisher(const NatsPublisher&) = delete;
  NatsPublisher& operator=(const NatsPublisher&) = delete;
  ~NatsPublisher();

  Result<void> start();
  void news() { window_.news(); }
  const NatsFigures& figures() const noexcept { return figures_; }

 private:
  friend struct NatsCallbacks;
  using Clock = NatsWindow::Clock;

  // What callbacks have told, and the thread that sends has not looked at yet.
  struct Heard {
    bool connected = false;             // anew
    std::optional<std::string> stream;  // the answer to ask_for_stream(); empty: nobody is there to give one
    std::string error;                  // the last one of the server, as of a missing right
  };

  Result<NatsOwned<natsOptions>> own_options() const;
  Result<void> connect();
  void run() noexcept;
  void send_what_is_due();
  natsStatus send(const NatsMessage& message);
  bool usable();
  void ask_for_stream();
  void judge_stream(const std::string& answer);
  void tell(const Error& error) const;
  void tell_once(std::string& told, const Error& error) const;  // unless it is what was told last
  std::string no_connection() const;
  std::string lost_connection() const;
  void tell_not_connected();
  Heard take_heard();

  const NatsOptions options_;
  Spool& spool_;
  const std::chrono::seconds replay_;
  const NatsSink::ErrorHook on_error_;
  NatsFigures figures_;
  NatsWindow window_;
  std::uintptr_t key_ = 0;   // in the table
  const std::string inbox_;  // INBOX.stream, INBOX.NUMBER
  NatsOwned<natsSubscription> answers_;
  NatsOwned<natsConnection> connection_;  // ends before the subscription (see NatsDeleter)
  Mutex heard_mutex_;
  Heard heard_ GUARDED_BY(heard_mutex_);
  NatsBackoff backoff_{options_};             // of connect()
  unsigned connects_ = 0;                     // since there was a connection
  Clock::time_point connect_;                 // not before
  std::string refused_;                       // why it failed the last time
  std::set<std::string> told_not_connected_;  // on_error, since there was a connection
  std::string told_error_, told_stream_;      // the last that on_error was told of
  bool unanswered_ = false;                   // the last question for the stream
  std::optional<Clock::time_point> ask_;      // again, then
  std::thread thread_;
};

}  // namespace sockalarm::observe
