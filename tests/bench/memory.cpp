// SPDX-License-Identifier: Apache-2.0
// What a watch and an armed alarm take: heap by malloc's own books (with what malloc adds), objects in the
// caller's hands, the shared table, the kernel's registry.
#include <malloc.h>

#include <algorithm>

#include "bench/support/contender.h"
#include "bench/support/own_maps.h"
#include "bench/support/peer.h"
#include "bench/support/program.h"
#include "sockalarm_abi.h"

namespace sockalarm::bench {
namespace {

// In all arenas, with malloc's headers; and blocks of their own mapping.
double heap_bytes() {
  const struct mallinfo2 info = ::mallinfo2();
  return static_cast<double>(info.uordblks + info.hblkhd);
}

double map_bytes_of(const UniqueFd& map) {
  const auto bytes = map ? map_bytes(map) : std::nullopt;
  return bytes ? static_cast<double>(*bytes) : std::nan("");
}

Json measure_source(SourceKind source, const std::vector<int>& fds) {
  Options options;
  options.source = source;
  auto watcher = make_watcher(std::move(options));
  if (!watcher) return not_available(watcher.error().message());
  const auto count = static_cast<double>(fds.size());
  const ActionChain chain(send_signal(SIGUSR1));
  std::vector<Watch> watches;
  std::vector<Alarm> alarms;
  watches.reserve(fds.size());
  alarms.reserve(fds.size());
  const UniqueFd registry = source == SourceKind::kernel ? own_map("registry") : UniqueFd();

  const double registry_before = map_bytes_of(registry);
  const double before = heap_bytes();
  for (const int fd : fds) watches.push_back(watcher->watch(fd).value());
  const double watched = heap_bytes();
  const double registry_watched = map_bytes_of(registry);
  for (const Watch& watch : watches) alarms.push_back(watch.arm(chain).value());
  const double armed = heap_bytes();

  const double heap = (watched - before) / count, per_alarm = (armed - watched) / count;
  Json row{{"heap_per_watch", heap},
           {"sizeof_watch", sizeof(Watch)},
           {"user_space_per_watch", heap + sizeof(Watch)},
           {"heap_per_armed_alarm", per_alarm},
           {"sizeof_alarm", sizeof(Alarm)},
           {"user_space_per_armed_alarm", per_alarm + sizeof(Alarm)}};
  if (registry) {
    row["shared_per_watch"] = sizeof(sockalarm_watch_state);
    row["registry_per_entry"] = (registry_watched - registry_before) / count;
    row["registry_per_place"] = registry_before / map_info(registry).max_entries;
  }
  return row;
}

Json measure(const Settings& settings) {
  const std::size_t room = raise_descriptor_limit() - 1000;
  const std::size_t sockets = std::min(settings.pick(9000UL, 500UL), room);
  Peer peer;
  auto connections = peer.connect(0, sockets);
  const std::vector<int> fds = numbers(connections);
  Json rows = Json::object();
  for (const SourceKind source : {SourceKind::kernel, SourceKind::epoll, SourceKind::poll})
    rows[std::string(to_string(source))] = measure_source(source, fds);
  peer.drop(0, connections);
  return {{"settings", {{"watches", sockets}}}, {"rows", rows}};
}

}  // namespace
}  // namespace sockalarm::bench

int main(int argc, char** argv) {
  return sockalarm::bench::bench_main(argc, argv, "Memory per watch", sockalarm::bench::measure);
}
