// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <vector>

#include "harness/alarms.h"
#include "harness/sockets.h"

// One suite over every source: they mean the same, or the difference stands in docs/sources.md.
namespace sockalarm::test {

// Sources of this executable. The kernel source needs privileges, so it is left to the privileged one.
inline std::vector<SourceKind> tested_sources() {
#if SOCKALARM_TEST_KERNEL
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

class SourceTest : public testing::TestWithParam<SourceKind> {};

inline std::string source_name(const testing::TestParamInfo<SourceKind>& info) {
  return std::string(to_string(info.param));
}

#define SOCKALARM_SUITE(fixture)                                                                    \
  class fixture : public ::sockalarm::test::SourceTest {};                                          \
  INSTANTIATE_TEST_SUITE_P(Source, fixture, testing::ValuesIn(::sockalarm::test::tested_sources()), \
                           ::sockalarm::test::source_name)

}  // namespace sockalarm::test
