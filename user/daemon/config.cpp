// SPDX-License-Identifier: Apache-2.0
#include "daemon/config.h"

#include <algorithm>
#include <array>
#include <limits>
#include <sstream>
#include <string_view>

#include "base/toml.h"

namespace sockalarm::daemon {
namespace {

// Reads one file and remembers the first thing that is wrong with it.
class Reader {
 public:
  explicit Reader(std::string path) : path_(std::move(path)) {}

  template <class Number>
  void number(const toml::table& table, std::string_view key, std::int64_t least, std::int64_t most,
              Number& into) {
    const toml::node* const node = table.get(key);
    if (node == nullptr) return;
    const auto value = node->value_exact<std::int64_t>();
    if (!value || *value < least || *value > most)
      return refuse(*node, std::string(key) + " must be a number from " + std::to_string(least) + " to " +
                               std::to_string(most));
    into = static_cast<Number>(*value);
  }

  void one_of(const toml::table& table, std::string_view key, const std::vector<std::string>& values,
              std::string& into) {
    text(table, key, into);
    if (std::find(values.begin(), values.end(), into) != values.end()) return;
    std::string all;
    for (const std::string& value : values) all += (all.empty() ? "" : ", ") + value;
    refuse(*table.get(key), std::string(key) + " must be one of " + all);
  }

  void text(const toml::table& table, std::string_view key, std::string& into) {
    const toml::node* const node = table.get(key);
    if (node == nullptr) return;
    const auto value = node->value_exact<std::string>();
    if (!value || value->empty()) return refuse(*node, std::string(key) + " must be a text");
    into = *value;
  }

  // What is misspelt would be ignored in silence else.
  template <std::size_t n>
  void only(const toml::table& table, const std::array<std::string_view, n>& known) {
    for (const auto& [key, node] : table) {
      bool found = false;
      std::string names;
      for (const std::string_view name : known) {
        found |= name == key.str();
        names += (names.empty() ? "" : ", ") + std::string(name);
      }
      if (!found) refuse(node, "unknown key '" + std::string(key.str()) + "'; known here: " + names);
    }
  }

  const toml::table& section(const toml::table& table, std::string_view key) {
    static const toml::table kEmpty;
    const toml::node* const node = table.get(key);
    if (node == nullptr) return kEmpty;
    if (const toml::table* const found = node->as_table()) return *found;
    refuse(*node, std::string(key) + " must be a table: [" + std::string(key) + "]");
    return kEmpty;
  }

  void refuse(const toml::node& node, const std::string& why) {
    if (problem_.empty())
      problem_ = path_ + ", line " + std::to_string(node.source().begin.line) + ": " + why;
  }
  const std::string& problem() const noexcept { return problem_; }

 private:
  const std::string path_;
  std::string problem_;
};

void read_limits(Reader& reader, const toml::table& limits, Config& config) {
  constexpr std::int64_t kMany = 1 << 24;
  reader.only(limits, std::array<std::string_view, 5>{"clients", "watches", "slots", "ring_bytes", "user"});
  reader.number(limits, "clients", 1, 65'536, config.clients);
  reader.number(limits, "watches", 1, kMany, config.watches);
  reader.number(limits, "slots", 2, kMany, config.slots);
  reader.number(limits, "ring_bytes", 4096, 1 << 30, config.ring_bytes);
  const toml::table& user = reader.section(limits, "user");
  constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
  reader.only(user, std::array<std::string_view, 3>{"connections", "watches", "memory"});
  reader.number(user, "connections", 1, 65'536, config.user.connections);
  reader.number(user, "watches", 1, kMany, config.user.watches);
  reader.number(user, "memory", 8192, kMost, config.user.memory);
}

}  // namespace

Result<Config> read_config(const std::string& path) {
  Config config;
  if (path.empty()) return config;
  Reader reader(path);
  try {
    const toml::table file = toml::parse_file(path);
    reader.only(file, std::array<std::string_view, 6>{"socket", "socket_mode", "bpffs", "log_level", "grace",
                                                      "limits"});
    reader.text(file, "socket", config.socket);
    reader.number(file, "socket_mode", 0, 0777, config.socket_mode);
    reader.text(file, "bpffs", config.bpffs);
    reader.one_of(file, "log_level", log_levels(), config.log_level);
    std::int64_t grace = config.grace.count();
    reader.number(file, "grace", 1, 86'400, grace);
    config.grace = std::chrono::seconds(grace);
    read_limits(reader, reader.section(file, "limits"), config);
  } catch (const toml::parse_error& error) {
    std::ostringstream where;
    where << path << ", line " << error.source().begin.line << ": " << error.description();
    return fail(Error(Errc::invalid_text, where.str()));
  }
  if (!reader.problem().empty()) return fail(Error(Errc::invalid_text, reader.problem()));
  return config;
}

}  // namespace sockalarm::daemon
