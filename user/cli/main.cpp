// SPDX-License-Identifier: Apache-2.0
#include <sockalarm/result.h>

#include <algorithm>
#include <cerrno>
#include <exception>
#include <iostream>
#include <iterator>

#include "cli/commands.h"

namespace sockalarm::cli {
namespace {

struct Words {
  std::vector<std::string> ours;  // backwards, as CLI11 wants them
  std::vector<std::string> command;
};

// The command of `run` has options of its own, so only what stands before the first "--" is parsed.
Words split(int argc, char** argv) {
  const std::vector<std::string> all(argv + 1, argv + argc);
  auto end = all.end();
  Words words;
  if (!all.empty() && all.front() == "run") end = std::find(all.begin(), all.end(), "--");
  words.ours.assign(std::make_reverse_iterator(end), all.rend());
  if (end != all.end()) words.command.assign(end + 1, all.end());
  return words;
}

bool is_unknown_subcommand(const CLI::App& app, const std::string& word) {
  const auto subs = app.get_subcommands([&word](const CLI::App* sub) { return sub->get_name() == word; });
  return !word.starts_with("-") && subs.empty();
}

int run(int argc, char** argv) {
  Words words = split(argc, argv);
  CLI::App app("Know at once when a TCP peer goes away.", "sockalarm");
  app.set_version_flag("--version", "sockalarm " SOCKALARM_VERSION);
  app.require_subcommand(1);
  app.footer(
      "Examples:\n"
      "  socat TCP-LISTEN:8080,fork EXEC:'sockalarm run -- ./report.sh'\n"
      "  sockalarm doctor\n"
      "  sockalarm fds 1234\n\n"
      "sockalarm SUBCOMMAND --help tells more.");
  Task chosen;
  add_run(app, chosen, words.command);
  add_doctor(app, chosen);
  add_fds(app, chosen);
  add_status(app, chosen);
  add_watch(app, chosen);
  add_top(app, chosen);
  add_events(app, chosen);
  add_fleet(app, chosen);
  add_completion(app, chosen);
  if (!words.ours.empty() && is_unknown_subcommand(app, words.ours.back())) {
    say("sockalarm: unknown subcommand '" + words.ours.back() +
        "'; expected run, doctor, fds, status, watch, top, events, fleet or completion (sockalarm --help)");
    return kExitFailed;
  }
  try {
    app.parse(words.ours);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : kExitFailed;
  }
  return chosen();
}

int give_up(const std::string& why) {
  std::cout.exceptions(std::ios::goodbit);  // it is flushed once more at exit
  say("sockalarm: " + why);
  return kExitFailed;
}

}  // namespace
}  // namespace sockalarm::cli

int main(int argc, char** argv) {
  using namespace sockalarm::cli;
  try {
    // A table that did not get onto the disk must not pass for a success.
    std::cout.exceptions(std::ios::badbit);
    const int status = run(argc, argv);
    std::cout.flush();
    return status;
  } catch (const std::ios_base::failure&) {
    return give_up(sockalarm::Error::from_errno(errno, "writing to stdout").message());
  } catch (const std::exception& error) {
    return give_up(error.what());
  }
}
