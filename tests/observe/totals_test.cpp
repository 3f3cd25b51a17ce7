// SPDX-License-Identifier: Apache-2.0
#include "observe/totals.h"

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdio>
#include <nlohmann/json.hpp>

#include "observe/attribution.h"
#include "observe/samples.h"
#include "observe/snapshot.h"

namespace sockalarm::observe {
namespace {

using namespace std::chrono_literals;

ServiceMetrics counted(std::uint64_t cgroup, std::uint64_t ends, Verdict verdict = Verdict::abandoned,
                       Cause cause = Cause::peer_reset) {
  ServiceMetrics metrics;
  metrics.key = {cgroup, cause, verdict, Direction::inbound};
  metrics.ends = ends;
  metrics.orphaned = ends * 1500ms;
  metrics.age = ends * 3s;
  metrics.ages[22] = ends;            // 2.1 to 4.2 s
  metrics.orphaned_times[21] = ends;  // 1.05 to 2.1 s
  return metrics;
}

std::string numbered(std::uint64_t cgroup) { return "s" + std::to_string(cgroup) + ".service"; }

std::uint64_t ends_of(const Totals& totals, const std::string& service) {
  std::uint64_t sum = 0;
  for (const auto& [key, total] : totals.all())
    if (key.service == service) sum += total.ends;
  return sum;
}

TEST(Totals, CgroupsOfOneServiceAreOne) {
  Totals totals([](std::uint64_t cgroup) { return cgroup == 3 ? "" : "shop.service"; });
  totals.update({counted(1, 2), counted(2, 5), counted(3, 7), counted(1, 1, Verdict::idle_close)});
  ASSERT_EQ(totals.all().size(), 3u);
  const Total& abandoned =
      totals.all().at({"shop.service", Direction::inbound, Cause::peer_reset, Verdict::abandoned});
  EXPECT_EQ(abandoned.ends, 7u);
  EXPECT_EQ(abandoned.orphaned, 7 * 1500ms);
  EXPECT_EQ(abandoned.ages[22], 7u);
  EXPECT_EQ(ends_of(totals, "unknown"), 7u);
}

TEST(Totals, ServicesBeyondTheBoundAreOther) {
  Totals totals(numbered, 3);
  std::vector<ServiceMetrics> kernel;
  for (std::uint64_t cgroup = 0; cgroup < 10; ++cgroup) kernel.push_back(counted(cgroup, 5));
  totals.update(kernel);
  EXPECT_EQ(ends_of(totals, "s2.service"), 5u);
  EXPECT_EQ(ends_of(totals, "s3.service"), 0u);
  EXPECT_EQ(ends_of(totals, "other"), 35u);
}

// A unit that was started again has another cgroup. What the first one had counted is not taken back.
TEST(Totals, WhatACgroupCountedStaysWhenItGoes) {
  Totals totals([](std::uint64_t) { return "shop.service"; });
  totals.update({counted(1, 4)});
  EXPECT_TRUE(totals.unchanged().empty());  // not known before
  totals.update({counted(1, 6)});
  EXPECT_TRUE(totals.unchanged().empty());
  const auto same = totals.unchanged();
  ASSERT_EQ(same.size(), 1u);
  EXPECT_EQ(same[0].cgroup, 1u);
  totals.forgotten(same[0]);
  totals.update({});
  EXPECT_EQ(ends_of(totals, "shop.service"), 6u);
  totals.update({counted(2, 1)});
  EXPECT_EQ(ends_of(totals, "shop.service"), 7u);
}

TEST(Totals, ANameThatNobodyHasAnyMoreMakesRoomForAnother) {
  Totals totals(numbered, 2);
  totals.update({counted(1, 1), counted(2, 1)});
  totals.update({counted(1, 1), counted(2, 1), counted(3, 1)});
  EXPECT_EQ(ends_of(totals, "other"), 1u);  // and stays so: a figure does not move
  totals.forgotten(counted(1, 1).key);
  totals.update({counted(2, 1), counted(3, 1)});
  EXPECT_EQ(ends_of(totals, "s1.service"), 1u);
  totals.update({counted(2, 1), counted(3, 1), counted(4, 1)});
  EXPECT_EQ(ends_of(totals, "s1.service"), 0u);
  EXPECT_EQ(ends_of(totals, "s4.service"), 1u);
  EXPECT_EQ(ends_of(totals, "other"), 1u);
}

// The one that was without a cgroup for longest, whatever it is called.
TEST(Totals, TheNameThatWasUnusedForLongestMakesRoom) {
  Totals totals(numbered, 3);
  const auto here = [](std::vector<std::uint64_t> cgroups) {
    std::vector<ServiceMetrics> kernel;
    for (const std::uint64_t cgroup : cgroups) kernel.push_back(counted(cgroup, 1));
    return kernel;
  };
  totals.update(here({1, 2, 3}));
  for (const std::uint64_t cgroup : {2u, 1u, 3u}) totals.forgotten(counted(cgroup, 1).key);
  totals.update(here({2}));  // used again
  totals.forgotten(counted(2, 1).key);
  for (const auto& [next, goes] : {std::pair(4, "s1.service"), std::pair(5, "s3.service")}) {
    EXPECT_NE(ends_of(totals, goes), 0u);
    totals.update(here({4, static_cast<std::uint64_t>(next)}));
    EXPECT_EQ(ends_of(totals, goes), 0u);
  }
  EXPECT_EQ(ends_of(totals, "s2.service"), 2u);
}

std::uint64_t sum(const Totals::All& totals) {
  std::uint64_t sum = 0;
  for (const auto& [key, total] : totals) sum += total.ends;
  return sum;
}

TEST(Totals, WhatANameHadThatMadeRoomIsKeptWithoutIt) {
  Totals totals(numbered, 1);
  for (std::uint64_t cgroup = 1; cgroup <= 5; ++cgroup) {
    totals.update({counted(cgroup, 1), counted(cgroup, 2, Verdict::idle_close, Cause::peer_fin)});
    EXPECT_EQ(sum(totals.all()), 3u);
    EXPECT_EQ(sum(totals.evicted()), 3 * (cgroup - 1));
    totals.forgotten(counted(cgroup, 1).key);
    totals.forgotten(counted(cgroup, 2, Verdict::idle_close, Cause::peer_fin).key);
  }
  ASSERT_EQ(totals.evicted().size(), 2u);
  EXPECT_EQ(totals.evicted().begin()->first.service, "");
  EXPECT_EQ(totals.evicted().at({"", Direction::inbound, Cause::peer_reset, Verdict::abandoned}).orphaned,
            4 * 1500ms);
}

// What could not be found out is asked again; what was shown already stays where it was shown.
TEST(Totals, AServiceThatIsNotKnownYetIsUnknownUntilThen) {
  std::optional<std::string> service;
  Totals totals([&](std::uint64_t) { return service; });
  totals.update({counted(1, 2), counted(1, 1, Verdict::idle_close)});
  totals.update({counted(1, 3), counted(1, 1, Verdict::idle_close)});
  EXPECT_EQ(ends_of(totals, "unknown"), 4u);
  service = "shop.service";
  totals.update({counted(1, 5), counted(1, 1, Verdict::idle_close), counted(1, 7, Verdict::local)});
  EXPECT_EQ(ends_of(totals, "unknown"), 4u);
  EXPECT_EQ(ends_of(totals, "shop.service"), 2u + 7u);
  const Total& abandoned =
      totals.all().at({"shop.service", Direction::inbound, Cause::peer_reset, Verdict::abandoned});
  EXPECT_EQ(abandoned.orphaned, 2 * 1500ms);
  EXPECT_EQ(abandoned.ages[22], 2u);
  service = std::nullopt;  // is not asked again
  totals.update({counted(1, 6), counted(1, 1, Verdict::idle_close), counted(1, 7, Verdict::local)});
  EXPECT_EQ(ends_of(totals, "unknown"), 4u);
  for (const auto& of : {counted(1, 6), counted(1, 1, Verdict::idle_close), counted(1, 7, Verdict::local)})
    totals.forgotten(of.key);
  totals.update({});
  EXPECT_EQ(ends_of(totals, "unknown"), 4u);
  EXPECT_EQ(ends_of(totals, "shop.service"), 3u + 7u);
  // One that goes before it is known.
  totals.update({counted(2, 1)});
  totals.forgotten(counted(2, 1).key);
  totals.update({});
  EXPECT_EQ(ends_of(totals, "unknown"), 5u);
}

// As the thread that reads names it.
std::string as_attributed(const std::string& path) {
  return Attribution([&](std::uint64_t) { return path; }).of(1).service;
}

// So that the figures and the records of a service can be put together.
TEST(Totals, ANameIsTheSameInFiguresAndRecords) {
  for (const std::string& path :
       {std::string("/system.slice/dev-disk\\x2dby.service"), std::string("/a\"b\\c\n\xff\x1b[2J"),
        std::string(5000, '/') + std::string(5000, 'x') + "\\"}) {
    Totals totals([&](std::uint64_t) { return as_attributed(path); });
    totals.update({counted(1, 1)});
    ConnectionEnd end = test::sample_end(1);
    end.service = as_attributed(path);
    const auto record = nlohmann::json::parse(to_json(test::sample_host(), end));
    Snapshot snapshot;
    snapshot.ends = totals.all();
    const std::string name = nlohmann::json::parse(to_json(snapshot)).at("ends").at(0).at("service");
    EXPECT_EQ(record.at("service.name"), name);
    std::string label;  // Prometheus's text format: \\, \" and \n
    for (const char c : name) label += (c == '\\' || c == '"' ? "\\" : "") + std::string(1, c);
    EXPECT_NE(to_prometheus(snapshot).find("service=\"" + label + "\""), std::string::npos) << label;
  }
}

Snapshot sample() {
  Totals totals([](std::uint64_t cgroup) {
    return cgroup == 1 ? "shop.service" : as_attributed("/a\"b\\c\n\xff.service");
  });
  totals.update({counted(1, 2), counted(1, 3, Verdict::idle_close, Cause::peer_fin), counted(2, 1)});
  Snapshot snapshot;
  snapshot.host = test::sample_host();
  snapshot.ends = totals.all();
  snapshot.evicted[{"", Direction::inbound, Cause::timeout, Verdict::local}].ends = 8;
  snapshot.uptime = 2500ms;
  snapshot.latency.times[5] = 4;  // 16 to 32 us
  snapshot.latency.sum = 100us;
  snapshot.read = 6;
  snapshot.lost = {{"ring", 2}, {"queue", 4}};
  snapshot.corrupt_segments = 1;
  snapshot.shipping = Snapshot::Shipping{{4096, 3, 2500ms}, true, 9, 6, 1};
  snapshot.limits = {"no release hook"};
  return snapshot;
}

TEST(Prometheus, ShowsWhatWasCounted) {
  const std::string text = to_prometheus(sample());
  for (
      const char* line :
      {R"(sockalarm_connections_ended_total{cause="peer_reset",service="shop.service",verdict="abandoned"} 2)",
       R"(sockalarm_connections_ended_total{cause="peer_fin",service="shop.service",verdict="idle_close"} 3)",
       "sockalarm_orphaned_seconds_count 3", "sockalarm_orphaned_seconds_sum 4.5",
       R"(sockalarm_orphaned_seconds_bucket{le="1.048576"} 0)",
       R"(sockalarm_orphaned_seconds_bucket{le="4.194304"} 3)", "sockalarm_age_at_abort_seconds_sum 9",
       R"(sockalarm_detection_latency_seconds_bucket{le="1.6e-05"} 0)",
       R"(sockalarm_detection_latency_seconds_bucket{le="6.4e-05"} 4)",
       R"(sockalarm_lost_total{stage="queue"} 4)", "sockalarm_ring_writes_total 6",
       "sockalarm_ring_write_failures_total 2", "sockalarm_spool_bytes 4096", "sockalarm_spool_pending 3",
       "sockalarm_spool_oldest_seconds 2.5", "sockalarm_spool_corrupt_segments_total 1",
       "sockalarm_broker_connected 1"})
    EXPECT_NE(("\n" + text).find("\n" + std::string(line) + "\n"), std::string::npos)
        << line << "\nis not in\n"
        << text;
}

// What has no label of the service is not less when its name makes room for another.
TEST(Prometheus, HistogramsNeverGoBack) {
  Totals totals(numbered, 1);
  Snapshot snapshot;
  for (std::uint64_t cgroup = 1; cgroup <= 3; ++cgroup) {
    totals.update({counted(cgroup, 1), counted(cgroup, 5, Verdict::idle_close)});
    snapshot.ends = totals.all();
    snapshot.evicted = totals.evicted();
    const std::string text = to_prometheus(snapshot), count = std::to_string(cgroup);
    for (const std::string& line :
         {"sockalarm_orphaned_seconds_count " + count, "sockalarm_age_at_abort_seconds_count " + count,
          "sockalarm_age_at_abort_seconds_sum " + std::to_string(3 * cgroup),
          "sockalarm_age_at_abort_seconds_bucket{le=\"4.194304\"} " + count})
      EXPECT_NE(text.find("\n" + line + "\n"), std::string::npos) << line << "\nis not in\n" << text;
    totals.forgotten(counted(cgroup, 1).key);
    totals.forgotten(counted(cgroup, 5, Verdict::idle_close).key);
  }
}

TEST(Prometheus, PromtoolFindsNoFault) {
  const std::string text = to_prometheus(sample());
  FILE* promtool = ::popen("promtool check metrics", "we");
  ASSERT_NE(promtool, nullptr);
  EXPECT_EQ(std::fwrite(text.data(), 1, text.size(), promtool), text.size());
  const int status = ::pclose(promtool);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status << "\n" << text;
}

TEST(TotalsJson, SaysTheSame) {
  const auto json = nlohmann::json::parse(to_json(sample()));
  EXPECT_EQ(json.at("schema"), "sockalarm.totals.v1");
  EXPECT_EQ(json.at("uptime_seconds"), 2.5);
  EXPECT_EQ(json.at("ends").size(), 3u);
  for (const auto& end : json.at("ends")) {
    if (end.at("service") != "shop.service" || end.at("verdict") != "abandoned") continue;
    EXPECT_EQ(end.at("count"), 2);
    EXPECT_EQ(end.at("cause"), "peer_reset");
    EXPECT_EQ(end.at("orphaned_seconds"), 3);
  }
  ASSERT_EQ(json.at("evicted").size(), 1u);
  EXPECT_EQ(json.at("evicted").at(0).at("count"), 8);
  EXPECT_EQ(json.at("evicted").at(0).at("cause"), "timeout");
  EXPECT_FALSE(json.at("evicted").at(0).contains("service"));
  EXPECT_EQ(json.at("lost").at("queue"), 4);
  EXPECT_EQ(json.at("lost").at("spool_corrupt"), 1);
  EXPECT_EQ(json.at("spool").at("connected"), true);
  EXPECT_EQ(json.at("limits").size(), 1u);
}

}  // namespace
}  // namespace sockalarm::observe
