// SPDX-License-Identifier: Apache-2.0
#include <optional>

#include "suite/suite.h"

namespace sockalarm::test {
namespace {

SOCKALARM_SUITE(EventsTest);

TEST_P(EventsTest, PeerClosing) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Connection connection = tcp_pair();
  const auto watch = watcher.watch(connection.ours.get());
  ASSERT_TRUE(watch) << watch.error().message();
  EXPECT_EQ(watch->source(), GetParam());
  EXPECT_FALSE(watch->peer_gone());
  EXPECT_EQ(watch->seen(), events::none);
  EXPECT_EQ(watch->seen_at(), std::chrono::steady_clock::time_point{});

  Journal journal;
  const auto alarm = watch->arm(journal.cause());
  ASSERT_TRUE(alarm) << alarm.error().message();
  const auto before = std::chrono::steady_clock::now();
  connection.peer.reset();
  ASSERT_TRUE(journal.wait_for(1));
  EXPECT_EQ(journal.lines().front(), "fin");
  EXPECT_TRUE(watch->peer_gone());
  EXPECT_EQ(watch->seen(), events::fin | events::eof);
  EXPECT_GE(watch->seen_at(), before);
  EXPECT_LE(watch->seen_at(), std::chrono::steady_clock::now());
  EXPECT_EQ(journal.last().cookie, watch->cookie());
  EXPECT_EQ(watch->error(), 0);
  EXPECT_EQ(watcher.stats().fired, 1U);
}

TEST_P(EventsTest, PeerResetting) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Connection connection = tcp_pair();
  const auto watch = watcher.watch(connection.ours.get());
  Journal journal;
  const auto alarm = watch->arm(journal.cause());
  reset(connection.peer);
  ASSERT_TRUE(journal.wait_for(1));
  EXPECT_EQ(journal.lines().front(), "reset");
  EXPECT_EQ(journal.last().error, ECONNRESET);
  EXPECT_EQ(watch->error(), ECONNRESET);
  // Found out without taking the error away from the program.
  char byte = 0;
  EXPECT_EQ(::recv(connection.ours.get(), &byte, 1, MSG_DONTWAIT), -1);
  EXPECT_EQ(errno, ECONNRESET);
}

TEST_P(EventsTest, HalfCloseIsFinOnlyAndTheResetStillComes) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Connection connection = tcp_pair();
  const auto watch = watcher.watch(connection.ours.get());
  Journal strict, lenient;
  const auto on_fin = watch->arm(strict.cause());
  const auto on_reset =
      watch->arm(lenient.cause(), {.on = events::reset | events::timeout | events::error, .deadline = {}});
  ::shutdown(connection.peer.get(), SHUT_WR);
  ASSERT_TRUE(strict.wait_for(1));
  send_text(connection.ours.get(), "unread by the peer");
  await_readable(connection.peer.get());
  connection.peer.reset();  // with unread data: RST
  ASSERT_TRUE(lenient.wait_for(1));
  EXPECT_EQ(strict.lines(), std::vector<std::string>{"fin"});
  EXPECT_EQ(lenient.lines(), std::vector<std::string>{"reset"});
}

TEST_P(EventsTest, EofComesWhenEverythingWasRead) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Connection connection = tcp_pair();
  const auto watch = watcher.watch(connection.ours.get());
  Journal journal;
  const auto on_fin = watch->arm(journal.entry("fin"), {.on = events::fin, .deadline = {}});
  const auto on_eof = watch->arm(journal.cause(), {.on = events::eof, .deadline = {}});
  send_text(connection.peer.get(), "four");
  connection.peer.reset();
  if (!kFinNeedsReading) {
    ASSERT_TRUE(journal.wait_for(1));
    EXPECT_FALSE(on_eof->triggered());
  }
  char buffer[8];
  EXPECT_EQ(::recv(connection.ours.get(), buffer, 2, 0), 2);
  EXPECT_FALSE(watch->seen() & events::eof);
  EXPECT_EQ(::recv(connection.ours.get(), buffer, 8, 0), 2);
  ASSERT_TRUE(journal.wait_for(2));
  EXPECT_TRUE(watch->seen().contains(events::fin | events::eof));
  EXPECT_TRUE(eventually([&] { return on_eof->finished() && on_fin->finished(); }));
}

