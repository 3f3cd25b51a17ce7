// SPDX-License-Identifier: Apache-2.0
#include <sys/eventfd.h>

#include <algorithm>
#include <atomic>
#include <fstream>
#include <memory>
#include <random>
#include <set>

#include "daemon/raw_client.h"
#include "harness/descriptors.h"
#include "harness/network_namespace.h"

// Clients that do what they can to harm the daemon and others.

namespace sockalarm::test {
namespace {

constexpr uid_t kHostile = 65533;

// Another user's honest client: one alarm after the other fires.
class Neighbour {
 public:
  explicit Neighbour(const DaemonHome& home)
      : worker_([&home] {
          auto watcher = std::make_shared<Watcher>(daemon_watcher(home));
          return [watcher](char letter) -> std::uint64_t {
            std::uint64_t fired = 0;
            const int rounds = letter == 'f' ? 20 : 1;
            for (int i = 0; i < rounds; ++i) {
              Connection connection = tcp_pair();
              const auto watch = watcher->watch(connection.ours.get()).value();
              const auto alarm = watch.arm(send_signal(SIGURG)).value();
              connection.peer.reset();
              if (watch.source() == SourceKind::daemon && eventually([&] { return alarm.triggered(); }))
                ++fired;
            }
            return fired;
          };
        }) {}
  // Does it go on? Twenty alarms by the daemon's programs.
  bool served() const { return worker_.ask('f') == 20U; }
  pid_t pid() const { return worker_.pid(); }
  bool alive() const { return worker_.alive(); }

 private:
  Worker worker_;
};

// Whether one of its threads waits in that function of the kernel (proc_pid_wchan(5)).
bool is_in(pid_t pid, const std::string& function) {
  for (const auto& task : std::filesystem::directory_iterator("/proc/" + std::to_string(pid) + "/task")) {
    std::ifstream file(task.path() / "wchan");
    std::string where;
    if (file >> where && where == function) return true;
  }
  return false;
}

// How far the kernel has written in a ring: its second page, which the client may read.
std::uint64_t produced(const std::byte* ring) {
  return __atomic_load_n(reinterpret_cast<const std::uint64_t*>(ring), __ATOMIC_SEQ_CST);
}

class HostileTest : public testing::Test {
 protected:
  HostileTest() {
    EXPECT_TRUE(neighbour_.served());
    before_ = descriptors_of(daemon_.pid());
  }
  // The body runs as another user; what it answers is how many of its expectations failed.
  void hostile(const std::function<void()>& body) {
    Worker worker(
        [&] {
          return [&](char) -> std::uint64_t {
            body();
            return HasFailure() ? 1 : 0;
          };
        },
        kHostile);
    EXPECT_EQ(worker.ask('x'), 0U);
    EXPECT_TRUE(neighbour_.served());
  }
  // Nothing is left of anybody but the neighbour, in the kernel or in the daemon.
  ~HostileTest() override {
    EXPECT_TRUE(daemon_.running());
    EXPECT_TRUE(neighbour_.served());
    EXPECT_TRUE(eventually([&] { return clients_in_kernel(home_) == 3; })) << clients_in_kernel(home_);
    EXPECT_TRUE(eventually([&] { return entries_of(home_, "registry") == 0; }));
    // A lane may be left for that user and for us: its epoll and its bell.
    EXPECT_TRUE(eventually([&] { return descriptors_of(daemon_.pid()) <= before_ + 4; }))
        << before_ << " descriptors before, now " << descriptors_of(daemon_.pid());
    EXPECT_TRUE(eventually([&] { return !has_anything(status_of(home_), kHostile); })) << status_of(home_);
  }

  static bool has_anything(const nlohmann::json& status, uid_t user) {
    const auto& users = status["users"];
    return std::any_of(users.begin(), users.end(), [user](const auto& one) { return one["uid"] == user; });
  }

