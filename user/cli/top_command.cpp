// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <csignal>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/text.h"
#include "cli/commands.h"
#include "cli/http_client.h"
#include "cli/terminal.h"
#include "cli/times.h"
#include "cli/top_view.h"
#include "cli/usage.h"

namespace sockalarm::cli {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr milliseconds kShortestInterval(100), kTotalsPatience(5000);

struct TopOptions {
  HttpTarget target;
  std::string interval = "900ms", sort = "orphaned";
  bool once = false, json = false, idle_too = false;
};

class Top {
 public:
  Top(const TopOptions& options, HttpClient http, milliseconds interval, TopSort sort)
      : options_(options), http_(std::move(http)), interval_(interval), sort_(sort) {}

  int run() {
    // Whether anybody is there is told before the terminal is taken.
    if (const auto first = wait_for_first(); !first) {
      say("sockalarm: " + first.error().message() + " (is sockalarmd --observe running?)");
      return kExitNoAnswer;
    }
    if (!options_.once && !options_.json) {
      auto taken = Terminal::take();
      if (!taken) {
        say("sockalarm top: " + taken.error().message());
        return kExitFailed;
      }
      terminal_ = std::move(*taken);
    }
    if (!options_.once) show();
    const int status = watch();
    terminal_.reset();
    if (signal_ != 0) ::raise(signal_);  // so that who waits for us knows
    return status;
  }

 private:
  Result<void> wait_for_first() {
    http_.start("/v1/totals", kTotalsPatience);
    next_ = Clock::now() + interval_;
    for (;;) {
      http_.wait({}, std::nullopt);
      if (const auto end = http_.take_end()) return *end ? take_answer() : fail(end->error());
    }
  }

  // Until the program is to end.
  int watch() {
    for (;;) {
      const auto now = Clock::now();
      if (!http_.busy() && now >= next_) {
        http_.start("/v1/totals", kTotalsPatience);
        next_ = std::max(next_ + interval_, now);
      }
      std::optional<milliseconds> longest;
      if (!http_.busy()) longest = std::chrono::ceil<milliseconds>(next_ - now);
      http_.wait(terminal_ ? terminal_->waited_for() : std::span<pollfd>(), longest);
      if (terminal_) {
        const Terminal::News news = terminal_->news();
        signal_ = news.signal;
        if (news.quit || news.signal != 0) return 0;
        if (news.redraw) show();
      }
      const auto end = http_.take_end();
      if (!end) continue;
      const auto answer = *end ? take_answer() : fail(end->error());
      if (!answer && options_.once) {
        say("sockalarm: " + answer.error().message());
        return kExitNoAnswer;
      }
      tell(answer);
      if (answer || terminal_) show();
      if (options_.once) return 0;
    }
  }

  Result<void> take_answer() {
    auto now = parse_totals(http_.take_data());
    if (!now) return fail(now.error());
    // Figures that the observer keeps for a moment, for many who ask: nothing to compare.
    if (before_ && before_->life == now->life && before_->seconds == now->seconds) return {};
    Snapshot kept = *now;
    table_ = compare(before_ ? &*before_ : nullptr, std::move(*now), sort_, options_.idle_too);
    before_ = std::move(kept);
    return {};
  }

  // That the daemon has gone, is back, or is another one; beside the table, or on stderr.
  void tell(const Result<void>& answer) {
    std::string note = note_;
    if (!answer)
      note = "the observer has gone, the figures are old: " + answer.error().message();
    else if (table_.restarted)
      note = "the observer was started anew at " + table_.now.life;
    else if (gone_)
      note = "the observer answers again";
    gone_ = !answer;
    if (note == note_) return;
    note_ = note;
    if (!terminal_) say("sockalarm top: " + escaped(note_));
  }

  void show() {
    if (options_.json) {
      std::cout << to_json(table_).dump(-1, ' ', true) << "\n" << std::flush;
    } else if (terminal_) {
      const Terminal::Size size = terminal_->size();
      terminal_->show(
          top_screen(top_lines(table_, {.width = size.width, .height = size.height, .note = note_})));
    } else {
      std::cout << (std::exchange(shown_, true) ? "\n" : "") << top_plain(top_lines(table_, {}))
                << std::flush;
    }
  }

  const TopOptions& options_;
  HttpClient http_;
  const milliseconds interval_;
  const TopSort sort_;
  std::unique_ptr<Terminal> terminal_;
  Clock::time_point next_;
  std::optional<Snapshot> before_;
  TopTable table_;
  std::string note_;
  bool gone_ = false, shown_ = false;
  int signal_ = 0;
};

int run(const TopOptions& options) {
  const auto refuse = [](const Error& error) {
    say("sockalarm top: " + error.message());
    return kExitFailed;
  };
  const auto interval = parse_time("--interval", options.interval);
  if (!interval) return refuse(interval.error());
  if (*interval < kShortestInterval)
    return refuse(
        usage("--interval " + sockalarm::quoted(options.interval) + " is too short; expected 100ms or more"));
  const auto sort = parse_top_sort(options.sort);
  if (!sort) return refuse(sort.error());
  auto http = HttpClient::make(options.target);
  if (!http) return refuse(http.error());
  return Top(options, std::move(*http), std::chrono::duration_cast<milliseconds>(*interval), *sort).run();
}

}  // namespace

void add_top(CLI::App& app, Task& chosen) {
  CLI::App* sub = app.add_subcommand("top", "Show whose clients leave amid the work, live");
  auto options = std::make_shared<TopOptions>();
  sub->add_option("--socket", options->target.socket,
                  "where sockalarmd --observe listens (default: /run/sockalarm/observe.sock)")
      ->type_name("PATH");
  sub->add_option("--url", options->target.url, "the same by TCP: http://127.0.0.1:9465")->type_name("URL");
  sub->add_option("--interval", options->interval,
                  "between two looks (default: 900ms, so that what happened is shown within a second)")
      ->type_name("TIME");
  sub->add_flag("--once", options->once, "look twice, print the rates between, and end");
  sub->add_flag("--json", options->json, "print JSON, an object each time");
  sub->add_flag("--all", options->idle_too, "services without aborts, too");
  sub->add_option("--sort", options->sort, "what comes first (default: orphaned)")
      ->type_name("orphaned|aborts|ends");
  sub->footer(
      "On a terminal it is drawn anew in place; q quits. Else a table follows the other. An abort is a "
      "connection whose "
      "client left amid the work; orphaned is how long that work went on for nobody. Exit status: 0, or 2 if "
      "no observer "
      "answers at the start; one that goes later is waited for.\n\n"
      "Examples:\n"
      "  sockalarm top\n"
      "  sockalarm top --sort aborts --interval 5s --url http://127.0.0.1:9465\n"
      "  sockalarm top --once --json | jq '.services[] | {service, aborts_per_second}'");
  sub->callback([&chosen, options] { chosen = [options] { return run(*options); }; });
}

}  // namespace sockalarm::cli
