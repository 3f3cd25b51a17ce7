// SPDX-License-Identifier: Apache-2.0
#include "cli/top_view.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/text.h"
#include "cli/number_text.h"
#include "cli/usage.h"

namespace sockalarm::cli {
namespace {

using Json = nlohmann::json;
using Look = TopLine::Look;

// --- /v1/totals. What is missing or of another type counts as absent; newer daemons may say more.

template <class T>
T value_in(const Json& object, const char* key, T otherwise) {
  const auto found = object.find(key);
  if (found == object.end()) return otherwise;
  if constexpr (std::is_same_v<T, std::string>)
    return found->is_string() ? found->template get<T>() : otherwise;
  else if constexpr (std::is_same_v<T, bool>)
    return found->is_boolean() ? found->template get<T>() : otherwise;
  else if constexpr (std::is_unsigned_v<T>)
    return found->is_number_unsigned() ? found->template get<T>() : otherwise;
  else
    return found->is_number() ? found->template get<T>() : otherwise;
}

void add_ends(ServiceCounters& counters, const Json& entry) {
  const auto count = value_in<std::uint64_t>(entry, "count", 0);
  counters.ends += count;
  if (value_in<std::string>(entry, "verdict", "") != "abandoned") return;
  counters.aborts += count;
  counters.causes[value_in<std::string>(entry, "cause", "unknown")] += count;
  counters.orphaned_seconds += value_in<double>(entry, "orphaned_seconds", 0);
}

const Json& part(const Json& totals, const char* key) {
  static const Json none;
  const auto found = totals.find(key);
  return found == totals.end() ? none : *found;
}

// --- The table.

std::uint64_t grown(std::uint64_t before, std::uint64_t now) { return now > before ? now - before : 0; }

template <class Map>
std::uint64_t count_in(const Map& map, const std::string& key) {
  const auto found = map.find(key);
  return found == map.end() ? 0 : found->second;
}

TopRow row(const std::string& service, const ServiceCounters& before, const ServiceCounters& now,
           double seconds) {
  TopRow row;
  row.service = service;
  row.total = now;
  if (seconds <= 0) return row;
  row.ends = static_cast<double>(grown(before.ends, now.ends)) / seconds;
  row.aborts = static_cast<double>(grown(before.aborts, now.aborts)) / seconds;
  row.orphaned = std::max(0.0, now.orphaned_seconds - before.orphaned_seconds) / seconds;
  for (const auto& [cause, count] : now.causes)
    if (const auto more = grown(count_in(before.causes, cause), count); more != 0)
      row.causes[cause] = static_cast<double>(more) / seconds;
  return row;
}

void add(ServiceCounters& all, const ServiceCounters& one) {
  all.ends += one.ends;
  all.aborts += one.aborts;
  all.orphaned_seconds += one.orphaned_seconds;
  for (const auto& [cause, count] : one.causes) all.causes[cause] += count;
}

void add(TopRow& all, const TopRow& one) {
  add(all.total, one.total);
  all.ends += one.ends;
  all.aborts += one.aborts;
  all.orphaned += one.orphaned;
  for (const auto& [cause, rate] : one.causes) all.causes[cause] += rate;
}

// What a service had before. One that had more has begun anew: its name made room for another and came back.
const ServiceCounters& before_of(const Snapshot& since, const std::string& service,
                                 const ServiceCounters& now) {
  static const ServiceCounters nothing;
  const auto found = since.services.find(service);
  return found == since.services.end() || found->second.ends > now.ends ? nothing : found->second;
}

// By what happens now, then by what happened since the start, then by name.
bool busier(const TopRow& a, const TopRow& b, TopSort sort) {
  const auto keys = [sort](const TopRow& row) {
    switch (sort) {
      case TopSort::aborts:
        return std::pair(row.aborts, static_cast<double>(row.total.aborts));
      case TopSort::ends:
        return std::pair(row.ends, static_cast<double>(row.total.ends));
      case TopSort::orphaned:
        break;
    }
    return std::pair(row.orphaned, row.total.orphaned_seconds);
  };
  const auto of_a = keys(a), of_b = keys(b);
  return of_a != of_b ? of_a > of_b : a.service < b.service;
}

// --- Its text.

std::string causes_text(const std::map<std::string, double>& causes) {
  std::vector<std::pair<std::string, double>> sorted(causes.begin(), causes.end());
  std::sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) {
    return a.second != b.second ? a.second > b.second : a.first < b.first;
  });
  std::string text;
  for (const auto& [cause, rate] : sorted)
    text.append(text.empty() ? "" : ", ").append(escaped(cause)).append(" ").append(rate_text(rate));
  return text;
}

std::string title(const TopTable& table) {
  const Snapshot& now = table.now;
  std::string text = "sockalarm top";
  if (!now.host.empty()) text += "  " + escaped(now.host);
  text += "  up " + time_text(now.seconds) + "  rates over " +
          (table.from_start ? "all of it" : time_text(table.seconds));
  return text;
}

