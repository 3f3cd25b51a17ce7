// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>

namespace sockalarm::daemon {

// How fast a user may have memory made and freed: as much as it may have, at once, and that much again each
// second. Clearing pages and taking them out of the kernel's address space is felt on all processors. One
// thread.
class Pace {
 public:
  using Clock = std::chrono::steady_clock;
  using Seconds = std::chrono::duration<double>;

  // How long to wait before making that much; a second at most, for what the limit allows. limit: bytes.
  Clock::duration take(std::uint64_t bytes, std::uint64_t limit, Clock::time_point now) noexcept {
    const double rate = static_cast<double>(std::max<std::uint64_t>(limit, 1));
    const double refilled = Seconds(now - at_).count() * rate;
    used_ = std::max(0.0, used_ - std::max(0.0, refilled)) + static_cast<double>(bytes);
    at_ = now;
    return std::chrono::duration_cast<Clock::duration>(Seconds(std::clamp(used_ / rate - 1, 0.0, 1.0)));
  }

 private:
  Clock::time_point at_;
  double used_ = 0;  // of what is at hand, at that time
};

}  // namespace sockalarm::daemon
