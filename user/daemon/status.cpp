// SPDX-License-Identifier: Apache-2.0
#include "daemon/status.h"

#include <unistd.h>

#include <nlohmann/json.hpp>

namespace sockalarm::daemon {

std::string status_text(const Shared& shared, uid_t asked_by) {
  using Json = nlohmann::json;
  const bool everything = asked_by == 0 || asked_by == ::geteuid();
  const auto may_see = [&](uid_t uid) { return everything || uid == asked_by; };
  Json clients = Json::array(), users = Json::array();
  for (const auto& entry : shared.roll.all()) {
    if (!may_see(entry->uid)) continue;
    clients.push_back({{"pid", entry->pid},
                       {"uid", entry->uid},
                       {"index", entry->index},
                       {"watches", entry->watches.load()},
                       {"slots", entry->slots},
                       {"ring_bytes", entry->ring_bytes},
                       {"connected", entry->connected.load()}});
  }
  for (const auto& [uid, used] : shared.accounts->used()) {
    if (!may_see(uid)) continue;
    users.push_back({{"uid", uid},
                     {"connections", used[static_cast<std::size_t>(Resource::connections)]},
                     {"watches", used[static_cast<std::size_t>(Resource::watches)]},
                     {"memory", used[static_cast<std::size_t>(Resource::memory)]}});
  }
  const auto lost = shared.kernel.lost();
  const auto uptime = std::chrono::steady_clock::now() - shared.since;
  const UserLimits limits = shared.accounts->limits();
  const Json status{
      {"version", SOCKALARM_VERSION},
      {"pid", ::getpid()},
      {"uptime_seconds", uptime / std::chrono::seconds(1)},
      {"adopted", shared.kernel.adopted()},
      {"task_work", shared.kernel.task_work()},
      {"programs", {{"id", shared.kernel.programs()}, {"current", shared.kernel.current()}}},
      {"clients", clients},
      {"users", users},
      {"limits",
       {{"clients", shared.kernel.sizes().clients},
        {"watches", shared.kernel.sizes().sockets},
        {"user",
         {{"connections", limits.connections}, {"watches", limits.watches}, {"memory", limits.memory}}}}},
      {"lost",
       {{"ring_full", lost[SOCKALARM_LOST_RING_FULL]},
        {"no_client", lost[SOCKALARM_LOST_NO_CLIENT]},
        {"stale", lost[SOCKALARM_LOST_STALE]}}},
      {"connections",
       {{"accepted", shared.roll.accepted.load()},
        {"refused", shared.roll.refused.load()},
        {"violations", shared.roll.violations.load()},
        {"resumed", shared.roll.resumed.load()}}}};
  return status.dump();
}

}  // namespace sockalarm::daemon
