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
  const std::size_t rounds = settings.pick(10UL, 1UL), alarms = settings.pick(200UL, 50UL);
  if (::geteuid() != 0) {
    const Json why = not_available("sockalarmd needs privileges to load");
    return {{"settings", Json::object()}, {"rows", {{"many_watches", why}, {"alone", why}}}};
  }
  progress("many watches");
  const Json many = test::measure_many_watches(clients, each);
  progress("a hostile neighbour");
  Json rows = test::measure_neighbour(rounds, alarms);
  rows["many_watches"] = many;
  return {{"settings", {{"clients", clients}, {"each", each}, {"rounds", rounds}, {"alarms", alarms}}},
          {"rows", rows}};
}

}  // namespace
}  // namespace sockalarm::bench

int main(int argc, char** argv) {
  return sockalarm::bench::bench_main(argc, argv, "The daemon under load", sockalarm::bench::measure);
}
