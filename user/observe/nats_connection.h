// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <nats/nats.h>
#include <sockalarm/result.h>

#include <chrono>
#include <memory>
#include <string>
#include <string_view>

namespace sockalarm::observe {

// A connection is to end before its subscriptions: the thread that reads holds no reference to the one that a
// message is for, and locks what natsSubscription_Destroy() has freed (libnats 3.4, natsConn_processMsg()).
struct NatsDeleter {
  void operator()(natsOptions* options) const noexcept { natsOptions_Destroy(options); }
  void operator()(natsConnection* connection) const noexcept { natsConnection_Destroy(connection); }
  void operator()(natsSubscription* subscription) const noexcept { natsSubscription_Destroy(subscription); }
  void operator()(jsCtx* context) const noexcept { jsCtx_Destroy(context); }
  void operator()(natsMsg* message) const noexcept { natsMsg_Destroy(message); }
};
template <class T>
using NatsOwned = std::unique_ptr<T, NatsDeleter>;

// A name as a part of a subject: what separates or matches parts becomes '_', an empty one is "none".
std::string nats_token(std::string_view name);

// A list of servers, or what the library says of one, as it may be shown: who logs in, by which password or
// token, is left out: nats://***@host:4222.
std::string without_logins(std::string_view text);

std::string shown_servers(std::string_view list);  // in quotes

// The command that makes a stream for records (docs/fleet.md).
std::string make_stream(const std::string& stream);

// What failed, and what the library says of it on this thread. `any`: also what it says of another status, as
// when the last server of several is not there, and one before it refused.
Error nats_error(natsStatus status, const std::string& what, bool any = false);

// How to reach the servers.
struct NatsServers {
  std::string servers;      // separated by commas
  std::string credentials;  // a file of `nsc`; empty: none
  std::string authorities;  // a PEM file for tls://; empty: those of the system
  std::string name;         // that the servers show
};

// What the agent and a reader have in common: the library connects again by itself, to any of the servers, at
// first after `least`, with jitter, which keeps hosts apart. A server that vanished without a word is
// noticed, and so is one that takes nothing: nobody waits longer than this to write to it. Errors say what
// was given, expected, and is to be done: servers that are none, files that cannot be read or are something
// else.
inline constexpr std::chrono::milliseconds kNatsWriteDeadline{2000};
Result<NatsOwned<natsOptions>> nats_options(const NatsServers& servers, std::chrono::milliseconds least);

}  // namespace sockalarm::observe
