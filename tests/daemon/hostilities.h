// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <fcntl.h>
#include <sys/mman.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "daemon/raw_client.h"
#include "harness/descriptors.h"

// What hostile clients do to the daemon, each kind over and over as fast as it can.
namespace sockalarm::test {

// Counts in memory that is shared with children. One process adds, another reads: no order is needed.
class SharedCount {
 public:
  SharedCount()
      : count_(static_cast<std::atomic<std::uint64_t>*>(
            ::mmap(nullptr, sizeof *count_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0))) {
    require(static_cast<void*>(count_) != MAP_FAILED, "mmap");
  }
  ~SharedCount() { ::munmap(count_, sizeof *count_); }
  SharedCount(const SharedCount&) = delete;
  SharedCount& operator=(const SharedCount&) = delete;

  void add() const noexcept { count_->fetch_add(1, std::memory_order_relaxed); }
  std::uint64_t value() const noexcept { return count_->load(std::memory_order_relaxed); }

 private:
  std::atomic<std::uint64_t>* count_;
};

// Once: made by the hostile process, then called without end.
using Hostile = std::function<std::function<void()>(const DaemonHome&)>;

// The daemon may still be giving back what earlier processes of this user had, and refuse more until then.
inline RawClient admitted(const DaemonHome& home, std::uint32_t slots = 64) {
  std::optional<RawClient> client;
  require(eventually([&] {
            client.emplace(home.socket());
            return client->greet(slots).has_value();
          }),
          "greet");
  return std::move(*client);
}

inline std::vector<std::byte> random_frame(std::mt19937& random) {
  std::vector<std::byte> frame(random() % 300);
  for (std::byte& one : frame) one = static_cast<std::byte>(random());
  if (frame.size() >= 4) {  // a kind that is known, more often than not
    const auto kind = static_cast<std::uint32_t>(random() % 10);
    std::memcpy(frame.data(), &kind, sizeof kind);
  }
  return frame;
}

inline std::function<void()> fuzzed_frames(const DaemonHome& home) {
  return [&home, random = std::mt19937(20), round = 0]() mutable {
    RawClient client(home.socket());
    if (round++ % 2 == 0) client.greet();
    ipc::send_frame(client.fd(), random_frame(random));
  };
}

inline std::function<void()> wrong_versions(const DaemonHome& home) {
  return [&home] {
    RawClient client(home.socket());
    auto hello = RawClient::hello();
    hello.least_version = hello.version = 99;
    client.send(hello);
    client.hung_up();
  };
}

inline std::function<void()> no_descriptor(const DaemonHome& home) {
  auto client = std::make_shared<RawClient>(admitted(home));
  return [client] { require(client->watch(-1, 1, 0) == EBADF, "no descriptor"); };
}

// They are closed by the daemon's thread for that user.
inline std::function<void()> many_descriptors(const DaemonHome& home) {
  auto tcp = std::make_shared<Connection>(tcp_pair());
  return [&home, tcp] {
    RawClient client(home.socket());
    client.greet(0);
    const ipc::Watch frame{{ipc::Kind::watch, 5}, cookie_of(tcp->ours.get()), 1, 1};
    send_with_fds(client.fd(), std::as_bytes(std::span(&frame, 1)), std::vector<int>(253, tcp->ours.get()));
    client.hung_up();
  };
}

inline std::function<void()> wrong_descriptors(const DaemonHome& home) {
  struct All {
    RawClient client;
    Listener listener = listen_on(AF_INET);
    Connection local = unix_pair();
    UniqueFd udp{::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0)};
    UniqueFd file{::open("/proc/self/status", O_RDONLY | O_CLOEXEC)};
    std::size_t next = 0;
  };
  auto all = std::make_shared<All>(All{.client = admitted(home)});
  return [all] {
    const std::array fds = {all->listener.fd.get(), all->local.ours.get(), all->udp.get(), all->file.get()};
    require(all->client.watch(fds[all->next++ % fds.size()], 1, 1) > 0, "a wrong descriptor");
  };
}

// Root's, which come by inheritance: one is registered and given up again, the other root watches already.
inline Hostile anothers_socket(const DaemonHome& home) {
  struct Roots {
    Connection free = tcp_pair(), watched = tcp_pair();
    RawClient watcher;
  };
  auto roots = std::make_shared<Roots>(Roots{.watcher = RawClient(home.socket())});
  require(roots->watcher.greet() && roots->watcher.watch(roots->watched.ours.get(), 1) == 0, "greet");
  return [roots](const DaemonHome& where) {
    auto client = std::make_shared<RawClient>(admitted(where));
    return [roots, client] {
      require(client->watch(roots->free.ours.get(), 1) == 0, "another user's socket");
      client->send(ipc::Unwatch{{ipc::Kind::unwatch, 0}, cookie_of(roots->free.ours.get())});
      require(client->watch(roots->watched.ours.get(), 2) == EBUSY, "a socket that root watches");
    };
  };
}