std::string summary(const TopRow& all) {
  const std::string causes = causes_text(all.causes);
  return rate_text(all.aborts) + " aborts/s" + (causes.empty() ? "" : " (" + causes + ")") + ", " +
         rate_text(all.orphaned) + " s/s for nobody, " + time_text(all.total.orphaned_seconds) + " in all; " +
         rate_text(all.ends) + " ends/s";
}

std::string losses(const TopTable& table) {
  std::string text;
  for (const auto& [stage, count] : table.now.lost) {
    if (count == 0) continue;
    text.append(text.empty() ? "lost: " : ", ")
        .append(escaped(stage))
        .append(" ")
        .append(std::to_string(count));
    if (const auto more = count_in(table.newly_lost, stage); more != 0)
      text += " (+" + std::to_string(more) + ")";
  }
  return text;
}

std::string spool_text(const SpoolState& spool) {
  return "spool: " + bytes_text(spool.bytes) + ", " + rate_text(spool.pending) + " pending, oldest " +
         time_text(spool.oldest_seconds) + (spool.connected ? "" : ", NOT CONNECTED");
}

// Names take what the figures leave, between these.
constexpr std::size_t kLeastName = 12, kMostName = 48, kRate = 9, kSeconds = 10, kLeastCauses = 12;

std::string figures(const std::string& aborts, const std::string& orphaned, const std::string& total,
                    const std::string& ends) {
  return right(aborts, kRate) + " " + right(orphaned, kSeconds) + " " + right(total, kSeconds) + " " +
         right(ends, kRate);
}

std::size_t name_width(const TopTable& table, const TopLook& look) {
  std::size_t longest = std::max(kLeastName, look.row_name.size());
  for (const TopRow& row : table.rows) longest = std::max(longest, width(escaped(row.service)));
  longest = std::min(longest, kMostName);
  if (look.width == 0) return longest;
  const std::size_t others = 1 + figures("", "", "", "").size() + 2 + kLeastCauses;
  return look.width > others + kLeastName ? std::min(longest, look.width - others)
                                          : std::min(longest, kLeastName);
}

std::vector<TopLine> rows_of(const TopTable& table, const TopLook& look) {
  const std::size_t name = name_width(table, look);
  std::vector<TopLine> lines{{left(cut(look.row_name, name), name) + " " +
                                  figures("ABORTS/S", "ORPHANED/S", "ORPHANED", "ENDS/S") +
                                  "  CAUSES OF ABORTS",
                              Look::heading}};
  for (const TopRow& row : table.rows)
    lines.push_back({left(cut(escaped(row.service), name), name) + " " +
                         figures(rate_text(row.aborts), time_text(row.orphaned),
                                 time_text(row.total.orphaned_seconds), rate_text(row.ends)) +
                         "  " + causes_text(row.causes),
                     Look::plain});
  return lines;
}

}  // namespace

Result<Snapshot> parse_totals(std::string_view body) {
  const Json totals = Json::parse(body, nullptr, false);
  if (!totals.is_object() || value_in<std::string>(totals, "schema", "") != "sockalarm.totals.v1")
    return fail(usage("what answered is no observer: expected an object of sockalarm.totals.v1"));
  Snapshot snapshot;
  if (const Json& host = part(totals, "host"); host.is_object())
    snapshot.host = value_in<std::string>(host, "name", value_in<std::string>(host, "id", ""));
  snapshot.version = value_in<std::string>(totals, "version", "");
  snapshot.life = value_in<std::string>(totals, "started_at", "");
  snapshot.seconds = value_in<double>(totals, "uptime_seconds", 0);
  if (const Json& ends = part(totals, "ends"); ends.is_array())
    for (const Json& entry : ends)
      if (entry.is_object())
        add_ends(snapshot.services[value_in<std::string>(entry, "service", "unknown")], entry);
  if (const Json& evicted = part(totals, "evicted"); evicted.is_array())
    for (const Json& entry : evicted)
      if (entry.is_object()) add_ends(snapshot.evicted, entry);
  if (const Json& lost = part(totals, "lost"); lost.is_object())
    for (const auto& [stage, count] : lost.items())
      if (count.is_number_unsigned()) snapshot.lost[stage] = count.get<std::uint64_t>();
  if (const Json& spool = part(totals, "spool"); spool.is_object())
    snapshot.spool =
        SpoolState{value_in<double>(spool, "bytes", 0), value_in<double>(spool, "pending", 0),
                   value_in<double>(spool, "oldest_seconds", 0), value_in<bool>(spool, "connected", false)};
  if (const Json& limits = part(totals, "limits"); limits.is_array())
    for (const Json& limit : limits)
      if (limit.is_string()) snapshot.limits.push_back(limit.get<std::string>());
  return snapshot;
}

Result<TopSort> parse_top_sort(const std::string& text) {
  if (text == "orphaned") return TopSort::orphaned;
  if (text == "aborts") return TopSort::aborts;
  if (text == "ends") return TopSort::ends;
  return fail(usage("--sort " + sockalarm::quoted(escaped(text)) +
                    " is not known; expected orphaned, aborts or ends"));
}

