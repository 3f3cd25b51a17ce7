// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

namespace sockalarm::observe {

// How a connection ended, as the kernel of this host saw it.
enum class Cause : std::uint8_t { peer_fin, peer_reset, timeout, unreachable, refused, destroyed, local };
// What that meant for the work of a server; `none` for the client's side of a connection.
enum class Verdict : std::uint8_t { none, idle_close, abandoned, half_close_served, local };
enum class Direction : std::uint8_t { unknown, inbound, outbound };

struct Endpoint {
  std::array<std::uint8_t, 16> address{};  // IPv4 in the first four
  std::uint16_t port = 0;
};

// One end of one TCP connection, complete. What is not known is empty or 0.
struct ConnectionEnd {
  std::uint64_t sequence = 0;  // of this host since boot, without gaps but those that losses count
  std::uint64_t cookie = 0;
  std::chrono::system_clock::time_point ended_at;  // the last local close, or the end if there was none
  std::optional<std::chrono::nanoseconds> age;     // from established to ended_at
  std::optional<std::chrono::nanoseconds> age_at_departure;  // from established to when the peer left
  std::chrono::nanoseconds orphaned{};                       // work that went on for nobody
  Cause cause = Cause::local;
  Verdict verdict = Verdict::none;
  Direction direction = Direction::unknown;
  std::uint8_t family = 0;  // AF_INET, AF_INET6
  Endpoint local, peer;
  std::uint64_t cgroup = 0;  // id of the cgroup v2 of the socket
  std::uint32_t pid = 0;     // who held it, 0: unknown
  std::string command;       // of that process
  std::uint64_t bytes_received = 0, bytes_sent = 0;
  std::uint32_t unread = 0, unsent = 0;  // bytes, at the end
  int error = 0;                         // sk_err
  std::chrono::nanoseconds latency{};    // from the record in the kernel to its reading
  std::string service;                   // by attribution of the cgroup
  std::string container, pod;            // ids, empty if there is none
};

}  // namespace sockalarm::observe
