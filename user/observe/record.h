// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/result.h>

#include <chrono>
#include <string>
#include <string_view>

#include "observe/connection_end.h"

namespace sockalarm::observe {

// Which host says so. `machine` and `boot` are ids without hyphens, as in machine-id(5).
struct Host {
  std::string machine, boot, name, region;

  static Result<Host> this_one(std::string region);
};

std::string_view text(Cause cause) noexcept;
std::string_view text(Verdict verdict) noexcept;
std::string_view text(Direction direction) noexcept;

// The unit of every time that is written.
inline double in_seconds(std::chrono::nanoseconds time) {
  return std::chrono::duration<double>(time).count();
}

// RFC 3339 in UTC, with nanoseconds.
std::string timestamp(std::chrono::system_clock::time_point at);

// MACHINE-BOOT-SEQUENCE: the same for the same event, whoever sends it how often.
std::string event_id(const Host& host, const ConnectionEnd& end);

// One line without its end, an object after docs/schema/connection_ended.v1.schema.json. Valid UTF-8 whatever
// bytes the names have.
std::string to_json(const Host& host, const ConnectionEnd& end);

}  // namespace sockalarm::observe
