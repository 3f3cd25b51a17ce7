// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/socket.h>

#include <cerrno>
#include <limits>

#include "observe/connection_end.h"
#include "observe/record.h"

namespace sockalarm::observe::test {

inline Host sample_host(char digit = 'a') {
  return {std::string(32, digit), std::string(32, 'b'), "web-1.example", "eu-1"};
}

// A client that left amid its answer, 2024-02-29 noon; `sequence` also tells by port and time.
inline ConnectionEnd sample_end(std::uint64_t sequence) {
  ConnectionEnd end;
  end.sequence = sequence;
  end.cookie = std::numeric_limits<std::uint64_t>::max();
  end.ended_at = std::chrono::system_clock::time_point(std::chrono::seconds(1709208000) +
                                                       std::chrono::nanoseconds(sequence % 1'000'000'000));
  end.age = std::chrono::seconds(3);
  end.age_at_departure = std::chrono::milliseconds(1500);
  end.orphaned = std::chrono::milliseconds(1500);
  end.cause = Cause::peer_reset;
  end.verdict = Verdict::abandoned;
  end.direction = Direction::inbound;
  end.family = AF_INET;
  end.local = {{10, 0, 0, 1}, 443};
  end.peer = {{192, 0, 2, 7}, static_cast<std::uint16_t>(40000 + sequence % 10000)};
  end.cgroup = 4711;
  end.pid = 1234;
  end.command = "shopd";
  end.bytes_received = 512;
  end.bytes_sent = 1 << 20;
  end.unsent = 65536;
  end.error = ECONNRESET;
  end.service = "shop.service";
  return end;
}

}  // namespace sockalarm::observe::test
