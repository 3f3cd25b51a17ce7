// SPDX-License-Identifier: Apache-2.0
#include "ipc/channel_thread.h"

#include <poll.h>

#include <algorithm>
#include <array>
#include <limits>
#include <system_error>
#include <utility>

#include "base/blocked_signals.h"
#include "ipc/channel_core.h"

namespace sockalarm::detail {

Result<std::shared_ptr<ChannelThread>> ChannelThread::create() {
  std::shared_ptr<ChannelThread> made(new ChannelThread);
  auto wake = WakePipe::make();
  if (!wake) return fail(wake.error());
  made->wake_ = std::move(*wake);
  return made;
}

Result<void> ChannelThread::start(std::shared_ptr<ChannelCore> core) {
  const BlockedSignals blocked;
  try {
    thread_ = std::thread([self = shared_from_this(), core = std::move(core)] { self->run(core); });
  } catch (const std::system_error& error) {
    return fail(Error(error.code(), "starting a channel's thread"));
  }
  return {};
}

void ChannelThread::stop(bool foreign) noexcept {
  if (!thread_.joinable()) return;
  if (foreign) return thread_.detach();
  stopped_.store(true);
  wake();
  if (thread_.get_id() == std::this_thread::get_id())
    thread_.detach();  // in a callback; run() holds what it needs and ends
  else
    thread_.join();
}

void ChannelThread::run(const std::shared_ptr<ChannelCore>& core) {
  while (!stopped_.load() && !core->ended()) {
    const auto timeout = core->poll_timeout();
    const int milliseconds =
        timeout ? static_cast<int>(std::min<long long>(timeout->count(), std::numeric_limits<int>::max()))
                : -1;
    std::array<pollfd, 2> waited{pollfd{core->poll_fd(), core->poll_events(), 0},
                                 pollfd{wake_.fd(), POLLIN, 0}};
    ::poll(waited.data(), waited.size(), milliseconds);
    if (waited[1].revents != 0) wake_.clear();
    if (!stopped_.load()) core->process();
  }
}

}  // namespace sockalarm::detail
