// SPDX-License-Identifier: Apache-2.0
#include <bpf/bpf.h>
#include <sys/epoll.h>

#include <atomic>
#include <numeric>
#include <thread>

#include "bench/support/own_maps.h"
#include "harness/syscall_supervisor.h"
#include "privileged/observe_scene.h"

// What is observed, what is recorded, what is counted, and what is lost.

namespace sockalarm::test {
namespace {

using observe::ServiceMetrics;

// A connection of a client with that address, which has sent a request that was read.
Connection asked(const ObserverScene& scene, int host = 2) {
  Connection connection = scene.connect(host);
  send_text(connection.peer.get(), "request");
  receive(connection.ours.get(), 7);
  return connection;
}

void abandon(Connection connection) {
  reset(connection.peer);
  await_departure(connection.ours.get());
  connection.ours.reset();
}

void close_idle(Connection connection) {
  connection.peer.reset();
  await_departure(connection.ours.get());
  connection.ours.reset();
}

Filter inbound_only() {
  Filter filter = own_connections();
  filter.directions = {Direction::inbound};
  return filter;
}

// The records of an observer with `filter`, of whatever `happen` does. The marker comes from host 99.
std::size_t records_of(ObserverScene& scene, const Filter& filter, const std::function<void()>& happen) {
  EXPECT_TRUE(scene.observer().set_filter(filter));
  happen();
  EXPECT_TRUE(scene.observer().set_filter(own_connections()));
  return scene.all_ends().size();
}

std::uint64_t ends_in(const std::vector<ServiceMetrics>& metrics) {
  return std::accumulate(metrics.begin(), metrics.end(), std::uint64_t{0},
                         [](std::uint64_t sum, const ServiceMetrics& m) { return sum + m.ends; });
}

std::uint64_t sum(const observe::Histogram& histogram) {
  return std::accumulate(histogram.begin(), histogram.end(), std::uint64_t{0});
}

TEST(ObserveFilters, Direction) {
  ObserverScene scene;
  for (const Direction direction : {Direction::inbound, Direction::outbound}) {
    Filter filter = own_connections();
    filter.directions = {direction};
    EXPECT_EQ(records_of(scene, filter, [&] { abandon(asked(scene)); }), 1u);
  }
}

TEST(ObserveFilters, Port) {
  ObserverScene scene;
  Connection in = asked(scene), out = asked(scene);
  Filter filter = own_connections();
  filter.ports = {{local_port(in.ours.get()), local_port(in.ours.get())}};
  EXPECT_EQ(records_of(scene, filter,
                       [&] {
                         abandon(std::move(in));
                         abandon(std::move(out));
                       }),
            2u)
      << "both ends of one connection";
  filter.ports = {{0, 1}, {65535, 65535}};
  EXPECT_EQ(records_of(scene, filter, [&] { abandon(asked(scene)); }), 0u);
  filter.ports = {{1, 65535}};
  EXPECT_EQ(records_of(scene, filter, [&] { abandon(asked(scene)); }), 2u);
}

TEST(ObserveFilters, Prefix) {
  ObserverScene scene;
  Filter filter;
  filter.prefixes = {observe::parse_prefix(own_address(2)).value()};
  EXPECT_EQ(records_of(scene, filter,
                       [&] {
                         abandon(asked(scene, 2));
                         abandon(asked(scene, 3));
                       }),
            1u);
  filter.prefixes = {observe::parse_prefix(own_address(2) + "/31").value()};
  EXPECT_EQ(records_of(scene, filter,
                       [&] {
                         abandon(asked(scene, 2));
                         abandon(asked(scene, 3));
                         abandon(asked(scene, 4));
                       }),
            2u);
}

TEST(ObserveFilters, CgroupAndWhatIsBelow) {
  ObserverScene scene;
  abandon(asked(scene));
  const std::uint64_t own = scene.ends(2)[0].cgroup;
  Filter filter = own_connections();
  filter.cgroups = {own, 0xdead'beef'0000'0001};
  EXPECT_EQ(records_of(scene, filter, [&] { abandon(asked(scene)); }), 2u);
  filter.cgroups = {1};  // the root
  EXPECT_EQ(records_of(scene, filter, [&] { abandon(asked(scene)); }), 2u);
  filter.cgroups = {0xdead'beef'0000'0001};
  EXPECT_EQ(records_of(scene, filter, [&] { abandon(asked(scene)); }), 0u);
}

// Cause, minimum orphaned time and sampling are about records alone: all is counted.
TEST(ObserveFilters, WhatIsNotRecordedIsCounted) {
  ObserverScene scene;
  Filter filter = inbound_only();
  const auto counted = [&] { return ends_in(scene.observer().metrics().value()); };
  filter.causes = {Cause::timeout, Cause::peer_fin};
  std::uint64_t before = counted();
  EXPECT_EQ(records_of(scene, filter,
                       [&] {
                         abandon(asked(scene));
                         close_idle(scene.connect());
                         EXPECT_TRUE(eventually([&] { return counted() - before == 2u; }));
                       }),
            1u);
  filter = inbound_only();
  filter.minimum_orphaned = std::chrono::milliseconds(20);
  before = counted();
  EXPECT_EQ(records_of(scene, filter,
                       [&] {
                         close_idle(scene.connect());
                         Connection connection = asked(scene);
                         reset(connection.peer);
                         await_departure(connection.ours.get());
                         const auto enough = std::chrono::steady_clock::now() + 20ms;
                         EXPECT_TRUE(eventually([&] { return std::chrono::steady_clock::now() > enough; }));
                         connection.ours.reset();
                         EXPECT_TRUE(eventually([&] { return counted() - before == 2u; }));
                       }),
            1u);
  filter = inbound_only();
  filter.one_in = 4'000'000'000;
  before = counted();
  EXPECT_LE(records_of(scene, filter,
                       [&] {
                         for (int i = 0; i < 10; ++i) abandon(asked(scene));
                         EXPECT_TRUE(eventually([&] { return counted() - before == 10u; }));
                       }),
            1u)
      << "one in four thousand million";
}

TEST(ObserveFilters, AnInvalidOneChangesNothing) {
  ObserverScene scene({}, inbound_only());
  Filter wrong = own_connections();
  wrong.ports = {{2, 1}};
  const auto refused = scene.observer().set_filter(wrong);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), Errc::invalid_options);
  abandon(asked(scene));
  Filter all = own_connections();
  EXPECT_TRUE(scene.observer().set_filter(all));
  EXPECT_EQ(scene.all_ends().size(), 1u);
}

// Whichever of its system calls the kernel refuses.
TEST(ObserveFilters, OneThatFailsChangesNothing) {
  ObserverScene scene;
  Filter none = own_connections();
  none.ports = {{1, 1}};
  none.cgroups = {1};
  std::atomic<int> until{1 << 30};
  SyscallSupervisor supervisor([&](const seccomp_notif&) { return until-- == 0 ? ENOMEM : 0; }, SYS_bpf);
  bool done = false;
  int refused = 0;
  std::thread([&] {
    require(supervisor.begin(), "seccomp");
    for (int call = 0; !done && call < 50; ++call) {
      until = call;
      const auto changed = scene.observer().set_filter(none);
      until = 1 << 30;
      if (changed) {
        done = true;
        break;
      }
      ++refused;
      EXPECT_NE(changed.error().message().find("memory"), std::string::npos) << changed.error().message();
      abandon(asked(scene));
      EXPECT_EQ(scene.all_ends().size(), 2u) << "the filter before is in force, call " << call;
    }
  }).join();
  EXPECT_TRUE(done);
  EXPECT_GT(refused, 5);
  abandon(asked(scene));
  EXPECT_TRUE(scene.observer().set_filter(own_connections()));
  EXPECT_EQ(scene.all_ends().size(), 0u);
}

// Two filters that each let everything of ours pass, by different sets; a mixture of them lets nothing pass.
TEST(ObserveFilters, AreNeverMixed) {
  ObserverScene scene({}, inbound_only());
  Listener listener = scene.listen();
  const std::uint16_t port = ntohs(reinterpret_cast<const sockaddr_in*>(&listener.address)->sin_port);
  Filter by_port = inbound_only(), by_prefix = inbound_only();
  by_port.ports = {{port, port}};
  std::atomic<bool> stop{false};
  std::thread changer([&] {
    while (!stop)
      for (const Filter* filter : {&by_port, &by_prefix}) EXPECT_TRUE(scene.observer().set_filter(*filter));
  });
  constexpr int kConnections = 300;
  scene.net().run([&] {
    for (int i = 0; i < kConnections; ++i) {
      UniqueFd peer = connect_from(listener, 2);
      UniqueFd ours = accept_from(listener);
      reset(peer);
      await_departure(ours.get());
    }
  });
  stop = true;
  changer.join();
  EXPECT_TRUE(scene.observer().set_filter(own_connections()));
  const auto ends = scene.all_ends();
  EXPECT_EQ(ends.size(), std::size_t{kConnections});
  for (const ConnectionEnd& end : ends) EXPECT_EQ(end.verdict, ObservedVerdict::idle_close);
}

TEST(ObserveMetrics, EqualTheSumOfTheRecords) {
  ObserverScene scene;
  constexpr int kEach = 7;
  for (int i = 0; i < kEach; ++i) {
    abandon(asked(scene));
    close_idle(scene.connect());
    Connection served = scene.connect();
    exchange(served);
    served.ours.reset();
    await_departure(served.peer.get());
    served.peer.reset();
  }
  std::vector<ConnectionEnd> ends;
  EXPECT_TRUE(eventually([&] {
    scene.read();
    return scene.so_far().size() >= 6 * kEach;
  }));
  ends = scene.so_far();
  ASSERT_EQ(ends.size(), 6u * kEach);
  const auto metrics = scene.observer().metrics().value();
  EXPECT_EQ(ends_in(metrics), ends.size());
  for (const ServiceMetrics& of : metrics) {
    ServiceMetrics sums;
    std::uint64_t aged = 0;
    for (const ConnectionEnd& end : ends) {
      if (end.cgroup != of.key.cgroup || end.cause != of.key.cause || end.verdict != of.key.verdict ||
          end.direction != of.key.direction)
        continue;
      ++sums.ends;
      sums.bytes_received += end.bytes_received;
      sums.bytes_sent += end.bytes_sent;
      sums.orphaned += end.orphaned;
      const auto age = end.verdict == ObservedVerdict::abandoned ? end.age_at_departure : end.age;
      aged += age.has_value();
      sums.age += age.value_or(0ns);
      for (const auto& [value, histogram] :
           {std::pair{age.value_or(0ns), &sums.ages}, {end.orphaned, &sums.orphaned_times}}) {
        std::size_t bucket = 0;
        for (auto us = static_cast<std::uint64_t>(value / 1us); us != 0; us /= 2) ++bucket;
        ++(*histogram)[bucket];
      }
    }
    EXPECT_EQ(of.ends, sums.ends);
    EXPECT_EQ(of.bytes_received, sums.bytes_received);
    EXPECT_EQ(of.bytes_sent, sums.bytes_sent);
    EXPECT_EQ(of.orphaned, sums.orphaned);
    EXPECT_EQ(sum(of.ages), aged);
    EXPECT_EQ(of.age, sums.age);
    EXPECT_EQ(of.ages, sums.ages);
    if (of.key.verdict == ObservedVerdict::abandoned) {
      EXPECT_EQ(of.orphaned_times, sums.orphaned_times);
    } else {
      EXPECT_EQ(sum(of.orphaned_times), 0u);
    }
    EXPECT_TRUE(scene.observer().forget(of.key));
  }
  EXPECT_TRUE(scene.observer().metrics().value().empty());
}

// Some thousand services, of cgroups that do not exist.
void add_services(std::uint32_t count) {
  const UniqueFd map = bench::own_map("metrics");
  require(bool(map), "the map of metrics");
  sockalarm_observe_metrics values{};
  for (std::uint32_t i = 0; i < count; ++i) {
    const sockalarm_observe_service key{
        .cgroup = (1ULL << 40) + i, .cause = 1, .verdict = 2, .direction = 1, .reserved = {}};
    values.ends = i;
    require(bpf_map_update_elem(map.get(), &key, &values, BPF_ANY) == 0, "filling the map of metrics");
  }
}

TEST(ObserveMetrics, ManyServicesCostFewSystemCalls) {
  constexpr std::uint64_t kServices = 4000;
  ObserverScene scene;
  add_services(kServices);
  constexpr std::uint64_t kBatch = 24;  // BPF_MAP_LOOKUP_BATCH
  std::atomic<int> calls{0};
  std::atomic<bool> refuse{false};
  SyscallSupervisor supervisor(
      [&](const seccomp_notif& call) {
        ++calls;
        return refuse && call.data.args[0] == kBatch ? EINVAL : 0;
      },
      SYS_bpf);
  std::thread([&] {
    require(supervisor.begin(), "seccomp");
    for (const bool with_batches : {true, false}) {
      refuse = !with_batches;
      calls = 0;
      const auto all = scene.observer().metrics();
      ASSERT_TRUE(all) << all.error().message();
      EXPECT_EQ(all->size(), kServices);
      EXPECT_EQ(ends_in(*all), kServices * (kServices - 1) / 2);
      EXPECT_EQ(all->front().key.verdict, ObservedVerdict::abandoned);
      EXPECT_EQ(calls < 100, with_batches) << calls;
    }
  }).join();
}

TEST(ObserveReading, IsBoundedAndGoesOnAtOnce) {
  ObserverScene scene({}, inbound_only());
  constexpr std::size_t kConnections = 10;
  for (std::size_t i = 0; i < kConnections; ++i) abandon(asked(scene));
  EXPECT_TRUE(eventually([&] { return ends_in(scene.observer().metrics().value()) == kConnections; }));
  const UniqueFd outer(::epoll_create1(EPOLL_CLOEXEC));
  epoll_event entry{};
  entry.events = EPOLLIN;
  require(::epoll_ctl(outer.get(), EPOLL_CTL_ADD, scene.observer().fd(), &entry) == 0, "epoll_ctl");
  pollfd by_poll{scene.observer().fd(), POLLIN, 0};
  std::vector<std::uint64_t> sequence;
  const auto sink = [&](const ConnectionEnd& end) { sequence.push_back(end.sequence); };
  EXPECT_EQ(scene.observer().read(sink, 0).value(), 0u);
  for (std::size_t i = 0; i < kConnections; ++i) {
    EXPECT_EQ(scene.observer().read(sink, 1).value(), 1u);
    if (i + 1 == kConnections) break;
    // Without waiting.
    EXPECT_EQ(::poll(&by_poll, 1, 0), 1);
    EXPECT_EQ(::epoll_wait(outer.get(), &entry, 1, 0), 1);
  }
  // But what a timer that was late put there to wake the reader, which is no record.
  EXPECT_TRUE(eventually([&] {
    EXPECT_EQ(scene.observer().read(sink).value(), 0u);
    return ::poll(&by_poll, 1, 0) == 0;
  })) << "nothing is left";
  ASSERT_EQ(sequence.size(), kConnections);
  EXPECT_TRUE(std::is_sorted(sequence.begin(), sequence.end()));

  for (int i = 0; i < 2; ++i) abandon(asked(scene));
  EXPECT_TRUE(eventually([&] { return ends_in(scene.observer().metrics().value()) == kConnections + 2; }));
  EXPECT_THROW((void)scene.observer().read([](const ConnectionEnd&) { throw std::runtime_error("a sink"); }),
               std::runtime_error);
  EXPECT_EQ(::poll(&by_poll, 1, 0), 1) << "the one after it is still there";
  EXPECT_EQ(scene.observer().read(sink).value(), 1u);
}

// While more come than it can read.
TEST(ObserveReading, ReturnsInAStorm) {
  observe::ObserverOptions options;
  options.ring_bytes = 1;
  ObserverScene scene(options, inbound_only());
  const std::size_t room = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE)) / 160;
  std::size_t most = 0;
  const auto storm = [&](const ConnectionEnd&) {
    abandon(asked(scene));
    ASSERT_LE(++most, room);
  };
  abandon(asked(scene));
  EXPECT_TRUE(eventually([&] { return scene.observer().read(storm).value() > 0; }));
  EXPECT_EQ(most, room);
}

