// SPDX-License-Identifier: Apache-2.0
#include <sys/wait.h>

#include <csignal>
#include <optional>

#include "harness/network_namespace.h"
#include "suite/suite.h"

// Every way a TCP connection ends, and what each source says of it; docs/tcp-events.md has the table. W is
// the watched socket, P its peer.

namespace sockalarm::test {
namespace {

SOCKALARM_SUITE(TcpEventsTest);

// W with an alarm for each event by itself, so that what comes is known exactly, and a second connection by
// which to know that the source has nothing more to report.
class Observed {
 public:
  Observed(const Watcher& watcher, const NetworkNamespace& net, Connection connection)
      : watcher_(watcher),
        net_(net),
        connection_(std::move(connection)),
        watch_(watcher.watch(connection_.ours.get()).value()) {
    for (const Events event :
         {events::fin, events::reset, events::timeout, events::error, events::eof, events::urgent})
      alarms_.push_back(watch_.arm(journal_.cause(), {.on = event, .deadline = {}}).value());
  }
  Observed(const Watcher& watcher, const NetworkNamespace& net) : Observed(watcher, net, net.connect()) {}

  UniqueFd& w() { return connection_.ours; }
  UniqueFd& p() { return connection_.peer; }
  const Watch& watch() const { return watch_; }

  // The events so far, in order of the alarms; all that had happened by now has been reported.
  std::string events(std::size_t at_least) {
    EXPECT_TRUE(journal_.wait_for(at_least))
        << "the events that came: " << testing::PrintToString(journal_.lines());
    Connection marker = net_.connect();
    const auto watch = watcher_.watch(marker.ours.get());
    Journal marked;
    const auto alarm = watch->arm(marked.cause());
    marker.peer.reset();
    EXPECT_TRUE(marked.wait_for(1));
    std::string all;
    auto lines = journal_.lines();
    std::sort(lines.begin(), lines.end());
    for (const std::string& line : lines) all += (all.empty() ? "" : " ") + line;
    return all;
  }

