// SPDX-License-Identifier: Apache-2.0
#include "observe/metrics.h"

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdio>

#include "harness/ports.h"
#include "observe/samples.h"

namespace sockalarm::observe {
namespace {

using test::sample_end;

bool has_line(const std::string& text, const std::string& line) {
  return ("\n" + text).find("\n" + line + "\n") != std::string::npos;
}

std::string asked(std::uint16_t port, const std::string& request) {
  const UniqueFd client = sockalarm::test::connect_to_port(std::to_string(port));
  EXPECT_EQ(::write(client.get(), request.data(), request.size()), static_cast<ssize_t>(request.size()));
  std::string answer;
  char buffer[4096];
  for (ssize_t count = 0; (count = ::read(client.get(), buffer, sizeof buffer)) > 0;)
    answer.append(buffer, static_cast<std::size_t>(count));
  return answer;
}
std::string got(std::uint16_t port, const std::string& path) {
  return asked(port, "GET " + path + " HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
}

Metrics::Sources all_sources() {
  return {[] { return Metrics::Ring{7, 2}; },
          [] { return Spool::State{4096, 3, std::chrono::milliseconds(2500)}; },
          [] { return std::uint64_t{5}; }};
}

TEST(Metrics, CountsWhatEndedAndWhatWentOnForNobody) {
  Losses losses;
  losses.queue = 4;
  Metrics metrics(losses, all_sources());
  metrics.ended(sample_end(1));
  metrics.ended(sample_end(2));
  ConnectionEnd idle = sample_end(3);
  idle.verdict = Verdict::idle_close;
  idle.cause = Cause::peer_fin;
  idle.service.clear();
  metrics.ended(idle);
  metrics.detected(std::chrono::microseconds(20));
  metrics.acted("signal", "done");
  const std::string text = metrics.text();
  for (
      const char* line :
      {R"(sockalarm_connections_ended_total{cause="peer_reset",service="shop.service",verdict="abandoned"} 2)",
       R"(sockalarm_connections_ended_total{cause="peer_fin",service="unknown",verdict="idle_close"} 1)",
       R"(sockalarm_orphaned_seconds_total{service="shop.service"} 3)", "sockalarm_orphaned_seconds_count 2",
       "sockalarm_age_at_abort_seconds_sum 3", "sockalarm_detection_latency_seconds_count 1",
       R"(sockalarm_actions_total{action="signal",result="done"} 1)",
       R"(sockalarm_lost_total{stage="queue"} 4)", R"(sockalarm_lost_total{stage="kernel"} 5)",
       "sockalarm_ring_writes_total 7", "sockalarm_ring_write_failures_total 2", "sockalarm_spool_bytes 4096",
       "sockalarm_spool_pending 3", "sockalarm_spool_oldest_seconds 2.5"})
    EXPECT_TRUE(has_line(text, line)) << line << "\nis not in\n" << text;
  for (const char* secret : {"192.0.2.7", "40001", "1234", "shopd"})
    EXPECT_EQ(text.find(secret), std::string::npos);
}

TEST(Metrics, ServicesBeyondTheBoundAreOther) {
  const Losses losses;
  Metrics metrics(losses, {}, 3);
  for (std::uint64_t number = 0; number < 50; ++number) {
    ConnectionEnd end = sample_end(number);
    end.service = "s" + std::to_string(number % 10);
    metrics.ended(end);
  }
  const std::string text = metrics.text();
  EXPECT_NE(text.find("service=\"s2\",verdict=\"abandoned\"} 5\n"), std::string::npos) << text;
  EXPECT_EQ(text.find("service=\"s3\""), std::string::npos);
  EXPECT_NE(text.find("service=\"other\",verdict=\"abandoned\"} 35\n"), std::string::npos) << text;
}

TEST(Metrics, PromtoolFindsNoFault) {
  const Losses losses;
  Metrics metrics(losses, all_sources());
  ConnectionEnd odd = sample_end(1);
  odd.service = "a\"b\\c\n\xff.service";
  metrics.ended(odd);
  metrics.acted("run", "failed");
  const std::string text = metrics.text();
  FILE* promtool = ::popen("promtool check metrics", "we");
  ASSERT_NE(promtool, nullptr);
  EXPECT_EQ(std::fwrite(text.data(), 1, text.size(), promtool), text.size());
  const int status = ::pclose(promtool);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status << "\n" << text;
}

TEST(MetricsServer, AnswersOnOnePort) {
  std::atomic<bool> ready{false};
  const auto server = MetricsServer::open(
      "127.0.0.1", 0,
      {[] { return std::string("a 1\n"); }, [] { return true; }, [&] { return ready.load(); }});
  ASSERT_TRUE(server) << server.error().message();
  const std::uint16_t port = (*server)->port();
  const std::string metrics = got(port, "/metrics");
  EXPECT_TRUE(metrics.starts_with("HTTP/1.1 200")) << metrics;
  EXPECT_NE(metrics.find("text/plain; version=0.0.4"), std::string::npos);
  EXPECT_TRUE(metrics.ends_with("\r\n\r\na 1\n")) << metrics;
  EXPECT_TRUE(got(port, "/healthz").starts_with("HTTP/1.1 200"));
  EXPECT_TRUE(got(port, "/readyz").starts_with("HTTP/1.1 503"));
  ready = true;
  EXPECT_TRUE(got(port, "/readyz").starts_with("HTTP/1.1 200"));
  EXPECT_TRUE(got(port, "/elsewhere").starts_with("HTTP/1.1 404"));
  EXPECT_TRUE(asked(port, "nonsense\r\n\r\n").starts_with("HTTP/1.1 400"));
  EXPECT_TRUE(got(port, "/healthz").starts_with("HTTP/1.1 200"));
}

// More clients that say nothing than there is room for: they are let go after some seconds, then others are
// served.
TEST(MetricsServer, SilentClientsDoNotKeepItForEver) {
  const auto server = MetricsServer::open(
      "127.0.0.1", 0, {[] { return std::string(); }, [] { return true; }, [] { return true; }});
  ASSERT_TRUE(server) << server.error().message();
  std::vector<UniqueFd> silent;
  for (int i = 0; i < 4; ++i)
    silent.push_back(sockalarm::test::connect_to_port(std::to_string((*server)->port())));
  EXPECT_TRUE(got((*server)->port(), "/healthz").starts_with("HTTP/1.1 200"));
}

TEST(MetricsServer, SaysThatThePortIsTaken) {
  const MetricsServer::Answers none{[] { return std::string(); }, [] { return true; }, [] { return true; }};
  const sockalarm::test::Listener taken = sockalarm::test::listen_on(AF_INET);
  const auto port = ntohs(reinterpret_cast<const sockaddr_in*>(&taken.address)->sin_port);
  const auto second = MetricsServer::open("127.0.0.1", port, none);
  ASSERT_FALSE(second);
  EXPECT_NE(second.error().message().find("port " + std::to_string(port)), std::string::npos);
}

}  // namespace
}  // namespace sockalarm::observe
