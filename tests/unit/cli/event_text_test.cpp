// SPDX-License-Identifier: Apache-2.0
#include "cli/event_text.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "cli/number_text.h"

namespace sockalarm::cli {
namespace {

nlohmann::json record() {
  return {{"timestamp", "2026-11-27T03:18:33.123456789Z"},
          {"host.name", "web-1"},
          {"network.local.address", "10.0.0.1"},
          {"network.local.port", 443},
          {"network.peer.address", "2001:db8::7"},
          {"network.peer.port", 50123},
          {"process.pid", 1234},
          {"process.executable.name", "nginx"},
          {"service.name", "nginx.service"},
          {"sockalarm.cause", "peer_reset"},
          {"sockalarm.verdict", "abandoned"},
          {"sockalarm.direction", "inbound"},
          {"sockalarm.age", 12.5},
          {"sockalarm.orphaned", 0.25},
          {"sockalarm.bytes_received", 512},
          {"sockalarm.bytes_sent", 1500000}};
}

TEST(EventTextTest, ALineHasWhatARecordSays) {
  EXPECT_EQ(
      event_text(record(), true),
      "2026-11-27T03:18:33.123Z web-1            peer_reset  abandoned         nginx.service            "
      "10.0.0.1:443 <- [2001:db8::7]:50123            12.5s    250ms       512B/1.50MB  1234 nginx");
  EXPECT_EQ(event_text(nlohmann::json::object(), false),
            "-                        -           -                 -                        -:- -- -:-"
            "                                         -        -               -/-  -");
  for (const bool host : {false, true}) {  // the columns stand below each other
    const std::string heading = event_heading(host), line = event_text(record(), host);
    EXPECT_EQ(heading.find("CAUSE"), line.find("peer_reset"));
    EXPECT_EQ(heading.find("SERVICE"), line.find("nginx.service"));
    EXPECT_EQ(heading.find("AGE") + 3, line.find("12.5s") + 5);
    EXPECT_EQ(heading.find("ORPHANED") + 8, line.find("250ms") + 5);
    EXPECT_EQ(heading.find("PID"), line.find("1234"));
  }
}

TEST(EventTextTest, NoNameReachesTheTerminal) {
  nlohmann::json hostile = record();
  for (auto& [key, value] : hostile.items())
    if (value.is_string())
      value =
          "a\x1b]0;x\a\n\xc2\x9b"
          "2J\r";
  const std::string line = event_text(hostile, true);
  for (const char* bad : {"\x1b", "\a", "\n", "\r", "\xc2\x9b"})
    EXPECT_EQ(line.find(bad), std::string::npos) << line;
  for (auto& [key, value] : hostile.items()) value = nlohmann::json::array({1e300, nullptr});
  EXPECT_FALSE(event_text(hostile, true).empty());
}

TEST(NumberTextTest, IsShort) {
  EXPECT_EQ(rate_text(0), "0");
  EXPECT_EQ(rate_text(0.25), "0.25");
  EXPECT_EQ(rate_text(9.999), "10.0");
  EXPECT_EQ(rate_text(99.96), "100");
  EXPECT_EQ(rate_text(20000), "20000");
  EXPECT_EQ(time_text(0), "0s");
  EXPECT_EQ(time_text(0.00025), "250us");
  EXPECT_EQ(time_text(0.9999), "1.00s");
  EXPECT_EQ(time_text(59.96), "1m00s");
  EXPECT_EQ(time_text(3599.6), "1h00m");
  EXPECT_EQ(time_text(86400.0 * 4 + 7200), "4d02h");
  EXPECT_EQ(bytes_text(999), "999B");
  EXPECT_EQ(bytes_text(1500), "1.50kB");
  EXPECT_EQ(bytes_text(999999), "1.00MB");
  EXPECT_EQ(cut("größer", 4), "grö…");
  EXPECT_EQ(cut("größe", 5), "größe");
  EXPECT_EQ(cut("x", 0), "");
  EXPECT_EQ(left("ö", 3), "ö  ");
  EXPECT_EQ(right("ö", 3), "  ö");
}

}  // namespace
}  // namespace sockalarm::cli
