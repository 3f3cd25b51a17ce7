// SPDX-License-Identifier: Apache-2.0
#include <unistd.h>

#include <algorithm>
#include <iostream>
#include <nlohmann/json.hpp>

#include "base/text.h"
#include "cli/commands.h"
#include "cli/event_text.h"
#include "cli/fleet.h"
#include "cli/usage.h"

namespace sockalarm::cli {
namespace {

constexpr std::size_t kBatch = 256;
constexpr std::chrono::milliseconds kPatience(250);  // then signals are looked for

// False: it was none of those that are wanted.
bool print(const observe::StreamRecord& record, const EventFilter& filter, bool as_json) {
  const auto json = nlohmann::json::parse(record.json, nullptr, false);
  if (!json.is_object()) {
    say("sockalarm fleet events: no record: " + escaped(std::string_view(record.json).substr(0, 200)));
    return false;
  }
  if (!filter.matches(json)) return false;
  std::cout << (as_json ? event_json(record.json, json) : event_text(json, true)) << '\n';
  return true;
}

int remove(const observe::StreamOptions& options) {
  const auto removed = observe::StreamReader::remove(options);
  if (!removed) return refuse_fleet("events", removed.error());
  say("sockalarm fleet events: the durable " + sockalarm::quoted(escaped(options.durable)) +
      (*removed ? " is deleted" : " is not known there"));
  return 0;
}

}  // namespace

int fleet_events(FleetOptions options, const std::string& count) {
  if (auto completed = complete(options, "events"); !completed)
    return refuse_fleet("events", completed.error());
  if (options.remove) return remove(options.stream);
  const auto filter = EventFilter::parse(options.filters);
  if (!filter) return refuse_fleet("events", filter.error());
  std::optional<std::uint64_t> left;
  if (!count.empty()) {
    left = parse_number<std::uint64_t>(count);
    if (left.value_or(0) == 0)
      return refuse_fleet("events",
                          usage("--count " + sockalarm::quoted(escaped(count)) + " is no number above 0"));
  }
  EndSignals signals;
  auto reader = observe::StreamReader::open(options.stream);
  if (!reader) return refuse_fleet("events", reader.error());
  if ((*reader)->goes_on() && options.stream.from != observe::StreamOptions::From::now)
    say("sockalarm fleet events: goes on where the durable " +
        sockalarm::quoted(escaped(options.stream.durable)) +
        " stopped; --since and --all are for one that is new (--delete)");
  if (!options.json && ::isatty(STDOUT_FILENO) != 0) std::cout << event_heading(true) << "\n" << std::flush;

  ConnectionNews news("sockalarm fleet events");
  while (left != 0 && !signals.has_come()) {
    // No more than may be printed: what is not acknowledged would come later than what is behind it.
    const auto records = (*reader)->fetch(left ? std::min<std::uint64_t>(*left, kBatch) : kBatch, kPatience);
    if (!records) return refuse_fleet("events", records.error());
    for (const auto& record : *records)
      if (print(record, *filter, options.json) && left) --*left;
    std::cout << std::flush;
    // One that gets lost lets the records come again, and they are known then.
    if (auto acknowledged = (*reader)->acknowledge(); !acknowledged && (*reader)->connected())
      say("sockalarm fleet events: " + acknowledged.error().message());
    if (const auto what = news.look((*reader)->connected())) say(*what);
  }
  return 0;
}

}  // namespace sockalarm::cli
