// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/result.h>

#include <atomic>
#include <memory>
#include <thread>

#include "base/wake_pipe.h"

namespace sockalarm::detail {

class ChannelCore;

// A thread that does for one channel what an event loop would.
class ChannelThread : public std::enable_shared_from_this<ChannelThread> {
 public:
  // All descriptors it needs. Errors: errno.
  static Result<std::shared_ptr<ChannelThread>> create();
  // Errors: errno. From then on stop() must be called before the last reference goes.
  Result<void> start(std::shared_ptr<ChannelCore> core);
  // When it returns, no callback runs, unless it is called in one. `foreign`: in a forked child, without a
  // thread.
  void stop(bool foreign) noexcept;
  void wake() noexcept { wake_.wake(); }

 private:
  ChannelThread() = default;
  void run(const std::shared_ptr<ChannelCore>& core);

  WakePipe wake_;
  std::atomic<bool> stopped_{false};
  std::thread thread_;
};

}  // namespace sockalarm::detail
