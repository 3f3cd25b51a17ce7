// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <csignal>
#include <fstream>

#include "privileged/observe_scene.h"

// Every way a connection ends, and what its record says.

namespace sockalarm::test {
namespace {

std::uint64_t cookie_of(int fd) {
  std::uint64_t cookie = 0;
  socklen_t length = sizeof cookie;
  ::getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &length);
  return cookie;
}

std::string word_in(const std::string& path) {
  std::ifstream file(path);
  std::string word;
  file >> word;
  return word;
}

// The id of this process' cgroup is the inode of its directory (kernfs, 64-bit hosts).
std::uint64_t own_cgroup() {
  std::string path, root;
  std::ifstream groups("/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);)
    if (line.rfind("0::", 0) == 0) path = line.substr(3);
  for (const char* mount : {"/sys/fs/cgroup", "/sys/fs/cgroup/unified"})
    if (::access((std::string(mount) + "/cgroup.procs").c_str(), F_OK) == 0) root = mount;
  struct stat status{};
  require(::stat((root + path).c_str(), &status) == 0, "the own cgroup");
  return status.st_ino;
}

UniqueFd unconnected() { return UniqueFd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)); }

sockaddr_in own_sockaddr(int host, std::uint16_t port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  ::inet_pton(AF_INET, own_address(host).c_str(), &address.sin_addr);
  return address;
}

int try_connect(int fd, int host, std::uint16_t port) {
  const sockaddr_in address = own_sockaddr(host, port);
  return ::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0 ? 0 : errno;
}

void dissolve(int fd) {
  sockaddr none{};
  none.sa_family = AF_UNSPEC;
  require(::connect(fd, &none, sizeof none) == 0, "connect(AF_UNSPEC)");
}

constexpr std::uint16_t kNobody = 1;  // a port where nobody listens

TEST(ObserveCauses, TheRecordIsComplete) {
  ObserverScene scene;
  Connection connection = scene.connect();
  const std::uint64_t cookie = cookie_of(connection.ours.get());
  const std::uint16_t port = local_port(connection.ours.get()), from = local_port(connection.peer.get());
  exchange(connection);
  send_text(connection.peer.get(), "never read");
  await_readable(connection.ours.get());
  const auto before = std::chrono::system_clock::now();
  const auto begin = std::chrono::steady_clock::now();
  reset(connection.peer);
  await_departure(connection.ours.get());
  connection.ours.reset();
  const auto ends = scene.ends(2);
  const ConnectionEnd end = scene.one_of(ends, Direction::inbound);
  EXPECT_EQ(end.cookie, cookie);
  EXPECT_EQ(end.family, AF_INET);
  EXPECT_EQ(end.local.port, port);
  EXPECT_EQ(end.peer.port, from);
  in_addr address{};
  std::memcpy(&address, end.local.address.data(), sizeof address);
  EXPECT_EQ(std::string(::inet_ntoa(address)), own_address(1));
  std::memcpy(&address, end.peer.address.data(), sizeof address);
  EXPECT_EQ(std::string(::inet_ntoa(address)), own_address(2));
  EXPECT_EQ(end.cgroup, own_cgroup());
  EXPECT_EQ(end.pid, static_cast<std::uint32_t>(::getpid()));
  EXPECT_EQ(end.command, word_in("/proc/self/comm"));
  EXPECT_EQ(end.bytes_received, 17u);
  EXPECT_EQ(end.bytes_sent, 6u);
  EXPECT_EQ(end.unread, 10u);
  EXPECT_EQ(end.unsent, 0u);
  EXPECT_EQ(end.error, ECONNRESET);
  EXPECT_GT(end.latency.count(), 0);
  EXPECT_LE(end.latency, std::chrono::steady_clock::now() - begin);  // the same clock
  ASSERT_TRUE(end.age && end.age_at_departure);
  EXPECT_GE(*end.age, *end.age_at_departure);
  EXPECT_GE(end.ended_at + std::chrono::seconds(1), before);  // another clock, perhaps being set
  EXPECT_LE(end.ended_at, std::chrono::system_clock::now() + std::chrono::seconds(1));

  const ConnectionEnd client = scene.one_of(ends, Direction::outbound);
  EXPECT_EQ(client.cause, Cause::local);
  EXPECT_EQ(client.bytes_sent, 17u);
  EXPECT_EQ(client.bytes_received, 6u);
  EXPECT_EQ(client.local.port, from);
  EXPECT_EQ(client.sequence + end.sequence, 3u) << "the first two records of this observer";
}

