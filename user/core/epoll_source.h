// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/unique_fd.h>

#include <atomic>
#include <utility>

#include "core/source.h"

namespace sockalarm::detail {

// Waits on one epoll(7) instance for sockets, for wake(), and for the kernel source's ring. Sockets are
// registered edge-triggered and carry their cookie, so a wake-up costs nothing for the sockets that stay
// silent.
class EpollSource : public Source {
 public:
  static Result<std::unique_ptr<EpollSource>> open();

  SourceKind kind() const noexcept override { return SourceKind::epoll; }
  Result<void> add(Socket& socket, int fd) override REQUIRES(core_mutex);
  void remove(Socket& socket) noexcept override REQUIRES(core_mutex);
  void want(Socket& socket, Events momentary) override REQUIRES(core_mutex);
  void move(Socket& socket, int fd) override REQUIRES(core_mutex);
  bool wait(std::optional<std::chrono::steady_clock::time_point> until, std::vector<News>& news) override;
  void wake() noexcept override;
  bool woken() const noexcept { return awake_.load(); }
  void after_fork() noexcept override;

  // For the kernel source. `fd` is lent; what was read from it is news that this source does not look at.
  Result<void> add_ring(int fd);
  // The same, but remembered until asked.
  Result<void> add_tended(int fd);
  bool take_tended() noexcept { return std::exchange(tended_, false); }  // by the dispatcher
  // Readable and urgent of a socket whose sticky events come from the kernel.
  void want_only(Socket& socket, Events momentary) noexcept REQUIRES(core_mutex);

 protected:
  EpollSource(UniqueFd epoll, UniqueFd wake) : epoll_(std::move(epoll)), wake_(std::move(wake)) {}

 private:
  Result<void> add_other(int fd, std::uint64_t token);

  UniqueFd epoll_, wake_;
  bool tended_ = false;
  std::atomic<bool> awake_{false};  // wake() was called and wait() has not seen it yet: one write is enough
};

}  // namespace sockalarm::detail
