// SPDX-License-Identifier: Apache-2.0
// What sockalarmd makes of 100,000 watches, and what a client notices of a hostile one.
#include "bench/support/program.h"
#include "daemon/many_watches.h"
#include "daemon/neighbour_figure.h"

namespace sockalarm::bench {
namespace {

Json measure(const Settings& settings) {
  // Both ends are in the client: fewer than 20,000 descriptors each, which is all that there may be in
  // places.
  const std::size_t clients = settings.pick(11UL, 2UL), each = settings.pick(9'100UL, 500UL);
  const std::size_t rounds = settings.pick(20UL, 1UL), alarms = settings.pick(100UL, 20UL);
  if (::geteuid() != 0) {
    const Json why = not_available("sockalarmd needs privileges to load");
    return {{"settings", Json::object()}, {"rows", {{"many_watches", why}, {"alone", why}}}};
  }
  const auto wanted = [&](const char* part) { return settings.only.empty() || settings.only == part; };
  Json rows = Json::object();
  if (wanted("neighbour")) {
    progress("a hostile neighbour");
    rows = test::measure_neighbour(rounds, alarms);
  }
  if (wanted("many_watches")) {
    progress("many watches");
    rows["many_watches"] = test::measure_many_watches(clients, each);
  }
  return {{"settings", {{"clients", clients}, {"each", each}, {"rounds", rounds}, {"alarms", alarms}}},
          {"rows", rows}};
}

}  // namespace
}  // namespace sockalarm::bench

int main(int argc, char** argv) {
  return sockalarm::bench::bench_main(argc, argv, "The daemon under load", sockalarm::bench::measure);
}
