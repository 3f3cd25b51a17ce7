// SPDX-License-Identifier: Apache-2.0
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <iostream>
#include <nlohmann/json.hpp>
#include <set>

#include "base/text.h"
#include "cli/commands.h"
#include "cli/fleet.h"
#include "cli/terminal.h"
#include "cli/times.h"
#include "cli/top_view.h"
#include "cli/usage.h"

namespace sockalarm::cli {
namespace {

using Clock = std::chrono::system_clock;  // as the stream's
using std::chrono::milliseconds;

constexpr std::size_t kBatch = 1000, kMostRows = 50'000;
constexpr milliseconds kPatience(200), kShortestInterval(100);  // then keys and signals are looked for

enum class By { service, host, both };
Result<By> parse_by(const std::string& text) {
  if (text == "service") return By::service;
  if (text == "host") return By::host;
  if (text == "both") return By::both;
  return fail(
      usage("--by " + sockalarm::quoted(escaped(text)) + " is not known; expected service, host or both"));
}

// Counters of the records that came.
class Counts {
 public:
  explicit Counts(By by) : by_(by) {}

  void add(const nlohmann::json& record) {
    const auto text = [&](const char* field) {
      const auto found = record.find(field);
      return found != record.end() && found->is_string() ? found->get<std::string>() : std::string();
    };
    const auto named = [](const std::string& name, const char* otherwise) {
      return name.empty() ? otherwise : name;
    };
    const std::string host = named(text("host.name"), "unknown"),
                      service = named(text("service.name"), "unknown");
    if (hosts_.size() < kMostRows) hosts_.insert(host);
    ++records_;
    std::string row = by_ == By::service ? service : by_ == By::host ? host : host + " " + service;
    if (rows_.size() >= kMostRows && !rows_.contains(row)) row = "other";
    if (!rows_.contains(row)) names_[row] = {host, service};
    ServiceCounters& counters = rows_[row];
    ++counters.ends;
    if (text("sockalarm.verdict") != "abandoned") return;
    ++counters.aborts;
    ++counters.causes[named(text("sockalarm.cause"), "unknown")];
    if (const auto orphaned = record.find("sockalarm.orphaned");
        orphaned != record.end() && orphaned->is_number())
      counters.orphaned_seconds += orphaned->get<double>();
  }

  Snapshot snapshot(const std::string& stream, double seconds) const {
    Snapshot now;
    now.host =
        "stream " + stream + ", " + std::to_string(hosts_.size()) + (hosts_.size() == 1 ? " host" : " hosts");
    now.seconds = seconds;
    now.services = rows_;
    return now;
  }

  nlohmann::ordered_json json(const TopTable& table, const std::string& stream,
                              std::uint64_t duplicates) const {
    const auto view = to_json(table);
    nlohmann::ordered_json json{{"schema", "sockalarm.fleet_top.v1"},
                                {"stream", stream},
                                {"hosts", hosts_.size()},
                                {"records", records_},
                                {"duplicates", duplicates},
                                {"seconds", table.now.seconds},
                                {"interval_seconds", table.seconds},
                                {"all", view["all"]},
                                {"rows", nlohmann::ordered_json::array()}};
    for (const auto& row : view["services"]) {
      const std::string label = row["service"];
      const auto known = names_.find(label);
      nlohmann::ordered_json one;
      if (by_ != By::service)
        one["host"] = known == names_.end() || label == "other" ? label : known->second.first;
      if (by_ != By::host)
        one["service"] = known == names_.end() || label == "other" ? label : known->second.second;
      for (const auto& [key, value] : row.items())
        if (key != "service") one[key] = value;
      json["rows"].push_back(std::move(one));
    }
    return json;
  }

  const char* row_name() const {
    return by_ == By::service ? "SERVICE" : by_ == By::host ? "HOST" : "HOST SERVICE";
  }

 private:
  const By by_;
  std::map<std::string, ServiceCounters> rows_;
  std::map<std::string, std::pair<std::string, std::string>> names_;  // host and service of each
  std::set<std::string> hosts_;
  std::uint64_t records_ = 0;
};

class FleetTop {
 public:
  FleetTop(const FleetOptions& options, const FleetTopOptions& top, EventFilter filter, By by, TopSort sort,
           milliseconds interval, std::unique_ptr<observe::StreamReader> reader)
      : options_(options),
        top_(top),
        filter_(std::move(filter)),
        counts_(by),
        sort_(sort),
        interval_(interval),
        reader_(std::move(reader)),
        begun_(Clock::now() - std::chrono::duration_cast<Clock::duration>(options.stream.since)) {}

  int run(EndSignals& signals) {
    if (auto read = catch_up(signals); !read) return refuse_fleet("top", read.error());
    if (signals.has_come()) return 0;
    look();
    if (top_.once) {
      show();
      return 0;
    }
    if (!options_.json) {
      auto taken = Terminal::take();
      if (!taken) return refuse_fleet("top", taken.error());
      terminal_ = std::move(*taken);
    }
    show();
    const auto watched = watch(signals);
    terminal_.reset();
    return watched ? 0 : refuse_fleet("top", watched.error());
  }

