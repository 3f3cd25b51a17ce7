// SPDX-License-Identifier: Apache-2.0
#include <sys/resource.h>
#include <sys/wait.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <csignal>
#include <iostream>
#include <latch>
#include <map>
#include <optional>
#include <random>
#include <thread>

#include "suite/suite.h"

namespace sockalarm::test {
namespace {

SOCKALARM_SUITE(StormTest);

bool raise_descriptor_limit(rlim_t needed) {
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  if (limit.rlim_cur >= needed) return true;
  limit.rlim_cur = std::min(limit.rlim_max, needed);
  ::setrlimit(RLIMIT_NOFILE, &limit);
  return limit.rlim_cur >= needed;
}

std::vector<Connection> many_connections(std::size_t count) {
  const Listener listener = listen_on(AF_INET, 4096);
  std::vector<Connection> connections(count);
  for (Connection& connection : connections) {
    connection.peer = connect_to(listener);
    connection.ours = accept_from(listener);
  }
  return connections;
}

// Processes that hold the peers and nothing else, one for each of two CPUs: when they are killed, all peers
// leave as fast as the kernel closes.
class PeerProcesses {
 public:
  explicit PeerProcesses(std::vector<Connection>& connections) {
    for (std::size_t half = 0; half < pids_.size(); ++half) pids_[half] = hold(connections, half);
    for (Connection& connection : connections) connection.peer.reset();
  }
  ~PeerProcesses() { kill(); }
  PeerProcesses(const PeerProcesses&) = delete;
  PeerProcesses& operator=(const PeerProcesses&) = delete;

  // Returns when the processes are gone, and so all their descriptors.
  void kill() noexcept {
    for (const pid_t pid : pids_)
      if (pid > 0) ::kill(pid, SIGKILL);
    for (pid_t& pid : pids_)
      if (pid > 0) ::waitpid(std::exchange(pid, -1), nullptr, 0);
  }

 private:
  pid_t hold(std::vector<Connection>& connections, std::size_t half) const {
    const pid_t pid = ::fork();
    require(pid >= 0, "fork");
    if (pid > 0) return pid;
    for (std::size_t i = 0; i < connections.size(); ++i) {
      connections[i].ours.reset();
      if (i % pids_.size() != half) connections[i].peer.reset();
    }
    for (;;) ::pause();
  }

