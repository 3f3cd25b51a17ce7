// SPDX-License-Identifier: Apache-2.0
// A cluster of three brokers that are killed and started again at random, while five hosts write. By hand
// with more: SOCKALARM_CLUSTER_EVENTS=1000000 build/tests/observe/observe_cluster_test. With
// SOCKALARM_CLUSTER_PEACE=1 nobody is killed: that says what an event costs (docs/fleet.md).
#include <cstdlib>
#include <fstream>
#include <random>
#include <sstream>

#include "base/text.h"
#include "harness/ports.h"
#include "observe/nats_server.h"
#include "observe/samples.h"

namespace sockalarm::observe {
namespace {

using namespace test;
using namespace std::chrono_literals;
using sockalarm::test::free_port;

constexpr std::size_t kHosts = 5, kNodes = 3;

std::uint64_t events() {
  const char* given = std::getenv("SOCKALARM_CLUSTER_EVENTS");
  return given == nullptr ? 100'000 : parse_number<std::uint64_t>(given).value_or(100'000);
}

std::uint64_t resident_kib() {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;)
    if (word == "VmRSS:" && status >> word) return parse_number<std::uint64_t>(word).value_or(0);
  return 0;
}

bool in_peace() { return std::getenv("SOCKALARM_CLUSTER_PEACE") != nullptr; }

// Of a process, so far (proc_pid_stat(5)).
double processor_seconds(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string text{std::istreambuf_iterator<char>(file), {}};
  std::istringstream fields(text.substr(std::min(text.size(), text.rfind(')') + 1)));
  std::string skipped;
  for (int i = 3; i < 14; ++i) fields >> skipped;
  double user = 0, system = 0;
  fields >> user >> system;
  return (user + system) / static_cast<double>(::sysconf(_SC_CLK_TCK));
}

class Cluster : public ::testing::Test {
 protected:
  Cluster() {
    std::array<std::string, kNodes> clients, routes;
    for (std::size_t i = 0; i < kNodes; ++i) {
      clients[i] = free_port();
      routes[i] = free_port();
    }
    std::string all_routes;
    for (const auto& port : routes)
      all_routes += (all_routes.empty() ? "" : ",") + ("nats://127.0.0.1:" + port);
    for (std::size_t i = 0; i < kNodes; ++i) {
      nodes_[i] = std::make_unique<NatsServer>(
          folder_, "node" + std::to_string(i), clients[i],
          std::vector<std::string>{"--cluster_name", "sockalarm", "--cluster",
                                   "nats://127.0.0.1:" + routes[i], "--routes", all_routes});
      nodes_[i]->start();
      servers_ += (servers_.empty() ? "" : ",") + nodes_[i]->url();
    }
  }

  // One node after the other, so that two of three remember; random which and for how long. Of the thread
  // that lives on, for they die with the one that started them.
  void harass(const std::function<bool()>& over) {
    std::mt19937 random(20240229);
    const auto pause = [&](int least, int most) {
      const auto until = std::chrono::steady_clock::now() +
                         std::chrono::milliseconds(std::uniform_int_distribution<>(least, most)(random));
      while (!over() && std::chrono::steady_clock::now() < until) std::this_thread::sleep_for(20ms);
    };
    while (!over()) {
      pause(500, 3000);
      if (in_peace()) continue;
      NatsServer& victim = *nodes_[random() % kNodes];
      victim.kill();
      ++kills_;
      pause(200, 2000);
      victim.start();
      pause(2000, 4000);
    }
  }

  ServerFolder folder_;
  std::array<std::unique_ptr<NatsServer>, kNodes> nodes_;
  std::string servers_;
  int kills_ = 0;
};

