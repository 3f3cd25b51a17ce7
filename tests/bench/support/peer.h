// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "bench/support/basics.h"
#include "bench/support/processes.h"

namespace sockalarm::bench {

// The process at the other end of all connections: it connects, and it leaves when it is told to. It writes
// the time of its close() into shared memory just before, so nobody has to be woken to learn it.
// Make it before any thread (see Child).
class Peer {
 public:
  Peer() : listener_(test::listen_on(AF_INET, 4096)) {
    const timeval patience{30, 0};
    ::setsockopt(listener_.fd.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    int ends[2];
    require(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0, "socketpair");
    commands_ = UniqueFd(ends[0]);
    remote_ = UniqueFd(ends[1]);
    child_.emplace_back([this] {
      commands_.reset();
      serve();
    });
    remote_.reset();
  }

  pid_t pid() const noexcept { return child_.front().pid(); }

  // Makes connections and keeps their other ends in that group (0 or 1), which must be empty. Gives our ends.
  std::vector<UniqueFd> connect(std::uint32_t group, std::size_t count) {
    send({Verb::connect, group, 0, static_cast<std::uint32_t>(count), 0, 0});
    std::vector<UniqueFd> ours;
    ours.reserve(count);
    for (std::size_t i = 0; i < count; ++i) ours.push_back(test::accept_from(listener_));
    await_reply();
    return ours;
  }

  // Closes one connection after a delay. Does not wait for it: closed_at() is 0 until it happens.
  // stay_busy: then it computes until be_idle(), so that the CPU on which it closed does not become free.
  // primer: that connection is closed too, `gap_us` earlier.
  void close_later(std::uint32_t group, std::size_t index, std::uint32_t delay_us, bool stay_busy = false) {
    shared_->closed_at.store(0);
    const std::uint32_t busy = stay_busy ? ++last_busy_ : 0;
    send({Verb::close_one, group, static_cast<std::uint32_t>(index), 0, delay_us, 0, busy});
  }
  void close_two_later(std::uint32_t group, std::size_t primer, std::uint32_t gap_us,
                       std::uint32_t delay_us) {
    shared_->closed_at.store(0);
    send({Verb::close_two, group, static_cast<std::uint32_t>(primer), 0, delay_us, gap_us});
  }
  void be_idle() noexcept { shared_->busy_until.store(last_busy_); }
  std::int64_t closed_at() const noexcept { return shared_->closed_at.load(); }

  // Closes a whole group as fast as it can. await_all_closed() gives how long that took, from closed_at().
  void close_all(std::uint32_t group, std::uint32_t delay_us) {
    shared_->closed_at.store(0);
    send({Verb::close_all, group, 0, 0, delay_us, 0});
  }
  std::int64_t await_all_closed() {
    await_reply();
    return shared_->all_closed_at.load() - shared_->closed_at.load();
  }

  // Both ends of a group go, with a reset, so that nothing waits in TIME_WAIT and ports do not run out.
  void drop(std::uint32_t group, std::vector<UniqueFd>& ours) {
    for (UniqueFd& fd : ours) test::reset(fd);
    ours.clear();
    send({Verb::drop, group, 0, 0, 0, 0});
    await_reply();
  }

 private:
  enum class Verb : std::uint32_t { connect, close_one, close_two, close_all, drop };
  struct Command {
    Verb verb;
    std::uint32_t group, index, count, delay_us, gap_us;
    std::uint32_t busy = 0;  // number of a close after which it stays busy
  };
  struct Shared {
    std::atomic<std::int64_t> closed_at{0}, all_closed_at{0};
    std::atomic<std::uint32_t> busy_until{
        0};  // the number of a busy close: a flag could be set again too soon
  };

  void send(const Command& command) {
    require(::send(commands_.get(), &command, sizeof command, MSG_NOSIGNAL) == sizeof command,
            "a command to the peer process");
  }
  void await_reply() {
    char done = 0;
    ssize_t got = 0;
    do got = ::recv(commands_.get(), &done, 1, 0);
    while (got < 0 && errno == EINTR);
    require(got == 1, "an answer of the peer process");
  }

  void serve() {
    std::vector<UniqueFd> groups[2];
    Command command{};
    while (::recv(remote_.get(), &command, sizeof command, 0) == sizeof command) {
      auto& group = groups[command.group];
      if (command.delay_us != 0) sleep_us(command.delay_us);
      switch (command.verb) {
        case Verb::connect:
          group.clear();
          for (std::uint32_t i = 0; i < command.count; ++i) group.push_back(test::connect_to(listener_));
          break;
        case Verb::close_two: {
          const std::int64_t first = now_ns();
          group[command.index++].reset();
          while (now_ns() - first < std::int64_t{command.gap_us} * 1000) {
          }
          [[fallthrough]];
        }
        case Verb::close_one:
          shared_->closed_at.store(now_ns());
          group[command.index].reset();
          while (shared_->busy_until.load(std::memory_order_relaxed) < command.busy) {
          }
          continue;  // no answer: it would only take time from the one who is being measured
        case Verb::close_all:
          shared_->closed_at.store(now_ns());
          for (UniqueFd& fd : group) fd.reset();
          shared_->all_closed_at.store(now_ns());
          break;
        case Verb::drop:
          group.clear();
          break;
      }
      ::send(remote_.get(), "d", 1, MSG_NOSIGNAL);
    }
  }

  test::Listener listener_;
  UniqueFd commands_, remote_;
  SharedMemory<Shared> shared_;
  std::uint32_t last_busy_ = 0;
  std::vector<Child> child_;
};

}  // namespace sockalarm::bench
