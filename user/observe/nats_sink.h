// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/result.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "observe/losses.h"
#include "observe/record.h"
#include "observe/sink.h"
#include "observe/spool.h"

namespace sockalarm::observe {

class NatsPublisher;

struct NatsOptions {
  std::string servers = "nats://127.0.0.1:4222";  // separated by commas
  std::string stream = "SOCKALARM";               // that takes sockalarm.v1.>; an operator makes it
  std::string credentials;                        // a file of `nsc`; empty: none
  std::string authorities;                        // a PEM file for tls://; empty: those of the system
  unsigned window = 1024;                         // messages that may wait for their acknowledgement
  std::chrono::milliseconds max_wait{5000};       // for one, then it is sent again
  std::chrono::milliseconds least_backoff{100},
      most_backoff{10'000};  // doubled, with jitter between half and whole
};

// What has happened to the messages. Any thread.
struct NatsFigures {
  std::atomic<std::uint64_t> sent{0};          // also again
  std::atomic<std::uint64_t> acknowledged{0};  // by the stream
  std::atomic<std::uint64_t> duplicates{0};    // of them those that the stream had already
  std::atomic<std::uint64_t> retried{0};       // refused, or not acknowledged in time: to be sent again
  std::atomic<std::uint64_t> waiting{0};       // in the window now
  std::atomic<bool> connected{false};
};

// sockalarm.v1.REGION.HOST.CAUSE. What separates or matches tokens in a subject becomes '_', an empty one is
// "none".
std::string nats_subject(const Host& host, Cause cause);

// A JetStream stream, always by way of a spool on the disk: write() only appends to it, and a thread sends
// from there, as much at once as the window allows. A message leaves the spool when the stream has
// acknowledged it; without an acknowledgement it is sent again, with the same Nats-Msg-Id, which the stream
// knows for its duplicate window: that should be no shorter than the age cap of the spool, and on_error says
// so if it is.
class NatsSink final : public Sink {
 public:
  // Of the sending thread, once per row of failures; of a damaged spool also of open().
  using ErrorHook = std::function<void(const Error&)>;

  // Opens the spool and makes no thread yet. `losses` outlives the sink.
  static Result<std::unique_ptr<NatsSink>> open(Host host, NatsOptions options, Spool::Options spool,
                                                Losses& losses, ErrorHook on_error);
  // Begins to send; there need be no server yet. Once. Makes threads, and the library has some for good. The
  // credentials are read again for each connection.
  Result<void> start();
  ~NatsSink() override;  // what is not acknowledged stays in the spool

  Result<void> write(const Record& record) override;
  Result<void> flush() override;

  const NatsFigures& figures() const noexcept;  // any thread
  Spool::State spool() const;                   // any thread

 private:
  NatsSink(Host host, std::unique_ptr<Spool> spool);

  const Host host_;
  std::unique_ptr<Spool> spool_;
  std::unique_ptr<NatsPublisher> publisher_;  // ends before the spool
};

}  // namespace sockalarm::observe
