// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>

namespace sockalarm::daemon {

// Of what others can cause as often as they like: one line per second, and how many were left out. One
// thread.
class LogLimit {
 public:
  using Clock = std::chrono::steady_clock;

  // Whether to write that line.
  bool admits(Clock::time_point now) noexcept {
    if (left_out_ > 0 || now < next_) {
      ++left_out_;
      return false;
    }
    next_ = now + kBetween;
    return true;
  }
  // When to ask for what was left out; empty: nothing was.
  std::optional<Clock::time_point> due() const noexcept {
    return left_out_ > 0 ? std::optional(next_) : std::nullopt;
  }
  // How many to tell of now, as the line of this second; 0: none.
  std::uint64_t take(Clock::time_point now) noexcept {
    if (left_out_ == 0 || now < next_) return 0;
    next_ = now + kBetween;
    return take_all();
  }
  std::uint64_t take_all() noexcept {
    const std::uint64_t count = left_out_;
    left_out_ = 0;
    return count;
  }

 private:
  static constexpr std::chrono::seconds kBetween{1};

  Clock::time_point next_;
  std::uint64_t left_out_ = 0;
};

}  // namespace sockalarm::daemon