TEST(ObserveLosses, ARingOfOnePageLosesRecordsButCountsThemAll) {
  observe::ObserverOptions options;
  options.ring_bytes = 1;
  ObserverScene scene(options, inbound_only());
  constexpr std::uint64_t kConnections = 200;
  for (std::uint64_t i = 0; i < kConnections; ++i) abandon(asked(scene));
  EXPECT_TRUE(eventually([&] { return ends_in(scene.observer().metrics().value()) == kConnections; }));
  const std::size_t read = scene.read();
  const auto losses = scene.observer().losses().value();
  EXPECT_GT(read, 0u);
  EXPECT_GT(losses.records, 0u);
  EXPECT_EQ(read + losses.records, kConnections);
  std::vector<std::uint64_t> sequence;
  for (const ConnectionEnd& end : scene.so_far()) sequence.push_back(end.sequence);
  abandon(asked(scene));
  EXPECT_TRUE(eventually([&] { return scene.read() == 1; }));
  EXPECT_EQ(scene.so_far().back().sequence, kConnections + 1) << "the loss is a gap in the sequence numbers";
}

TEST(ObserveLosses, ServicesBeyondTheRoomForMetrics) {
  observe::ObserverOptions options;
  options.services = 1;
  ObserverScene scene(options);
  abandon(asked(scene));
  const auto ends = scene.ends(2);
  EXPECT_EQ(ends.size(), 2u);
  EXPECT_EQ(scene.observer().metrics().value().size(), 1u);
  EXPECT_GT(scene.observer().losses().value().metrics, 0u);
}