TEST(ObserveCauses, IPv6AndMappedAddresses) {
  ObserverScene scene;
  const std::string host = own_ipv6_address();
  // Not looked for on the link first (RFC 4862, 5.4): until then, ::1 is taken for the client. A busybox's ip
  // cannot say so.
  const std::string add = "ip address add " + host + "/128 dev lo";
  scene.net().shell(add + " nodad || " + add);
  Connection six, mapped;
  scene.net().run([&] {
    Listener listener;
    listener.fd = UniqueFd(::socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0));
    require(::listen(listener.fd.get(), 4) == 0, "listen on any address");
    const std::uint16_t port = local_port(listener.fd.get());
    sockaddr_in6 address{};
    address.sin6_family = AF_INET6;
    address.sin6_port = htons(port);
    ::inet_pton(AF_INET6, host.c_str(), &address.sin6_addr);
    six.peer = UniqueFd(::socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0));
    require(::connect(six.peer.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0, "connect");
    six.ours = accept_from(listener);
    const sockaddr_in ipv4 = own_sockaddr(1, port);
    std::memcpy(&listener.address, &ipv4, listener.length = sizeof ipv4);
    mapped.peer = connect_from(listener, 2);
    mapped.ours = accept_from(listener);
  });
  for (Connection* connection : {&six, &mapped}) {
    exchange(*connection);
    connection->peer.reset();
    await_departure(connection->ours.get());
    connection->ours.reset();
    const ConnectionEnd end = scene.server_end();
    EXPECT_EQ(end.verdict, ObservedVerdict::idle_close);
    EXPECT_EQ(end.family, connection == &six ? AF_INET6 : AF_INET);
    char text[INET6_ADDRSTRLEN] = "";
    ::inet_ntop(end.family, end.peer.address.data(), text, sizeof text);
    in6_addr expected{};
    ::inet_pton(end.family, connection == &six ? host.c_str() : own_address(2).c_str(), &expected);
    EXPECT_EQ(std::memcmp(end.peer.address.data(), &expected, connection == &six ? 16 : 4), 0) << text;
  }
}

TEST(ObserveCauses, UnreachableAndDestroyed) {
  ObserverScene scene;
  scene.net().sysctl("net/ipv4/tcp_retries2", 1);
  Connection connection = scene.connect();
  scene.net().on_packets_to(local_port(connection.peer.get()), "reject with icmpx host-unreachable");
  send_text(connection.ours.get(), "refused by a router");
  await_readable(connection.ours.get(), POLLERR);
  connection.ours.reset();
  scene.net().flush();
  reset(connection.peer);
  ConnectionEnd end = scene.server_end();
  EXPECT_EQ(end.cause, Cause::unreachable);
  EXPECT_EQ(end.error, EHOSTUNREACH);
  EXPECT_EQ(end.verdict, ObservedVerdict::abandoned);
  EXPECT_EQ(end.unsent, 19u);

  connection = scene.connect();
  scene.net().shell("ss -K src " + own_address(1) +
                    " sport = :" + std::to_string(local_port(connection.ours.get())));
  await_readable(connection.ours.get(), POLLERR);
  connection.ours.reset();
  connection.peer.reset();
  end = scene.server_end();
  EXPECT_EQ(end.cause, Cause::destroyed);
  EXPECT_EQ(end.verdict, ObservedVerdict::local);
  EXPECT_EQ(end.error, ECONNABORTED);
}

