// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/event.h>

#include <chrono>
#include <cstddef>
#include <string>
#include <vector>

namespace sockalarm {

// What can stop a request or one of its calls.
enum class StopCause { call_limit, request_limit, peer_gone };

// Why something was stopped: exactly one cause, the one that was due first. A value.
struct Stop {
  StopCause cause = StopCause::call_limit;
  std::string call;                          // call_limit: whose limit it was; may be an outer call's
  std::chrono::nanoseconds limit{0};         // of a limit: how long it was
  Events events;                             // peer_gone: what was seen
  int error = 0;                             // peer_gone: errno that came with it, if known
  std::chrono::steady_clock::time_point at;  // when it was due, also if a shield held it back until later
};

// "limit of 2s of the call 'query'", "limit of 180s of the request", "peer gone (reset: Connection reset by
// peer)".
std::string to_string(const Stop& stop);

// A limit that went off.
struct Sounded {
  StopCause cause = StopCause::call_limit;  // call_limit or request_limit
  std::string call;  // call_limit: whose; request_limit: the innermost call that was running, or empty
  std::chrono::nanoseconds limit{0};
  std::chrono::nanoseconds after{0};  // since the request began
  std::chrono::nanoseconds held{0};   // of that by a shield
  bool fatal = true;                  // false: the policy's handler let it go on
};

// What there is to tell of one request, for its access-log line. A value. Before the end of the request it
// says what is known so far.
struct Record {
  std::string path;                             // as given to Requests::begin()
  std::chrono::system_clock::time_point began;  // for people
  std::chrono::steady_clock::time_point start, stop;
  std::chrono::nanoseconds total{0};  // from start to stop, without the cleanups
  std::chrono::nanoseconds limit{0};  // of the request; 0: none
  std::string override_matched;       // the expression whose limit it is; empty: the policy's
  bool limits_off = false;            // off() was called

  std::vector<Sounded> sounded;  // in the order in which they went off

  bool aborted = false;              // the peer had gone before the end
  Events cause;                      // by what
  int error = 0;                     // errno that came with it, if known
  std::chrono::nanoseconds busy{0};  // work that went on after it had gone
  bool broken_pipe = false;          // a SigpipeGuard caught one

  std::chrono::nanoseconds shielded{0};   // time under shields
  std::chrono::nanoseconds held_back{0};  // the longest that a shield held a stop back
  std::size_t shields_left = 0;           // an error: shields that outlived the request

  std::size_t pokes = 0;  // signals that got the thread out of system calls
  std::size_t cleanups_run = 0;
  std::size_t cleanups_failed = 0;  // by an exception; the log hook was told

  // The calls in which a limit went off, as in `sounded`.
  std::vector<std::string> failed() const;
};

}  // namespace sockalarm
