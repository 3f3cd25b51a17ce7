// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "observe/record.h"
#include "observe/spool.h"
#include "observe/totals.h"

namespace sockalarm::observe {

// What the process knows at one moment, for whoever asks.
struct Snapshot {
  struct Shipping {
    Spool::State spool;
    bool connected = false;  // to a broker
    std::uint64_t sent = 0, acknowledged = 0, retried = 0;
  };
  // Of records, from the kernel's writing to this process's reading.
  struct Latency {
    Histogram times{};
    std::chrono::nanoseconds sum{};
  };

  Host host;
  std::chrono::system_clock::time_point now, started_at;  // now: when the ends were counted
  std::chrono::nanoseconds uptime{};                      // then
  Totals::All ends;
  Totals::All evicted;  // of services that have no name any more
  Latency latency;
  std::uint64_t read = 0;                                   // records
  std::vector<std::pair<std::string, std::uint64_t>> lost;  // by stage; only ever grow
  std::uint64_t corrupt_segments = 0;                       // of the spool
  std::optional<Shipping> shipping;
  std::vector<std::string> limits;  // what cannot be had on this host, a sentence each
};

// docs/export.md says what is in them.
std::string to_prometheus(const Snapshot& snapshot);
std::string to_json(const Snapshot& snapshot);

}  // namespace sockalarm::observe
