// SPDX-License-Identifier: Apache-2.0
// Never run: compiled as a user's program would be, for a look at the machine code of Watch::peer_gone().
#include <sockalarm/sockalarm.h>

extern "C" {

void sockalarm_probe_leave();

// The answer as a value.
bool sockalarm_probe_value(const sockalarm::Watch& watch) { return watch.peer_gone(); }

// The answer as a decision.
void sockalarm_probe_decision(const sockalarm::Watch& watch) {
  if (watch.peer_gone()) sockalarm_probe_leave();
}
}
