// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <signal.h>
#include <sockalarm/watcher.h>

#include <chrono>
#include <optional>
#include <string>
#include <vector>

namespace sockalarm::cli {

// As given on the command line.
struct RunOptions {
  std::vector<std::string> command;
  std::optional<std::string> fd;
  std::string on = "shut", source = "auto", signal = "TERM", timeout = "0", kill_after = "5s";
  std::vector<std::string> then;
  bool preserve_status = false, foreground = false, verbose = false, json = false;
};

// An action of --then. `signal` of "sig:NAME": what the command is sent. `is_program`: of "run:".
struct Step {
  Action action;
  std::optional<int> signal;
  bool is_program;
};

// What is meant by it.
struct RunPlan {
  int fd = -1;
  Events on;
  SourceKind source = SourceKind::epoll;
  int signal = SIGTERM;
  std::chrono::nanoseconds timeout{}, kill_after{};
  std::vector<Step> then;
};

// Everything that can be wrong is found here, before anything starts.
Result<RunPlan> make_plan(const RunOptions& options);

}  // namespace sockalarm::cli