TEST(ObserveCauses, KeepaliveFindsAnIdlePeerGone) {
  ObserverScene scene;
  Connection connection = scene.connect();
  exchange(connection);
  const int one = 1;
  ::setsockopt(connection.ours.get(), SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
  for (const int option : {TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT})
    ::setsockopt(connection.ours.get(), IPPROTO_TCP, option, &one, sizeof one);
  scene.net().on_packets_to(local_port(connection.peer.get()), "drop");
  await_readable(connection.ours.get(), POLLERR);
  connection.ours.reset();
  scene.net().flush();
  reset(connection.peer);
  const ConnectionEnd end = scene.server_end();
  EXPECT_EQ(end.cause, Cause::timeout);
  EXPECT_EQ(end.verdict, ObservedVerdict::idle_close);
}

TEST(ObserveCauses, ConnectionsThatFail) {
  ObserverScene scene;
  UniqueFd refused = unconnected(), unreachable = unconnected(), unanswered = unconnected();
  scene.net().run([&] {
    refused = unconnected();
    unreachable = unconnected();
    unanswered = unconnected();
    EXPECT_EQ(try_connect(refused.get(), 1, kNobody), ECONNREFUSED);
    scene.net().on_packets_to(kNobody, "reject with icmpx host-unreachable");
    scene.net().sysctl("net/ipv4/tcp_syn_retries", 1);
    EXPECT_EQ(try_connect(unreachable.get(), 1, kNobody), EHOSTUNREACH);
    scene.net().flush();
    scene.net().on_packets_to(kNobody, "drop");
    const int patience = 200;
    ::setsockopt(unanswered.get(), IPPROTO_TCP, TCP_USER_TIMEOUT, &patience, sizeof patience);
    EXPECT_EQ(try_connect(unanswered.get(), 1, kNobody), ETIMEDOUT);
    scene.net().flush();
  });
  for (UniqueFd* fd : {&refused, &unreachable, &unanswered}) {
    const std::uint64_t cookie = cookie_of(fd->get());
    fd->reset();
    const ConnectionEnd end = scene.ends(1)[0];
    EXPECT_EQ(end.cookie, cookie);
    EXPECT_EQ(end.cause, fd == &refused       ? Cause::refused
                         : fd == &unreachable ? Cause::unreachable
                                              : Cause::timeout);
    EXPECT_EQ(end.direction, Direction::outbound);
    EXPECT_EQ(end.verdict, ObservedVerdict::none);
    EXPECT_EQ(end.peer.port, kNobody);
    EXPECT_EQ(end.pid, static_cast<std::uint32_t>(::getpid()));
    EXPECT_FALSE(end.age);
    EXPECT_EQ(end.unsent, 0u) << "a SYN is no data";
  }
}

// As if the change of state had come in a softirq while the program was interrupted: the error that follows
// it tells, or what is left of it when the socket goes.
TEST(ObserveCauses, ConnectionsThatFailThoughTheChangeIsMissed) {
  for (const bool is_reported : {true, false}) {
    observe::ObserverOptions options;
    options.without = {"observe_state"};
    if (!is_reported) options.without.emplace_back("observe_error");
    ObserverScene scene(options);
    UniqueFd fd;
    scene.net().run([&] {
      fd = UniqueFd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | (is_reported ? 0 : SOCK_NONBLOCK), 0));
      EXPECT_EQ(try_connect(fd.get(), 1, kNobody), is_reported ? ECONNREFUSED : EINPROGRESS);
    });
    await_readable(fd.get(), POLLHUP);
    const std::uint64_t cookie = cookie_of(fd.get());
    fd.reset();
    const std::vector<ConnectionEnd> ends = scene.ends(1);
    EXPECT_EQ(ends[0].cookie, cookie);
    EXPECT_EQ(ends[0].cause, Cause::refused);
    EXPECT_EQ(ends[0].error, ECONNREFUSED);
    EXPECT_EQ(ends[0].direction, Direction::outbound);
    EXPECT_EQ(ends[0].peer.port, kNobody);
    EXPECT_EQ(ends[0].unsent, 0u);
    EXPECT_EQ(ends[0].pid, is_reported ? static_cast<std::uint32_t>(::getpid()) : 0u);
    EXPECT_GT(scene.observer().losses().value().late, 0u);
  }
}

