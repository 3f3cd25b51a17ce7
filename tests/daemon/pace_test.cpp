// SPDX-License-Identifier: Apache-2.0
#include "daemon/pace.h"

#include <gtest/gtest.h>

namespace sockalarm::daemon {
namespace {

using namespace std::chrono_literals;

constexpr std::uint64_t kLimit = 1'000'000;

TEST(PaceTest, WhatAUserMayHaveIsThereAtOnce) {
  Pace pace;
  const auto now = Pace::Clock::now();
  for (int i = 0; i < 10; ++i) EXPECT_EQ(pace.take(kLimit / 10, kLimit, now), 0s);
}

TEST(PaceTest, ThenAsMuchPerSecond) {
  Pace pace;
  auto now = Pace::Clock::now();
  const auto begin = now;
  EXPECT_EQ(pace.take(kLimit, kLimit, now), 0s);
  for (int i = 0; i < 100; ++i) {
    const auto wait = pace.take(kLimit / 10, kLimit, now);
    EXPECT_LT(std::chrono::abs(wait - 100ms), 1ms) << i;
    now += wait;
  }
  EXPECT_LT(std::chrono::abs(now - begin - 10s), 10ms);
  now += 1s;
  EXPECT_LT(pace.take(kLimit, kLimit, now), 1ms);  // all of it is there again, but no more
  EXPECT_GT(pace.take(kLimit, kLimit, now), 999ms);
  EXPECT_EQ(pace.take(kLimit / 2, kLimit, now + 100s), 0s);
}

TEST(PaceTest, NeverLongerThanASecond) {
  Pace pace;
  const auto now = Pace::Clock::now();
  for (int i = 0; i < 10; ++i) EXPECT_LE(pace.take(kLimit, kLimit, now), 1s);
  EXPECT_EQ(pace.take(5, 0, now), 1s);
}

}  // namespace
}  // namespace sockalarm::daemon
