// SPDX-License-Identifier: Apache-2.0
#pragma once

// Know the instant a TCP peer goes away, from a thread that is blocked, and run a chain of actions exactly
// once:
//
//   struct sigaction interrupt = {};          // once: a handler for SIGALRM that does nothing. Without one
//   interrupt.sa_handler = [](int) {};        // the signal ends the process; with SA_RESTART in sa_flags
//   sigaction(SIGALRM, &interrupt, nullptr);  // the system call would go on
//
//   auto watcher = sockalarm::Watcher::create().value();
//   auto watch = watcher.watch(client_fd).value();                     // once per connection
//   {
//     auto alarm = watch.arm(sockalarm::send_signal(SIGALRM)).value();  // per request
//     if (!watch.peer_gone()) long_blocking_query();
//   }                                                                  // nothing fires after this brace
//   if (watch.peer_gone()) return;
//
// A signal ends a system call that has begun. One that comes between the question and the call is too early,
// as with alarm(2): where that matters, block the signal and let the call unblock it (ppoll(2),
// sigsuspend(2)), shut the descriptor down that the thread waits on, or send it twice: send_signal(s),
// sleep_for(10ms), send_signal(s).

#include <sockalarm/action.h>
#include <sockalarm/address.h>
#include <sockalarm/diagnostics.h>
#include <sockalarm/event.h>
#include <sockalarm/fd_channel.h>
#include <sockalarm/result.h>
#include <sockalarm/time_slice.h>
#include <sockalarm/watcher.h>