TEST_F(Cluster, SeesEveryEventOnceThoughNodesDie) {
  const std::uint64_t each = events() / kHosts;
  Consumer consumer(servers_);
  consumer.make_stream(static_cast<int>(kNodes), 24h);
  Losses losses;
  NatsOptions options;
  options.servers = servers_;
  options.max_wait = 2000ms;
  options.least_backoff = 50ms;
  options.most_backoff = 2000ms;
  std::array<std::unique_ptr<NatsSink>, kHosts> sinks;
  for (std::size_t host = 0; host < kHosts; ++host) {
    auto sink = NatsSink::open(sample_host(static_cast<char>('a' + host)), options,
                               {folder_ / ("spool" + std::to_string(host)), 2ULL << 30, 24h}, losses, {});
    ASSERT_TRUE(sink) << sink.error().message();
    ASSERT_TRUE((*sink)->start());
    sinks[host] = std::move(*sink);
  }
  const std::uint64_t before = resident_kib();
  const auto begin = std::chrono::steady_clock::now();
  const double own_before = processor_seconds(::getpid());
  std::atomic<std::size_t> written{0};
  std::vector<std::thread> agents;
  for (std::size_t host = 0; host < kHosts; ++host)
    agents.emplace_back([&, host] {
      const Host self = sample_host(static_cast<char>('a' + host));
      for (std::uint64_t number = 1; number <= each; ++number) {
        const ConnectionEnd end = sample_end(number);
        EXPECT_TRUE(sinks[host]->write({event_id(self, end), end.cause, to_json(self, end)}));
      }
      EXPECT_TRUE(sinks[host]->flush());
      ++written;
    });
  std::uint64_t most = 0;  // of memory
  bool done = false;
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(120 + events() / 200);
  harass([&] {
    most = std::max(most, resident_kib());
    done = written == kHosts && std::all_of(sinks.begin(), sinks.end(),
                                            [](const auto& sink) { return sink->spool().pending == 0; });
    return done || std::chrono::steady_clock::now() > until;
  });
  for (auto& agent : agents) agent.join();
  ASSERT_TRUE(done);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  if (in_peace()) {
    const auto total = static_cast<double>(each * kHosts);
    double brokers = 0;
    for (const auto& node : nodes_) brokers += processor_seconds(node->pid());
    std::printf(
        "%.0f events/s; processor time per event: %.1f us to encode, spool and send, %.1f us in %zu "
        "brokers\n",
        total / seconds, (processor_seconds(::getpid()) - own_before) / total * 1e6, brokers / total * 1e6,
        kNodes);
  }
  std::uint64_t sent = 0, retried = 0, duplicates = 0;
  for (const auto& sink : sinks) {
    sent += sink->figures().sent;
    retried += sink->figures().retried;
    duplicates += sink->figures().duplicates;
  }
  const std::uint64_t lost = losses.spool_size + losses.spool_age + losses.spool_write + losses.spool_corrupt;
  std::printf(
      "%llu events in %.0f s, %d kills, %llu sent, %llu retried, %llu duplicates, %llu lost; %llu MiB, %llu "
      "more than at first\n",
      static_cast<unsigned long long>(each * kHosts), seconds, kills_, static_cast<unsigned long long>(sent),
      static_cast<unsigned long long>(retried), static_cast<unsigned long long>(duplicates),
      static_cast<unsigned long long>(lost), static_cast<unsigned long long>(most / 1024),
      static_cast<unsigned long long>((most - std::min(most, before)) / 1024));
  EXPECT_EQ(lost, 0U);
  EXPECT_TRUE(kills_ > 0 || in_peace());
  EXPECT_LT(most - std::min(most, before), 128U * 1024) << "five windows of 1024, and the library's buffers";

  const auto ids = consumer.ids(each * kHosts, std::chrono::seconds(60 + events() / 5000));
  EXPECT_EQ(std::set<std::string>(ids.begin(), ids.end()).size(), each * kHosts);
  EXPECT_EQ(ids.size(), each * kHosts) << "the stream's window of duplicates is longer than the replay";
}

}  // namespace
}  // namespace sockalarm::observe
