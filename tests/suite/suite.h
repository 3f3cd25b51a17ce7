// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <vector>

#include "harness/alarms.h"
#include "harness/sockets.h"

// One suite over every source: they mean the same, or the difference stands in docs/sources.md.
namespace sockalarm::test {

// Sources of this executable; where there is the daemon source, its main() starts the daemon.
inline std::vector<Way> tested_sources() {
#if SOCKALARM_TEST_DAEMON
  return {SourceKind::daemon, SourceKind::kernel, SourceKind::epoll, SourceKind::poll};
#elif SOCKALARM_TEST_KERNEL
  return {SourceKind::kernel, SourceKind::epoll, SourceKind::poll};
#elif SOCKALARM_LINUX
  return {SourceKind::epoll, SourceKind::poll};
#else
  return {SourceKind::poll};
#endif
}

#ifdef SOCKALARM_WITHOUT_POLLRDHUP
inline constexpr bool kFinNeedsReading = true;  // fin is known only when all before it was read
#else
inline constexpr bool kFinNeedsReading = false;
#endif

// The same sources with every delivery that they may have. Automatic: by task work where the kernel has it.
inline std::vector<Way> tested_ways() {
  std::vector<Way> ways;
  for (const SourceKind source : tested_sources()) {
    ways.emplace_back(source);
    if (source == SourceKind::kernel || source == SourceKind::daemon)
      ways.emplace_back(source, Delivery::dispatcher);
#if SOCKALARM_LINUX
    ways.emplace_back(source, Delivery::sigio);
#endif
  }
  return ways;
}

class SourceTest : public testing::TestWithParam<Way> {};

inline std::string way_name(const testing::TestParamInfo<Way>& info) {
  const std::string source(to_string(info.param.source));
  return info.param.delivery == Delivery::automatic
             ? source
             : source + "_" + std::string(to_string(info.param.delivery));
}

#define SOCKALARM_SUITE_OVER(ways, fixture)                                               \
  class fixture : public ::sockalarm::test::SourceTest {};                                \
  INSTANTIATE_TEST_SUITE_P(Source, fixture, testing::ValuesIn(::sockalarm::test::ways()), \
                           ::sockalarm::test::way_name)
#define SOCKALARM_SUITE(fixture) SOCKALARM_SUITE_OVER(tested_sources, fixture)

}  // namespace sockalarm::test
