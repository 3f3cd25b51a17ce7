// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "daemon/config_reader.h"
#include "observe/filters.h"

namespace sockalarm::daemon {

// Table [observe]; docs/observing.md says what each is for.
struct ObserveConfig {
  struct Nats {
    std::string servers, stream = "SOCKALARM", credentials, authorities;
    std::uint32_t window = 1024;
    std::string spool = "/var/lib/sockalarm/spool";
    std::uint64_t spool_bytes = 256ULL << 20;
    std::chrono::seconds spool_age{24 * 3600};
  };

  std::string socket = "/run/sockalarm/observe.sock";
  mode_t socket_mode = 0660;
  std::string listen = "127.0.0.1:9465";  // empty: not
  std::string region, host;               // empty: of the machine
  std::uint32_t services = 200;
  std::uint32_t kernel_services = 4096;
  std::uint32_t rate_limit = 0;  // records per second; 0: none
  std::uint32_t queue = 65'536;  // records
  std::uint64_t ring_bytes = 4ULL << 20;
  bool exact_progress = true;
  std::vector<std::string> jsonl;  // "-", "journal", or files
  std::uint64_t jsonl_bytes = 64ULL << 20;
  std::uint32_t jsonl_keep = 4;
  Nats nats;  // without servers: not

  observe::Filter filter;            // without its cgroups
  std::vector<std::string> cgroups;  // paths
};

void read_observe(ConfigReader& reader, const toml::table& table, ObserveConfig& config);

// The names of the keys that differ, as "observe.nats.servers", without the filter's.
std::vector<std::string> changed_keys(const ObserveConfig& before, const ObserveConfig& now);

}  // namespace sockalarm::daemon
