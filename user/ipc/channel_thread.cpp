// SPDX-License-Identifier: Apache-2.0
#include "ipc/channel_thread.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <limits>
#include <system_error>

#include "ipc/channel_core.h"

namespace sockalarm::detail {

Result<std::shared_ptr<ChannelThread>> ChannelThread::create() {
  std::shared_ptr<ChannelThread> made(new ChannelThread);
  int ends[2];
  if (::pipe(ends) != 0) return fail(Error::from_errno(errno, "pipe"));
  made->wake_read_.reset(ends[0]);
  made->wake_write_.reset(ends[1]);
  for (const int end : ends) {
    ::fcntl(end, F_SETFD, FD_CLOEXEC);
    ::fcntl(end, F_SETFL, ::fcntl(end, F_GETFL) | O_NONBLOCK);
  }
  return made;
}

Result<void> ChannelThread::start(std::shared_ptr<ChannelCore> core) {
  sigset_t all, before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  Result<void> started;
  try {
    thread_ = std::thread([self = shared_from_this(), core = std::move(core)] { self->run(core); });
  } catch (const std::system_error& error) {
    started = fail(Error(error.code(), "starting a channel's thread"));
  }
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return started;
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

void ChannelThread::wake() noexcept {
  const char byte = 0;
  [[maybe_unused]] const ssize_t n = ::write(wake_write_.get(), &byte, 1);  // full: it is awake
}

void ChannelThread::run(const std::shared_ptr<ChannelCore>& core) {
  while (!stopped_.load() && !core->ended()) {
    const auto timeout = core->poll_timeout();
    const int milliseconds =
        timeout ? static_cast<int>(std::min<long long>(timeout->count(), std::numeric_limits<int>::max()))
                : -1;
    std::array<pollfd, 2> waited{pollfd{core->poll_fd(), core->poll_events(), 0},
                                 pollfd{wake_read_.get(), POLLIN, 0}};
    ::poll(waited.data(), waited.size(), milliseconds);
    std::array<char, 64> drained{};
    if (waited[1].revents != 0 && ::read(wake_read_.get(), drained.data(), drained.size()) < 0) continue;
    if (!stopped_.load()) core->process();
  }
}

}  // namespace sockalarm::detail
