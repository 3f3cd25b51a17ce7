// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/result.h>
#include <sockalarm/unique_fd.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <thread>
#include <unordered_map>
#include <vector>

#include "base/mutex.h"
#include "daemon/client.h"
#include "daemon/connection.h"
#include "daemon/log_limit.h"

namespace sockalarm::daemon {

// All connections of one user, on a thread of their own. Closing a descriptor that somebody passed can take
// as long as he likes (a socket that lingers, a file of his own file system); so it takes nobody's time but
// his.
class Lane {
 public:
  static Result<std::unique_ptr<Lane>> start(Shared& shared, uid_t uid);
  ~Lane();  // ends it, and with it its clients
  Lane(const Lane&) = delete;
  Lane& operator=(const Lane&) = delete;

  // By the server's thread.
  void take(UniqueFd socket, Peer peer, Charge charge);
  void take(std::unique_ptr<Client> survivor, UniqueFd process, std::chrono::steady_clock::time_point until);
  bool idle() const noexcept { return load_.load() == 0; }
  // Asks it to end, leaving its clients in the kernel for the next daemon.
  void leave() noexcept;
  bool left() const noexcept { return left_.load(); }
  void detach() noexcept { thread_.detach(); }  // it is stuck: the process is about to end

 private:
  using Clock = std::chrono::steady_clock;
  using Id = std::uint64_t;  // in epoll: even for a connection's socket, odd for its process

  struct Survivor {
    std::unique_ptr<Client> client;
    UniqueFd process;
    Clock::time_point until;
  };
  struct Arrival {
    UniqueFd socket;
    Peer peer;
    Charge charge;
    Survivor survivor;
  };

  Lane(Shared& shared, uid_t uid, UniqueFd epoll, UniqueFd bell);
  void run();
  void collect();
  void admit(Arrival arrival);
  void await(Survivor survivor);
  void on_event(Id id);
  void close(Id id, const std::string& why);
  std::unique_ptr<Client> find(const Peer& peer, std::uint32_t table, std::uint32_t ring);
  void give_up_late_ones();
  void tell_left_out(std::uint64_t count) const;
  std::optional<Clock::time_point> next_deadline() const;
  bool listen(int fd, Id id) noexcept;
  void ring_bell() noexcept;
  void post(Arrival arrival);

  Shared& shared_;
  const uid_t uid_;
  const UniqueFd epoll_, bell_;
  std::atomic<std::size_t> load_{0};  // connections, survivors and what is in the mailbox
  std::atomic<bool> ending_{false}, leaving_{false}, left_{false};
  Mutex mutex_;
  std::vector<Arrival> mailbox_ GUARDED_BY(mutex_);
  // The thread's own:
  Id last_id_ = 2;
  Pace pace_;
  std::unordered_map<Id, std::unique_ptr<Connection>> connections_;
  std::unordered_map<Id, Survivor> survivors_;
  LogLimit violations_;
  std::thread thread_;  // the last member: it uses the others
};

}  // namespace sockalarm::daemon
