// SPDX-License-Identifier: Apache-2.0
#include <nlohmann/json.hpp>

#include "observe/snapshot.h"

namespace sockalarm::observe {

std::string to_json(const Snapshot& snapshot) {
  using Json = nlohmann::ordered_json;
  const auto entry = [&](const TotalKey& key, const Total& total) {
    return Json{{"direction", text(key.direction)},
                {"cause", text(key.cause)},
                {"verdict", text(key.verdict)},
                {"count", total.ends},
                {"bytes_received", total.bytes_received},
                {"bytes_sent", total.bytes_sent},
                {"orphaned_seconds", in_seconds(total.orphaned)}};
  };
  Json ends = Json::array(), evicted = Json::array(), lost = Json::object();
  for (const auto& [key, total] : snapshot.ends) {
    Json one{{"service", key.service}};
    one.update(entry(key, total));
    ends.push_back(std::move(one));
  }
  for (const auto& [key, total] : snapshot.evicted) evicted.push_back(entry(key, total));
  for (const auto& [stage, count] : snapshot.lost) lost[stage] = count;
  lost["spool_corrupt"] = snapshot.corrupt_segments;
  Json json{{"schema", "sockalarm.totals.v1"},
            {"version", SOCKALARM_VERSION},
            {"host",
             {{"id", snapshot.host.machine}, {"name", snapshot.host.name}, {"region", snapshot.host.region}}},
            {"time", timestamp(snapshot.now)},
            {"started_at", timestamp(snapshot.started_at)},
            {"uptime_seconds", in_seconds(snapshot.uptime)},
            {"ends", std::move(ends)},
            {"evicted", std::move(evicted)},
            {"lost", std::move(lost)},
            {"limits", snapshot.limits}};
  if (const auto& shipping = snapshot.shipping)
    json["spool"] = {{"bytes", shipping->spool.bytes},
                     {"pending", shipping->spool.pending},
                     {"oldest_seconds", in_seconds(shipping->spool.oldest)},
                     {"connected", shipping->connected}};
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace sockalarm::observe
