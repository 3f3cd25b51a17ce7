// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>
#include <sockalarm/watcher.h>

#include <algorithm>
#include <chrono>
#include <iostream>
#include <string>
#include <vector>

namespace sockalarm::test {

// Poll is left out: it differs from epoll in how it waits, not in what happens then.
inline std::vector<SourceKind> tested_sources() {
#if SOCKALARM_BPF
  return {SourceKind::kernel, SourceKind::epoll};
#else
  return {SourceKind::epoll};
#endif
}

// The one expectation of speed: 100 ms from the client's leaving, in the middle of several times, since a
// machine that is busy with something else may spoil one. Not where a sanitizer slows everything down.
inline void expect_within_limit(std::vector<std::chrono::nanoseconds> took, const std::string& what) {
  ASSERT_FALSE(took.empty());
  std::sort(took.begin(), took.end());
  const auto ms = [](std::chrono::nanoseconds time) { return static_cast<double>(time.count()) / 1e6; };
  const auto middle = took[took.size() / 2];
  std::cout << what << " " << ms(middle) << " ms after its client (" << ms(took.front()) << " to "
            << ms(took.back()) << " ms)\n";
#if !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
  EXPECT_LE(middle, std::chrono::milliseconds(100)) << what;
#endif
}

}  // namespace sockalarm::test
