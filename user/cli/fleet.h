// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/result.h>

#include <csignal>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cli/event_filter.h"
#include "observe/nats_reader.h"

// What the subcommands of `fleet` have in common: they read the stream that all hosts write to.
namespace sockalarm::cli {

struct FleetOptions {
  observe::StreamOptions stream;
  std::string since;
  std::vector<std::string> filters;
  bool all = false, remove = false, json = false;
};

// The texts of `options` into its stream; `purpose` is part of the name of a durable that was not given.
Result<void> complete(FleetOptions& options, const std::string& purpose);

// Signals that end the program, from here on: they come when they are asked for, so what was begun is done.
class EndSignals {
 public:
  EndSignals();
  ~EndSignals();  // one that has come ends the program here, as it would have
  EndSignals(const EndSignals&) = delete;
  EndSignals& operator=(const EndSignals&) = delete;

  bool has_come();
  void take(int signal) { came_ = signal; }  // that somebody else was told of

 private:
  sigset_t signals_{}, before_{};
  int came_ = 0;
};

// Says once that the connection has gone, and that it is back.
class ConnectionNews {
 public:
  explicit ConnectionNews(std::string who) : who_(std::move(who)) {}
  // What there is to be said.
  std::optional<std::string> look(bool connected);

 private:
  const std::string who_;
  bool connected_ = true;
};

int fleet_events(FleetOptions options, const std::string& count);

struct FleetTopOptions {
  std::string interval = "2s", sort = "orphaned", by = "service";
  bool once = false, idle_too = false;
};
int fleet_top(FleetOptions options, const FleetTopOptions& top);

// What failed at the start; its result is the exit status.
int refuse_fleet(const std::string& command, const Error& error);

}  // namespace sockalarm::cli
