// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/result.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace sockalarm::observe {

// A name that a durable may have, like the given one.
std::string durable_name(std::string_view text);

struct StreamOptions {
  std::string servers = "nats://127.0.0.1:4222";  // separated by commas
  std::string credentials;                        // a file of `nsc`; empty: none
  std::string authorities;                        // a PEM file for tls://; empty: those of the system
  std::string stream = "SOCKALARM";
  // How the stream remembers what was acknowledged: a reader of the same name goes on there.
  std::string durable;
  bool temporary = false;    // the stream forgets it at the end of the reader, or a while after it was killed
  std::string region, host;  // empty: all

  // Where a durable begins that the stream does not know yet.
  enum class From { now, all, since };
  From from = From::now;
  std::chrono::nanoseconds since{};  // so long ago

  std::size_t remembered = 65536;  // records of which a second one is known
};

struct StreamRecord {
  std::string id;  // event.id
  std::string json;
  std::chrono::system_clock::time_point stored;  // in the stream
};

// Records of all hosts, from a JetStream stream, each once: those that come again, beyond the stream's own
// duplicate window, are known by their id, as long as there were not too many since. By a durable pull
// consumer with explicit acknowledgements. One thread, without signals that others are to get.
class StreamReader {
 public:
  // Errors say what to do. `goes_on`: there was such a durable, so it goes on where that stopped.
  static Result<std::unique_ptr<StreamReader>> open(StreamOptions options);
  // Makes the stream forget a durable. False: there was none.
  static Result<bool> remove(const StreamOptions& options);
  ~StreamReader();
  StreamReader(const StreamReader&) = delete;
  StreamReader& operator=(const StreamReader&) = delete;

  bool goes_on() const;

  // The next ones, none if none come within `patience`, at most that many. Without a connection it is waited
  // for; an error is one that time does not cure, as that the durable is gone.
  Result<std::vector<StreamRecord>> fetch(std::size_t at_most, std::chrono::milliseconds patience);
  // All that fetch() gave was printed, counted, or whatever is to happen before: they do not come again.
  Result<void> acknowledge();

  Result<std::uint64_t> pending();  // records of the stream that did not come yet
  bool connected() const;
  std::uint64_t duplicates() const;  // left out

 private:
  struct Impl;
  explicit StreamReader(std::unique_ptr<Impl> impl);
  const std::unique_ptr<Impl> impl_;
};

}  // namespace sockalarm::observe