TEST_P(EventsTest, EofArmedAfterTheFinWithDataPending) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Connection connection = tcp_pair();
  send_text(connection.peer.get(), "data");
  connection.peer.reset();
  await_readable(connection.ours.get());
  const auto watch = watcher.watch(connection.ours.get());
  Journal journal;
  const auto alarm = watch->arm(journal.cause(), {.on = events::eof, .deadline = {}});
  char buffer[8];
  EXPECT_EQ(::recv(connection.ours.get(), buffer, 8, 0), 4);
  ASSERT_TRUE(journal.wait_for(1));
  EXPECT_EQ(journal.lines().front(), "eof");
}

TEST_P(EventsTest, Readable) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Connection connection = tcp_pair();
  const auto watch = watcher.watch(connection.ours.get());
  Journal journal;
  auto alarm = watch->arm(journal.cause(), {.on = events::readable, .deadline = {}});
  EXPECT_FALSE(alarm->triggered());
  send_text(connection.peer.get(), "x");
  ASSERT_TRUE(journal.wait_for(1));
  EXPECT_EQ(journal.lines().front(), "readable");
  EXPECT_FALSE(watch->peer_gone());
  EXPECT_EQ(watch->seen(), events::none) << "readable is not sticky";
  // Still readable: armed again, it fires again.
  ASSERT_TRUE(eventually([&] { return !alarm->active(); }));
  EXPECT_TRUE(alarm->start());
  ASSERT_TRUE(journal.wait_for(2));
}

// The source asks through the first number; when that is closed, through the other.
TEST_P(EventsTest, ThroughADupAfterTheFirstNumberWasClosed) {
  SOCKALARM_WATCHER(watcher, GetParam());
  for (const bool watch_first_ends : {false, true}) {
    Connection connection = tcp_pair();
    const UniqueFd duplicate(::dup(connection.ours.get()));
    std::optional<Watch> first(watcher.watch(connection.ours.get()).value());
    const auto second = watcher.watch(duplicate.get());
    if (watch_first_ends) first.reset();
    connection.ours.reset();
    Journal journal;
    const auto shut = second->arm(journal.cause());
    const auto readable = second->arm(journal.cause(), {.on = events::readable, .deadline = {}});
    send_text(connection.peer.get(), "x");
    EXPECT_TRUE(journal.wait_for(1));
    char byte = 0;
    EXPECT_EQ(::recv(duplicate.get(), &byte, 1, 0), 1);
    connection.peer.reset();
    EXPECT_TRUE(journal.wait_for(2));
    EXPECT_EQ(journal.lines(), (std::vector<std::string>{"readable", "fin"}));
  }
}

TEST_P(EventsTest, Urgent) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Connection connection = tcp_pair();
  const auto watch = watcher.watch(connection.ours.get());
  Journal journal;
  const auto alarm = watch->arm(journal.cause(), {.on = events::urgent, .deadline = {}});
  ASSERT_EQ(::send(connection.peer.get(), "!", 1, MSG_OOB), 1);
  ASSERT_TRUE(journal.wait_for(1));
  EXPECT_EQ(journal.lines().front(), "urgent");
}

TEST_P(EventsTest, ClosedByThisProcess) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Connection connection = tcp_pair();
  const auto watch = watcher.watch(connection.ours.get());
  Journal journal;
  const auto alarm = watch->arm(journal.cause(), {.on = events::closed, .deadline = {}});
  const auto on_shut = watch->arm(journal.entry("shut"));
  connection.ours.reset();
  ASSERT_TRUE(journal.wait_for(1));
  EXPECT_EQ(journal.lines(), std::vector<std::string>{"closed"}) << "our own closing is no news of the peer";
}

TEST_P(EventsTest, ClosedAlthoughADupLivesOn) {
  Options options;
  options.closed_check = 10ms;
  SOCKALARM_WATCHER(watcher, GetParam(), options);
  Connection connection = tcp_pair();
  const UniqueFd duplicate(::dup(connection.ours.get()));
  const auto watch = watcher.watch(connection.ours.get());
  Journal journal;
  const auto alarm = watch->arm(journal.cause(), {.on = events::closed, .deadline = {}});
  connection.ours.reset();
  ASSERT_TRUE(journal.wait_for(1));
  EXPECT_EQ(journal.lines().front(), "closed");
}

TEST_P(EventsTest, PeerIsStillSeenThroughADup) {
  SOCKALARM_WATCHER(watcher, GetParam());
  if (GetParam() == SourceKind::poll) return;  // asks by number; docs/sources.md
  Connection connection = tcp_pair();
  const UniqueFd duplicate(::dup(connection.ours.get()));
  const auto watch = watcher.watch(connection.ours.get());
  Journal journal;
  const auto alarm = watch->arm(journal.cause());
  connection.ours.reset();
  connection.peer.reset();
  ASSERT_TRUE(journal.wait_for(1));
  EXPECT_EQ(journal.lines().front(), "fin");
}

