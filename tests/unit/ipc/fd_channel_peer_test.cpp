// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sockalarm/fd_channel.h>
#include <sys/socket.h>

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "harness/channels.h"

// Peers that die, end, or do not speak the protocol.
namespace sockalarm {
namespace {

using namespace test;

// The twin of the test that a process dies.
TEST(FdChannelTest, ADeadPeerIsToldOnceAndNothingBogusIsReceived) {
  for (const bool waits : {true, false}) {
    auto fork = FdChannelFork::create().value();
    Child child([&] {
      auto channel = fork.child().value();
      ::raise(SIGKILL);
      return 0;
    });
    End end;
    auto channel = fork.parent(end.options()).value();
    bool bogus = false;
    if (waits) {
      ASSERT_TRUE(channel.receive([&](const FdMessage&) { bogus = true; }));
    }
    ASSERT_TRUE(serve({&channel}, [&] { return end.times > 0; }));
    EXPECT_EQ(child.wait(), 128 + SIGKILL);
    EXPECT_FALSE(channel.process());
    EXPECT_TRUE(channel.ended());
    EXPECT_EQ(end.times, 1);
    EXPECT_FALSE(end.why) << end.why->message();  // between messages: orderly
    EXPECT_FALSE(bogus);
    EXPECT_EQ(channel.send(make_file()).error().code(), Errc::channel_ended);
    EXPECT_EQ(channel.receive({}).error().code(), Errc::channel_ended);
  }
}

TEST(FdChannelTest, APeerThatDiesAmidAMessageIsAnError) {
  Against against;
  ASSERT_TRUE(against.channel->receive([](const FdMessage&) { FAIL(); }));
  send_text(against.peer.get(), "SFD");
  against.peer.reset();
  ASSERT_TRUE(against.ends());
  EXPECT_EQ(against.end.why->code(), Errc::malformed_frame);
}

TEST(FdChannelTest, WhatADeadPeerSentIsReceivedFirst) {
  End end;
  auto [a, b] = FdChannel::pair({}, end.options()).value();
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(a.send(numbered_file(i)));
  a.finish();
  ASSERT_TRUE(serve({&a}, [&] { return a.ended(); }));
  std::vector<int> received;
  for (int i = 0; i < 4; ++i)
    ASSERT_TRUE(b.receive([&](const FdMessage& m) {
      EXPECT_EQ(end.times, 0);
      received.push_back(number_of(m.fds.at(0)));
    }));
  ASSERT_TRUE(b.send(make_file()));  // cannot arrive any more; must not cost what did
  ASSERT_TRUE(serve({&b}, [&] { return end.times > 0; }));
  EXPECT_EQ(received, (std::vector{0, 1, 2}));
  EXPECT_EQ(end.why->code(), std::errc::broken_pipe);
  EXPECT_EQ(b.take_unsent().size(), 1U);
  EXPECT_EQ(b.take_unsent().size(), 0U);
}

TEST(FdChannelTest, MessagesNobodyWantsDoNotKeepTheLoopBusy) {
  End end;
  auto [a, b] = FdChannel::pair({}, end.options()).value();
  ASSERT_TRUE(a.send(numbered_file(5)));
  a.finish();
  ASSERT_TRUE(serve({&a}, [&] { return a.ended(); }));
  b.process();
  pollfd waited{b.poll_fd(), b.poll_events(), 0};
  EXPECT_EQ(::poll(&waited, 1, 0), 0);
  EXPECT_EQ(end.times, 0);
  int got = -1;
  ASSERT_TRUE(b.receive([&](const FdMessage& m) { got = number_of(m.fds.at(0)); }));
  ASSERT_TRUE(serve({&b}, [&] { return end.times > 0; }));
  EXPECT_EQ(got, 5);
  EXPECT_FALSE(end.why);
}

TEST(FdChannelTest, MalformedInputEndsTheChannelOnceAndLeaksNothing) {
  const auto header = [](std::string_view rest) { return std::string("SFD\1", 4) + std::string(rest); };
  const std::vector<std::string> inputs{
      "GET / HTTP/1.1\r\n",
      std::string("SFD\2\0\0\0\0\0\0\0\0", 12),
      header(std::string("\0\0\xfe\0\0\0\0\0", 8)),
      header(std::string("\0\0\1\0\0\0\0\0", 8)),    // a descriptor that does not come
      header(std::string("\0\0\0\0\0\0\0\xff", 8)),  // 4 GiB
      header(std::string("\1\0\0\0\0\0\0\0", 8)),
  };
  for (const std::string& input : inputs) {
    const std::size_t before = open_fds();
    {
      Against against;
      ASSERT_TRUE(against.channel->receive([](const FdMessage&) { FAIL(); }));
      send_text(against.peer.get(), input);
      ASSERT_TRUE(against.ends());
      EXPECT_EQ(against.end.times, 1);
      EXPECT_TRUE(against.end.why->code() == Errc::malformed_frame ||
                  against.end.why->code() == Errc::message_too_large)
          << against.end.why->message();
      EXPECT_TRUE(against.channel->ended());
    }
    EXPECT_EQ(open_fds(), before);
  }
}

void send_raw(int socket, std::string_view text, std::size_t fds) {
  const UniqueFd file = make_file();
  require(send_with_fds(socket, bytes_of(text), std::vector<int>(fds, file.get())), "sendmsg");
}

TEST(FdChannelTest, DescriptorsWhereNoneBelongEndTheChannelAndAreClosed) {
  const std::string none("SFD\1\0\0\0\0\1\0\0\0", 12), one("SFD\1\0\0\1\0\0\0\0\0", 12);
  struct Case {
    std::string before, with;
    std::size_t fds;
  };
  for (const Case& given : {Case{"", none, 1}, {"", one, 2}, {"", one, 253}, {none, "x", 1}, {"", "S", 9}}) {
    const std::size_t before = open_fds();
    {
      Against against([](FdChannelOptions& options) { options.max_message_fds = 8; });
      ASSERT_TRUE(against.channel->receive([](const FdMessage&) { FAIL(); }));
      if (!given.before.empty()) send_text(against.peer.get(), given.before);
      send_raw(against.peer.get(), given.with, given.fds);
      ASSERT_TRUE(against.ends());
      EXPECT_TRUE(against.end.why);
    }
    EXPECT_EQ(open_fds(), before);
  }
}

TEST(FdChannelTest, AHeaderInPiecesWithItsDescriptorFirstIsAccepted) {
  Against against;
  bool got = false;
  ASSERT_TRUE(against.channel->receive([&](const FdMessage& m) { got = m.fds.size() == 1; }));
  send_raw(against.peer.get(), "S", 1);
  against.channel->process();
  for (const char c : std::string("FD\1\0\0\1\0\0\0\0\0", 11)) {
    send_text(against.peer.get(), std::string(1, c));
    against.channel->process();
  }
  EXPECT_TRUE(serve({&*against.channel}, [&] { return got; }));
}

TEST(FdChannelTest, RefusesWhatCannotCarryAChannelAndGivesItBack) {
  UniqueFd file = make_file();
  EXPECT_EQ(FdChannel::adopt(std::move(file)).error().code(), Errc::not_a_socket);
  EXPECT_TRUE(file);
  UniqueFd tcp = std::move(tcp_pair().ours);
  EXPECT_EQ(FdChannel::adopt(std::move(tcp)).error().code(), Errc::not_a_stream);
  UniqueFd datagram(::socket(AF_UNIX, SOCK_DGRAM, 0));
  EXPECT_EQ(FdChannel::adopt(std::move(datagram)).error().code(), Errc::not_a_stream);
  UniqueFd lonely(::socket(AF_UNIX, SOCK_STREAM, 0));
  EXPECT_EQ(FdChannel::adopt(std::move(lonely)).error().code(), Errc::not_connected);
  EXPECT_TRUE(lonely);
  EXPECT_EQ(FdChannel::adopt(UniqueFd()).error().code(), std::errc::bad_file_descriptor);
}

TEST(FdChannelTest, KnowsItsPeer) {
  const Path path;
  auto listener = FdListener::listen(path.text).value();
  auto client = FdChannel::connect(path.text).value();
  const auto server = std::move(*listener.accept().value());
  const auto peer = server.peer().value();
  EXPECT_EQ(peer.uid, ::getuid());
  EXPECT_EQ(peer.gid, ::getgid());
#if SOCKALARM_LINUX
  EXPECT_EQ(peer.pid, ::getpid());
  if (peer.pidfd) {
    EXPECT_TRUE(::fcntl(peer.pidfd.get(), F_GETFD) & FD_CLOEXEC);
  }
#endif
}

}  // namespace
}  // namespace sockalarm