// And those of a socket that had another connection before.
TEST(ObserveCauses, ConnectionsThatFailAgainThoughTheChangeIsMissed) {
  observe::ObserverOptions options;
  options.without = {"observe_state"};
  ObserverScene scene(options);
  scene.net().run([&] {
    UniqueFd fd = unconnected();
    EXPECT_EQ(try_connect(fd.get(), 1, kNobody), ECONNREFUSED);
    dissolve(fd.get());
  });
  EXPECT_EQ(scene.ends(1)[0].cause, Cause::refused);
}

// Both sides connect, none accepts. The simplest such pair is one socket with itself (RFC 9293, 3.5).
TEST(ObserveCauses, SimultaneousOpen) {
  ObserverScene scene;
  scene.net().run([&] {
    const UniqueFd fd = unconnected();
    const sockaddr_in from = own_sockaddr(2, 0);
    require(::bind(fd.get(), reinterpret_cast<const sockaddr*>(&from), sizeof from) == 0, "bind");
    ASSERT_EQ(try_connect(fd.get(), 2, local_port(fd.get())), 0);
    send_text(fd.get(), "to itself");
    EXPECT_EQ(receive(fd.get(), 9), "to itself");
  });
  const ConnectionEnd end = scene.ends(1)[0];
  EXPECT_EQ(end.direction, Direction::outbound);
  EXPECT_EQ(end.verdict, ObservedVerdict::none);
  EXPECT_EQ(end.cause, Cause::local);
  EXPECT_EQ(end.bytes_sent, 9u);
  EXPECT_EQ(end.bytes_received, 9u);
  EXPECT_TRUE(end.age);
}

// The other's SYN comes, but none of its acknowledgements.
TEST(ObserveCauses, SimultaneousOpenThatFails) {
  ObserverScene scene;
  UniqueFd fd;
  scene.net().run([&] {
    fd = unconnected();
    const sockaddr_in from = own_sockaddr(2, 0);
    require(::bind(fd.get(), reinterpret_cast<const sockaddr*>(&from), sizeof from) == 0, "bind");
    const std::uint16_t port = local_port(fd.get());
    scene.net().shell(
        "nft 'add table inet t; add chain inet t in { type filter hook input priority 0; }; add rule "
        "inet t in tcp flags & (syn | ack) != syn drop'");
    const int patience = 200;
    ::setsockopt(fd.get(), IPPROTO_TCP, TCP_USER_TIMEOUT, &patience, sizeof patience);
    EXPECT_EQ(try_connect(fd.get(), 2, port), ETIMEDOUT);
    scene.net().flush();
  });
  fd.reset();
  const ConnectionEnd end = scene.ends(1)[0];
  EXPECT_EQ(end.direction, Direction::outbound);
  EXPECT_EQ(end.cause, Cause::timeout);
  EXPECT_EQ(end.verdict, ObservedVerdict::none);
  EXPECT_EQ(end.unsent, 0u) << "a SYN is no data";
  EXPECT_FALSE(end.age);
}

