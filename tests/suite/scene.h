// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "harness/alarms.h"
#include "harness/sockets.h"

namespace sockalarm::test {

// A watched connection, the most common scene.
struct Scene {
  explicit Scene(const Watcher& watcher)
      : connection(tcp_pair()), watch(watcher.watch(connection.ours.get()).value()) {}
  void peer_leaves() { connection.peer.reset(); }

  Connection connection;
  Watch watch;
};

}  // namespace sockalarm::test
