// SPDX-License-Identifier: Apache-2.0
#include "cli/event_filter.h"

#include <fnmatch.h>

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/text.h"
#include "cli/times.h"
#include "cli/usage.h"
#include "observe/filters.h"

namespace sockalarm::cli {
namespace {

using Json = nlohmann::json;
using Condition = std::function<bool(const Json&)>;
using Values = std::vector<std::string>;

// In the words of docs/schema/connection_ended.v1.schema.json.
constexpr std::string_view kCauses[] = {"peer_fin", "peer_reset", "timeout", "unreachable",
                                        "refused",  "destroyed",  "local"};
constexpr std::string_view kVerdicts[] = {"none", "idle_close", "abandoned", "half_close_served", "local"};
constexpr std::string_view kDirections[] = {"unknown", "inbound", "outbound"};

const std::string* text_in(const Json& record, const char* field) {
  const auto found = record.find(field);
  return found == record.end() ? nullptr : found->get_ptr<const std::string*>();
}

std::optional<double> number_in(const Json& record, const char* field) {
  const auto found = record.find(field);
  if (found == record.end() || !found->is_number()) return std::nullopt;
  return found->get<double>();
}

tl::unexpected<Error> refused(std::string_view key, std::string_view value, const std::string& expected) {
  return fail(usage("--filter " + std::string(key) + ": '" + escaped(value) + "' is not known; expected " +
                    expected));
}

template <std::size_t N>
Result<Condition> one_of(std::string_view key, const Values& values, const char* field,
                         const std::string_view (&known)[N]) {
  for (const std::string& value : values)
    if (std::find(std::begin(known), std::end(known), value) == std::end(known)) {
      std::string all;
      for (const std::string_view word : known) all.append(all.empty() ? "" : ", ").append(word);
      return refused(key, value, all);
    }
  return [values, field](const Json& record) {
    const std::string* const is = text_in(record, field);
    return is != nullptr && std::find(values.begin(), values.end(), *is) != values.end();
  };
}

bool any_glob(const Values& patterns, const std::string& text) {
  return std::any_of(patterns.begin(), patterns.end(), [&text](const std::string& pattern) {
    return ::fnmatch(pattern.c_str(), text.c_str(), 0) == 0;
  });
}

// In the figures those without a service are called "unknown", so they are here.
Condition service(const Values& patterns) {
  return [patterns](const Json& record) {
    const std::string* const name = text_in(record, "service.name");
    return any_glob(patterns, name == nullptr ? "unknown" : *name);
  };
}

// One of the fields matches.
Condition globs(const Values& patterns, std::vector<const char*> fields) {
  return [patterns, fields = std::move(fields)](const Json& record) {
    return std::any_of(fields.begin(), fields.end(), [&](const char* field) {
      const std::string* const name = text_in(record, field);
      return name != nullptr && any_glob(patterns, *name);
    });
  };
}

Result<Condition> ports(std::string_view key, const Values& values) {
  std::vector<observe::PortRange> ranges;
  for (const std::string_view value : values) {
    const std::size_t dash = value.find('-');
    const auto first = parse_number<std::uint16_t>(value.substr(0, dash));
    const auto last =
        dash == std::string_view::npos ? first : parse_number<std::uint16_t>(value.substr(dash + 1));
    if (!first || !last || *first > *last)
      return refused(key, value, "a port such as 443, or a range such as 8000-8999");
    ranges.push_back({*first, *last});
  }
  return [ranges = std::move(ranges)](const Json& record) {
    return std::any_of(ranges.begin(), ranges.end(), [&record](observe::PortRange range) {
      const auto within = [range](std::optional<double> port) {
        return port && *port >= range.first && *port <= range.last;
      };
      return within(number_in(record, "network.local.port")) ||
             within(number_in(record, "network.peer.port"));
    });
  };
}

bool contains(const observe::Prefix& prefix, const observe::Prefix& address) {
  for (unsigned bit = 0; bit < prefix.length; ++bit)
    if (((prefix.address[bit / 8] ^ address.address[bit / 8]) >> (7 - bit % 8) & 1) != 0) return false;
  return true;
}

Result<Condition> prefixes(std::string_view key, const Values& values) {
  std::vector<observe::Prefix> all;
  for (const std::string& value : values) {
    const auto prefix = observe::parse_prefix(value);
    if (!prefix) return fail(prefix.error().with_context("--filter " + std::string(key)));
    all.push_back(*prefix);
  }
  return [all = std::move(all)](const Json& record) {
    const std::string* const peer = text_in(record, "network.peer.address");
    if (peer == nullptr) return false;
    const auto address = observe::parse_prefix(*peer);
    return address && std::any_of(all.begin(), all.end(), [&address](const observe::Prefix& prefix) {
             return contains(prefix, *address);
           });
  };
}

Result<Condition> minimum_orphaned(std::string_view key, const Values& values) {
  if (values.size() != 1) return refused(key, values[1], "one time");
  const auto least = parse_time("--filter " + std::string(key), values.front());
  if (!least) return fail(least.error());
  return [seconds = std::chrono::duration<double>(*least).count()](const Json& record) {
    const auto orphaned = number_in(record, "sockalarm.orphaned");
    return orphaned && *orphaned >= seconds;
  };
}

Result<Condition> pids(std::string_view key, const Values& values) {
  std::vector<double> all;
  for (const std::string& value : values) {
    const auto pid = parse_number<std::uint32_t>(value);
    if (!pid || *pid == 0) return refused(key, value, "a process id, a number above 0");
    all.push_back(*pid);
  }
  return [all = std::move(all)](const Json& record) {
    const auto pid = number_in(record, "process.pid");
    return pid && std::find(all.begin(), all.end(), *pid) != all.end();
  };
}

Result<Condition> condition(std::string_view key, const Values& values) {
  if (key == "cause") return one_of(key, values, "sockalarm.cause", kCauses);
  if (key == "verdict") return one_of(key, values, "sockalarm.verdict", kVerdicts);
  if (key == "direction") return one_of(key, values, "sockalarm.direction", kDirections);
  if (key == "service") return service(values);
  if (key == "host") return globs(values, {"host.name", "host.id"});
  if (key == "port") return ports(key, values);
  if (key == "prefix") return prefixes(key, values);
  if (key == "min-orphaned") return minimum_orphaned(key, values);
  if (key == "command") return globs(values, {"process.executable.name"});
  if (key == "pid") return pids(key, values);
  return fail(usage(
      "--filter: there is no key '" + escaped(key) +
      "'; expected cause, verdict, direction, service, host, port, prefix, min-orphaned, command or pid"));
}

Result<Values> split(std::string_view key, std::string_view text) {
  Values values;
  for (;;) {
    const std::size_t comma = text.find(',');
    values.emplace_back(text.substr(0, comma));
    if (values.back().empty())
      return fail(usage("--filter " + escaped(key) + ": a value is empty; expected KEY=VALUE[,VALUE...]"));
    if (comma == std::string_view::npos) return values;
    text.remove_prefix(comma + 1);
  }
}

}  // namespace

Result<EventFilter> EventFilter::parse(const std::vector<std::string>& texts) {
  EventFilter filter;
  for (const std::string_view text : texts) {
    const std::size_t equals = text.find('=');
    if (equals == std::string_view::npos)
      return fail(usage("--filter '" + escaped(text) +
                        "' has no '='; expected KEY=VALUE[,VALUE...], such as verdict=abandoned"));
    const std::string_view key = text.substr(0, equals);
    const auto values = split(key, text.substr(equals + 1));
    if (!values) return fail(values.error());
    auto made = condition(key, *values);
    if (!made) return fail(made.error());
    filter.conditions_.push_back(std::move(*made));
  }
  return filter;
}

bool EventFilter::matches(const Json& record) const {
  return record.is_object() && std::all_of(conditions_.begin(), conditions_.end(),
                                           [&record](const Condition& holds) { return holds(record); });
}

}  // namespace sockalarm::cli
