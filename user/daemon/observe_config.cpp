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

void read_nats(ConfigReader& reader, const toml::table& table, ObserveConfig::Nats& nats) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
  reader.only(table, std::array<std::string_view, 8>{"servers", "stream", "credentials", "authorities",
                                                     "window", "spool", "spool_bytes", "spool_age"});
  reader.text(table, "servers", nats.servers);
  reader.text(table, "stream", nats.stream);
  reader.text(table, "credentials", nats.credentials);
  reader.text(table, "authorities", nats.authorities);
  reader.number(table, "window", 1, 1 << 20, nats.window);
  reader.text(table, "spool", nats.spool);
  reader.number(table, "spool_bytes", 1 << 16, kMost, nats.spool_bytes);
  std::int64_t age = nats.spool_age.count();
  reader.number(table, "spool_age", 1, 366LL * 86'400, age);
  nats.spool_age = std::chrono::seconds(age);
}

}  // namespace

void read_observe(ConfigReader& reader, const toml::table& table, ObserveConfig& config) {
  reader.only(
      table, std::array<std::string_view, 15>{"socket", "socket_mode", "listen", "region", "host", "services",
                                              "rate_limit", "queue", "ring_bytes", "exact_progress", "jsonl",
                                              "jsonl_bytes", "jsonl_keep", "filter", "nats"});
  constexpr std::int64_t kMany = 1 << 24;
  reader.text(table, "socket", config.socket);
  reader.number(table, "socket_mode", 0, 0777, config.socket_mode);
  reader.text(table, "listen", config.listen, true);
  reader.text(table, "region", config.region, true);
  reader.text(table, "host", config.host, true);
  reader.number(table, "services", 1, 10'000, config.services);
  reader.number(table, "rate_limit", 0, kMany, config.rate_limit);
  reader.number(table, "queue", 1, kMany, config.queue);
  reader.number(table, "ring_bytes", 4096, 1 << 30, config.ring_bytes);
  reader.flag(table, "exact_progress", config.exact_progress);
  reader.list(table, "jsonl", [&](const auto& node) { return take_text(node, config.jsonl); });
  reader.number(table, "jsonl_bytes", 4096, std::numeric_limits<std::int64_t>::max(), config.jsonl_bytes);
  reader.number(table, "jsonl_keep", 0, 1000, config.jsonl_keep);
  read_filter(reader, reader.section(table, "filter"), config);
  read_nats(reader, reader.section(table, "nats"), config.nats);
}

}  // namespace sockalarm::daemon
