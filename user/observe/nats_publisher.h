// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <nats/nats.h>

#include <chrono>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <unordered_map>

#include "observe/nats_sink.h"

namespace sockalarm::observe {

struct NatsDeleter {
  void operator()(natsOptions* options) const noexcept { natsOptions_Destroy(options); }
  void operator()(natsConnection* connection) const noexcept { natsConnection_Destroy(connection); }
  void operator()(jsCtx* context) const noexcept { jsCtx_Destroy(context); }
  void operator()(natsMsg* message) const noexcept { natsMsg_Destroy(message); }
};
template <class T>
using NatsOwned = std::unique_ptr<T, NatsDeleter>;

// What a record of the spool says.
struct NatsMessage {
  std::string subject, id, json;

  std::string encoded() const { return subject + '\n' + id + '\n' + json; }
  static std::optional<NatsMessage> decoded(const std::string& bytes);
};

// What was sent, and waits for its acknowledgement or for being sent again. Callbacks of the library reach it
// by a number in a table, never by a pointer: they may come while the connection is being destroyed.
class NatsWindow {
 public:
  using Clock = std::chrono::steady_clock;

  NatsWindow(const NatsOptions& options, Spool& spool, NatsFigures& figures)
      : options_(options), spool_(spool), figures_(figures) {}

  // From the spool, and of those that waited long enough; empty: none to be sent now.
  std::optional<NatsMessage> next(Clock::time_point now);
  void settled(const std::string& id, const jsPubAck* acknowledgement);  // nullptr: it failed
  void news();                                                           // there may be more in the spool
  void wait(Clock::time_point at_most, bool for_due);  // for news, the end, or what is due to be sent again
  void end();
  bool ending() const;

 private:
  struct Waiting {
    std::uint64_t number;
    NatsMessage message;
    unsigned failures = 0;
    std::multimap<Clock::time_point, std::string>::iterator due;  // to be sent again
  };
  Clock::duration backoff(unsigned failures);
  void put_off(const std::string& id, Waiting& waiting, Clock::time_point until);

  const NatsOptions& options_;
  Spool& spool_;
  NatsFigures& figures_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool news_ = false, ending_ = false;
  std::unordered_map<std::string, Waiting> waiting_;   // by id
  std::multimap<Clock::time_point, std::string> due_;  // of all that wait
  std::mt19937 random_{std::random_device{}()};
};

// The connection and the thread that sends.
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
  Result<void> connect();
  void run();
  natsStatus send(const NatsMessage& message);
  bool usable();
  void check_stream();
  void report(bool good, const std::string& what);

  const NatsOptions options_;
  Spool& spool_;
  const std::chrono::seconds replay_;
  const NatsSink::ErrorHook on_error_;
  NatsFigures figures_;
  NatsWindow window_;
  std::uintptr_t key_ = 0;  // of the window in the table
  NatsOwned<natsConnection> connection_;
  NatsOwned<jsCtx> context_;
  bool failing_ = false, stream_checked_ = false;
  std::thread thread_;
};

}  // namespace sockalarm::observe