// As if every change of state had come while the program was interrupted.
TEST(ObserveLosses, NoEndIsMissedThoughEveryChangeOfStateIs) {
  observe::ObserverOptions options;
  options.without = {"observe_state"};
  ObserverScene scene(options);
  for (int i = 0; i < 5; ++i) {
    Connection connection = scene.connect();
    exchange(connection);
    close_idle(std::move(connection));
  }
  std::size_t received = 0;
  for (const ConnectionEnd& end : scene.ends(10)) {
    EXPECT_EQ(end.direction, Direction::unknown);
    EXPECT_EQ(end.verdict, ObservedVerdict::none);
    EXPECT_EQ(end.pid, 0u);
    EXPECT_FALSE(end.age);
    received += end.bytes_received;
  }
  EXPECT_EQ(received, 5u * (7 + 6));
  EXPECT_GE(scene.observer().losses().value().late, 10u);
}

// Whatever is gone leaves no program behind, and a second observer does not disturb the first.
TEST(ObserveLosses, TwoObserversSeeTheSame) {
  ObserverScene one;
  {
    ObserverScene other;
    abandon(asked(one));
    EXPECT_EQ(other.ends(2).size(), 2u);
  }
  EXPECT_EQ(one.ends(2).size(), 2u);
}

}  // namespace
}  // namespace sockalarm::test
