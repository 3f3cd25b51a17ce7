// SPDX-License-Identifier: Apache-2.0
#include <unistd.h>

#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/text.h"
#include "cli/commands.h"
#include "cli/event_filter.h"
#include "cli/event_text.h"
#include "cli/http_client.h"
#include "cli/line_reader.h"
#include "cli/usage.h"

namespace sockalarm::cli {
namespace {

using Json = nlohmann::json;

constexpr std::chrono::seconds kBetweenTries(1);
constexpr std::size_t kLongestLine = std::size_t{1} << 20;

struct EventsOptions {
  HttpTarget target;
  std::vector<std::string> filters;
  std::string count;
  bool follow = false, json = false;
};

class EventStream {
 public:
  EventStream(const EventsOptions& options, HttpClient http, EventFilter filter,
              std::optional<std::uint64_t> count)
      : options_(options), http_(std::move(http)), filter_(std::move(filter)), left_(count) {}

  int run() {
    for (;;) {
      const Result<void> end = read_stream();
      if (left_ == 0) return 0;
      if (!options_.follow || !has_answered_) {
        if (end) return 0;
        say("sockalarm: " + end.error().message() +
            (has_answered_ ? "" : " (is sockalarmd --observe running?)"));
        return kExitNoAnswer;
      }
      if (!std::exchange(is_gone_, true))
        say("sockalarm events: the observer has gone and is waited for" +
            (end ? "" : ": " + end.error().message()));
      http_.wait({}, kBetweenTries);  // nothing is under way, so that long
    }
  }

 private:
  // Until the stream ends, or enough was printed.
  Result<void> read_stream() {
    lines_.clear();
    http_.start("/v1/events", std::nullopt);
    for (;;) {
      http_.wait({}, std::nullopt);
      if (const std::string data = http_.take_data(); !data.empty() || http_.is_answered()) answered(data);
      if (left_ == 0) return {};
      if (const auto end = http_.take_end()) return *end;
    }
  }

  void answered(const std::string& data) {
    if (!std::exchange(has_answered_, true) && !options_.json && ::isatty(STDOUT_FILENO) != 0)
      std::cout << event_heading(false) << "\n" << std::flush;
    if (std::exchange(is_gone_, false))
      say("sockalarm events: the observer is back; what ended meanwhile is not shown");
    lines_.add(data, [this](std::string_view line) { take(line); });
    if (const auto left_out = lines_.left_out(); left_out != std::exchange(told_left_out_, left_out))
      say("sockalarm events: a line that was too long was left out");
    std::cout << std::flush;
  }

  void take(std::string_view line) {
    if (left_ == 0 || line.empty()) return;
    const Json record = Json::parse(line, nullptr, false);
    const auto schema = record.is_object() ? record.find("schema") : record.end();
    if (!record.is_object() || schema == record.end()) {
      say("sockalarm events: no record: " + escaped(line.substr(0, 200)));
    } else if (*schema == "sockalarm.lost.v1") {
      say("sockalarm events: " + record.value("lost", Json(0)).dump() +
          " records are missing here: they were read too slowly");
    } else if (*schema == "sockalarm.connection_ended.v1" && filter_.matches(record)) {
      print(line, record);
      if (left_) --*left_;
    }
  }

  void print(std::string_view line, const Json& record) const {
    std::cout << (options_.json ? event_json(line, record) : event_text(record, false)) << '\n';
  }

  const EventsOptions& options_;
  HttpClient http_;
  const EventFilter filter_;
  std::optional<std::uint64_t> left_;
  LineReader lines_{kLongestLine};
  std::uint64_t told_left_out_ = 0;
  bool has_answered_ = false, is_gone_ = false;
};

int run(const EventsOptions& options) {
  const auto refuse = [](const Error& error) {
    say("sockalarm events: " + error.message());
    return kExitFailed;
  };
  auto filter = EventFilter::parse(options.filters);
  if (!filter) return refuse(filter.error());
  std::optional<std::uint64_t> count;
  if (!options.count.empty()) {
    count = parse_number<std::uint64_t>(options.count);
    if (count.value_or(0) == 0)
      return refuse(usage("--count " + sockalarm::quoted(escaped(options.count)) + " is no number above 0"));
  }
  auto http = HttpClient::make(options.target);
  if (!http) return refuse(http.error());
  return EventStream(options, std::move(*http), std::move(*filter), count).run();
}

}  // namespace

void add_events(CLI::App& app, Task& chosen) {
  CLI::App* sub = app.add_subcommand("events", "Print each connection of this host that ends, as it ends");
  auto options = std::make_shared<EventsOptions>();
  sub->add_option("--socket", options->target.socket,
                  "where sockalarmd --observe listens (default: /run/sockalarm/observe.sock)")
      ->type_name("PATH");
  sub->add_option("--url", options->target.url, "the same by TCP, where somebody passes it on")
      ->type_name("URL");
  sub->add_flag("--follow", options->follow, "go on when the observer was started anew");
  sub->add_option("--filter", options->filters, "only these: KEY=VALUE[,VALUE...]; of several all must hold")
      ->type_name("FILTER")
      ->allow_extra_args(false);
  sub->add_flag("--json", options->json, "print the records themselves, one JSON object per line");
  sub->add_option("--count", options->count, "end after so many")->type_name("N");
  sub->footer(std::string(kEventFilterHelp) +
              "\n\nFrom the moment of asking. What is missing, because it was read too slowly, is told on "
              "stderr. Exit status: "
              "0; 2 if no observer answers, or it broke off.\n\n"
              "Examples:\n"
              "  sockalarm events --filter verdict=abandoned --filter min-orphaned=1s\n"
              "  sockalarm events --follow --json --filter service='postgres*' | jq .\n"
              "  sockalarm events --count 1 --filter port=443 --filter cause=peer_reset,timeout");
  sub->callback([&chosen, options] { chosen = [options] { return run(*options); }; });
}

}  // namespace sockalarm::cli
