// SPDX-License-Identifier: Apache-2.0
#include "cli/top_view.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <vector>

#include "cli/number_text.h"

namespace sockalarm::cli {
namespace {

using Json = nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::Pair;

Json entry(const char* service, const char* cause, const char* verdict, std::uint64_t count,
           double orphaned = 0) {
  return {{"service", service}, {"direction", "inbound"}, {"cause", cause},  {"verdict", verdict},
          {"count", count},     {"bytes_received", 1},    {"bytes_sent", 2}, {"orphaned_seconds", orphaned}};
}

// A vector, for with one element in braces compilers disagree about what a Json is.
using Ends = std::vector<Json>;

Snapshot snapshot(double uptime, const Ends& ends, Json lost = Json::object(),
                  const char* started = "2026-11-27T03:00:00Z") {
  const Json totals = {{"schema", "sockalarm.totals.v1"},
                       {"version", "0.5.0"},
                       {"host", {{"id", "abc"}, {"name", "web-1"}}},
                       {"started_at", started},
                       {"uptime_seconds", uptime},
                       {"ends", ends},
                       {"lost", std::move(lost)},
                       {"of_a_newer_daemon", {1, 2}}};
  return parse_totals(totals.dump()).value();
}

std::vector<std::string> services(const TopTable& table) {
  std::vector<std::string> names;
  for (const TopRow& row : table.rows) names.push_back(row.service);
  return names;
}

std::string shown(const TopTable& table, TopLook look = {}) { return top_plain(top_lines(table, look)); }

TEST(TopViewTest, RatesAreTheDifferenceOverTheDaemonsOwnTime) {
  const Snapshot before = snapshot(
      10, {entry("a", "peer_reset", "abandoned", 10, 1.5), entry("a", "peer_fin", "idle_close", 100)});
  const TopTable table = compare(
      &before,
      snapshot(12, {entry("a", "peer_reset", "abandoned", 14, 4.5), entry("a", "timeout", "abandoned", 1, 1),
                    entry("a", "peer_fin", "idle_close", 120), entry("b", "peer_fin", "abandoned", 2, 0.5)}),
      TopSort::orphaned, false);
  EXPECT_EQ(table.seconds, 2);
  EXPECT_FALSE(table.restarted);
  ASSERT_THAT(services(table), ElementsAre("a", "b"));
  const TopRow& a = table.rows[0];
  EXPECT_EQ(a.aborts, 2.5);
  EXPECT_EQ(a.ends, 12.5);
  EXPECT_EQ(a.orphaned, 2);
  EXPECT_EQ(a.total.orphaned_seconds, 5.5);
  EXPECT_THAT(a.causes, ElementsAre(Pair("peer_reset", 2), Pair("timeout", 0.5)));
  EXPECT_EQ(table.all.aborts, 3.5);
  EXPECT_EQ(table.all.total.ends, 137U);
}

TEST(TopViewTest, AServiceWithoutAbortsHasARowOnlyIfAllAreWanted) {
  const Ends ends = {entry("idle", "peer_fin", "idle_close", 100), entry("busy", "peer_fin", "abandoned", 1)};
  EXPECT_THAT(services(compare(nullptr, snapshot(10, ends), TopSort::ends, false)), ElementsAre("busy"));
  const TopTable all = compare(nullptr, snapshot(10, ends), TopSort::ends, true);
  EXPECT_THAT(services(all), ElementsAre("idle", "busy"));
  EXPECT_TRUE(all.from_start);
  EXPECT_EQ(all.all.ends, 10.1);
}

TEST(TopViewTest, Sorts) {
  const Ends ends = {entry("a", "peer_fin", "abandoned", 1, 9), entry("b", "peer_fin", "abandoned", 5, 1),
                     entry("c", "peer_fin", "abandoned", 2, 2), entry("c", "local", "local", 50)};
  const auto sorted = [&](TopSort sort) {
    return services(compare(nullptr, snapshot(1, ends), sort, false));
  };
  EXPECT_THAT(sorted(TopSort::orphaned), ElementsAre("a", "c", "b"));
  EXPECT_THAT(sorted(TopSort::aborts), ElementsAre("b", "c", "a"));
  EXPECT_THAT(sorted(TopSort::ends), ElementsAre("c", "b", "a"));
}

TEST(TopViewTest, CountersThatBeganAnewAreNoNegativeRates) {
  const Snapshot before = snapshot(1000, {entry("a", "peer_fin", "abandoned", 500, 50)}, {{"ring", 7}});
  for (const auto& [uptime, started] :
       {std::pair(5.0, "2026-11-27T03:00:00Z"), std::pair(2000.0, "2026-11-27T04:00:00Z")}) {
    const TopTable table = compare(
        &before, snapshot(uptime, {entry("a", "peer_fin", "abandoned", 10, 1)}, {{"ring", 2}}, started),
        TopSort::aborts, false);
    EXPECT_TRUE(table.restarted);
    EXPECT_EQ(table.all.aborts, 10 / uptime);
    EXPECT_THAT(table.newly_lost, ElementsAre(Pair("ring", 2)));
    EXPECT_THAT(shown(table, {.note = "was started anew"}), HasSubstr("\nwas started anew\n"));
  }
  const TopTable none = compare(&before, snapshot(1000, {}), TopSort::aborts, true);  // twice the same moment
  EXPECT_EQ(none.all.aborts, 0);
}

// A service whose name made room for another has no row; what it had is in the figures of all still.
TEST(TopViewTest, AServiceThatGoesTakesNothingFromTheRatesOfAll) {
  const Snapshot before = snapshot(
      10, {entry("a", "peer_fin", "abandoned", 100, 50), entry("b", "peer_reset", "abandoned", 5, 1)});
  Json totals = {{"schema", "sockalarm.totals.v1"},
                 {"started_at", "2026-11-27T03:00:00Z"},
                 {"uptime_seconds", 12},
                 {"ends", Ends{entry("b", "peer_reset", "abandoned", 9, 3)}},
                 {"evicted", Ends{entry("", "peer_fin", "abandoned", 100, 50)}}};
  const Snapshot gone = parse_totals(totals.dump()).value();
  const TopTable table = compare(&before, gone, TopSort::ends, true);
  EXPECT_EQ(table.all.aborts, 2);
  EXPECT_EQ(table.all.ends, 2);
  EXPECT_EQ(table.all.orphaned, 1);
  EXPECT_THAT(table.all.causes, ElementsAre(Pair("peer_reset", 2)));
  EXPECT_EQ(table.all.total.aborts, 109U);
  EXPECT_EQ(table.all.total.orphaned_seconds, 53);
  EXPECT_THAT(services(table), ElementsAre("b"));
  // It comes back and counts from 0, also between two looks.
  const Snapshot back =
      snapshot(14, {entry("a", "peer_fin", "abandoned", 4, 2), entry("b", "peer_reset", "abandoned", 9, 3)});
  EXPECT_EQ(compare(&gone, back, TopSort::ends, true).all.aborts, 2);
  EXPECT_EQ(compare(&before, back, TopSort::ends, true).all.aborts, 2);
}

TEST(TopViewTest, TellsOfLossesOnlyWhenThereAreAny) {
  const Snapshot before = snapshot(1, {}, {{"ring", 3}, {"queue", 0}});
  EXPECT_THAT(shown(compare(nullptr, snapshot(1, {}, {{"ring", 0}}), TopSort::ends, false)),
              Not(HasSubstr("lost")));
  EXPECT_THAT(shown(compare(&before, snapshot(2, {}, {{"ring", 5}, {"queue", 0}, {"sink", 1}}), TopSort::ends,
                            false)),
              HasSubstr("lost: ring 5 (+2), sink 1 (+1)\n"));
}

TEST(TopViewTest, FitsTheTerminal) {
  Ends ends;
  for (int i = 0; i < 50; ++i)
    ends.push_back(entry(("a-service-with-quite-a-long-name-" + std::to_string(i)).c_str(), "peer_reset",
                         "abandoned", 10, 1));
  const TopTable table = compare(nullptr, snapshot(1, ends, {{"ring", 1}}), TopSort::ends, false);
  for (const std::size_t columns : {1U, 10U, 40U, 80U, 132U, 400U})
    for (const std::size_t rows : {1U, 2U, 5U, 24U, 100U}) {
      const auto lines = top_lines(table, {.width = columns, .height = rows, .note = ""});
      EXPECT_LE(lines.size(), rows);
      for (const TopLine& line : lines) EXPECT_LE(width(line.text), columns) << line.text;
      if (rows == 24 && columns > 12) {
        EXPECT_THAT(lines.back().text, HasSubstr("32 more"));
      }
    }
  EXPECT_EQ(top_lines(table, {}).size(), 55U);
  const std::string screen = top_screen(top_lines(table, {.width = 80, .height = 24, .note = ""}));
  EXPECT_EQ(std::count(screen.begin(), screen.end(), '\n'), 23);
  EXPECT_TRUE(screen.ends_with("\x1b[J"));
}

TEST(TopViewTest, NoNameReachesTheTerminal) {
  const std::string bad = "x\x1b[2J\n\xff";
  Snapshot hostile = snapshot(1, {});
  hostile.host = hostile.version = bad;
  hostile.services[bad] = {.ends = 1, .aborts = 1, .causes = {{bad, 1}}, .orphaned_seconds = 1};
  hostile.lost[bad] = 1;
  hostile.limits = {bad};
  const auto lines = top_lines(compare(nullptr, hostile, TopSort::ends, false), {.note = bad});
  for (const TopLine& line : lines)
    for (const char byte : {'\x1b', '\n', '\xff'})
      EXPECT_EQ(line.text.find(byte), std::string::npos) << line.text;
}

TEST(TopViewTest, TheJsonHasTotalsAndRates) {
  const Snapshot before = snapshot(10, {entry("a", "peer_reset", "abandoned", 10, 1)});
  Snapshot now = snapshot(11, {entry("a", "peer_reset", "abandoned", 11, 3)}, {{"ring", 1}});
  now.spool = SpoolState{.bytes = 5, .pending = 2, .oldest_seconds = 0.5, .connected = true};
  const auto json = to_json(compare(&before, std::move(now), TopSort::ends, false));
  EXPECT_EQ(json.at("schema"), "sockalarm.top.v1");
  EXPECT_EQ(json.at("interval_seconds"), 1);
  EXPECT_EQ(json.at("services").at(0).at("service"), "a");
  EXPECT_EQ(json.at("services").at(0).at("causes_per_second").at("peer_reset"), 1);
  EXPECT_EQ(json.at("all").at("orphaned_seconds"), 3);
  EXPECT_EQ(json.at("all").at("orphaned_seconds_per_second"), 2);
  EXPECT_EQ(json.at("newly_lost").at("ring"), 1);
  EXPECT_EQ(json.at("spool").at("pending"), 2);
}

TEST(TopViewTest, WhatIsNotTotalsIsRefusedAndOddPartsAreLeftOut) {
  for (const char* body : {"", "<html>", "[]", "{}", R"({"schema":"other"})", R"({"schema":1})"})
    EXPECT_FALSE(parse_totals(body).has_value()) << body;
  const auto odd = parse_totals(
      R"({"schema":"sockalarm.totals.v1","host":3,"uptime_seconds":"x","ends":[1,{"count":-1},{"count":1e300}],)"
      R"("lost":[1],"spool":true,"limits":{"a":1}})");
  ASSERT_TRUE(odd.has_value());
  EXPECT_EQ(odd->services.at("unknown").ends, 0U);
  EXPECT_FALSE(odd->spool.has_value());
}

}  // namespace
}  // namespace sockalarm::cli
