// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/result.h>

#include <array>
#include <chrono>
#include <cstdint>
#include <string_view>
#include <vector>

#include "observe/connection_end.h"
#include "observe_abi.h"

namespace sockalarm::observe {

// Addresses of peers: an IPv4 network as the part of ::ffff:0:0/96 that it is, so it holds whatever socket
// the program uses.
struct Prefix {
  std::array<std::uint8_t, 16> address{};
  unsigned length = 0;  // 96 to 128 for IPv4
  friend bool operator==(const Prefix&, const Prefix&) = default;
};
// "10.0.0.0/8", "2001:db8::/32", or an address. Errors: Errc::invalid_text.
Result<Prefix> parse_prefix(std::string_view text);

struct PortRange {
  std::uint16_t first = 0, last = 0;
};

// Which connections are observed, and which of their ends have a record. Empty sets filter nothing.
struct Filter {
  // Observed. What is not costs next to nothing, and stands in no metric.
  std::vector<std::uint64_t> cgroups;  // ids; each with all that is below it
  std::vector<PortRange> ports;        // the local or the peer's port
  std::vector<Prefix> prefixes;        // the peer's address
  std::vector<Direction> directions;
  // Recorded. All that is observed is counted in the metrics.
  std::vector<Cause> causes;
  std::chrono::nanoseconds minimum_orphaned{};
  std::uint32_t one_in = 1;  // at random; the sequence numbers have no gaps by that
};

// What the programs make of it, but the sets of cgroups and prefixes, which are maps. Errors:
// Errc::invalid_options.
Result<sockalarm_observe_filter> to_kernel(const Filter& filter, std::uint32_t sets_in_maps = 0);

}  // namespace sockalarm::observe
