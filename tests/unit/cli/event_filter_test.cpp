// SPDX-License-Identifier: Apache-2.0
#include "cli/event_filter.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace sockalarm::cli {
namespace {

using Json = nlohmann::json;

Json record() {
  return {{"schema", "sockalarm.connection_ended.v1"},
          {"host.id", "00112233445566778899aabbccddeeff"},
          {"host.name", "web-1"},
          {"network.local.address", "10.0.0.1"},
          {"network.local.port", 443},
          {"network.peer.address", "192.0.2.7"},
          {"network.peer.port", 50123},
          {"process.pid", 1234},
          {"process.executable.name", "nginx"},
          {"service.name", "nginx.service"},
          {"sockalarm.cause", "peer_reset"},
          {"sockalarm.verdict", "abandoned"},
          {"sockalarm.direction", "inbound"},
          {"sockalarm.orphaned", 2.5}};
}

bool matches(const std::vector<std::string>& texts, const Json& json = record()) {
  const auto filter = EventFilter::parse(texts);
  EXPECT_TRUE(filter.has_value()) << filter.error().message();
  return filter && filter->matches(json);
}

TEST(EventFilterTest, EachKeyMatchesWhatItNames) {
  for (const char* text :
       {"cause=peer_reset", "cause=timeout,peer_reset", "verdict=abandoned", "direction=inbound",
        "service=nginx.service", "service=ng*", "host=web-?", "host=00112233*", "port=443", "port=1-442,443",
        "port=50000-60000", "prefix=192.0.2.0/24", "prefix=2001:db8::/32,192.0.2.7", "min-orphaned=2.5",
        "min-orphaned=2500ms", "command=ngin[xy]", "pid=1,1234"})
    EXPECT_TRUE(matches({text})) << text;
  for (const char* text : {"cause=peer_fin", "verdict=none,local", "direction=outbound", "service=nginx",
                           "service=unknown", "host=db-*", "port=444-50122", "prefix=192.0.3.0/24",
                           "prefix=2001:db8::/32", "min-orphaned=3s", "command=Nginx", "pid=123"})
    EXPECT_FALSE(matches({text})) << text;
  EXPECT_TRUE(matches({}));
  EXPECT_TRUE(matches({"cause=peer_reset", "port=443"}));
  EXPECT_FALSE(matches({"cause=peer_reset", "port=80"}));
  EXPECT_FALSE(matches({"port=443", "port=80"}));
}

TEST(EventFilterTest, AnIpv4PrefixIsNoIpv6Prefix) {
  Json six = record();
  six["network.peer.address"] = "2001:db8::7";
  EXPECT_TRUE(matches({"prefix=2001:db8::/32"}, six));
  EXPECT_FALSE(matches({"prefix=0.0.0.0/0"}, six));
  EXPECT_TRUE(matches({"prefix=::/0"}, six));
}

TEST(EventFilterTest, WhatIsMissingOrOfAnotherTypeMatchesNothing) {
  const std::vector<std::string> all = {"cause=peer_reset", "verdict=abandoned", "direction=inbound",
                                        "host=*",           "port=0-65535",      "prefix=::/0",
                                        "min-orphaned=0",   "command=*",         "pid=1234"};
  Json wrong;
  const Json right = record();
  for (const auto& [key, value] : right.items()) wrong[key] = Json::array({value});
  for (const std::string& text : all) {
    EXPECT_FALSE(matches({text}, Json::object())) << text;
    EXPECT_FALSE(matches({text}, wrong)) << text;
    EXPECT_FALSE(matches({text}, Json::array())) << text;
  }
  EXPECT_TRUE(matches({"service=unknown"}, Json::object()));  // as the figures call it
}

TEST(EventFilterTest, SaysWhatWasGivenAndWhatIsKnown) {
  const auto says = [](const char* text, const char* words) {
    const auto filter = EventFilter::parse({text});
    ASSERT_FALSE(filter.has_value()) << text;
    EXPECT_NE(filter.error().message().find(words), std::string::npos) << filter.error().message();
  };
  says("nonsense", "'nonsense' has no '='");
  says("colour=red", "no key 'colour'; expected cause, verdict");
  says("cause=gone", "'gone' is not known; expected peer_fin, peer_reset");
  says("verdict=abandoned,", "a value is empty");
  says("port=70000", "'70000'");
  says("port=9-8", "a range such as 8000-8999");
  says("prefix=10.0.0.1/8", "without bits beyond");
  says("min-orphaned=soon", "'soon' is not a time");
  says("min-orphaned=1s,2s", "expected one time");
  says("pid=0", "a process id");
  says("x\x1b[2J=1", "'x\\x1b[2J'");
}

}  // namespace
}  // namespace sockalarm::cli