// With TCP Fast Open a connection is accepted, and a request read and answered, before the handshake is over
// (tcp(7)). Here its last packet never comes.
TEST(ObserveCauses, FastOpenThatIsNeverEstablished) {
  enum What { unread, read, answered, closed, not_accepted };
  ObserverScene scene;
  scene.net().sysctl("net/ipv4/tcp_fastopen", 0x207);  // both sides, without cookies (ip-sysctl.rst)
  for (const What what : {unread, read, answered, closed, not_accepted}) {
    Connection connection;
    scene.net().run([&] {
      Listener listener = listen_on(AF_INET, 64, 0, own_address(1).c_str());
      const int waiting = 8;
      ::setsockopt(listener.fd.get(), IPPROTO_TCP, TCP_FASTOPEN, &waiting, sizeof waiting);
      scene.net().shell(
          "nft 'add table inet t; add chain inet t in { type filter hook input priority 0; }; add rule inet "
          "t in tcp "
          "dport " +
          std::to_string(local_port(listener.fd.get())) + " tcp flags & (syn | ack | rst) == ack drop'");
      connection.peer = unconnected();
      const sockaddr_in from = own_sockaddr(2, 0);
      require(::bind(connection.peer.get(), reinterpret_cast<const sockaddr*>(&from), sizeof from) == 0,
              "bind");
      require(::sendto(connection.peer.get(), "request", 7, MSG_FASTOPEN,
                       reinterpret_cast<const sockaddr*>(&listener.address), listener.length) == 7,
              "sendto(MSG_FASTOPEN)");
      await_readable(listener.fd.get());
      if (what == not_accepted) {
        listener.fd.reset();
        return;
      }
      connection.ours = accept_from(listener);
      tcp_info info{};
      socklen_t length = sizeof info;
      ::getsockopt(connection.ours.get(), IPPROTO_TCP, TCP_INFO, &info, &length);
      EXPECT_EQ(info.tcpi_state, TCP_SYN_RECV) << "or this test shows nothing";
    });
    if (what == read || what == answered) receive(connection.ours.get(), 7);
    if (what == answered) send_text(connection.ours.get(), "answer");
    if (what == closed) connection.ours.reset();
    if (what == closed || what == not_accepted) await_readable(connection.peer.get(), POLLRDHUP);
    reset(connection.peer);
    if (connection.ours) {
      await_departure(connection.ours.get());
      connection.ours.reset();
    }
    scene.net().flush();
    const ConnectionEnd end = scene.server_end();
    EXPECT_EQ(end.bytes_received, 7u) << what;
    EXPECT_EQ(end.unread, what == read || what == answered ? 0u : 7u) << what;
    EXPECT_EQ(end.pid, static_cast<std::uint32_t>(::getpid())) << what;
    if (what == closed || what == not_accepted) {
      EXPECT_EQ(end.cause, Cause::local) << what;
      continue;
    }
    EXPECT_EQ(end.cause, Cause::peer_reset) << what;
    EXPECT_EQ(end.verdict, ObservedVerdict::abandoned) << what;
    EXPECT_EQ(end.unsent, what == answered ? 6u : 0u) << what;
  }
}

// A socket may be used for one connection after another.
TEST(ObserveCauses, OneSocketWithManyConnections) {
  ObserverScene scene;
  const Listener listener = scene.listen();
  scene.net().run([&] {
    UniqueFd fd = unconnected();
    const sockaddr_in from = own_sockaddr(2, 0);
    require(::bind(fd.get(), reinterpret_cast<const sockaddr*>(&from), sizeof from) == 0, "bind");
    EXPECT_EQ(try_connect(fd.get(), 1, kNobody), ECONNREFUSED);
    EXPECT_EQ(try_connect(fd.get(), 1, kNobody), ECONNREFUSED);
    for (int i = 0; i < 2; ++i) {
      const std::uint16_t port = ntohs(reinterpret_cast<const sockaddr_in*>(&listener.address)->sin_port);
      ASSERT_EQ(try_connect(fd.get(), 1, port), 0);
      UniqueFd accepted = accept_from(listener);
      send_text(fd.get(), "some");
      receive(accepted.get(), 4);
      dissolve(fd.get());
      await_departure(accepted.get());
    }
  });
  int refused = 0, local = 0;
  for (const ConnectionEnd& end : scene.ends(6)) {
    if (end.direction != Direction::outbound) continue;
    refused += end.cause == Cause::refused;
    local += end.cause == Cause::local && end.bytes_sent == 4 && end.age;
  }
  EXPECT_EQ(refused, 2);
  EXPECT_EQ(local, 2);
}