// In its table and its ring, while the peers of what it watches leave.
inline std::function<void()> garbage(const DaemonHome& home) {
  auto client = std::make_shared<RawClient>(admitted(home));
  auto* const table = static_cast<std::uint64_t*>(
      ::mmap(nullptr, 64 * 64, PROT_READ | PROT_WRITE, MAP_SHARED, client->table(), 0));
  auto* const consumer = static_cast<std::uint64_t*>(
      ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, client->ring(), 0));
  require(table != MAP_FAILED && consumer != MAP_FAILED, "mmap");
  return [client, table, consumer, random = std::mt19937_64(7)]() mutable {
    Connection connection = tcp_pair();
    client->watch(connection.ours.get(), static_cast<std::uint32_t>(1 + random() % 63));
    for (int i = 0; i < 64 * 8; ++i) __atomic_store_n(&table[i], random(), __ATOMIC_RELAXED);
    __atomic_store_n(consumer, random(), __ATOMIC_RELAXED);
    connection.peer.reset();
  };
}

inline std::function<void()> coming_and_going(const DaemonHome& home) {
  return [&home, round = 0]() mutable {
    const RawClient client(home.socket());
    if (round++ % 8 == 0) client.send(RawClient::hello());
  };
}

// Until the daemon hangs up.
inline std::function<void()> never_reading(const DaemonHome& home) {
  auto client = std::make_shared<std::optional<RawClient>>();
  return [&home, client] {
    if (!*client) {
      client->emplace(home.socket());
      (*client)->send(RawClient::hello());
    }
    const int failed = (*client)->send(ipc::Header{ipc::Kind::status, 1});
    if (failed == EPIPE || failed == ECONNRESET) client->reset();
    // It does not spin, which would be the burner's work: it waits until it may ask for more.
    pollfd entry{failed == EAGAIN ? (*client)->fd() : -1, POLLOUT, 0};
    if (failed == EAGAIN) ::poll(&entry, 1, 100);
  };
}

// All that its user may have of connections, memory and watches, and more; then anew.
inline std::function<void()> exhausting(const DaemonHome& home) {
  return [&home] {
    std::vector<RawClient> clients;
    RawClient first = admitted(home, 512);
    do clients.emplace_back(home.socket());
    while (clients.back().greet(65'536) && clients.size() < 1000);
    std::vector<Connection> connections;
    do connections.push_back(tcp_pair());
    while (first.watch(connections.back().ours.get(), static_cast<std::uint32_t>(connections.size())) == 0 &&
           connections.size() < 500);
    std::vector<RawClient> silent;
    do silent.emplace_back(home.socket());
    while (silent.back().greet(0) && silent.size() < 1000);
  };
}

// Everything at random.
inline std::function<void()> hammering(const DaemonHome& home) {
  struct Sockets {
    Connection tcp = tcp_pair(), local = unix_pair();
  };
  return [&home, sockets = std::make_shared<Sockets>(), random = std::mt19937(3)]() mutable {
    RawClient client(home.socket());
    const bool greeted = client.greet().has_value();
    for (int i = 0; greeted && i < 50; ++i) {
      client.watch(i % 2 == 0 ? sockets->tcp.ours.get() : sockets->local.ours.get(),
                   static_cast<std::uint32_t>(random() % 80));
      client.send(ipc::Header{ipc::Kind::status, 7});
      client.receive<ipc::Text>();
      client.send(ipc::Reads{{ipc::Kind::reads, 7}, i % 4 == 0 ? 1U : 0U, 0});
      client.answer();
    }
    ipc::send_frame(client.fd(), random_frame(random));
  };
}

// Does nothing to the daemon, and takes a processor as the others do.
inline std::function<void()> burning(const DaemonHome&) {
  return [] {
    for (volatile int i = 0; i < 1'000'000;) i = i + 1;
  };
}

// Two processes that wait for each other, as a hostile client and the daemon's thread for it do, and nothing
// of the daemon.
inline std::function<void()> chattering(const DaemonHome&) {
  auto ends = std::make_shared<Connection>(unix_pair());
  if (::fork() == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    ends->peer.reset();
    char byte = 0;
    while (::read(ends->ours.get(), &byte, 1) == 1 && ::write(ends->ours.get(), &byte, 1) == 1) {
    }
    ::_exit(0);
  }
  return [ends] {
    char byte = 'x';
    require(::write(ends->peer.get(), &byte, 1) == 1 && ::read(ends->peer.get(), &byte, 1) == 1, "chatter");
  };
}

}  // namespace sockalarm::test
