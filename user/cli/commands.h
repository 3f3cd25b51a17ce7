// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <iostream>
#include <string>
#include <string_view>
#include <vector>

namespace sockalarm::cli {

// What the chosen subcommand does; its result is the exit status.
using Task = std::function<int()>;

// Each adds its subcommand and sets `chosen` when it is the one. What stands after "--" is `command`.
void add_run(CLI::App& app, Task& chosen, const std::vector<std::string>& command);
void add_doctor(CLI::App& app, Task& chosen);
void add_fds(CLI::App& app, Task& chosen);
void add_status(CLI::App& app, Task& chosen);
void add_watch(CLI::App& app, Task& chosen);
void add_top(CLI::App& app, Task& chosen);
void add_events(CLI::App& app, Task& chosen);
void add_fleet(CLI::App& app, Task& chosen);
void add_completion(CLI::App& app, Task& chosen);

// For anything that fails before the subcommand could do its work; timeout(1) uses the same number.
inline constexpr int kExitFailed = 125;
// For subcommands that ask a daemon, and none answers.
inline constexpr int kExitNoAnswer = 2;

// A line for stderr, by one write(): others write there too (the command, socat), and what came in between
// two would tear the line.
inline void say(std::string_view line) {
  std::string whole(line);
  std::cerr << (whole += '\n');
}

}  // namespace sockalarm::cli