TEST_P(EventsTest, Deadline) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Connection connection = tcp_pair();
  const auto watch = watcher.watch(connection.ours.get());
  Journal journal;
  const auto start = std::chrono::steady_clock::now();
  const auto alarm = watch->arm(journal.cause(), {.on = events::shut, .deadline = 20ms});
  ASSERT_TRUE(journal.wait_for(1));
  EXPECT_EQ(journal.lines().front(), "deadline");
  EXPECT_GE(std::chrono::steady_clock::now() - start, 20ms);
  EXPECT_FALSE(watch->peer_gone());
}

TEST_P(EventsTest, UnixSocket) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Connection connection = unix_pair();
  const auto watch = watcher.watch(connection.ours.get());
  ASSERT_TRUE(watch) << watch.error().message();
  EXPECT_FALSE(has_ring(watch->source()));
  Journal journal;
  const auto alarm = watch->arm(journal.cause());
  connection.peer.reset();
  ASSERT_TRUE(journal.wait_for(1));
  EXPECT_EQ(journal.lines().front(), "fin");
}

TEST_P(EventsTest, UnixSocketWhosePeerLeftOurDataUnread) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Connection connection = unix_pair();
  send_text(connection.ours.get(), "unread");
  const auto watch = watcher.watch(connection.ours.get());
  Journal journal;
  const auto alarm = watch->arm(journal.cause());
  connection.peer.reset();
  ASSERT_TRUE(journal.wait_for(1));
  EXPECT_EQ(journal.lines().front(), "reset");
}

TEST_P(EventsTest, Ipv6) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Connection connection = tcp_pair(AF_INET6);
  const auto watch = watcher.watch(connection.ours.get());
  Journal journal;
  const auto alarm = watch->arm(journal.cause());
  connection.peer.reset();
  ASSERT_TRUE(journal.wait_for(1));
  EXPECT_EQ(journal.lines().front(), "fin");
}

#if SOCKALARM_LINUX
TEST_P(EventsTest, Mptcp) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Connection connection;
  try {
    connection = tcp_pair(AF_INET, 262);  // IPPROTO_MPTCP
  } catch (const std::runtime_error& error) {
    GTEST_SKIP() << "no MPTCP here: " << error.what();
  }
  const auto watch = watcher.watch(connection.ours.get());
  ASSERT_TRUE(watch) << watch.error().message();
  EXPECT_FALSE(has_ring(watch->source()));
  Journal journal;
  const auto alarm = watch->arm(journal.cause());
  connection.peer.reset();
  ASSERT_TRUE(journal.wait_for(1));
  EXPECT_EQ(journal.lines().front(), "fin");
}
#endif

TEST_P(EventsTest, OurOwnShutdownIsNotThePeersButHidesNothing) {
  SOCKALARM_WATCHER(watcher, GetParam());
  if (kFinNeedsReading) return;  // reads as end of stream; docs/sources.md
  Connection connection = tcp_pair();
  const auto watch = watcher.watch(connection.ours.get());
  Journal journal;
  const auto alarm = watch->arm(journal.cause());
  ::shutdown(connection.ours.get(), SHUT_RD);
  // Something the source reports after the shutdown: it was looked at by then.
  Connection other = tcp_pair();
  const auto marker_watch = watcher.watch(other.ours.get());
  Journal marker;
  const auto marker_alarm = marker_watch->arm(marker.cause());
  other.peer.reset();
  ASSERT_TRUE(marker.wait_for(1));
  EXPECT_FALSE(alarm->triggered());
  EXPECT_FALSE(watch->peer_gone());
  connection.peer.reset();
  ASSERT_TRUE(journal.wait_for(1));
  EXPECT_EQ(journal.lines().front(), "fin");
}

