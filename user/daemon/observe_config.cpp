// SPDX-License-Identifier: Apache-2.0
#include "daemon/observe_config.h"

#include <charconv>
#include <limits>
#include <optional>

#include "base/text.h"
#include "observe/record.h"

namespace sockalarm::daemon {
namespace {

using observe::Cause;
using observe::Direction;

std::string text_of(const toml::node& node) { return node.value_exact<std::string>().value_or(""); }

template <class Enum, std::size_t n>
std::string take_word(const toml::node& node, const std::array<Enum, n>& known, std::vector<Enum>& into) {
  std::string names;
  for (const Enum one : known) {
    if (text_of(node) == observe::text(one)) {
      into.push_back(one);
      return "";
    }
    names += (names.empty() ? "" : ", ") + std::string(observe::text(one));
  }
  return "must be of " + names;
}

// 443, or "8000-8999".
std::string take_ports(const toml::node& node, std::vector<observe::PortRange>& into) {
  constexpr std::int64_t kMost = std::numeric_limits<std::uint16_t>::max();
  const auto add = [&](std::int64_t first, std::int64_t last) {
    if (first < 0 || first > last || last > kMost) return false;
    into.push_back({static_cast<std::uint16_t>(first), static_cast<std::uint16_t>(last)});
    return true;
  };
  if (const auto number = node.value_exact<std::int64_t>(); number && add(*number, *number)) return "";
  const std::string range = text_of(node);
  const std::size_t dash = range.find('-');
  const auto first = parse_number<std::uint16_t>(range.substr(0, dash));
  const auto last = dash == std::string::npos ? first : parse_number<std::uint16_t>(range.substr(dash + 1));
  return first && last && add(*first, *last) ? "" : "must be ports, as 443 or \"8000-8999\"";
}

std::string take_prefix(const toml::node& node, std::vector<observe::Prefix>& into) {
  const auto prefix = observe::parse_prefix(text_of(node));
  if (!prefix) return prefix.error().message();
  into.push_back(*prefix);
  return "";
}

std::string take_text(const toml::node& node, std::vector<std::string>& into) {
  const auto text = node.value_exact<std::string>();
  if (!text || text->empty()) return "must be texts";
  into.push_back(*text);
  return "";
}

void read_filter(ConfigReader& reader, const toml::table& table, ObserveConfig& config) {
  constexpr std::array kCauses{Cause::peer_fin, Cause::peer_reset, Cause::timeout, Cause::unreachable,
                               Cause::refused,  Cause::destroyed,  Cause::local};
  constexpr std::array kDirections{Direction::unknown, Direction::inbound, Direction::outbound};
  reader.only(table, std::array<std::string_view, 7>{"cgroups", "ports", "prefixes", "directions", "causes",
                                                     "minimum_orphaned_ms", "one_in"});
  observe::Filter& filter = config.filter;
  reader.list(table, "cgroups", [&](const auto& node) { return take_text(node, config.cgroups); });
  reader.list(table, "ports", [&](const auto& node) { return take_ports(node, filter.ports); });
  reader.list(table, "prefixes", [&](const auto& node) { return take_prefix(node, filter.prefixes); });
  reader.list(table, "directions",
              [&](const auto& node) { return take_word(node, kDirections, filter.directions); });
  reader.list(table, "causes", [&](const auto& node) { return take_word(node, kCauses, filter.causes); });
  std::int64_t ms = 0;
  reader.number(table, "minimum_orphaned_ms", 0, 86'400'000, ms);
  filter.minimum_orphaned = std::chrono::milliseconds(ms);
  reader.number(table, "one_in", 1, std::numeric_limits<std::uint32_t>::max(), filter.one_in);
}

// What the value of a key may be.
struct Text {
  bool may_be_empty = false;
};
struct Number {
  std::int64_t least, most;
};
struct Flag {};
struct Texts {};

constexpr std::int64_t kMany = 1 << 24, kMost = std::numeric_limits<std::int64_t>::max();

// All keys but the filter's, to be read and to be compared: name, member, and what it may have.
template <class Visit>
void each_key(Visit visit) {
  using Own = ObserveConfig;
  visit("socket", &Own::socket, Text{});
  visit("socket_mode", &Own::socket_mode, Number{0, 0777});
  visit("listen", &Own::listen, Text{.may_be_empty = true});
  visit("region", &Own::region, Text{.may_be_empty = true});
  visit("host", &Own::host, Text{.may_be_empty = true});
  visit("services", &Own::services, Number{1, 10'000});
  visit("kernel_services", &Own::kernel_services, Number{1, 1 << 18});
  visit("rate_limit", &Own::rate_limit, Number{0, kMany});
  visit("queue", &Own::queue, Number{1, kMany});
  visit("ring_bytes", &Own::ring_bytes, Number{4096, 1 << 30});
  visit("exact_progress", &Own::exact_progress, Flag{});
  visit("jsonl", &Own::jsonl, Texts{});
  visit("jsonl_bytes", &Own::jsonl_bytes, Number{4096, kMost});
  visit("jsonl_keep", &Own::jsonl_keep, Number{0, 1000});
}
template <class Visit>
void each_nats_key(Visit visit) {
  using Own = ObserveConfig::Nats;
  visit("servers", &Own::servers, Text{});
  visit("stream", &Own::stream, Text{});
  visit("credentials", &Own::credentials, Text{});
  visit("authorities", &Own::authorities, Text{});
  visit("window", &Own::window, Number{1, 1 << 20});
  visit("spool", &Own::spool, Text{});
  visit("spool_bytes", &Own::spool_bytes, Number{1 << 16, kMost});
  visit("spool_age", &Own::spool_age, Number{1, 366LL * 86'400});
}

// One key of a table.
struct KeyReader {
  ConfigReader& reader;
  const toml::table& table;
  std::string_view key;

  void read(std::string& value, Text kind) const { reader.text(table, key, value, kind.may_be_empty); }
  void read(bool& value, Flag) const { reader.flag(table, key, value); }
  void read(std::vector<std::string>& value, Texts) const {
    reader.list(table, key, [&](const auto& node) { return take_text(node, value); });
  }
  void read(std::chrono::seconds& value, Number kind) const {
    std::int64_t seconds = value.count();
    reader.number(table, key, kind.least, kind.most, seconds);
    value = std::chrono::seconds(seconds);
  }
  template <class Value>
  void read(Value& value, Number kind) const {
    reader.number(table, key, kind.least, kind.most, value);
  }
};

}  // namespace

void read_observe(ConfigReader& reader, const toml::table& table, ObserveConfig& config) {
  std::vector<std::string_view> names, nats_names;
  each_key([&](std::string_view key, auto member, auto kind) {
    names.push_back(key);
    KeyReader{reader, table, key}.read(config.*member, kind);
  });
  names.insert(names.end(), {"filter", "nats"});
  reader.only(table, names);
  read_filter(reader, reader.section(table, "filter"), config);
  const toml::table& nats = reader.section(table, "nats");
  each_nats_key([&](std::string_view key, auto member, auto kind) {
    nats_names.push_back(key);
    KeyReader{reader, nats, key}.read(config.nats.*member, kind);
  });
  reader.only(nats, nats_names);
}

std::vector<std::string> changed_keys(const ObserveConfig& before, const ObserveConfig& now) {
  std::vector<std::string> changed;
  each_key([&](std::string_view key, auto member, auto) {
    if (before.*member != now.*member) changed.push_back("observe." + std::string(key));
  });
  each_nats_key([&](std::string_view key, auto member, auto) {
    if (before.nats.*member != now.nats.*member) changed.push_back("observe.nats." + std::string(key));
  });
  return changed;
}

}  // namespace sockalarm::daemon
