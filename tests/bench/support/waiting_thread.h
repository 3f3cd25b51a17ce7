// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

namespace sockalarm::bench {

// What people write today: a helper thread that waits for many sockets at once and does something when a
// peer has gone. Baselines of all comparisons, each as good as its interface allows.
class WaitingThread {
 public:
  using OnGone = std::function<void(int fd)>;  // on the helper thread

  virtual ~WaitingThread() = default;
  // Tells once, when the peer of the socket has gone.
  virtual void add(std::span<const int> fds) = 0;
  virtual void remove(std::span<const int> fds) = 0;
  // The reason why it cannot be had.
  virtual std::optional<std::string> run_realtime(int priority) = 0;
};

std::unique_ptr<WaitingThread> epoll_thread(WaitingThread::OnGone on_gone);  // EPOLLONESHOT
std::unique_ptr<WaitingThread> poll_thread(WaitingThread::OnGone on_gone);
std::unique_ptr<WaitingThread> uring_thread(
    WaitingThread::OnGone on_gone);  // throws where io_uring is forbidden

}  // namespace sockalarm::bench