TopTable compare(const Snapshot* before, Snapshot now, TopSort sort, bool idle_too) {
  TopTable table;
  table.restarted = before != nullptr && (before->life != now.life || now.seconds < before->seconds);
  static const Snapshot nothing;
  table.from_start = before == nullptr || table.restarted;
  const Snapshot& since = table.from_start ? nothing : *before;
  table.seconds = now.seconds - since.seconds;
  add(table.all.total, now.evicted);
  for (const auto& [service, counters] : now.services) {
    TopRow one = row(service, before_of(since, service, counters), counters, table.seconds);
    add(table.all, one);
    if (counters.aborts != 0 || idle_too) table.rows.push_back(std::move(one));
  }
  std::sort(table.rows.begin(), table.rows.end(),
            [sort](const TopRow& a, const TopRow& b) { return busier(a, b, sort); });
  for (const auto& [stage, count] : now.lost)
    if (const auto more = grown(count_in(since.lost, stage), count); more != 0)
      table.newly_lost[stage] = more;
  now.services.clear();
  table.now = std::move(now);
  return table;
}

nlohmann::ordered_json to_json(const TopTable& table) {
  const auto row_json = [](const TopRow& row) {
    return nlohmann::ordered_json{{"aborts_per_second", row.aborts},
                                  {"causes_per_second", row.causes},
                                  {"orphaned_seconds_per_second", row.orphaned},
                                  {"ends_per_second", row.ends},
                                  {"aborts", row.total.aborts},
                                  {"causes", row.total.causes},
                                  {"orphaned_seconds", row.total.orphaned_seconds},
                                  {"ends", row.total.ends}};
  };
  nlohmann::ordered_json json{{"schema", "sockalarm.top.v1"},
                              {"host", table.now.host},
                              {"version", table.now.version},
                              {"started_at", table.now.life},
                              {"uptime_seconds", table.now.seconds},
                              {"interval_seconds", table.seconds},
                              {"restarted", table.restarted},
                              {"all", row_json(table.all)},
                              {"services", nlohmann::ordered_json::array()},
                              {"lost", table.now.lost},
                              {"newly_lost", table.newly_lost},
                              {"limits", table.now.limits}};
  for (const TopRow& row : table.rows) {
    nlohmann::ordered_json one{{"service", row.service}};
    one.update(row_json(row));
    json["services"].push_back(std::move(one));
  }
  if (const auto& spool = table.now.spool)
    json["spool"] = {{"bytes", spool->bytes},
                     {"pending", spool->pending},
                     {"oldest_seconds", spool->oldest_seconds},
                     {"connected", spool->connected}};
  return json;
}

std::vector<TopLine> top_lines(const TopTable& table, const TopLook& look) {
  std::vector<TopLine> lines{{title(table), Look::bold}};
  if (!look.note.empty()) lines.push_back({escaped(look.note), Look::warning});
  lines.push_back({summary(table.all), Look::plain});
  if (std::string lost = losses(table); !lost.empty()) lines.push_back({std::move(lost), Look::warning});
  if (table.now.spool)
    lines.push_back({spool_text(*table.now.spool), table.now.spool->connected ? Look::plain : Look::warning});
  for (const std::string& limit : table.now.limits)
    lines.push_back({"limit: " + escaped(limit), Look::plain});
  lines.push_back({});
  const std::vector<TopLine> rows = rows_of(table, look);
  lines.insert(lines.end(), rows.begin(), rows.end());
  if (table.rows.empty()) lines.push_back({"(no client left amid the work yet)", Look::plain});
  if (look.height != 0 && lines.size() > look.height) {
    const std::size_t hidden = lines.size() - look.height + 1;
    lines.resize(look.height);
    if (hidden <= table.rows.size()) lines.back() = {"... " + std::to_string(hidden) + " more", Look::plain};
  }
  if (look.width != 0)
    for (TopLine& line : lines) line.text = cut(line.text, look.width);
  return lines;
}

std::string top_screen(const std::vector<TopLine>& lines) {
  std::string screen = "\x1b[H";
  for (std::size_t i = 0; i < lines.size(); ++i) {
    const Look look = lines[i].look;
    const char* const begin = look == Look::bold      ? "\x1b[1m"
                              : look == Look::heading ? "\x1b[7m"
                              : look == Look::warning ? "\x1b[1;31m"
                                                      : "";
    // No line feed behind the last, which would scroll.
    screen.append(i == 0 ? "" : "\r\n").append(begin).append(lines[i].text).append("\x1b[K");
    if (look != Look::plain) screen += "\x1b[m";
  }
  return screen + "\x1b[J";
}

std::string top_plain(const std::vector<TopLine>& lines) {
  std::string text;
  for (const TopLine& line : lines) text.append(line.text).append("\n");
  return text;
}

}  // namespace sockalarm::cli
