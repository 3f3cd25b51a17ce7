// SPDX-License-Identifier: Apache-2.0
#include "daemon/config.h"

#include <array>
#include <limits>
#include <sstream>
#include <string_view>

#include "daemon/config_reader.h"

namespace sockalarm::daemon {
namespace {

void read_limits(ConfigReader& reader, const toml::table& limits, Config& config) {
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
  ConfigReader reader(path);
  try {
    const toml::table file = toml::parse_file(path);
    reader.only(file, std::array<std::string_view, 7>{"socket", "socket_mode", "bpffs", "log_level", "grace",
                                                      "limits", "observe"});
    reader.text(file, "socket", config.socket);
    reader.number(file, "socket_mode", 0, 0777, config.socket_mode);
    reader.text(file, "bpffs", config.bpffs);
    reader.one_of(file, "log_level", log_levels(), config.log_level);
    std::int64_t grace = config.grace.count();
    reader.number(file, "grace", 1, 86'400, grace);
    config.grace = std::chrono::seconds(grace);
    read_limits(reader, reader.section(file, "limits"), config);
    read_observe(reader, reader.section(file, "observe"), config.observe);
  } catch (const toml::parse_error& error) {
    std::ostringstream where;
    where << path << ", line " << error.source().begin.line << ": " << error.description();
    return fail(Error(Errc::invalid_text, where.str()));
  }
  if (!reader.problem().empty()) return fail(Error(Errc::invalid_text, reader.problem()));
  return config;
}

}  // namespace sockalarm::daemon
