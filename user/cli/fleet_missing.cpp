// SPDX-License-Identifier: Apache-2.0
#include "cli/commands.h"

namespace sockalarm::cli {

// A build without libnats.
void add_fleet(CLI::App& app, Task& chosen) {
  CLI::App* fleet = app.add_subcommand("fleet", "What ends on all hosts (not in this build)");
  fleet->allow_extras();
  fleet->callback([&chosen] {
    chosen = [] {
      say("sockalarm fleet: this build is without NATS; build it with -DSOCKALARM_NATS=ON (libnats-dev)");
      return kExitFailed;
    };
  });
}

}  // namespace sockalarm::cli
