// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/result.h>

#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace sockalarm::cli {

// Which records (docs/schema) are wanted. It reads what may have come from anywhere: a field that is missing,
// or of another type than it should be, matches nothing.
class EventFilter {
 public:
  // Each "KEY=VALUE[,VALUE...]": one of the values must match, and all of the texts must hold. Errors:
  // Errc::invalid_text, with what was given and what is known.
  static Result<EventFilter> parse(const std::vector<std::string>& texts);

  bool matches(const nlohmann::json& record) const;

 private:
  using Condition = std::function<bool(const nlohmann::json&)>;
  std::vector<Condition> conditions_;
};

// For the help of a command that takes them.
inline constexpr std::string_view kEventFilterHelp =
    "--filter KEY=VALUE[,VALUE...]: one of the values must match; of several --filter all must hold. Keys:\n"
    "  cause         peer_fin, peer_reset, timeout, unreachable, refused, destroyed, local\n"
    "  verdict       abandoned, idle_close, half_close_served, local, none\n"
    "  direction     inbound, outbound, unknown\n"
    "  service       nginx.service, 'post*' (unknown: those without)\n"
    "  host          name or id of the host; 'web-*'\n"
    "  port          443, 8000-8999: the local port, or the peer's\n"
    "  prefix        10.0.0.0/8, 2001:db8::1: the peer's address\n"
    "  min-orphaned  250ms, 2s: work for nobody went on for that long\n"
    "  command       name of the process, at most 15 bytes; 'php*'\n"
    "  pid           1234";

}  // namespace sockalarm::cli