TEST(ObserveCauses, WhatNeverWasAConnectionHasNoEnd) {
  ObserverScene scene;
  scene.listen();
  unconnected();
  scene.net().run([&] {
    scene.net().on_packets_to(kNobody, "drop");
    const UniqueFd given_up(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    EXPECT_EQ(try_connect(given_up.get(), 1, kNobody), EINPROGRESS);
  });
  EXPECT_EQ(scene.ends(0).size(), 0u);
}

TEST(ObserveCauses, NeverAccepted) {
  ObserverScene scene;
  Listener listener = scene.listen();
  UniqueFd leaver, waiter;
  scene.net().run([&] {
    leaver = connect_from(listener, 2);
    waiter = connect_from(listener, 2);
  });
  await_unacknowledged(listener.fd.get(), 2);
  leaver.reset();
  listener.fd.reset();  // resets both
  waiter.reset();
  int inbound = 0;
  for (const ConnectionEnd& end : scene.ends(4)) {
    if (end.direction != Direction::inbound) continue;
    ++inbound;
    EXPECT_EQ(end.orphaned.count(), 0) << "nobody worked for it";
    EXPECT_EQ(end.pid, static_cast<std::uint32_t>(::getpid())) << "whose listener it was";
  }
  EXPECT_EQ(inbound, 2);
}

TEST(ObserveCauses, ClosedWithUnreadData) {
  ObserverScene scene;
  Connection connection = scene.connect();
  send_text(connection.peer.get(), "unread");
  await_readable(connection.ours.get());
  connection.ours.reset();
  await_departure(connection.peer.get());
  connection.peer.reset();
  const auto ends = scene.ends(2);
  EXPECT_EQ(scene.one_of(ends, Direction::inbound).cause, Cause::local);
  EXPECT_EQ(scene.one_of(ends, Direction::inbound).unread, 6u);
  EXPECT_EQ(scene.one_of(ends, Direction::outbound).cause, Cause::peer_reset);
}

// The last one who held it, whoever made the packets that ended it.
TEST(ObserveCauses, TheHolderIsAnotherProcess) {
  ObserverScene scene;
  Connection connection = scene.connect();
  int go[2];
  require(::pipe2(go, O_CLOEXEC) == 0, "pipe2");
  UniqueFd wait_here(go[0]), wake(go[1]);
  const pid_t holder = ::fork();
  if (holder == 0) {
    wake.reset();
    connection.peer.reset();
    std::ofstream("/proc/self/comm") << "the holder";
    char byte = 0;
    if (::read(wait_here.get(), &byte, 1) < 0) ::_exit(1);
    ::_exit(0);
  }
  connection.ours.reset();
  reset(connection.peer);
  wake.reset();
  ::waitpid(holder, nullptr, 0);
  const ConnectionEnd end = scene.server_end();
  EXPECT_EQ(end.pid, static_cast<std::uint32_t>(holder));
  EXPECT_EQ(end.command, "the holder");
}

// What was there before the observer: the side is known by the octets counted, the age is not.
TEST(ObserveCauses, ConnectionsThatWereThereBefore) {
  const ObserverScene first;
  std::vector<Connection> connections;
  for (int i = 0; i < 3; ++i) connections.push_back(first.connect());
  exchange(connections[0]);
  exchange(connections[1]);
  send_text(connections[1].peer.get(), "request");
  await_readable(connections[1].ours.get());
  ObserverScene scene;
  for (Connection& connection : connections) {
    reset(connection.peer);
    await_departure(connection.ours.get());
    connection.ours.reset();
    const ConnectionEnd end = scene.server_end();
    EXPECT_FALSE(end.age);
    EXPECT_EQ(end.cause, Cause::peer_reset);
    EXPECT_EQ(end.verdict,
              &connection == &connections[1] ? ObservedVerdict::abandoned : ObservedVerdict::idle_close);
    EXPECT_EQ(end.pid, static_cast<std::uint32_t>(::getpid()));
  }
}

}  // namespace
}  // namespace sockalarm::test
