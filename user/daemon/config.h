// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/result.h>
#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "daemon/observe_config.h"

namespace sockalarm::daemon {

// What every user may have. Changed by a reload; what somebody has already stays.
struct UserLimits {
  std::uint64_t connections = 256;
  std::uint64_t watches = 131'072;
  std::uint64_t memory = 256ULL << 20;  // bytes of tables and rings
};

// docs/daemon.md says what each is for.
struct Config {
  std::string socket = "/run/sockalarm/sockalarmd.sock";
  mode_t socket_mode = 0666;
  std::string bpffs = "/sys/fs/bpf/sockalarm";  // a directory on a BPF file system
  std::string log_level = "info";
  std::chrono::seconds grace{30};  // for clients to come back after the daemon was started anew

  // Of the whole host; fixed when the programs are loaded.
  std::uint32_t clients = 1024;
  std::uint32_t watches = 262'144;
  // Of one client.
  std::uint32_t slots = 65'537;
  std::uint32_t ring_bytes = 1U << 20;
  UserLimits user;

  ObserveConfig observe;  // only for --observe
};

// Of spdlog, which takes any other word for "off".
inline std::vector<std::string> log_levels() { return {"trace", "debug", "info", "warning", "error", "off"}; }

// Errors name the file, the line and what was expected. An empty path: the defaults.
Result<Config> read_config(const std::string& path);

}  // namespace sockalarm::daemon
