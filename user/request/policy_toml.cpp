// SPDX-License-Identifier: Apache-2.0
#include <sockalarm/policy.h>

#include <cerrno>
#include <cmath>
#include <fstream>
#include <iterator>
#include <sstream>

#include "base/toml.h"
#include "core/action_text.h"

namespace sockalarm {
namespace {

using std::chrono::nanoseconds;

// Reads one policy; knows the file's name for its messages.
class Reader {
 public:
  explicit Reader(std::string_view file) : file_(file) {}

  Result<Policy> read(std::string_view text) {
    toml::table table;
    try {
      table = toml::parse(text);
    } catch (const toml::parse_error& error) {
      return refuse(error.source(), "", std::string(error.description()));
    }
    Policy policy;
    for (const auto& [key, node] : table)
      if (auto ok = take(policy, std::string(key.str()), key.source(), node); !ok) return fail(ok.error());
    // What is left is what `forward` needs.
    if (auto ok = check_policy(policy); !ok) {
      const toml::node* const forward = table.get("forward");
      return refuse((forward != nullptr ? forward : &table)->source(), "", ok.error().message());
    }
    return policy;
  }

 private:
  // "policy.toml:3: limit: what"
  tl::unexpected<Error> refuse(const toml::source_region& where, const std::string& key,
                               const std::string& what) const {
    return fail(Error(Errc::invalid_policy, file_ + ":" + std::to_string(where.begin.line) + ": " +
                                                (key.empty() ? "" : key + ": ") + what));
  }

  Result<void> take(Policy& policy, const std::string& key, const toml::source_region& where,
                    const toml::node& node) {
    if (key == "limit") return duration(key, node, policy.limit);
    if (key == "call_limit") return duration(key, node, policy.call_limit);
    if (key == "forward") return forward(node, policy.forward);
    if (key == "on") return on(node, policy.on);
    if (key == "override") return overrides(node, policy.overrides);
    return refuse(where, key, "no such key; expected limit, call_limit, forward, on or [[override]]");
  }

  // Seconds, also with a fraction, or text with a unit.
  Result<void> duration(const std::string& key, const toml::node& node, nanoseconds& out) const {
    if (const auto text = node.value_exact<std::string>()) {
      const auto parsed = detail::parse_duration(*text);
      if (!parsed) return refuse(node.source(), key, parsed.error().message());
      out = *parsed;
      return {};
    }
    if (!node.is_number())
      return refuse(node.source(), key, "expected seconds, such as 2.5, or text such as \"250ms\"");
    // Not value<double>(): that has none for integers beyond 2^53.
    const auto* const whole = node.as_integer();
    const double seconds =
        whole != nullptr ? static_cast<double>(whole->get()) : node.as_floating_point()->get();
    const double longest = std::chrono::duration<double>(detail::kLongestSleep).count();
    if (!(seconds >= 0 && seconds <= longest))
      return refuse(node.source(), key,
                    "expected 0 (none) to " + std::to_string(static_cast<long>(longest)) + " seconds");
    out = nanoseconds(std::llround(seconds * 1e9));
    if (seconds > 0 && out.count() == 0)  // 0 would mean never
      return refuse(node.source(), key, "less than a nanosecond; expected 0 (none) or more than that");
    return {};
  }

  Result<void> forward(const toml::node& node, bool& out) const {
    const auto value = node.value_exact<bool>();
    if (!value) return refuse(node.source(), "forward", "expected true or false");
    out = *value;
    return {};
  }

  Result<void> on(const toml::node& node, Events& out) const {
    const auto text = node.value_exact<std::string>();
    if (!text) return refuse(node.source(), "on", "expected text such as \"reset,timeout\"");
    const auto parsed = parse_events(*text);
    if (!parsed) return refuse(node.source(), "on", parsed.error().message());
    if (!*parsed || !events::shut.contains(*parsed))
      return refuse(node.source(), "on", "'" + *text + "'; expected some of fin, reset, timeout, error");
    out = *parsed;
    return {};
  }

  Result<void> overrides(const toml::node& node, std::vector<PathLimit>& out) const {
    const toml::array* const list = node.as_array();
    if (list == nullptr || !list->is_array_of_tables())
      return refuse(node.source(), "override", "expected [[override]] with path and limit");
    for (const toml::node& entry : *list) {
      PathLimit one;
      if (auto ok = path_limit(*entry.as_table(), one); !ok) return ok;
      out.push_back(std::move(one));
    }
    return {};
  }

  Result<void> path_limit(const toml::table& table, PathLimit& out) const {
    for (const auto& [name, node] : table) {
      const std::string key = "override." + std::string(name.str());
      if (key == "override.limit") {
        if (auto ok = duration(key, node, out.limit); !ok) return ok;
      } else if (key == "override.path") {
        if (auto ok = path(key, node, out.path); !ok) return ok;
      } else {
        return refuse(name.source(), key, "no such key; expected path or limit");
      }
    }
    for (const char* needed : {"path", "limit"})
      if (!table.contains(needed)) return refuse(table.source(), "override", std::string("has no ") + needed);
    return {};
  }

  Result<void> path(const std::string& key, const toml::node& node, std::string& out) const {
    const auto text = node.value_exact<std::string>();
    if (!text) return refuse(node.source(), key, "expected a regular expression as text, such as '^/ajax/'");
    Policy probe;
    probe.overrides.push_back({*text, nanoseconds(0)});
    if (auto ok = check_policy(probe); !ok) {
      const std::string& message = ok.error().message();  // "override[0].path: ...", whichever it is here
      return refuse(node.source(), key, message.substr(message.find(": ") + 2));
    }
    out = *text;
    return {};
  }

  const std::string file_;
};

}  // namespace

Result<Policy> parse_policy(std::string_view toml, std::string_view file) { return Reader(file).read(toml); }

Result<Policy> load_policy(const std::string& path) {
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  if (file) text << file.rdbuf();
  // A directory opens, and cannot be read.
  if (!file || (text.fail() && file.peek() != std::ifstream::traits_type::eof()) || errno != 0)
    return fail(Error::from_errno(errno != 0 ? errno : EIO, path));
  return parse_policy(text.str(), path);
}

}  // namespace sockalarm
