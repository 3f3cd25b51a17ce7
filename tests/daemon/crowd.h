// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <utility>
#include <vector>

#include "daemon/raw_client.h"

namespace sockalarm::test {

// A client with both ends of many connections, on a loopback address of its own if it must: ports are counted
// for each.
class Crowd {
 public:
  Crowd(Watcher watcher, std::size_t size, const char* host = nullptr)
      : watcher_(std::move(watcher)), listener_(listen_on(AF_INET, 64, 0, host)), size_(size) {
    connections_.reserve(size_);
    watches_.reserve(size_);
    alarms_.reserve(size_);
  }

  std::uint64_t connect() {
    for (std::size_t i = 0; i < size_; ++i) {
      UniqueFd peer = connect_to(listener_);
      connections_.emplace_back(accept_from(listener_), std::move(peer));
    }
    return connections_.size();
  }
  // How many are served by the daemon.
  std::uint64_t watch() {
    for (const Connection& one : connections_) watches_.push_back(watcher_.watch(one.ours.get()).value());
    return static_cast<std::uint64_t>(std::count_if(watches_.begin(), watches_.end(), [](const Watch& one) {
      return one.source() == SourceKind::daemon;
    }));
  }
  std::uint64_t arm() {
    fired_ = 0;
    const ActionChain chain(call([this] { ++fired_; }));
    for (const Watch& one : watches_) alarms_.push_back(one.arm(chain).value());
    return alarms_.size();
  }
  // How many fire.
  std::uint64_t leave() {
    for (Connection& one : connections_) one.peer.reset();
    eventually([this] { return fired_ >= size_; });
    return fired_;
  }
  std::uint64_t drop() {
    alarms_.clear();
    watches_.clear();
    connections_.clear();
    return 0;
  }

 protected:
  Watcher watcher_;
  Listener listener_;
  const std::size_t size_;
  std::atomic<std::uint64_t> fired_{0};
  std::vector<Connection> connections_;
  std::vector<Watch> watches_;
  std::vector<Alarm> alarms_;
};

}  // namespace sockalarm::test
