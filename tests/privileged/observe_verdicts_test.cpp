// SPDX-License-Identifier: Apache-2.0
#include <chrono>

#include "privileged/observe_scene.h"

// What the end of a server's connection meant for its work, by real clients.

namespace sockalarm::test {
namespace {

using std::chrono::steady_clock;

// A request that nobody has answered yet, read or not.
void ask(const Connection& connection, bool read) {
  send_text(connection.peer.get(), "request");
  await_readable(connection.ours.get());
  if (read) receive(connection.ours.get(), 7);
}

TEST(ObserveVerdicts, IdleCloseAfterAnAnsweredRequest) {
  ObserverScene scene;
  Connection connection = scene.connect();
  exchange(connection);
  connection.peer.reset();
  await_departure(connection.ours.get());
  connection.ours.reset();
  const ConnectionEnd end = scene.server_end();
  EXPECT_EQ(end.verdict, ObservedVerdict::idle_close);
  EXPECT_EQ(end.cause, Cause::peer_fin);
  EXPECT_EQ(end.orphaned.count(), 0);
}

TEST(ObserveVerdicts, IdleCloseThoughManyRequestsCameAtOnce) {
  ObserverScene scene;
  Connection connection = scene.connect();
  for (int i = 0; i < 20; ++i) exchange(connection);  // many within a tick of the kernel's clock
  connection.peer.reset();
  await_departure(connection.ours.get());
  connection.ours.reset();
  EXPECT_EQ(scene.server_end().verdict, ObservedVerdict::idle_close);
}

TEST(ObserveVerdicts, IdleCloseWithoutAnyRequest) {
  ObserverScene scene;
  Connection connection = scene.connect();
  reset(connection.peer);
  await_departure(connection.ours.get());
  connection.ours.reset();
  const ConnectionEnd end = scene.server_end();
  EXPECT_EQ(end.verdict, ObservedVerdict::idle_close);
  EXPECT_EQ(end.cause, Cause::peer_reset);
}

TEST(ObserveVerdicts, AbandonedByResetWithTheRequestUnreadOrReadOrTheAnswerUnderWay) {
  ObserverScene scene;
  for (const bool read : {false, true}) {
    Connection connection = scene.connect();
    exchange(connection);
    ask(connection, read);
    reset(connection.peer);
    await_departure(connection.ours.get());
    connection.ours.reset();
    const ConnectionEnd end = scene.server_end();
    EXPECT_EQ(end.verdict, ObservedVerdict::abandoned) << read;
    EXPECT_EQ(end.cause, Cause::peer_reset);
    EXPECT_EQ(end.error, ECONNRESET);
    EXPECT_EQ(end.unread, read ? 0u : 7u);
    EXPECT_GT(end.orphaned.count(), 0);
  }
  Connection connection = scene.connect();
  ask(connection, true);
  send_text(connection.ours.get(), "answer");
  await_readable(connection.peer.get());
  await_unacknowledged(connection.ours.get(), 0);
  connection.peer.reset();  // by a reset, since it did not read the answer, which it had acknowledged
  await_departure(connection.ours.get());
  connection.ours.reset();
  EXPECT_EQ(scene.server_end().verdict, ObservedVerdict::idle_close);
}

TEST(ObserveVerdicts, AbandonedByFinWhenTheAnswerIsReset) {
  ObserverScene scene;
  Connection connection = scene.connect();
  ask(connection, true);
  connection.peer.reset();
  await_departure(connection.ours.get());
  send_text(connection.ours.get(), "answer");
  await_readable(connection.ours.get(), POLLHUP);
  connection.ours.reset();
  const ConnectionEnd end = scene.server_end();
  EXPECT_EQ(end.verdict, ObservedVerdict::abandoned);
  EXPECT_EQ(end.cause, Cause::peer_fin) << "what came first";
  EXPECT_EQ(end.error, EPIPE);
  EXPECT_EQ(end.unsent, 6u);
}

// The reset comes when the server has closed the connection too.
TEST(ObserveVerdicts, AbandonedByFinWhenTheAnswerIsResetAfterTheClose) {
  ObserverScene scene;
  Connection connection = scene.connect();
  ask(connection, true);
  connection.peer.reset();
  await_departure(connection.ours.get());
  const int on = 1;
  ::setsockopt(connection.ours.get(), IPPROTO_TCP, TCP_CORK, &on, sizeof on);
  send_text(connection.ours.get(), "answer");
  connection.ours.reset();
  EXPECT_EQ(scene.server_end().verdict, ObservedVerdict::abandoned);
}

TEST(ObserveVerdicts, AbandonedByFinWhenThereIsNoAnswer) {
  ObserverScene scene;
  Connection connection = scene.connect();
  ask(connection, true);
  connection.peer.reset();
  await_departure(connection.ours.get());
  connection.ours.reset();
  EXPECT_EQ(scene.server_end().verdict, ObservedVerdict::abandoned);
}

TEST(ObserveVerdicts, AbandonedByFinWhenTheAnswerIsNeverAcknowledged) {
  ObserverScene scene;
  Connection connection = scene.connect();
  const int patience = 200;
  ::setsockopt(connection.ours.get(), IPPROTO_TCP, TCP_USER_TIMEOUT, &patience, sizeof patience);
  ask(connection, true);
  ::shutdown(connection.peer.get(), SHUT_WR);
  await_departure(connection.ours.get());
  scene.net().on_packets_to(local_port(connection.peer.get()), "drop");
  send_text(connection.ours.get(), "answer");
  await_readable(connection.ours.get(), POLLERR);
  connection.ours.reset();
  scene.net().flush();
  reset(connection.peer);
  const ConnectionEnd end = scene.server_end();
  EXPECT_EQ(end.verdict, ObservedVerdict::abandoned);
  EXPECT_EQ(end.error, ETIMEDOUT);
}

TEST(ObserveVerdicts, AbandonedByTimeout) {
  ObserverScene scene;
  Connection connection = scene.connect();
  const int patience = 200;
  ::setsockopt(connection.ours.get(), IPPROTO_TCP, TCP_USER_TIMEOUT, &patience, sizeof patience);
  ask(connection, true);
  scene.net().on_packets_to(local_port(connection.peer.get()), "drop");
  send_text(connection.ours.get(), "part of the answer");
  await_readable(connection.ours.get(), POLLERR);
  connection.ours.reset();
  scene.net().flush();
  reset(connection.peer);
  const ConnectionEnd end = scene.server_end();
  EXPECT_EQ(end.verdict, ObservedVerdict::abandoned);
  EXPECT_EQ(end.cause, Cause::timeout);
}

TEST(ObserveVerdicts, HalfCloseServed) {
  ObserverScene scene;
  for (const bool read : {false, true}) {
    Connection connection = scene.connect();
    ask(connection, read);
    ::shutdown(connection.peer.get(), SHUT_WR);
    await_departure(connection.ours.get());
    if (!read) receive(connection.ours.get(), 7);
    send_text(connection.ours.get(), "answer");
    connection.ours.reset();
    EXPECT_EQ(receive(connection.peer.get(), 6), "answer");
    connection.peer.reset();
    const ConnectionEnd end = scene.server_end();
    EXPECT_EQ(end.verdict, ObservedVerdict::half_close_served);
    EXPECT_EQ(end.cause, Cause::peer_fin);
    EXPECT_EQ(end.bytes_received, 7u);
    EXPECT_EQ(end.bytes_sent, 6u);
    EXPECT_EQ(end.unsent, 0u);
    EXPECT_EQ(end.orphaned.count(), 0);
  }
}

TEST(ObserveVerdicts, LocalWhenThisHostClosesFirst) {
  ObserverScene scene;
  Connection connection = scene.connect();
  ask(connection, true);
  send_text(connection.ours.get(), "answer");
  connection.ours.reset();
  await_departure(connection.peer.get());
  connection.peer.reset();
  const auto ends = scene.ends(2);
  const ConnectionEnd server = scene.one_of(ends, Direction::inbound);
  EXPECT_EQ(server.verdict, ObservedVerdict::local);
  EXPECT_EQ(server.cause, Cause::local);
  const ConnectionEnd client = scene.one_of(ends, Direction::outbound);
  EXPECT_EQ(client.verdict, ObservedVerdict::none);
  EXPECT_EQ(client.cause, Cause::peer_fin);
}

// From the departure to the last local close: a duplicate holds the connection on.
TEST(ObserveVerdicts, OrphanedTime) {
  for (const bool with_release : {true, false}) {
    observe::ObserverOptions options;
    if (!with_release) options.without = {"observe_release"};
    ObserverScene scene(options);
    const auto& limits = scene.observer().limits();
    const bool told = std::any_of(limits.begin(), limits.end(), [](const std::string& limit) {
      return limit.find("last local close") != std::string::npos;
    });
    EXPECT_EQ(told, !with_release) << "is there no cgroup v2?";
    Connection connection = scene.connect();
    ask(connection, true);
    UniqueFd duplicate(::dup(connection.ours.get()));
    const auto before = steady_clock::now();
    reset(connection.peer);
    await_departure(connection.ours.get());
    const auto left = steady_clock::now();
    connection.ours.reset();
    Connection other = scene.connect();  // something that takes time
    exchange(other);
    const auto held_until = steady_clock::now();
    duplicate.reset();
    const auto closed = steady_clock::now();
    const ConnectionEnd end = scene.server_end();
    EXPECT_EQ(end.verdict, ObservedVerdict::abandoned);
    EXPECT_GE(end.orphaned, held_until - left);
    EXPECT_LE(end.orphaned, closed - before);
    ASSERT_TRUE(end.age && end.age_at_departure);
    EXPECT_EQ(*end.age - *end.age_at_departure, end.orphaned);
    EXPECT_EQ(end.pid, static_cast<std::uint32_t>(::getpid()));
    other.abandon();
    scene.ends(2);
  }
}

// Without the program that sees reads the kernel's own times decide, in ticks.
TEST(ObserveVerdicts, ByTheKernelsTimesAlone) {
  observe::ObserverOptions options;
  options.exact_progress = false;
  ObserverScene scene(options);
  Connection idle = scene.connect(), busy = scene.connect();
  exchange(idle);
  reset(idle.peer);
  await_departure(idle.ours.get());
  idle.ours.reset();
  EXPECT_EQ(scene.server_end().verdict, ObservedVerdict::idle_close);
  exchange(busy);
  const auto tick = steady_clock::now() + std::chrono::milliseconds(50);  // CONFIG_HZ is 100 or more
  EXPECT_TRUE(eventually([&] { return steady_clock::now() > tick; }));
  ask(busy, true);
  reset(busy.peer);
  await_departure(busy.ours.get());
  busy.ours.reset();
  EXPECT_EQ(scene.server_end().verdict, ObservedVerdict::abandoned);
}

}  // namespace
}  // namespace sockalarm::test
