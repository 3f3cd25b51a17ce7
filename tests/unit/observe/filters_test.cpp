// SPDX-License-Identifier: Apache-2.0
#include "observe/filters.h"

#include <gtest/gtest.h>

#include <bit>
#include <numeric>

namespace sockalarm::observe {
namespace {

TEST(ObserveFilterText, Prefixes) {
  const Prefix any = parse_prefix("0.0.0.0/0").value();
  EXPECT_EQ(any.length, 96u);
  EXPECT_EQ(any.address[11], 0xff);
  EXPECT_EQ(any.address[12], 0);
  const Prefix network = parse_prefix("10.128.0.0/9").value();
  EXPECT_EQ(network.length, 105u);
  EXPECT_EQ(network.address[12], 10);
  EXPECT_EQ(network.address[13], 128);
  EXPECT_EQ(parse_prefix("192.0.2.1").value(), parse_prefix("192.0.2.1/32").value());
  EXPECT_EQ(parse_prefix("192.0.2.1").value(), parse_prefix("::ffff:192.0.2.1").value());
  EXPECT_EQ(parse_prefix("2001:db8::/32").value().length, 32u);
  EXPECT_EQ(parse_prefix("::/0").value().length, 0u);
  EXPECT_EQ(parse_prefix("::1").value().length, 128u);
}

TEST(ObserveFilterText, WhatIsNoPrefix) {
  for (const char* text : {"", "/8", "10.0.0.0/", "10.0.0.0/33", "10.0.0.0/-1", "10.0.0.0/8 ", "10.0.0.0/08x",
                           "10.0.0.1/8", "::1/64", "::/129", "10.0.0/8", "example.org", "10.0.0.0/8/8"}) {
    const auto prefix = parse_prefix(text);
    ASSERT_FALSE(prefix) << text;
    EXPECT_EQ(prefix.error().code(), Errc::invalid_text);
    EXPECT_NE(prefix.error().message().find(text), std::string::npos);
  }
}

int ports_in(const sockalarm_observe_filter& filter) {
  return std::accumulate(std::begin(filter.ports), std::end(filter.ports), 0,
                         [](int sum, std::uint64_t word) { return sum + std::popcount(word); });
}

TEST(ObserveFilter, NothingAskedForIsEverything) {
  const auto kernel = to_kernel(Filter{}).value();
  EXPECT_EQ(kernel.sets, 0u);
  for (const unsigned value : {0u, 1u, 2u}) EXPECT_TRUE(kernel.directions >> value & 1u);
  for (unsigned value = 0; value < SOCKALARM_CAUSES; ++value) EXPECT_TRUE(kernel.causes >> value & 1u);
  EXPECT_EQ(kernel.one_in, 1u);
}

TEST(ObserveFilter, PortsCausesAndDirections) {
  Filter filter;
  filter.ports = {{0, 0}, {80, 80}, {8000, 8063}, {65535, 65535}};
  filter.causes = {Cause::timeout, Cause::peer_reset};
  filter.directions = {Direction::inbound};
  filter.minimum_orphaned = std::chrono::seconds(1);
  const auto kernel = to_kernel(filter, SOCKALARM_FILTER_CGROUPS).value();
  EXPECT_EQ(kernel.sets, SOCKALARM_FILTER_CGROUPS | SOCKALARM_FILTER_PORTS);
  EXPECT_EQ(ports_in(kernel), 67);
  EXPECT_TRUE(kernel.ports[80 / 64] >> (80 % 64) & 1u);
  EXPECT_EQ(kernel.causes, 1u << SOCKALARM_CAUSE_TIMEOUT | 1u << SOCKALARM_CAUSE_PEER_RESET);
  EXPECT_EQ(kernel.directions, 1u << SOCKALARM_DIRECTION_INBOUND);
  EXPECT_EQ(kernel.minimum_orphaned, 1'000'000'000u);
  filter.ports = {{0, 65535}};
  EXPECT_EQ(ports_in(to_kernel(filter).value()), 65536);
}

TEST(ObserveFilter, OutOfRange) {
  Filter filter;
  filter.ports = {{2, 1}};
  EXPECT_EQ(to_kernel(filter).error().code(), Errc::invalid_options);
  filter = {};
  filter.one_in = 0;
  EXPECT_EQ(to_kernel(filter).error().code(), Errc::invalid_options);
  filter = {};
  filter.minimum_orphaned = std::chrono::nanoseconds(-1);
  EXPECT_EQ(to_kernel(filter).error().code(), Errc::invalid_options);
}

}  // namespace
}  // namespace sockalarm::observe