  std::array<pid_t, 2> pids_{};
};

// Every alarm fires exactly once, whatever the ring holds. hold: the dispatcher is kept busy until all peers
// have left, so that nothing is read from the ring meanwhile.
void storm(const Watcher& watcher, std::size_t count, bool hold = false) {
  if (!raise_descriptor_limit(2 * count + 200))
    GTEST_SKIP() << "fewer than " << 2 * count + 200 << " descriptors allowed";
  auto connections = many_connections(count);
  PeerProcesses peers(connections);
  std::vector<std::atomic<int>> fired(count);
  std::atomic<std::size_t> total{0};
  std::vector<Watch> watches;
  std::vector<Alarm> alarms;
  for (std::size_t i = 0; i < count; ++i) {
    watches.push_back(watcher.watch(connections[i].ours.get()).value());
    alarms.push_back(watches.back()
                         .arm(call([&, i] {
                           ++fired[i];
                           ++total;
                         }))
                         .value());
  }
  Connection holder = tcp_pair();
  const auto holder_watch = watcher.watch(holder.ours.get());
  std::latch held(1), release(1);
  const auto holder_alarm = holder_watch->arm(call([&] {
    held.count_down();
    release.wait();
  }));
  if (hold) {
    holder.peer.reset();
    held.wait();
  } else {
    release.count_down();
  }
  const auto start = std::chrono::steady_clock::now();
  peers.kill();
  const auto died = std::chrono::steady_clock::now();
  if (hold) release.count_down();
  ASSERT_TRUE(eventually([&] { return total.load() >= count; }))
      << total.load() << " of " << count << "; the peers that are seen to have left: "
      << std::count_if(watches.begin(), watches.end(), [](const Watch& w) { return w.peer_gone(); })
      << "; connections that TCP takes for established: "
      << std::count_if(watches.begin(), watches.end(), [](const Watch& w) {
           return describe_descriptor(w.fd()).value().state == "ESTABLISHED";
         });
  const auto all_fired = std::chrono::steady_clock::now();
  ASSERT_TRUE(eventually(
      [&] { return std::none_of(alarms.begin(), alarms.end(), [](const Alarm& a) { return a.active(); }); }));
  for (std::size_t i = 0; i < count; ++i) ASSERT_EQ(fired[i].load(), 1) << "alarm " << i;
  const auto ms = [](auto duration) {
    return std::chrono::duration_cast<std::chrono::milliseconds>(duration).count();
  };
  std::cout << count << " peers left within " << ms(died - start) << " ms; the last alarm had run "
            << ms(all_fired - start)
            << " ms after the first left; records lost and swept for: " << watcher.stats().records_lost
            << "\n";
}

TEST_P(StormTest, NineThousandSockets) {
  SOCKALARM_WATCHER(watcher, GetParam());
  storm(watcher, GetParam() == SourceKind::poll ? 2'000 : 9'000);
}

TEST_P(StormTest, NineThousandSocketsThroughASmallRing) {
  if (!has_ring(GetParam())) return;
  Options options;
  options.ring_bytes = 4096;
  SOCKALARM_WATCHER(watcher, GetParam(), options);
  storm(watcher, 9'000);
}

TEST_P(StormTest, NineThousandSocketsWhileTheSmallRingIsNotRead) {
  if (!has_ring(GetParam())) return;
  Options options;
  options.ring_bytes = 4096;
  SOCKALARM_WATCHER(watcher, GetParam(), options);
  storm(watcher, 9'000, true);
  EXPECT_GT(watcher.stats().records_lost, 1'000U);
}

TEST_P(StormTest, NineThousandSocketsThroughALargeRing) {
  if (!has_ring(GetParam())) return;
  Options options;
  options.ring_bytes = 4 * 1024 * 1024;
  SOCKALARM_WATCHER(watcher, GetParam(), options);
  storm(watcher, 9'000);
}

TEST_P(StormTest, SocketsBeyondTheTableAreWatchedByEpoll) {
  if (!has_ring(GetParam())) return;
  Options options;
  options.max_watches = 10;
  SOCKALARM_WATCHER(watcher, GetParam(), options);
  auto connections = many_connections(20);
  Journal journal;
  std::vector<Watch> watches;
  std::vector<Alarm> alarms;
  std::map<SourceKind, int> served;
  for (const Connection& connection : connections) {
    watches.push_back(watcher.watch(connection.ours.get()).value());
    ++served[watches.back().source()];
    alarms.push_back(watches.back().arm(journal.entry("x")).value());
  }
  EXPECT_EQ(served[GetParam().source], 10);
  EXPECT_EQ(served[SourceKind::epoll], 10);
  for (Connection& connection : connections) connection.peer.reset();
  EXPECT_TRUE(journal.wait_for(20));
}

// Random operations of several threads against what must be true of each socket by itself. A thread owns its
// sockets, so the model is exact; source, dispatcher and table are shared by all.
class RandomWalk {
 public:
  RandomWalk(const Watcher& watcher, unsigned seed, std::size_t sockets)
      : watcher_(watcher), random_(seed), scenes_(sockets) {
    for (Scene& scene : scenes_) open(scene);
  }

  void run(int operations) {
    for (int i = 0; i < operations; ++i) step(scenes_[random_() % scenes_.size()]);
    for (Scene& scene : scenes_) close(scene);
  }

 private:
  struct Scene {
    Connection connection;
    std::optional<Watch> watch;
    std::optional<Alarm> alarm;
    std::atomic<int> fired{0};
    int expected = 0;    // firings that must have happened
    bool armed = false;  // by the model
    bool gone = false;   // the peer
  };

  void open(Scene& scene) {
    scene.connection.peer = connect_to(listener_);
    scene.connection.ours = accept_from(listener_);
    scene.gone = scene.armed = false;
    scene.watch.emplace(watcher_.watch(scene.connection.ours.get()).value());
  }

  void arm(Scene& scene) {
    if (scene.alarm && scene.alarm->active()) {
      EXPECT_FALSE(scene.alarm->start());
      return;
    }
    if (scene.alarm) {
      EXPECT_TRUE(scene.alarm->start());
    } else {
      scene.alarm.emplace(scene.watch->arm(call([&scene] { ++scene.fired; })).value());
    }
    scene.armed = !scene.gone;
    if (scene.gone) ++scene.expected;
    settle(scene);
  }

  // What must fire has fired before the next operation, so that every cancel has one right answer.
  void settle(Scene& scene) {
    ASSERT_TRUE(eventually([&] {
      return scene.fired.load() >= scene.expected && (scene.armed || !scene.alarm || !scene.alarm->active());
    })) << scene.fired.load()
        << " of " << scene.expected;
    ASSERT_EQ(scene.fired.load(), scene.expected);
  }

  void cancel(Scene& scene) {
    if (!scene.alarm) return;
    EXPECT_EQ(scene.alarm->cancel_and_wait(), scene.armed ? Cancelled::prevented : Cancelled::inactive);
    scene.armed = false;
  }

  void leave(Scene& scene) {
    if (scene.gone) return;
    if (random_() % 2 == 0)
      reset(scene.connection.peer);
    else
      scene.connection.peer.reset();
    scene.gone = true;
    if (scene.armed) ++scene.expected;
    scene.armed = false;
    settle(scene);
    ASSERT_TRUE(eventually([&] { return scene.watch->peer_gone(); }));
  }

  void close(Scene& scene) {
    cancel(scene);
    if (random_() % 2 == 0) scene.connection.ours.reset();  // closed behind the watch's back
    scene.alarm.reset();
    scene.watch.reset();
    EXPECT_EQ(scene.fired.load(), scene.expected);
    scene.connection.abandon();
    scene.fired = scene.expected = 0;
  }

  void step(Scene& scene) {
    switch (random_() % 8) {
      case 0:
      case 1:
      case 2:
        return arm(scene);
      case 3:
      case 4:
        return cancel(scene);
      case 5:
        return leave(scene);
      case 6:
        EXPECT_EQ(scene.watch->peer_gone(), scene.gone);
        return;
      default:
        close(scene);
        return open(scene);
    }
  }

  const Watcher& watcher_;
  const Listener listener_ = listen_on(AF_INET);
  std::mt19937 random_;
  std::vector<Scene> scenes_;
};

TEST_P(StormTest, RandomOperationsAgainstAModel) {
  Options options;
  options.ring_bytes = 4096;
  SOCKALARM_WATCHER(watcher, GetParam(), options);
  constexpr int kThreads = 4, kOperations = 20'000;
  const int sockets = GetParam() == SourceKind::poll ? 200 : 2'000;
  if (!raise_descriptor_limit(static_cast<rlim_t>(2 * sockets + 200)))
    GTEST_SKIP() << "too few descriptors allowed";
  const auto seed = std::random_device()();
  RecordProperty("seed", std::to_string(seed));
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      RandomWalk walk(watcher, seed + t, static_cast<std::size_t>(sockets / kThreads));
      walk.run(kOperations / kThreads);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(watcher.stats().watches, 0U);
  EXPECT_EQ(watcher.stats().records_bad, 0U);
  if (HasFailure()) std::cout << "seed " << seed << "\n";
}

}  // namespace
}  // namespace sockalarm::test
