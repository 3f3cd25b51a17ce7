// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/result.h>
#include <sockalarm/unique_fd.h>

#include <chrono>
#include <optional>
#include <utility>

namespace sockalarm::ipc {

// What a channel waits for, shown to the event loop. The one who uses it locks.
class Readiness {
 public:
  using Clock = std::chrono::steady_clock;

  struct Wanted {
    bool socket = false;  // at all: also for a peer that hangs up
    bool read = false;
    bool write = false;
    std::optional<Clock::time_point> at;  // in any case then
    bool operator==(const Wanted&) const = default;
  };

  // All descriptors it will ever need. Errors: errno.
  static Result<Readiness> create();
  void attach(int socket) noexcept { socket_ = socket; }
  // Before the socket is closed or given away.
  void detach() noexcept;
  // True: a wait that has begun with the old wish must begin anew.
  bool want(const Wanted& wanted) noexcept;

  int fd() const noexcept;
  short events() const noexcept;
  std::optional<Clock::time_point> at() const noexcept;

 private:
  Readiness() = default;
  int socket_ = -1;
  Wanted wanted_;
  UniqueFd epoll_, timer_;  // on Linux
};

}  // namespace sockalarm::ipc