 private:
  // What the stream has from where it begins until now.
  Result<void> catch_up(EndSignals& signals) {
    const auto due = reader_->pending();
    if (!due) return fail(due.error());
    for (received_ = 0; received_ < *due && !signals.has_come();) {
      const auto before = received_;
      if (auto read = this->read(kPatience); !read) return read;
      if (received_ != before) continue;
      const auto left = reader_->pending();  // meanwhile the stream may have dropped some
      if (!left) return fail(left.error());
      if (*left == 0) break;
    }
    return {};
  }

  Result<void> read(milliseconds patience) {
    const auto duplicates = reader_->duplicates();
    const auto records = reader_->fetch(kBatch, patience);
    if (!records) return fail(records.error());
    received_ += records->size() + reader_->duplicates() - duplicates;
    for (const auto& record : *records) {
      if (options_.stream.from == observe::StreamOptions::From::all) begun_ = std::min(begun_, record.stored);
      const auto json = nlohmann::json::parse(record.json, nullptr, false);
      if (json.is_object() && filter_.matches(json)) counts_.add(json);
    }
    // One that gets lost lets the records come again, and they are known then.
    [[maybe_unused]] const auto acknowledged = reader_->acknowledge();
    return {};
  }

  Result<void> watch(EndSignals& signals) {
    auto next = Clock::now() + interval_;
    ConnectionNews news("sockalarm fleet top");
    for (;;) {
      const auto left = std::chrono::ceil<milliseconds>(next - Clock::now());
      if (auto read = this->read(std::clamp(left, milliseconds(1), kPatience)); !read) return read;
      bool redraw = false;
      if (const auto what = news.look(reader_->connected())) {
        note_ = reader_->connected() ? "" : "the servers have gone and are waited for";
        if (!terminal_) say(*what);
        redraw = terminal_ != nullptr;
      }
      if (terminal_) {
        const auto waited_for = terminal_->waited_for();
        ::poll(waited_for.data(), waited_for.size(), 0);
        const Terminal::News keys = terminal_->news();
        redraw = redraw || keys.redraw;
        if (keys.quit) return {};
        if (keys.signal != 0) signals.take(keys.signal);
      }
      if (signals.has_come()) return {};
      if (Clock::now() >= next) {
        next = std::max(next + interval_, Clock::now());
        look();
        redraw = true;
      }
      if (redraw) show();
    }
  }

  void look() {
    const double seconds = std::chrono::duration<double>(Clock::now() - begun_).count();
    Snapshot now = counts_.snapshot(options_.stream.stream, seconds);
    Snapshot kept = now;
    table_ = compare(before_ ? &*before_ : nullptr, std::move(now), sort_, top_.idle_too);
    before_ = std::move(kept);
  }

  void show() {
    if (options_.json) {
      const auto json = counts_.json(table_, options_.stream.stream, reader_->duplicates());
      std::cout << json.dump(top_.once ? 2 : -1, ' ', true) << "\n" << std::flush;
      return;
    }
    TopLook look{.row_name = counts_.row_name(), .note = note_};
    if (!terminal_) {
      std::cout << (std::exchange(shown_, true) ? "\n" : "") << top_plain(top_lines(table_, look))
                << std::flush;
      return;
    }
    const Terminal::Size size = terminal_->size();
    look.width = size.width;
    look.height = size.height;
    terminal_->show(top_screen(top_lines(table_, look)));
  }

  const FleetOptions& options_;
  const FleetTopOptions& top_;
  const EventFilter filter_;
  Counts counts_;
  const TopSort sort_;
  const milliseconds interval_;
  const std::unique_ptr<observe::StreamReader> reader_;
  Clock::time_point begun_;  // of what is counted
  std::unique_ptr<Terminal> terminal_;
  std::optional<Snapshot> before_;
  TopTable table_;
  std::string note_;
  std::uint64_t received_ = 0;
  bool shown_ = false;
};

}  // namespace

int fleet_top(FleetOptions options, const FleetTopOptions& top) {
  const auto refuse = [](const Error& error) { return refuse_fleet("top", error); };
  if (options.since.empty() && !options.all) options.since = "10m";
  // It begins with the past each time, so nobody is to remember where it stopped.
  options.stream.temporary = true;
  if (auto completed = complete(options, "top"); !completed) return refuse(completed.error());
  options.stream.durable += "-" + std::to_string(::getpid());
  auto filter = EventFilter::parse(options.filters);
  if (!filter) return refuse(filter.error());
  const auto interval = parse_time("--interval", top.interval);
  if (!interval) return refuse(interval.error());
  if (*interval < kShortestInterval)
    return refuse(
        usage("--interval " + sockalarm::quoted(top.interval) + " is too short; expected 100ms or more"));
  const auto sort = parse_top_sort(top.sort);
  if (!sort) return refuse(sort.error());
  const auto by = parse_by(top.by);
  if (!by) return refuse(by.error());
  EndSignals signals;  // before the reader, whose durable is deleted at the end
  auto reader = observe::StreamReader::open(options.stream);
  if (!reader) return refuse(reader.error());
  return FleetTop(options, top, std::move(*filter), *by, *sort,
                  std::chrono::duration_cast<milliseconds>(*interval), std::move(*reader))
      .run(signals);
}

}  // namespace sockalarm::cli
