// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/unique_fd.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "daemon/client.h"
#include "daemon/pace.h"
#include "ipc/frame_socket.h"
#include "ipc/protocol.h"

namespace sockalarm::daemon {

// One connection and what it asked for. Everything that comes from it is hostile until checked; what it may
// make wait is its own lane. One thread.
class Connection {
 public:
  // Answers the client of that table and ring if it is awaited.
  using FindSurvivor =
      std::function<std::unique_ptr<Client>(const Peer&, std::uint32_t table, std::uint32_t ring)>;

  // pace: of its user, and so of its lane.
  Connection(Shared& shared, Pace& pace, UniqueFd socket, Peer peer, Charge charge,
             FindSurvivor find_survivor);

  // Takes what is there, but no more than a fair part. Why it must be closed, if so.
  std::optional<std::string> serve();

  void abandon_client() noexcept { Client::abandon(std::move(client_)); }
  int socket() const noexcept { return socket_.get(); }
  const Peer& peer() const noexcept { return peer_; }
  bool greeted() const noexcept { return state_ == State::serving; }
  std::chrono::steady_clock::time_point since() const noexcept { return since_; }
  std::string name() const {
    return "process " + std::to_string(peer_.pid) + " of user " + std::to_string(peer_.uid);
  }

 private:
  enum class State : std::uint8_t { silent, awaits_table, awaits_ring, serving };
  using Refusal = std::optional<std::string>;  // of the whole connection

  Refusal take(ipc::Frame frame);
  Refusal greet(const ipc::Hello& hello);
  Refusal make_client(std::uint32_t slots, std::uint32_t ring_bytes);
  Refusal resume(UniqueFd ring);
  Refusal welcome(bool resumed);
  Refusal answer_to(ipc::Kind kind, ipc::Frame& frame);
  Result<void> watch(const ipc::Watch& frame, UniqueFd socket);
  Refusal tell_status(std::uint32_t id);
  Refusal reply(std::uint32_t id, const Result<void>& done);
  Refusal send(int failed) const;
  bool waits_for_room(std::chrono::steady_clock::time_point until) const noexcept;
  sockalarm_client facts(const MapFacts& table, const MapFacts& ring) const noexcept;

  Shared& shared_;
  Pace& pace_;
  const UniqueFd socket_;
  const Peer peer_;
  const Charge charge_;
  const FindSurvivor find_survivor_;
  const std::chrono::steady_clock::time_point since_ = std::chrono::steady_clock::now();
  State state_ = State::silent;
  std::uint32_t hello_id_ = 0;
  UniqueFd offered_table_;
  std::unique_ptr<Client> client_;  // null: it only asks
};

}  // namespace sockalarm::daemon