 private:
  const Watcher& watcher_;
  const NetworkNamespace& net_;
  Connection connection_;
  Watch watch_;
  Journal journal_;
  std::vector<Alarm> alarms_;
};

// Only the kernel source sees the error itself; the others conclude from what is left of the connection.
bool exact(SourceKind kind) { return kind == SourceKind::kernel; }

void expect_error(const Observed& observed, int error) {
  if (exact(observed.watch().source())) {
    EXPECT_EQ(observed.watch().error(), error);
  }
}

TEST_P(TcpEventsTest, Row01PeerClosesHalfClosesOrIsKilled) {
  SOCKALARM_WATCHER(watcher, GetParam());
  const NetworkNamespace net;
  Observed closed(watcher, net), half_closed(watcher, net), killed(watcher, net);
  closed.p().reset();
  EXPECT_EQ(closed.events(2), "eof fin");
  ::shutdown(half_closed.p().get(), SHUT_WR);
  EXPECT_EQ(half_closed.events(2), "eof fin");
  const pid_t holder = ::fork();
  if (holder == 0) {
    killed.w().reset();
    for (;;) ::pause();
  }
  killed.p().reset();
  ::kill(holder, SIGKILL);
  ::waitpid(holder, nullptr, 0);
  EXPECT_EQ(killed.events(2), "eof fin");
}

TEST_P(TcpEventsTest, Row02PeerOnlyStopsReading) {
  SOCKALARM_WATCHER(watcher, GetParam());
  const NetworkNamespace net;
  Observed observed(watcher, net);
  ::shutdown(observed.p().get(), SHUT_RD);
  EXPECT_EQ(observed.events(0), "");
  EXPECT_FALSE(observed.watch().peer_gone());
}

TEST_P(TcpEventsTest, Row03PeerResets) {
  SOCKALARM_WATCHER(watcher, GetParam());
  const NetworkNamespace net;
  Observed lingering(watcher, net), unread(watcher, net), firewalled(watcher, net);
  reset(lingering.p());
  EXPECT_EQ(lingering.events(1), "reset");
  expect_error(lingering, ECONNRESET);
  send_text(unread.w().get(), "never read");
  await_readable(unread.p().get());
  unread.p().reset();
  EXPECT_EQ(unread.events(1), "reset");
  net.on_packets_to(local_port(firewalled.p().get()), "reject with tcp reset");
  send_text(firewalled.w().get(), "refused by the firewall");
  EXPECT_EQ(firewalled.events(1), "reset");
}

TEST_P(TcpEventsTest, Row04PeerResetsWhileDataWaits) {
  SOCKALARM_WATCHER(watcher, GetParam());
  const NetworkNamespace net;
  Observed observed(watcher, net);
  send_text(observed.p().get(), "data");
  await_readable(observed.w().get());
  reset(observed.p());
  EXPECT_EQ(observed.events(1), "reset");
}

TEST_P(TcpEventsTest, Row05FinWithUnreadDataThenAllIsRead) {
  SOCKALARM_WATCHER(watcher, GetParam());
  const NetworkNamespace net;
  Observed observed(watcher, net);
  send_text(observed.p().get(), "data");
  observed.p().reset();
  EXPECT_EQ(observed.events(1), "fin");
  char buffer[16];
  EXPECT_EQ(::recv(observed.w().get(), buffer, 3, 0), 3);
  EXPECT_EQ(observed.events(1), "fin");
  EXPECT_EQ(::recv(observed.w().get(), buffer, sizeof buffer, 0), 1);
  EXPECT_EQ(observed.events(2), "eof fin");
}

TEST_P(TcpEventsTest, Row06PeerClosesAfterOurHalfClose) {
  SOCKALARM_WATCHER(watcher, GetParam());
  const NetworkNamespace net;
  Observed observed(watcher, net);
  ::shutdown(observed.w().get(), SHUT_WR);
  await_readable(observed.p().get());
  EXPECT_EQ(observed.events(0), "");
  observed.p().reset();
  EXPECT_EQ(observed.events(2), "eof fin");
}

TEST_P(TcpEventsTest, Row07BothFinsCross) {
  SOCKALARM_WATCHER(watcher, GetParam());
  const NetworkNamespace net;
  Observed observed(watcher, net);
  net.on_packets_to(local_port(observed.p().get()), "drop");  // W's FIN is under way for ever
  ::shutdown(observed.w().get(), SHUT_WR);
  observed.p().reset();
  EXPECT_EQ(observed.events(2), "eof fin");
}

TEST_P(TcpEventsTest, Row08ResetAfterTheFin) {
  SOCKALARM_WATCHER(watcher, GetParam());
  const NetworkNamespace net;
  Observed observed(watcher, net);
  observed.p().reset();
  EXPECT_EQ(observed.events(2), "eof fin");
  send_text(observed.w().get(), "to nobody");
  EXPECT_EQ(observed.events(3), "eof fin reset");
  expect_error(observed, EPIPE);
}

TEST_P(TcpEventsTest, Row09ResetAfterOurHalfClose) {
  SOCKALARM_WATCHER(watcher, GetParam());
  const NetworkNamespace net;
  Observed observed(watcher, net);
  ::shutdown(observed.w().get(), SHUT_WR);
  await_readable(observed.p().get());
  reset(observed.p());
  EXPECT_EQ(observed.events(1), "reset");
}

TEST_P(TcpEventsTest, Row10FinAfterWeStoppedReading) {
  SOCKALARM_WATCHER(watcher, GetParam());
  const NetworkNamespace net;
  Observed observed(watcher, net);
  ::shutdown(observed.w().get(), SHUT_RD);
  EXPECT_EQ(observed.events(0), "") << "our own shutdown is no news of the peer";
  send_text(observed.p().get(), "data");
  await_readable(observed.w().get());
  observed.p().reset();
  EXPECT_EQ(observed.events(1), "fin");
}

void set(int fd, int option, int value) {
  require(::setsockopt(fd, IPPROTO_TCP, option, &value, sizeof value) == 0, "setsockopt");
}

TEST_P(TcpEventsTest, Row11UserTimeout) {
  SOCKALARM_WATCHER(watcher, GetParam());
  const NetworkNamespace net;
  Observed observed(watcher, net);
  set(observed.w().get(), TCP_USER_TIMEOUT, 200);
  net.on_packets_to(local_port(observed.p().get()), "drop");
  send_text(observed.w().get(), "into the void");
  EXPECT_EQ(observed.events(1), "timeout");
  expect_error(observed, ETIMEDOUT);
}

TEST_P(TcpEventsTest, Row11RetransmissionsGiveUp) {
  SOCKALARM_WATCHER(watcher, GetParam());
  const NetworkNamespace net;
  net.sysctl("net/ipv4/tcp_retries2", 1);
  Observed observed(watcher, net);
  net.on_packets_to(local_port(observed.p().get()), "drop");
  send_text(observed.w().get(), "into the void");
  EXPECT_EQ(observed.events(1), "timeout");
}

TEST_P(TcpEventsTest, Row11KeepaliveGivesUp) {
  SOCKALARM_WATCHER(watcher, GetParam());
  const NetworkNamespace net;
  Observed observed(watcher, net);
  const int on = 1;
  ::setsockopt(observed.w().get(), SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
  set(observed.w().get(), TCP_KEEPIDLE, 1);
  set(observed.w().get(), TCP_KEEPINTVL, 1);
  set(observed.w().get(), TCP_KEEPCNT, 1);
  net.on_packets_to(local_port(observed.p().get()), "drop");
  EXPECT_EQ(observed.events(1), "timeout");
}

TEST_P(TcpEventsTest, Row12HostUnreachable) {
  SOCKALARM_WATCHER(watcher, GetParam());
  const NetworkNamespace net;
  net.sysctl("net/ipv4/tcp_retries2", 1);
  Observed observed(watcher, net);
  net.on_packets_to(local_port(observed.p().get()), "reject with icmpx host-unreachable");
  send_text(observed.w().get(), "refused by a router");
  // Only the kernel source sees why the retransmissions ended.
  EXPECT_EQ(observed.events(1), exact(GetParam()) ? "error" : "timeout");
  expect_error(observed, EHOSTUNREACH);
}

TEST_P(TcpEventsTest, Row13HostUnreachableReportedAtOnce) {
  SOCKALARM_WATCHER(watcher, GetParam());
  const NetworkNamespace net;
  Observed observed(watcher, net);
  const int on = 1;
  require(::setsockopt(observed.w().get(), IPPROTO_IP, IP_RECVERR, &on, sizeof on) == 0, "IP_RECVERR");
  net.on_packets_to(local_port(observed.p().get()), "reject with icmpx host-unreachable");
  send_text(observed.w().get(), "refused by a router");
  EXPECT_EQ(observed.events(1), "error");
  tcp_info info{};
  socklen_t length = sizeof info;
  ::getsockopt(observed.w().get(), IPPROTO_TCP, TCP_INFO, &info, &length);
  EXPECT_EQ(info.tcpi_state, TCP_ESTABLISHED);
}

TEST_P(TcpEventsTest, Row14SocketDestroyedByTheOperator) {
  SOCKALARM_WATCHER(watcher, GetParam());
  const NetworkNamespace net;
  Observed observed(watcher, net);
  net.shell("ss -K src 127.0.0.1 sport = :" + std::to_string(local_port(observed.w().get())) +
            " dport = :" + std::to_string(local_port(observed.p().get())));
  EXPECT_EQ(observed.events(1), exact(GetParam()) ? "error" : "reset");
  expect_error(observed, ECONNABORTED);
}

// Rows 15 to 17 with an alarm on `closed`.
struct Closing {
  Closing(const Watcher& watcher, const NetworkNamespace& net) : connection(net.connect()) {
    watch.emplace(watcher.watch(connection.ours.get()).value());
    for (const Events event : {events::shut, events::closed})
      alarms.push_back(watch->arm(journal.cause(), {.on = event, .deadline = {}}).value());
  }
  Connection connection;
  std::optional<Watch> watch;
  Journal journal;
  std::vector<Alarm> alarms;
};

TEST_P(TcpEventsTest, Row15ClosedHere) {
  SOCKALARM_WATCHER(watcher, GetParam());
  const NetworkNamespace net;
  Closing closing(watcher, net);
  closing.connection.ours.reset();
  ASSERT_TRUE(closing.journal.wait_for(1));
  EXPECT_EQ(closing.journal.lines(), std::vector<std::string>{"closed"});
  EXPECT_FALSE(closing.watch->peer_gone());
}

// Whoever closed the socket hears no more of it, also if nobody had asked for `closed`.
TEST_P(TcpEventsTest, Row15ClosedHereThenThePeerLeaves) {
  SOCKALARM_WATCHER(watcher, GetParam());
  if (GetParam() == SourceKind::poll) return;  // its poll() holds the connection open; docs/sources.md
  const NetworkNamespace net;
  Connection closed = net.connect(), reset = net.connect(), marker = net.connect();
  Journal journal;
  std::vector<Watch> watches;
  std::vector<Alarm> alarms;
  for (const auto& [connection, name] :
       {std::pair{&closed, "closed"}, std::pair{&reset, "reset"}, std::pair{&marker, "marker"}}) {
    watches.push_back(watcher.watch(connection->ours.get()).value());
    alarms.push_back(watches.back().arm(journal.entry(name)).value());
  }
  closed.ours.reset();
  await_readable(closed.peer.get());
  closed.peer.reset();  // a FIN to an orphan
  reset.ours.reset();
  await_readable(reset.peer.get());
  const linger hard{1, 0};
  ::setsockopt(reset.peer.get(), SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
  reset.peer.reset();
  marker.peer.reset();
  ASSERT_TRUE(journal.wait_for(1));
  EXPECT_EQ(journal.lines(), std::vector<std::string>{"marker"});
  EXPECT_FALSE(watches[0].peer_gone());
  EXPECT_FALSE(watches[1].peer_gone());
}

// The same for what the kernel finds out of an orphan by itself: its FIN is never acknowledged.
TEST_P(TcpEventsTest, Row15ClosedHereThenTheKernelGivesUp) {
  SOCKALARM_WATCHER(watcher, GetParam());
  if (GetParam() == SourceKind::poll) return;  // its poll() holds the connection open; docs/sources.md
  const NetworkNamespace net;
  Connection closed = net.connect(), marker = net.connect();
  Journal journal;
  const Watch watch = watcher.watch(closed.ours.get()).value();
  const Watch of_marker = watcher.watch(marker.ours.get()).value();
  const auto alarm = watch.arm(journal.entry("closed")), last = of_marker.arm(journal.entry("marker"));
  const std::string mine = "sport = :" + std::to_string(local_port(closed.ours.get())) +
                           " dport = :" + std::to_string(local_port(closed.peer.get()));
  set(closed.ours.get(), TCP_USER_TIMEOUT, 200);
  net.on_packets_to(local_port(closed.peer.get()), "drop");
  closed.ours.reset();
  net.shell("timeout 20 sh -c \"while ss -Htan '" + mine + "' | grep -q .; do sleep 0.02; done\"");
  marker.peer.reset();
  ASSERT_TRUE(journal.wait_for(1));
  EXPECT_EQ(journal.lines(), std::vector<std::string>{"marker"});
  EXPECT_FALSE(watch.peer_gone());
}

TEST_P(TcpEventsTest, Row16ClosedHereWhileADupRemains) {
  SOCKALARM_WATCHER(watcher, GetParam());
  if (GetParam() == SourceKind::poll) return;  // asks by number; docs/sources.md
  const NetworkNamespace net;
  Options options;
  Closing closing(watcher, net);
  closing.alarms[1].cancel();  // the check for a descriptor that became another file would come first
  UniqueFd duplicate(::dup(closing.connection.ours.get()));
  closing.connection.ours.reset();
  closing.connection.peer.reset();
  ASSERT_TRUE(closing.journal.wait_for(1));
  EXPECT_EQ(closing.journal.lines().front(), "fin");
  closing.alarms[1].start();
  duplicate.reset();
  ASSERT_TRUE(closing.journal.wait_for(2));
  EXPECT_EQ(closing.journal.lines().back(), "closed");
}

TEST_P(TcpEventsTest, Row17ClosedHereWithUnreadData) {
  SOCKALARM_WATCHER(watcher, GetParam());
  const NetworkNamespace net;
  Closing closing(watcher, net);
  send_text(closing.connection.peer.get(), "unread");
  await_readable(closing.connection.ours.get());
  closing.connection.ours.reset();
  ASSERT_TRUE(closing.journal.wait_for(1));
  EXPECT_EQ(closing.journal.lines(), std::vector<std::string>{"closed"});
}

TEST_P(TcpEventsTest, Row18DisconnectedHere) {
  SOCKALARM_WATCHER(watcher, GetParam());
  const NetworkNamespace net;
  Observed observed(watcher, net);
  sockaddr nobody{};
  nobody.sa_family = AF_UNSPEC;
  ASSERT_EQ(::connect(observed.w().get(), &nobody, sizeof nobody), 0);
  EXPECT_EQ(observed.events(0), "");
}

TEST_P(TcpEventsTest, Rows19And20PeerLeftBeforeAccept) {
  SOCKALARM_WATCHER(watcher, GetParam());
  const NetworkNamespace net;
  Connection closed, broken, broken_with_data;
  net.run([&] {
    const Listener listener = listen_on(AF_INET);
    connect_to(listener).reset();
    UniqueFd peer = connect_to(listener);
    reset(peer);
    peer = connect_to(listener);
    send_text(peer.get(), "data");
    reset(peer);
    closed.ours = accept_from(listener);
    broken.ours = accept_from(listener);
    broken_with_data.ours = accept_from(listener);
  });
  EXPECT_EQ(Observed(watcher, net, std::move(closed)).events(2), "eof fin");
  EXPECT_EQ(Observed(watcher, net, std::move(broken)).events(1), "reset");
  EXPECT_EQ(Observed(watcher, net, std::move(broken_with_data)).events(1), "reset");
}

void fill_window(int from) {
  const std::string block(65536, 'x');
  while (::send(from, block.data(), block.size(), MSG_DONTWAIT | MSG_NOSIGNAL) > 0) {
  }
}

TEST_P(TcpEventsTest, Row21FinBehindAFullWindow) {
  SOCKALARM_WATCHER(watcher, GetParam());
  const NetworkNamespace net;
  Observed observed(watcher, net);
  fill_window(observed.p().get());
  observed.p().reset();
  EXPECT_EQ(observed.events(0), "") << "a limit of TCP: the FIN waits behind the data";
  std::string buffer(1 << 20, ' ');
  while (::recv(observed.w().get(), buffer.data(), buffer.size(), 0) > 0) {
  }
  EXPECT_EQ(observed.events(2), "eof fin");
}

TEST_P(TcpEventsTest, Row22ResetBehindAFullWindow) {
  SOCKALARM_WATCHER(watcher, GetParam());
  const NetworkNamespace net;
  Observed observed(watcher, net);
  fill_window(observed.p().get());
  reset(observed.p());
  EXPECT_EQ(observed.events(1), "reset");
}

TEST_P(TcpEventsTest, Row23ConnectionRefused) {
  SOCKALARM_WATCHER(watcher, GetParam());
  const NetworkNamespace net;
  Connection connection;
  constexpr std::uint16_t kPort = 4711;
  net.on_packets_to(kPort, "drop");  // until it is watched
  net.run([&] {
    connection.ours = UniqueFd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(kPort);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    require(::connect(connection.ours.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == -1 &&
                errno == EINPROGRESS,
            "connect");
  });
  Observed observed(watcher, net, std::move(connection));
  EXPECT_EQ(observed.events(0), "");
  net.flush();  // the next attempt, a second later, is refused
  // An attempt that was repeated looks like one that gave up.
  EXPECT_EQ(observed.events(1), exact(GetParam()) ? "reset" : "timeout");
  expect_error(observed, ECONNREFUSED);
}

TEST_P(TcpEventsTest, Row24Ipv6AndMappedIpv4) {
  SOCKALARM_WATCHER(watcher, GetParam());
  const NetworkNamespace net;
  Observed ipv6(watcher, net, net.connect(AF_INET6));
  ipv6.p().reset();
  EXPECT_EQ(ipv6.events(2), "eof fin");

  Connection mapped;
  net.run([&] {
    Listener listener;
    listener.fd = UniqueFd(::socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in6 any{};
    any.sin6_family = AF_INET6;
    require(::bind(listener.fd.get(), reinterpret_cast<sockaddr*>(&any), sizeof any) == 0, "bind");
    require(::listen(listener.fd.get(), 1) == 0, "listen");
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(local_port(listener.fd.get()));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    std::memcpy(&listener.address, &address, listener.length = sizeof address);
    mapped.peer = connect_to(listener);
    mapped.ours = accept_from(listener);
  });
  Observed observed(watcher, net, std::move(mapped));
  reset(observed.p());
  EXPECT_EQ(observed.events(1), "reset");
}

TEST_P(TcpEventsTest, Row25Mptcp) {
  SOCKALARM_WATCHER(watcher, GetParam());
  const NetworkNamespace net;
  constexpr int kMptcp = 262;
  Connection connection;
  net.run([&] { connection = tcp_pair(AF_INET, kMptcp); });
  Observed observed(watcher, net, std::move(connection));
  EXPECT_NE(observed.watch().source(), SourceKind::kernel);
  observed.p().reset();
  EXPECT_EQ(observed.events(2), "eof fin");
}

TEST_P(TcpEventsTest, Row26UrgentData) {
  SOCKALARM_WATCHER(watcher, GetParam());
  const NetworkNamespace net;
  Observed observed(watcher, net);
  require(::send(observed.p().get(), "!", 1, MSG_OOB) == 1, "send(MSG_OOB)");
  EXPECT_EQ(observed.events(1), "urgent");
}

}  // namespace
}  // namespace sockalarm::test
