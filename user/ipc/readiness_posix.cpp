// SPDX-License-Identifier: Apache-2.0
#include <poll.h>

#include "ipc/readiness.h"

// No descriptor of its own: the event loop is told the socket, the events and the time.
namespace sockalarm::ipc {

Result<Readiness> Readiness::create() { return Readiness(); }

void Readiness::detach() noexcept {
  want({});
  socket_ = -1;
}

bool Readiness::want(const Wanted& wanted) noexcept { return std::exchange(wanted_, wanted) != wanted; }

int Readiness::fd() const noexcept { return wanted_.socket ? socket_ : -1; }
short Readiness::events() const noexcept {
  return static_cast<short>((wanted_.read ? POLLIN : 0) | (wanted_.write ? POLLOUT : 0));
}
std::optional<Readiness::Clock::time_point> Readiness::at() const noexcept { return wanted_.at; }

}  // namespace sockalarm::ipc
