// SPDX-License-Identifier: Apache-2.0
#include "observe/record.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <cerrno>
#include <nlohmann/json.hpp>

#include "observe/samples.h"

namespace sockalarm::observe {
namespace {

using test::sample_end;
using test::sample_host;

TEST(Record, EncodesWhatIsKnown) {
  const auto json = nlohmann::json::parse(to_json(sample_host(), sample_end(42)));
  EXPECT_EQ(json["event.id"], sample_host().machine + "-" + sample_host().boot + "-42");
  EXPECT_EQ(json["timestamp"], "2024-02-29T12:00:00.000000042Z");
  EXPECT_EQ(json["network.peer.address"], "192.0.2.7");
  EXPECT_EQ(json["network.peer.port"], 40042);
  EXPECT_EQ(json["network.local.port"], 443);
  EXPECT_EQ(json["network.type"], "ipv4");
  EXPECT_EQ(json["sockalarm.cause"], "peer_reset");
  EXPECT_EQ(json["sockalarm.verdict"], "abandoned");
  EXPECT_DOUBLE_EQ(json["sockalarm.orphaned"], 1.5);
  EXPECT_EQ(json["error.type"], "ECONNRESET");
  EXPECT_EQ(json["sockalarm.socket.cookie"], "18446744073709551615");
  EXPECT_EQ(json["service.name"], "shop.service");
  EXPECT_FALSE(json.contains("k8s.pod.uid"));
}

TEST(Record, LeavesOutWhatIsNotKnown) {
  ConnectionEnd end = sample_end(1);
  end.pid = 0;
  end.command.clear();
  end.age.reset();
  end.error = 0;
  const auto json = nlohmann::json::parse(to_json(sample_host(), end));
  for (const char* name : {"process.pid", "process.executable.name", "sockalarm.age", "error.type"})
    EXPECT_FALSE(json.contains(name)) << name;
}

TEST(Record, AnIpv4PeerOfAnIpv6SocketIsIpv4) {
  ConnectionEnd end = sample_end(1);
  end.family = AF_INET6;
  ASSERT_EQ(::inet_pton(AF_INET6, "::ffff:198.51.100.9", end.peer.address.data()), 1);
  auto json = nlohmann::json::parse(to_json(sample_host(), end));
  EXPECT_EQ(json["network.type"], "ipv4");
  EXPECT_EQ(json["network.peer.address"], "198.51.100.9");
  ASSERT_EQ(::inet_pton(AF_INET6, "2001:db8::9", end.peer.address.data()), 1);
  json = nlohmann::json::parse(to_json(sample_host(), end));
  EXPECT_EQ(json["network.type"], "ipv6");
  EXPECT_EQ(json["network.peer.address"], "2001:db8::9");
}

TEST(Record, StaysOneLineOfUtf8WhateverANameHolds) {
  ConnectionEnd end = sample_end(1);
  end.command = "a\n\"\xff\x80\x01";
  const std::string line = to_json(sample_host(), end);
  EXPECT_EQ(line.find('\n'), std::string::npos);
  EXPECT_EQ(nlohmann::json::parse(line)["process.executable.name"], "a\n\"\xef\xbf\xbd\xef\xbf\xbd\x01");
}

TEST(Record, AClockBefore1970IsSaidAsItIs) {
  ConnectionEnd end = sample_end(1);
  end.ended_at = std::chrono::system_clock::time_point(std::chrono::nanoseconds(-1));
  EXPECT_EQ(nlohmann::json::parse(to_json(sample_host(), end))["timestamp"],
            "1969-12-31T23:59:59.999999999Z");
}

TEST(Record, ThisHostHasIds) {
  const auto host = Host::this_one("eu-1");
  ASSERT_TRUE(host) << host.error().message();
  EXPECT_EQ(host->machine.size(), 32U);
  EXPECT_EQ(host->boot.size(), 32U);
  EXPECT_FALSE(host->name.empty());
}

}  // namespace
}  // namespace sockalarm::observe