TEST_P(EventsTest, PeerLeftBeforeWatch) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Connection closed = tcp_pair(), broken = tcp_pair();
  closed.peer.reset();
  reset(broken.peer);
  await_readable(closed.ours.get());
  await_readable(broken.ours.get());
  const auto watch_closed = watcher.watch(closed.ours.get());
  const auto watch_broken = watcher.watch(broken.ours.get());
  ASSERT_TRUE(watch_closed);
  ASSERT_TRUE(watch_broken) << watch_broken.error().message();
  EXPECT_TRUE(watch_closed->peer_gone());
  EXPECT_TRUE(watch_broken->peer_gone());
  Journal journal;
  const auto first = watch_closed->arm(journal.cause());
  ASSERT_TRUE(journal.wait_for(1));
  const auto second = watch_broken->arm(journal.cause());
  ASSERT_TRUE(journal.wait_for(2));
  EXPECT_EQ(journal.lines(), (std::vector<std::string>{"fin", "reset"}));
}

// Whoever looks first, the one who watches or the source, and what else it is at.
TEST_P(EventsTest, AResetIsNoEndOfTheStream) {
  SOCKALARM_WATCHER(watcher, GetParam());
  for (int i = 0; i < 300; ++i) {
    Connection connection = tcp_pair();
    reset(connection.peer);
    await_readable(connection.ours.get());
    const auto watch = watcher.watch(connection.ours.get());
    ASSERT_TRUE(watch) << watch.error().message();
    Journal journal;
    const auto alarm = watch->arm(journal.cause());
    ASSERT_TRUE(journal.wait_for(1));
    ASSERT_EQ(watch->seen() & (events::shut | events::eof), events::reset) << i;
  }
}

TEST_P(EventsTest, PeerLeftBeforeAccept) {
  SOCKALARM_WATCHER(watcher, GetParam());
  const Listener listener = listen_on(AF_INET);
  connect_to(listener).reset();
  UniqueFd resetting = connect_to(listener);
  reset(resetting);
  const UniqueFd first = accept_from(listener), second = accept_from(listener);
  const auto watch_first = watcher.watch(first.get());
  const auto watch_second = watcher.watch(second.get());
  ASSERT_TRUE(watch_first) << watch_first.error().message();
  ASSERT_TRUE(watch_second) << watch_second.error().message();
  EXPECT_EQ(watch_first->seen() & events::shut, events::fin);
  EXPECT_EQ(watch_second->seen() & events::shut, events::reset);
}

TEST_P(EventsTest, PeerLeavesBetweenWatchAndArm) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Connection connection = tcp_pair();
  const auto watch = watcher.watch(connection.ours.get());
  connection.peer.reset();
  await_readable(connection.ours.get());
  Journal journal;
  const auto alarm = watch->arm(journal.cause());
  ASSERT_TRUE(journal.wait_for(1));
  EXPECT_EQ(journal.lines().front(), "fin");
}

TEST_P(EventsTest, PeerLeavesDuringArm) {
  SOCKALARM_WATCHER(watcher, GetParam());
  for (int round = 0; round < 300; ++round) {
    Connection connection = tcp_pair();
    const auto watch = watcher.watch(connection.ours.get());
    std::atomic<bool> go{false};
    std::thread leaver([&] {
      while (!go.load()) {
      }
      connection.peer.reset();
    });
    Journal journal;
    std::atomic<int> times{0};
    go.store(true);
    const auto meet = std::chrono::steady_clock::now() + std::chrono::microseconds(round % 30);
    while (std::chrono::steady_clock::now() < meet) {
    }
    const auto alarm = watch->arm(ActionChain{call([&] { ++times; }), journal.cause()});
    leaver.join();
    ASSERT_TRUE(journal.wait_for(1)) << "round " << round;
    ASSERT_TRUE(eventually([&] { return !alarm->active(); }));
    ASSERT_EQ(times.load(), 1) << "round " << round;
  }
}

TEST_P(EventsTest, ReusedDescriptorNumberFiresNoStranger) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Connection first = tcp_pair();
  const int number = first.ours.get();
  const auto watch = watcher.watch(number);
  Journal journal;
  const auto alarm = watch->arm(journal.entry("stranger"));
  // The number means another connection now, and its peer leaves. Made before the number is free, which else
  // would be its peer's.
  Connection second = tcp_pair();
  first.ours.reset();
  ASSERT_EQ(::dup2(second.ours.get(), number), number);
  second.ours.reset(number);
  const auto second_watch = watcher.watch(number);
  ASSERT_TRUE(second_watch);
  Journal right;
  const auto second_alarm = second_watch->arm(right.cause());
  second.peer.reset();
  ASSERT_TRUE(right.wait_for(1));
  EXPECT_FALSE(watch->peer_gone());
  EXPECT_TRUE(journal.lines().empty());
}

}  // namespace
}  // namespace sockalarm::test
