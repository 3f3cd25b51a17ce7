// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/result.h>

#include <cstdint>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

// What `top` shows, from two snapshots of counters that only grow: rates, in a table that fits the terminal.
// Nothing here asks a clock or writes anywhere.
namespace sockalarm::cli {

struct ServiceCounters {
  std::uint64_t ends = 0;
  std::uint64_t aborts = 0;                     // ends with the verdict "abandoned"
  std::map<std::string, std::uint64_t> causes;  // of the aborts
  double orphaned_seconds = 0;
};

struct SpoolState {
  double bytes = 0, pending = 0, oldest_seconds = 0;
  bool connected = false;
};

// Counters at one moment. A name in it may be anybody's choice: it is escaped when it is shown.
struct Snapshot {
  std::string host, version;
  std::string life;    // another one than before: the counters began anew
  double seconds = 0;  // of the clock that rates are made with; less than before: they began anew, too
  std::map<std::string, ServiceCounters> services;
  ServiceCounters evicted;                    // of services that have no row any more
  std::map<std::string, std::uint64_t> lost;  // by stage
  std::optional<SpoolState> spool;
  std::vector<std::string> limits;
};

// The answer to GET /v1/totals. Errors: Errc::invalid_text.
Result<Snapshot> parse_totals(std::string_view body);

enum class TopSort { orphaned, aborts, ends };
Result<TopSort> parse_top_sort(const std::string& text);

struct TopRow {
  std::string service;
  ServiceCounters total;
  double aborts = 0, orphaned = 0, ends = 0;  // per second
  std::map<std::string, double> causes;       // aborts per second
};

struct TopTable {
  Snapshot now;              // but for its services
  double seconds = 0;        // that the rates are over
  bool restarted = false;    // since the snapshot before
  bool from_start = false;   // rates are over all that was counted: there was no snapshot before
  TopRow all;                // of all services; its rates are the sum of theirs
  std::vector<TopRow> rows;  // the busiest first
  std::map<std::string, std::uint64_t> newly_lost;
};

// Without `before`, or if the counters began anew, the rates are over all of `now`. A service without aborts
// has a row only with `idle_too`; it is in `all` anyway.
TopTable compare(const Snapshot* before, Snapshot now, TopSort sort, bool idle_too);

nlohmann::ordered_json to_json(const TopTable& table);  // docs/man/sockalarm.1

struct TopLine {
  enum class Look { plain, bold, heading, warning };
  std::string text;
  Look look = Look::plain;
};

struct TopLook {
  std::size_t width = 0, height = 0;  // 0: as many as it takes
  std::string row_name = "SERVICE";   // what a row is
  std::string note;                   // a warning, such as why there is nothing new
};

// The table, no line longer and no more of them than there is room for.
std::vector<TopLine> top_lines(const TopTable& table, const TopLook& look);

// The lines for a terminal (ECMA-48): over what stands there, without scrolling; the rest of the screen is
// cleared.
std::string top_screen(const std::vector<TopLine>& lines);
// The lines for anything else.
std::string top_plain(const std::vector<TopLine>& lines);

}  // namespace sockalarm::cli