  DaemonHome home_;
  DaemonProcess daemon_{home_, {"--config", config()}};
  Neighbour neighbour_{home_};
  std::size_t before_ = 0;

 private:
  std::string config() const {
    const std::string path = home_.file("config.toml");
    std::ofstream(path) << "[limits]\nslots = 100\n[limits.user]\nconnections = 20\nwatches = 150\n";
    return path;
  }
};

TEST_F(HostileTest, WrongBeginnings) {
  hostile([&] {
    RawClient version(home_.socket());
    auto hello = RawClient::hello();
    hello.least_version = hello.version = 99;
    version.send(hello);
    EXPECT_EQ(version.answer(), EPROTONOSUPPORT);
    EXPECT_TRUE(version.hung_up());

    RawClient both(home_.socket());  // whoever speaks ours too is served
    hello.least_version = 1;
    both.send(hello);
    const auto welcome = both.receive<ipc::Welcome>();
    ASSERT_TRUE(welcome);
    EXPECT_EQ(welcome->version, ipc::kVersion);

    RawClient magic(home_.socket());
    hello = RawClient::hello();
    hello.magic ^= 1;
    magic.send(hello);
    EXPECT_TRUE(magic.hung_up());

    RawClient early(home_.socket());
    early.send(ipc::Unwatch{{ipc::Kind::unwatch, 1}, 1});
    EXPECT_TRUE(early.hung_up());

    RawClient resumes(home_.socket());
    hello = RawClient::hello();
    hello.resume = 1;
    resumes.send(hello);
    const UniqueFd event(::eventfd(0, EFD_CLOEXEC));
    resumes.send(ipc::Header{ipc::Kind::table, 1}, event.get());
    resumes.send(ipc::Header{ipc::Kind::ring, 1}, event.get());
    EXPECT_EQ(resumes.answer(), EINVAL);
    EXPECT_TRUE(resumes.hung_up());
  });
}

TEST_F(HostileTest, WrongDescriptors) {
  hostile([&] {
    RawClient client(home_.socket());
    ASSERT_TRUE(client.greet());
    const Connection tcp = tcp_pair();
    const Listener listener = listen_on(AF_INET);
    const Connection local = unix_pair();
    const UniqueFd udp(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    const UniqueFd file(::open("/proc/self/status", O_RDONLY | O_CLOEXEC));
    int pipe[2];
    ASSERT_EQ(::pipe2(pipe, O_CLOEXEC), 0);
    EXPECT_EQ(client.watch(-1, 1, 0), EBADF);
    EXPECT_EQ(client.watch(udp.get(), 1), EPROTONOSUPPORT);
    EXPECT_EQ(client.watch(local.ours.get(), 1), EPROTONOSUPPORT);
    EXPECT_EQ(client.watch(listener.fd.get(), 1), EINVAL);
    EXPECT_EQ(client.watch(file.get(), 1), ENOTSOCK);
    EXPECT_EQ(client.watch(pipe[0], 1), ENOTSOCK);
    EXPECT_EQ(client.watch(client.fd(), 1), EPROTONOSUPPORT);
    EXPECT_EQ(client.watch(tcp.ours.get(), 1, 12345), ESTALE);
    EXPECT_EQ(client.watch(tcp.ours.get(), 0), ERANGE);
    EXPECT_EQ(client.watch(tcp.ours.get(), 64), ERANGE);
    EXPECT_EQ(client.watch(tcp.ours.get(), 63), 0);
  });
}

TEST_F(HostileTest, ManyDescriptors) {
  hostile([&] {
    for (const std::size_t count : {2U, 3U, 253U}) {
      RawClient client(home_.socket());
      ASSERT_TRUE(client.greet());
      const Connection tcp = tcp_pair();
      const ipc::Watch frame{{ipc::Kind::watch, 5}, cookie_of(tcp.ours.get()), 1, 1};
      ASSERT_TRUE(send_with_fds(client.fd(), std::as_bytes(std::span(&frame, 1)),
                                std::vector<int>(count, tcp.ours.get())));
      EXPECT_TRUE(client.hung_up()) << count;
    }
    RawClient client(home_.socket());
    ASSERT_TRUE(client.greet());
    const UniqueFd event(::eventfd(0, EFD_CLOEXEC));
    client.send(ipc::Unwatch{{ipc::Kind::unwatch, 1}, 1}, event.get());
    EXPECT_TRUE(client.hung_up());
  });
}

TEST_F(HostileTest, RandomFrames) {
  hostile([&] {
    std::mt19937 random(20);  // NOLINT(cert-msc51-cpp,cert-msc32-c): the same every time
    for (int round = 0; round < 200; ++round) {
      RawClient client(home_.socket());
      if (round % 2 == 0) client.greet();
      std::vector<std::byte> frame(random() % 300);
      for (std::byte& one : frame) one = static_cast<std::byte>(random());
      if (frame.size() >= 4) {  // a kind that is known, more often than not
        const auto kind = static_cast<std::uint32_t>(random() % 10);
        std::memcpy(frame.data(), &kind, sizeof kind);
      }
      ipc::send_frame(client.fd(), frame);
    }
  });
}

// The worst that may follow is that it gets wrong events itself.
TEST_F(HostileTest, GarbageInItsOwnMemory) {
  hostile([&] {
    RawClient client(home_.socket());
    ASSERT_TRUE(client.greet());
    std::vector<Connection> connections;
    for (std::uint32_t slot = 1; slot < 50; ++slot) {
      connections.push_back(tcp_pair());
      EXPECT_EQ(client.watch(connections.back().ours.get(), slot), 0);
    }
    auto* const table = static_cast<std::uint64_t*>(
        ::mmap(nullptr, 64 * 64, PROT_READ | PROT_WRITE, MAP_SHARED, client.table(), 0));
    auto* const consumer = static_cast<std::uint64_t*>(
        ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, client.ring(), 0));
    ASSERT_NE(table, MAP_FAILED);
    ASSERT_NE(consumer, MAP_FAILED);
    EXPECT_EQ(::mmap(nullptr, 4096 * 3, PROT_READ | PROT_WRITE, MAP_SHARED, client.ring(), 4096), MAP_FAILED);
    std::mt19937_64 random(7);  // NOLINT(cert-msc51-cpp,cert-msc32-c): the same every time
    for (Connection& connection : connections) {
      for (int i = 0; i < 64 * 8; ++i) __atomic_store_n(&table[i], random(), __ATOMIC_RELAXED);
      __atomic_store_n(consumer, random(), __ATOMIC_RELAXED);
      connection.peer.reset();
    }
    EXPECT_EQ(client.watch(connections.front().ours.get(), 7), 0);
  });
}

// It names other processes, of another user and of its own, with all that it can write, as the ones to be
// killed.
TEST_F(HostileTest, SignalsNobodyElse) {
  const Worker like_itself([] { return [](char) -> std::uint64_t { return 1; }; }, kHostile);
  ASSERT_EQ(like_itself.ask('x'), 1U);  // it has become that user
  const std::array<std::uint32_t, 3> victims = {static_cast<std::uint32_t>(neighbour_.pid()),
                                                static_cast<std::uint32_t>(like_itself.pid()), 1};
  hostile([&] {
    RawClient client(home_.socket());
    ASSERT_TRUE(client.greet());
    auto* const table = static_cast<sockalarm_watch_state*>(
        ::mmap(nullptr, 64 * 64, PROT_READ | PROT_WRITE, MAP_SHARED, client.table(), 0));
    ASSERT_NE(table, MAP_FAILED);
    for (std::uint32_t slot = 1; slot < 10; ++slot) {
      Connection connection = tcp_pair();
      sockalarm_watch_state& state = table[slot];
      state.seen = std::uint64_t{1} << 32;
      state.cookie = cookie_of(connection.ours.get());
      ASSERT_EQ(client.watch(connection.ours.get(), slot), 0);
      state.tid = victims[slot % victims.size()];
      state.signal = SIGKILL;
      __atomic_store_n(&state.control, std::uint64_t{1} << 32 | SOCKALARM_SHUT << 8 | SOCKALARM_ARMED,
                       __ATOMIC_SEQ_CST);
      connection.peer.reset();
      EXPECT_TRUE(
          eventually([&] { return (__atomic_load_n(&state.seen, __ATOMIC_SEQ_CST) & SOCKALARM_FIN) != 0; }));
      EXPECT_EQ(__atomic_load_n(&state.control, __ATOMIC_SEQ_CST) & SOCKALARM_STATE_MASK,
                SOCKALARM_ARMED + 0U);
    }
  });
  EXPECT_TRUE(neighbour_.alive());
  EXPECT_EQ(like_itself.ask('x'), 1U);
}

// A process that became another user's may not be signalled by what it was before: kill(2) would refuse.
TEST_F(HostileTest, ChangingTheUserEndsDirectDelivery) {
  Worker worker(
      [&] {
        auto watcher = std::make_shared<Watcher>(daemon_watcher(home_));
        return [watcher](char letter) -> std::uint64_t {
          if (letter == 'u') return ::setresuid(kHostile, kHostile, kHostile) == 0 ? 1 : 0;
          const auto before = watcher->stats().fired_directly;
          Connection connection = tcp_pair();
          const auto watch = watcher->watch(connection.ours.get()).value();
          const auto alarm = watch.arm(send_signal(SIGURG)).value();
          connection.peer.reset();
          eventually([&] { return alarm.triggered(); });
          return watcher->stats().fired_directly - before + (alarm.triggered() ? 10 : 0);
        };
      },
      0);
  EXPECT_EQ(worker.ask('f'), status_of(home_)["task_work"] ? 11U : 10U);
  EXPECT_EQ(worker.ask('u'), 1U);
  EXPECT_EQ(worker.ask('f'), 10U);  // by the dispatcher
}

// bpf(2), BPF_PROG_BIND_MAP: whoever has both descriptors may make a program keep a map, for as long as the
// program lives. So it must not be one that outlives the client.
TEST_F(HostileTest, WhatItWasGivenKeepsNothingAlive) {
  Worker worker(
      [&] {
        return [&](char) -> std::uint64_t {
          static RawClient client(home_.socket());
          client.greet();
          if (client.introduction() < 0) return 0;
          ::bpf_prog_bind_map(client.introduction(), client.table(), nullptr);
          ::bpf_prog_bind_map(client.introduction(), client.ring(), nullptr);
          bpf_map_info info{};
          std::uint32_t length = sizeof info;
          return ::bpf_obj_get_info_by_fd(client.table(), &info, &length) == 0 ? info.id : 0;
        };
      },
      kHostile);
  const auto table = worker.ask('x');
  ASSERT_TRUE(table);
  if (*table == 0) {  // there is no program for a client then
    EXPECT_FALSE(status_of(home_)["task_work"]);
    return;
  }
  const auto there = [&] {
    return bool(UniqueFd(::bpf_map_get_fd_by_id(static_cast<std::uint32_t>(*table))));
  };
  EXPECT_TRUE(there());
  worker.kill();
  EXPECT_TRUE(eventually([&] { return !there(); }));
}

TEST_F(HostileTest, OthersRegistrationsAreOutOfReach) {
  Connection shared = tcp_pair();
  RawClient owner(home_.socket());
  ASSERT_TRUE(owner.greet());
  ASSERT_EQ(owner.watch(shared.ours.get(), 1), 0);
  hostile([&] {  // it was given the socket: it may know, but take nothing away
    RawClient client(home_.socket());
    ASSERT_TRUE(client.greet());
    EXPECT_EQ(client.watch(shared.ours.get(), 1), EBUSY);
    client.send(ipc::Unwatch{{ipc::Kind::unwatch, 0}, cookie_of(shared.ours.get())});
    EXPECT_EQ(client.watch(shared.ours.get(), 1), EBUSY);
  });
  // The neighbour's last one may be on its way out; if the owner's were gone, it would be none.
  EXPECT_TRUE(eventually([&] { return entries_of(home_, "registry") == 1; }));
}

// Possession of a descriptor is the right to watch: whoever was given a socket could as well poll(2) it. It
// hears what happens, and nobody else does; a signal goes to nobody but itself.
TEST_F(HostileTest, WhoWasGivenASocketMayWatchIt) {
  const NetworkNamespace network;
  RawClient owner(home_.socket());
  ASSERT_TRUE(owner.greet());
  const auto* const owners_ring =
      static_cast<const std::byte*>(::mmap(nullptr, 4096 * 3, PROT_READ, MAP_SHARED, owner.ring(), 4096));
  ASSERT_NE(owners_ring, MAP_FAILED);
  const Worker owners([] { return [](char) -> std::uint64_t { return 1; }; });  // another process of theirs
  for (const bool elsewhere : {false, true}) {
    Connection given = elsewhere ? network.connect() : tcp_pair();  // root's, not watched by anybody
    hostile([&] {
      RawClient client(home_.socket());
      ASSERT_TRUE(client.greet());
      auto* const table = static_cast<sockalarm_watch_state*>(
          ::mmap(nullptr, 64 * 64, PROT_READ | PROT_WRITE, MAP_SHARED, client.table(), 0));
      const auto* const ring = static_cast<const std::byte*>(
          ::mmap(nullptr, 4096 * 3, PROT_READ, MAP_SHARED, client.ring(), 4096));
      ASSERT_NE(table, MAP_FAILED);
      ASSERT_NE(ring, MAP_FAILED);
      sockalarm_watch_state& state = table[1];
      state.seen = std::uint64_t{1} << 32;
      state.cookie = cookie_of(given.ours.get());
      ASSERT_EQ(client.watch(given.ours.get(), 1), 0);
      state.tid = static_cast<std::uint32_t>(owners.pid());
      state.signal = SIGKILL;
      __atomic_store_n(&state.control, std::uint64_t{1} << 32 | SOCKALARM_SHUT << 8 | SOCKALARM_ARMED,
                       __ATOMIC_SEQ_CST);
      ::shutdown(given.peer.get(), SHUT_WR);
      EXPECT_TRUE(
          eventually([&] { return (__atomic_load_n(&state.seen, __ATOMIC_SEQ_CST) & SOCKALARM_FIN) != 0; }));
      EXPECT_TRUE(eventually([&] { return produced(ring) != 0; }));
      sockalarm_record record{};
      std::memcpy(&record, ring + 4096 + 8, sizeof record);
      EXPECT_EQ(record.cookie, state.cookie);
      EXPECT_EQ(__atomic_load_n(&state.control, __ATOMIC_SEQ_CST) & SOCKALARM_STATE_MASK,
                SOCKALARM_ARMED + 0U);
    });
    EXPECT_EQ(produced(owners_ring), 0U);
    EXPECT_EQ(owners.ask('x'), 1U);
    // It is the owner's again as soon as that client has gone.
    Connection after = elsewhere ? network.connect() : tcp_pair();
    EXPECT_EQ(owner.watch(after.ours.get(), 1), 0);
    EXPECT_TRUE(eventually([&] { return owner.watch(given.ours.get(), 2) == 0; }));
  }
  ::munmap(const_cast<std::byte*>(owners_ring), 4096 * 3);
}

// Neither of who is there nor of who was there before at its index, however it sets its table.
TEST_F(HostileTest, HearsNothingOfOthers) {
  const Connection theirs = tcp_pair(), formers = tcp_pair();
  RawClient owner(home_.socket());
  ASSERT_TRUE(owner.greet());
  ASSERT_EQ(owner.watch(theirs.ours.get(), 1), 0);
  std::optional<RawClient> former(home_.socket());
  ASSERT_TRUE(former->greet());
  ASSERT_EQ(former->watch(formers.ours.get(), 2), 0);
  former.reset();
  ASSERT_TRUE(eventually([&] { return clients_in_kernel(home_) == 6; }));
  hostile([&] {
    RawClient client(home_.socket());
    ASSERT_TRUE(client.greet());
    auto* const table = static_cast<sockalarm_watch_state*>(
        ::mmap(nullptr, 64 * 64, PROT_READ | PROT_WRITE, MAP_SHARED, client.table(), 0));
    const auto* const ring =
        static_cast<const std::byte*>(::mmap(nullptr, 4096 * 3, PROT_READ, MAP_SHARED, client.ring(), 4096));
    ASSERT_NE(table, MAP_FAILED);
    ASSERT_NE(ring, MAP_FAILED);
    const Connection own = tcp_pair();
    for (std::uint32_t slot = 1; const Connection* one : {&theirs, &formers, &own}) {
      sockalarm_watch_state& state = table[slot++];
      state.seen = std::uint64_t{1} << 32;
      state.cookie = cookie_of(one->ours.get());
      state.extra = SOCKALARM_SHUT;
    }
    ASSERT_EQ(client.watch(own.ours.get(), 3), 0);
    for (const Connection* one : {&theirs, &formers, &own}) ::shutdown(one->peer.get(), SHUT_WR);
    EXPECT_TRUE(eventually([&] { return produced(ring) != 0; }));
    sockalarm_record record{};
    std::memcpy(&record, ring + 4096 + 8, sizeof record);
    EXPECT_EQ(record.cookie, cookie_of(own.ours.get()));
    EXPECT_EQ(produced(ring), 8 + sizeof record);
    EXPECT_EQ(table[1].seen, std::uint64_t{1} << 32);
    EXPECT_EQ(table[2].seen, std::uint64_t{1} << 32);
  });
}

TEST_F(HostileTest, QuotasEnd) {
  hostile([&] {
    RawClient client(home_.socket());
    const auto welcome = client.greet(1'000'000);
    ASSERT_TRUE(welcome);
    EXPECT_EQ(welcome->slots, 100U);
    RawClient second(home_.socket());
    ASSERT_TRUE(second.greet());
    std::vector<Connection> connections;
    int refused = 0;
    for (int i = 0; i < 160; ++i) {
      connections.push_back(tcp_pair());
      const int answer = (i % 2 == 0 ? client : second).watch(connections.back().ours.get(), 1);
      EXPECT_TRUE(answer == 0 || answer == EDQUOT) << answer;
      refused += answer == EDQUOT ? 1 : 0;
    }
    EXPECT_EQ(refused, 10);
    std::vector<RawClient> many;
    std::size_t welcomed = 0;
    for (int i = 0; i < 30; ++i) many.emplace_back(home_.socket());
    for (RawClient& one : many) welcomed += one.greet(0) ? 1 : 0;
    EXPECT_EQ(welcomed, 18U);
  });
}

TEST_F(HostileTest, AnswersThatNobodyReads) {
  hostile([&] {
    RawClient client(home_.socket());
    ASSERT_TRUE(client.greet());
    int failed = 0;
    const auto until = std::chrono::steady_clock::now() + kPatience;
    while (failed != EPIPE && failed != ECONNRESET && std::chrono::steady_clock::now() < until) {
      failed = client.send(ipc::Header{ipc::Kind::status, 1});
      if (failed == EAGAIN) std::this_thread::sleep_for(1ms);
    }
    EXPECT_TRUE(failed == EPIPE || failed == ECONNRESET) << failed;
  });
}

TEST_F(HostileTest, ComingAndGoing) {
  hostile([&] {
    for (int i = 0; i < 2000; ++i) {
      RawClient client(home_.socket());
      if (i % 8 == 0) client.send(RawClient::hello());
      if (i % 16 == 0) client.receive<ipc::Welcome>();
      if (i % 500 == 0) {
        EXPECT_TRUE(neighbour_.served());
      }
    }
  });
}

// While it stands in the way with all the connections that the queue holds.
TEST_F(HostileTest, WhoComesInTheMidstOfManyIsServed) {
  daemon_.signal(SIGSTOP);
  std::vector<UniqueFd> crowd;
  sockaddr_un name{};
  name.sun_family = AF_UNIX;
  home_.socket().copy(name.sun_path, sizeof name.sun_path - 1);
  do crowd.emplace_back(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  while (::connect(crowd.back().get(), reinterpret_cast<const sockaddr*>(&name), sizeof name) == 0);
  ASSERT_EQ(errno, EAGAIN);
  const Worker worker([&] {
    auto watcher = std::make_shared<Watcher>(daemon_watcher(home_));
    return [watcher](char) -> std::uint64_t { return 1; };  // that it was made is all
  });
  EXPECT_TRUE(eventually([&] { return is_in(worker.pid(), "unix_wait_for_peer"); }));
  daemon_.signal(SIGCONT);
  EXPECT_EQ(worker.ask('x'), 1U);
}

// Whoever closes `ours` last waits for an hour, unless the peer goes.
Connection lingering_pair() {
  const Listener listener = listen_on(AF_INET);
  UniqueFd peer = connect_to(listener);
  Connection pair{accept_from(listener), std::move(peer)};
  const std::string text(1 << 16, 'x');
  while (::send(pair.ours.get(), text.data(), text.size(), MSG_DONTWAIT | MSG_NOSIGNAL) > 0) {
  }
  const linger hour{1, 3600};
  ::setsockopt(pair.ours.get(), SOL_SOCKET, SO_LINGER, &hour, sizeof hour);
  return pair;
}

// Sends its socket with a WATCH, and closes it. The peer.
UniqueFd pass_on(const RawClient& client, Connection pair) {
  const UniqueFd ours = std::move(pair.ours);  // else it would be reset
  client.send(ipc::Watch{{ipc::Kind::watch, 9}, cookie_of(ours.get()), 1, 1}, ours.get());
  return std::move(pair.peer);
}

// The daemon's close() is the last one, and the socket lingers: whose fault it is waits for it.
TEST_F(HostileTest, ASocketThatLingersHoldsUpNobodyElse) {
  struct Lingering {
    explicit Lingering(const DaemonHome& home) : client(home.socket()) {}
    void pass_it_on() { peer = pass_on(client, lingering_pair()); }
    RawClient client;
    UniqueFd peer;
  };
  const Worker worker(
      [&] {
        auto one = std::make_shared<Lingering>(home_);
        return [one](char letter) -> std::uint64_t {
          if (letter == 'g') return one->client.greet() ? 1 : 0;
          if (letter == 'p') one->pass_it_on();
          if (letter == 'e') one->peer.reset();  // with unread data: a reset, which ends the lingering
          if (letter == 'e') return one->client.answer() == 0 ? 1 : 0;
          pollfd entry{one->client.fd(), POLLIN, 0};
          return ::poll(&entry, 1, 0) == 0 ? 1 : 0;  // no answer yet
        };
      },
      kHostile);
  ASSERT_EQ(worker.ask('g'), 1U);
  daemon_.pause();
  ASSERT_EQ(worker.ask('p'), 1U);
  daemon_.signal(SIGCONT);
  EXPECT_TRUE(eventually([&] { return is_in(daemon_.pid(), "wait_woken"); }));
  EXPECT_TRUE(neighbour_.served());
  EXPECT_EQ(worker.ask('?'), 1U);  // it is still being closed
  EXPECT_EQ(worker.ask('e'), 1U);
}

// It sends it along before it is let in, and is not let in: nobody ever receives it, and it is closed all the
// same.
TEST_F(HostileTest, ASocketThatLingersInARefusedConnectionHoldsUpNobodyElse) {
  struct Refused {
    std::vector<RawClient> clients;
    std::vector<UniqueFd> peers;
  };
  const Worker worker(
      [&] {
        auto all = std::make_shared<Refused>();
        return [&, all](char letter) -> std::uint64_t {
          if (letter == 'g')
            for (int i = 0; i < 20; ++i) all->clients.emplace_back(home_.socket());
          if (letter == 'g') return all->clients.back().greet(0) ? 1 : 0;
          for (int i = 0; i < 3; ++i) {
            all->clients.emplace_back(home_.socket());
            all->peers.push_back(pass_on(all->clients.back(), lingering_pair()));
          }
          return 1;
        };
      },
      kHostile);
  ASSERT_EQ(worker.ask('g'), 1U);  // all that this user may have
  daemon_.signal(SIGSTOP);
  ASSERT_EQ(worker.ask('p'), 1U);
  daemon_.signal(SIGCONT);
  RawClient other(home_.socket());
  EXPECT_TRUE(other.greet());
  EXPECT_EQ(status_of(home_)["connections"]["refused"], 3);
}

// Each time the kernel would patch code that all processors run, and hold them up for it.
TEST_F(HostileTest, CannotAttachAndDetachOverAndOver) {
  const auto link = [&]() -> std::uint32_t {
    const UniqueFd fd(::bpf_obj_get((home_.bpffs() + "/v1/link_on_read").c_str()));
    bpf_link_info info{};
    std::uint32_t length = sizeof info;
    return fd && ::bpf_obj_get_info_by_fd(fd.get(), &info, &length) == 0 ? info.id : 0;
  };
  EXPECT_EQ(link(), 0U);
  RawClient client(home_.socket());
  ASSERT_TRUE(client.greet());
  const auto ask = [&](std::uint32_t on) {
    client.send(ipc::Reads{{ipc::Kind::reads, 7}, on, 0});
    return client.answer();
  };
  ASSERT_EQ(ask(1), 0);
  const std::uint32_t first = link();
  EXPECT_NE(first, 0U);
  std::set<std::uint32_t> links;
  for (int i = 0; i < 50; ++i) {
    ASSERT_EQ(ask(0), 0);
    ASSERT_EQ(ask(1), 0);
    links.insert(link());
  }
  EXPECT_LT(links.size(), 10U);  // one, unless this machine stands still for a second
  ASSERT_EQ(ask(0), 0);
  EXPECT_TRUE(eventually([&] { return link() == 0; }));  // but it does not stay for good
  ASSERT_EQ(ask(1), 0);
  EXPECT_NE(link(), 0U);
  EXPECT_NE(link(), first);
}

// At whatever moment: nothing is left behind (the destructor of the fixture looks).
TEST_F(HostileTest, KilledAtAnyMoment) {
  for (int round = 0; round < 60; ++round) {
    Worker worker(
        [&] {
          return [&](char) -> std::uint64_t {
            for (;;) {
              const Watcher watcher = daemon_watcher(home_);
              std::vector<Connection> connections;
              std::vector<Watch> watches;
              std::vector<Alarm> alarms;
              for (int i = 0; i < 10; ++i) {
                connections.push_back(tcp_pair());
                watches.push_back(watcher.watch(connections.back().ours.get()).value());
                alarms.push_back(
                    watches.back().arm(send_signal(SIGURG), {.on = events::shut | events::eof}).value());
                if (i % 2 == 0) connections.back().peer.reset();
              }
            }
          };
        },
        kHostile);
    worker.tell('x');
    // On a slow machine it would else never get that far.
    if (round % 2 == 1) {
      EXPECT_TRUE(eventually([&] { return entries_of(home_, "registry") != 0; }));
    }
    std::this_thread::sleep_for(std::chrono::microseconds(round * 700));
    worker.kill();
  }
}

}  // namespace
}  // namespace sockalarm::test
