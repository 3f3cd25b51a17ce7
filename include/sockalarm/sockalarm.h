// SPDX-License-Identifier: Apache-2.0
#pragma once

// Know the instant a TCP peer goes away, from a thread that is blocked, and run a chain of actions exactly
// once:
//
//   auto watcher = sockalarm::Watcher::create().value();
//   auto watch = watcher.watch(client_fd).value();                     // once per connection
//   {
//     auto alarm = watch.arm(sockalarm::send_signal(SIGALRM)).value();  // per request
//     long_blocking_query();
//   }                                                                  // nothing fires after this brace
//   if (watch.peer_gone()) return;

#include <sockalarm/action.h>
#include <sockalarm/address.h>
#include <sockalarm/diagnostics.h>
#include <sockalarm/event.h>
#include <sockalarm/result.h>
#include <sockalarm/watcher.h>
