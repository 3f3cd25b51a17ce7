// SPDX-License-Identifier: Apache-2.0
// Never run: compiled as a user's program would be, for a look at the machine code of Watch::peer_gone().
#include <sockalarm/sockalarm.h>

extern "C" {

void sockalarm_probe_leave();

// By value, as in a hot loop that keeps the Peer in a register.
void sockalarm_probe_peer(sockalarm::Peer peer) {
  if (peer.gone()) sockalarm_probe_leave();
}

// Through the object, whose pointer is loaded too. The answer as a value.
bool sockalarm_probe_value(const sockalarm::Watch& watch) { return watch.peer_gone(); }

// The answer as a decision.
void sockalarm_probe_decision(const sockalarm::Watch& watch) {
  if (watch.peer_gone()) sockalarm_probe_leave();
}
}
