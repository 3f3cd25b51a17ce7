// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sockalarm/fd_channel.h>
#include <sys/socket.h>

#include <atomic>
#include <future>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "harness/channels.h"

namespace sockalarm {
namespace {

using namespace test;
using namespace std::chrono_literals;

// How a channel ended.
struct End {
  int times = 0;
  std::optional<Error> why;
  FdChannelOptions options() {
    FdChannelOptions made;
    made.on_end = [this](const Error* error) {
      ++times;
      if (error != nullptr) why = *error;
    };
    return made;
  }
};

// A channel and a plain socket that plays its peer.
struct Against {
  UniqueFd peer;
  End end;
  std::optional<FdChannel> channel;
  explicit Against(std::function<void(FdChannelOptions&)> change = {}) {
    int ends[2];
    require(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0, "socketpair");
    peer.reset(ends[1]);
    FdChannelOptions options = end.options();
    if (change) change(options);
    UniqueFd ours(ends[0]);
    channel.emplace(FdChannel::adopt(std::move(ours), std::move(options)).value());
  }
  bool ends() {
    return serve({&*channel}, [this] { return end.times > 0; });
  }
};

TEST(FdChannelTest, BothDirectionsAtOnce) {
  auto [a, b] = FdChannel::pair().value();
  int from_a = -1, from_b = -1;
  ASSERT_TRUE(b.receive([&](const FdMessage& m) { from_a = number_of(m.fds.at(0)); }));
  ASSERT_TRUE(a.receive([&](const FdMessage& m) { from_b = number_of(m.fds.at(0)); }));
  ASSERT_TRUE(a.send(numbered_file(1)));
  ASSERT_TRUE(b.send(numbered_file(2)));
  EXPECT_TRUE(serve({&a, &b}, [&] { return from_a == 1 && from_b == 2; }));
}

// The twin of basic_socketpair.t.
TEST(FdChannelTest, BetweenParentAndChildBothWays) {
  auto fork = FdChannelFork::create().value();
  Child child([&] {
    auto channel = fork.child().value();
    bool sent = false;
    static_cast<void>(channel.receive([&](FdMessage m) {
      if (::write(m.fds.at(0).get(), "child", 5) != 5) ::_exit(3);
      static_cast<void>(channel.send(std::move(m.fds[0]), [&] { sent = true; }));
    }));
    return serve({&channel}, [&] { return sent; }) ? 0 : 1;
  });
  auto channel = fork.parent().value();
  UniqueFd file = make_file();
  const UniqueFd kept(::dup(file.get()));
  std::optional<FdMessage> back;
  ASSERT_TRUE(channel.send(std::move(file)));
  ASSERT_TRUE(channel.receive([&](FdMessage m) { back = std::move(m); }));
  ASSERT_TRUE(serve({&channel}, [&] { return back.has_value(); }));
  EXPECT_TRUE(same_file(back->fds.at(0).get(), kept.get()));
  char text[6] = "";
  EXPECT_EQ(::pread(kept.get(), text, 5, 0), 5);
  EXPECT_STREQ(text, "child");
  EXPECT_EQ(child.wait(), 0);
}

struct Path {
  std::string text = "/tmp/sockalarm-channel-" + std::to_string(::getpid());
  ~Path() { ::unlink(text.c_str()); }
};

// The twin of basic_filesystem.t.
TEST(FdChannelTest, ThroughTheFileSystemBothWays) {
  const Path path;
  auto listener = FdListener::listen(path.text).value();
  EXPECT_FALSE(listener.accept()->has_value());
  Child child([&] {
    auto channel = FdChannel::connect(path.text).value();
    int got = -1;
    static_cast<void>(channel.send(numbered_file(7)));
    static_cast<void>(channel.receive([&](const FdMessage& m) { got = number_of(m.fds.at(0)); }));
    return serve({&channel}, [&] { return got == 8 && channel.queued() == 0; }) ? 0 : 1;
  });
  await_readable(listener.fd());
  auto channel = std::move(*listener.accept().value());
  int got = -1;
  ASSERT_TRUE(channel.send(numbered_file(8)));
  ASSERT_TRUE(channel.receive([&](const FdMessage& m) { got = number_of(m.fds.at(0)); }));
  EXPECT_TRUE(serve({&channel}, [&] { return got == 7 && channel.queued() == 0; }));
  EXPECT_EQ(child.wait(), 0);
}

TEST(FdChannelTest, AListenerCleansUpOnlyWhatIsItsOwn) {
  const Path path;
  {
    auto listener = FdListener::listen(path.text).value();
    EXPECT_EQ(FdListener::listen(path.text).error().code(), std::errc::address_in_use);
    EXPECT_EQ(Child([&] {
                const auto copy = std::move(listener);
                return 0;
              }).wait(),
              0);
    EXPECT_EQ(::access(path.text.c_str(), F_OK), 0);
  }
  EXPECT_NE(::access(path.text.c_str(), F_OK), 0);
  EXPECT_EQ(FdChannel::connect(path.text).error().code(), std::errc::no_such_file_or_directory);
  EXPECT_EQ(FdChannel::connect(std::string(200, 'x')).error().code(), std::errc::filename_too_long);
  auto listener = FdListener::listen(path.text).value();
  ::unlink(path.text.c_str());
  auto second = FdListener::listen(path.text).value();
  listener = FdListener::listen(path.text + ".other").value();
  EXPECT_EQ(::access(path.text.c_str(), F_OK), 0);
}

TEST(FdChannelTest, ConnectDoesNotWaitForAFullBacklog) {
  const Path path;
  const auto listener = FdListener::listen(path.text, 0).value();
  std::vector<FdChannel> connected;
  for (int i = 0; i < 1000; ++i) {
    auto next = FdChannel::connect(path.text);
    if (!next) {
      EXPECT_EQ(next.error().code(), std::errc::resource_unavailable_try_again);
      return;
    }
    connected.push_back(std::move(*next));
  }
  FAIL() << "the backlog never filled";
}

// The twin of buffer_exercise.t.
TEST(FdChannelTest, QueuesKeepTheOrderWithCallbacksBeforeAndAfter) {
  auto [a, b] = FdChannel::pair().value();
  std::vector<int> received, sent;
  const auto take = [&](const FdMessage& m) { received.push_back(number_of(m.fds.at(0))); };
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(b.receive(take));
  for (int i = 0; i < 30; ++i) ASSERT_TRUE(a.send(numbered_file(i), [&sent, i] { sent.push_back(i); }));
  EXPECT_TRUE(sent.empty());
  ASSERT_TRUE(serve({&a, &b}, [&] { return received.size() == 10; }));
  for (int i = 10; i < 30; ++i) ASSERT_TRUE(b.receive(take));
  ASSERT_TRUE(serve({&a, &b}, [&] { return received.size() == 30 && sent.size() == 30; }));
  for (int i = 0; i < 30; ++i) {
    EXPECT_EQ(received[static_cast<std::size_t>(i)], i);
    EXPECT_EQ(sent[static_cast<std::size_t>(i)], i);
  }
}

TEST(FdChannelTest, SentMeansClosedHere) {
  auto [a, b] = FdChannel::pair().value();
  UniqueFd file = make_file();
  const int number = file.get();
  bool closed = false;
  ASSERT_TRUE(a.send(std::move(file), [&] { closed = ::fcntl(number, F_GETFD) < 0; }));
  EXPECT_TRUE(serve({&a}, [&] { return closed; }));
}

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
  ASSERT_TRUE(serve({&a}, [&, &a = a] { return a.ended(); }));
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
  ASSERT_TRUE(serve({&a}, [&, &a = a] { return a.ended(); }));
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

// The twin of recv_before_send.t. That nothing blocks is seen by its coming to an end in one thread.
TEST(FdChannelTest, ReceiveBeforeSend) {
  auto [a, b] = FdChannel::pair().value();
  bool got = false;
  ASSERT_TRUE(b.receive([&](const FdMessage&) { got = true; }));
  for (int i = 0; i < 10; ++i) EXPECT_TRUE(b.process());
  EXPECT_FALSE(got);
  ASSERT_TRUE(a.send(make_file()));
  EXPECT_TRUE(serve({&a, &b}, [&] { return got; }));
}

// The twin of send_before_recv.t: also beyond what the kernel takes.
TEST(FdChannelTest, SendBeforeReceive) {
  auto [a, b] = FdChannel::pair().value();
  constexpr int kCount = 1000;
  for (int i = 0; i < kCount; ++i)
    ASSERT_TRUE(a.send(message_of(std::string(1000, 'x') + std::to_string(i))));
  for (int i = 0; i < 50; ++i) EXPECT_TRUE(a.process());
  EXPECT_GT(a.queued(), 0U);
  int received = 0;
  for (int i = 0; i < kCount; ++i)
    ASSERT_TRUE(b.receive([&, i](const FdMessage& m) {
      EXPECT_EQ(text_of(m).substr(1000), std::to_string(i));
      ++received;
    }));
  EXPECT_TRUE(serve({&a, &b}, [&] { return received == kCount; }));
}

// The twin of non_blocking_fhs.t.
TEST(FdChannelTest, BlockingModesStayAsTheyAre) {
  for (const int mode : {0, O_NONBLOCK}) {
    auto fork = FdChannelFork::create().value();
    UniqueFd socket = std::move(unix_pair().ours);
    ASSERT_EQ(::fcntl(socket.get(), F_SETFL, ::fcntl(socket.get(), F_GETFL) | mode), 0);
    const auto mode_of = [](int fd) { return ::fcntl(fd, F_GETFL) & O_NONBLOCK; };
    Child child([&] {
      if (mode_of(socket.get()) != mode) return 1;
      auto channel = fork.child().value();
      int seen = -1;
      static_cast<void>(channel.receive([&](const FdMessage& m) { seen = mode_of(m.fds.at(0).get()); }));
      if (!serve({&channel}, [&] { return seen >= 0; })) return 2;
      return seen == mode ? 0 : 3;
    });
    auto channel = fork.parent().value();
    bool sent = false;
    ASSERT_TRUE(channel.send(std::move(socket), [&] { sent = true; }));
    ASSERT_TRUE(serve({&channel}, [&] { return sent; }));
    EXPECT_EQ(child.wait(), 0);
  }
}

TEST(FdChannelTest, TheChannelsOwnSocketMayBeInAnyModeAndKeepsIt) {
  for (const int mode : {0, O_NONBLOCK}) {
    int ends[2];
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    UniqueFd ours(ends[0]), theirs(ends[1]);
    ::fcntl(ours.get(), F_SETFL, O_RDWR | mode);
    auto channel = FdChannel::adopt(std::move(ours)).value();
    ASSERT_TRUE(channel.receive([](const FdMessage&) {}));
    EXPECT_TRUE(channel.process());
    const UniqueFd back = channel.release().value();
    EXPECT_EQ(::fcntl(back.get(), F_GETFL) & O_NONBLOCK, mode);
    EXPECT_TRUE(channel.ended());
  }
}

// The twin of send_passer_over_passer.t.
TEST(FdChannelTest, AChannelOverAChannel) {
  auto [a, b] = FdChannel::pair().value();
  auto [inner, passed] = FdChannel::pair().value();
  // What nobody has received goes with it.
  ASSERT_TRUE(inner.send(numbered_file(1)));
  ASSERT_TRUE(serve({&inner}, [&, &inner = inner] { return inner.queued() == 0; }));
  ASSERT_TRUE(a.send(passed.release().value()));
  std::optional<FdChannel> arrived;
  ASSERT_TRUE(
      b.receive([&](FdMessage m) { arrived.emplace(FdChannel::adopt(std::move(m.fds.at(0))).value()); }));
  ASSERT_TRUE(serve({&a, &b}, [&] { return arrived.has_value(); }));
  std::vector<int> received;
  int back = -1;
  for (int i = 0; i < 2; ++i)
    ASSERT_TRUE(arrived->receive([&](const FdMessage& m) { received.push_back(number_of(m.fds.at(0))); }));
  ASSERT_TRUE(inner.receive([&](const FdMessage& m) { back = number_of(m.fds.at(0)); }));
  ASSERT_TRUE(inner.send(numbered_file(2)));
  ASSERT_TRUE(arrived->send(numbered_file(3)));
  ASSERT_TRUE(serve({&inner, &*arrived}, [&] { return received.size() == 2 && back == 3; }));
  EXPECT_EQ(received, (std::vector{1, 2}));
}

TEST(FdChannelTest, AChannelIsNotGivenAwayAmidMessages) {
  Against against;
  ASSERT_TRUE(against.channel->send(make_file()));
  EXPECT_EQ(against.channel->release().error().code(), std::errc::device_or_resource_busy);
  ASSERT_TRUE(serve({&*against.channel}, [&] { return against.channel->queued() == 0; }));
  ASSERT_TRUE(against.channel->receive([](const FdMessage&) {}));
  send_text(against.peer.get(), "SFD");
  against.channel->process();
  EXPECT_EQ(against.channel->release().error().code(), std::errc::device_or_resource_busy);
}

// The twin of full_descriptor_table.t: room for 20, 30 are passed, and the receiver frees some now and then.
// In between it waits until the channel says that it is stuck, instead of half a second.
TEST(FdChannelTest, AFullTableLosesNothing) {
  auto fork = FdChannelFork::create().value();
  Child child([&] {
    const DescriptorLimit limit(20);
    auto channel = fork.child().value();
    std::vector<UniqueFd> held;
    int count = 0, stuck = 0;
    bool order = true;
    for (int i = 0; i < 30; ++i)
      static_cast<void>(channel.receive([&](FdMessage m) {
        order = order && number_of(m.fds.at(0)) == count;
        ++count;
        held.push_back(std::move(m.fds[0]));
      }));
    while (count < 30) {
      if (!serve({&channel}, [&] { return count == 30 || channel.waiting_for_room(); })) return 1;
      if (count == 30) break;
      ++stuck;
      for (int i = 0; i < 3 && !held.empty(); ++i) held.erase(held.begin());
      const int before = count;
      if (!serve({&channel}, [&] { return count > before; })) return 2;
    }
    return order && stuck > 0 ? 0 : 3;
  });
  auto channel = fork.parent().value();
  for (int i = 0; i < 30; ++i) ASSERT_TRUE(channel.send(numbered_file(i)));
  ASSERT_TRUE(serve({&channel}, [&] { return channel.queued() == 0; }));
  EXPECT_EQ(child.wait(), 0);
}

TEST(FdChannelTest, AFullTableKeepsNobodyFromSending) {
  auto [a, b] = FdChannel::pair().value();
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(a.send(numbered_file(i)));
  ASSERT_TRUE(serve({&a}, [&, &a = a] { return a.queued() == 0; }));
  std::vector<UniqueFd> got;
  bool answered = false;
  for (int i = 0; i < 3; ++i)
    ASSERT_TRUE(b.receive([&](FdMessage m) { got.push_back(std::move(m.fds.at(0))); }));
  ASSERT_TRUE(a.receive([&](const FdMessage& m) { answered = text_of(m) == "busy"; }));
  {
    TableFiller filler;
    // Off Linux one has room in reserve.
    ASSERT_TRUE(serve({&b}, [&, &b = b] { return b.waiting_for_room(); }));
    ASSERT_TRUE(b.send(message_of("busy")));
    ASSERT_TRUE(serve({&a, &b}, [&] { return answered; }));
    EXPECT_LT(got.size(), 2U);
    EXPECT_TRUE(b.waiting_for_room());
  }
  ASSERT_TRUE(serve({&a, &b}, [&] { return got.size() == 3; }));
  EXPECT_FALSE(b.waiting_for_room());
  for (int i = 0; i < 3; ++i) EXPECT_EQ(number_of(got[static_cast<std::size_t>(i)]), i);
}

// A peek on Linux installs the next frame's descriptors, too.
TEST(FdChannelTest, AMessageWithoutDescriptorsIsNotHeldUpByTheNext) {
  auto [a, b] = FdChannel::pair().value();
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(a.send(message_of("plain")));
  std::vector<UniqueFd> two;
  for (int i = 0; i < 2; ++i) two.push_back(numbered_file(i));
  ASSERT_TRUE(a.send(message_of("two", std::move(two))));
  ASSERT_TRUE(serve({&a}, [&, &a = a] { return a.queued() == 0; }));
  std::vector<std::size_t> counts;
  for (int i = 0; i < 5; ++i)
    ASSERT_TRUE(b.receive([&](const FdMessage& m) { counts.push_back(m.fds.size()); }));
  {
    TableFiller filler;
    ASSERT_TRUE(serve({&b}, [&, &b = b] { return b.waiting_for_room(); }));
    EXPECT_EQ(counts, (std::vector<std::size_t>{0, 0, 0, 0}));
  }
  ASSERT_TRUE(serve({&b}, [&] { return counts.size() == 5; }));
  EXPECT_EQ(counts.back(), 2U);
}

TEST(FdChannelTest, ManyDescriptorsAndALargePayloadInOneMessage) {
  auto [a, b] = FdChannel::pair().value();
  std::vector<UniqueFd> files;
  for (int i = 0; i < 600; ++i) files.push_back(numbered_file(i));
  const std::string text(1 << 20, 'y');
  ASSERT_TRUE(a.send(message_of(text, std::move(files))));
  std::optional<FdMessage> got;
  ASSERT_TRUE(b.receive([&](FdMessage m) { got = std::move(m); }));
  ASSERT_TRUE(serve({&a, &b}, [&] { return got.has_value(); }));
  EXPECT_EQ(text_of(*got), text);
  ASSERT_EQ(got->fds.size(), 600U);
  for (int i = 0; i < 600; ++i) EXPECT_EQ(number_of(got->fds[static_cast<std::size_t>(i)]), i);
  for (const UniqueFd& fd : got->fds) EXPECT_TRUE(::fcntl(fd.get(), F_GETFD) & FD_CLOEXEC);
}

TEST(FdChannelTest, TheSendQueueIsBoundedAndGivesBackWhatItRefuses) {
  FdChannelOptions options;
  options.max_queued_messages = 3;
  options.max_queued_bytes = 10;
  options.max_queued_fds = 2;
  auto [a, b] = FdChannel::pair(std::move(options)).value();
  FdMessage large = message_of("12345678901");
  ASSERT_TRUE(a.send(std::move(large)));  // alone it may exceed the bytes
  FdMessage next = message_of("1");
  EXPECT_EQ(a.send(std::move(next)).error().code(), Errc::queue_full);
  EXPECT_EQ(next.payload.size(), 1U);
  ASSERT_TRUE(serve({&a}, [&, &a = a] { return a.queued() == 0; }));
  for (int i = 0; i < 2; ++i) ASSERT_TRUE(a.send(make_file()));
  UniqueFd third = make_file();
  EXPECT_EQ(a.send(std::move(third)).error().code(), Errc::queue_full);
  EXPECT_TRUE(third);
  ASSERT_TRUE(a.send(std::move(next)));
  EXPECT_EQ(a.send(message_of("")).error().code(), Errc::queue_full);
  EXPECT_EQ(a.queued(), 3U);
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

// The kernel does the work of the peer: sendmsg(2) with descriptors where none belong.
void send_raw(int socket, std::string_view text, std::size_t fds) {
  const UniqueFd file = make_file();
  std::vector<int> numbers(fds, file.get());
  std::vector<char> control(CMSG_SPACE(fds * sizeof(int)));
  iovec bytes{const_cast<char*>(text.data()), text.size()};
  msghdr message{};
  message.msg_iov = &bytes;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  cmsghdr* const head = CMSG_FIRSTHDR(&message);
  head->cmsg_level = SOL_SOCKET;
  head->cmsg_type = SCM_RIGHTS;
  head->cmsg_len = CMSG_LEN(fds * sizeof(int));
  std::memcpy(CMSG_DATA(head), numbers.data(), fds * sizeof(int));
  require(::sendmsg(socket, &message, MSG_NOSIGNAL) == static_cast<ssize_t>(text.size()), "sendmsg");
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

TEST(FdChannelTest, WhatIsQueuedIsClosedWithTheChannel) {
  const std::size_t before = open_fds();
  {
    auto [a, b] = FdChannel::pair().value();
    for (int i = 0; i < 5; ++i) ASSERT_TRUE(a.send(make_file()));
    a.process();
    for (int i = 0; i < 5; ++i) ASSERT_TRUE(a.send(make_file()));
  }
  EXPECT_EQ(open_fds(), before);
}

TEST(FdChannelTest, ACallbackMayDestroyTheChannel) {
  for (const bool own_thread : {false, true}) {
    FdChannelOptions options;
    options.own_thread = own_thread;
    auto [a, b] = FdChannel::pair({}, std::move(options)).value();
    auto doomed = std::make_unique<FdChannel>(std::move(b));
    std::promise<void> destroyed;
    const auto done = destroyed.get_future();
    ASSERT_TRUE(doomed->receive([&](const FdMessage&) {
      doomed.reset();
      destroyed.set_value();
    }));
    ASSERT_TRUE(a.send(message_of("end")));
    a.process();
    if (!own_thread) doomed->process();
    EXPECT_EQ(done.wait_for(60s), std::future_status::ready);
    EXPECT_FALSE(doomed);
  }
}

TEST(FdChannelTest, OnItsOwnThreadWithCallsFromOthers) {
  constexpr int kThreads = 4, kEach = 200;
  End end;
  FdChannelOptions first, second = end.options();
  first.own_thread = second.own_thread = true;
  std::promise<void> all, ended;
  second.on_end = [&](const Error* error) {
    EXPECT_EQ(error, nullptr);
    ended.set_value();
  };
  auto [a, b] = FdChannel::pair(std::move(first), std::move(second)).value();
  std::vector<std::vector<int>> received(kThreads);
  int count = 0;
  std::function<void(const FdMessage&)> take = [&, &b = b](const FdMessage& m) {
    const int number = number_of(m.fds.at(0));
    received[static_cast<std::size_t>(number / kEach)].push_back(number % kEach);
    if (++count == kThreads * kEach)
      all.set_value();
    else
      EXPECT_TRUE(b.receive(take));
  };
  ASSERT_TRUE(b.receive(take));
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t)
    threads.emplace_back([&, &a = a, t] {
      for (int i = 0; i < kEach; ++i) EXPECT_TRUE(a.send(numbered_file(t * kEach + i)));
    });
  for (std::thread& thread : threads) thread.join();
  ASSERT_EQ(all.get_future().wait_for(60s), std::future_status::ready);
  for (const auto& numbers : received)
    for (int i = 0; i < kEach; ++i) EXPECT_EQ(numbers.at(static_cast<std::size_t>(i)), i);
  a.finish();
  EXPECT_EQ(ended.get_future().wait_for(60s), std::future_status::ready);
}

#if SOCKALARM_LINUX
TEST(FdChannelTest, AWaitThatHasBegunHearsOfOtherThreadsCalls) {
  auto [a, b] = FdChannel::pair().value();
  std::thread sender([&a = a] { EXPECT_TRUE(a.send(message_of("x"))); });
  pollfd waited{a.poll_fd(), a.poll_events(), 0};
  EXPECT_EQ(::poll(&waited, 1, 60'000), 1);
  sender.join();
}
#endif

TEST(FdChannelTest, InertAfterFork) {
  auto [a, b] = FdChannel::pair().value();
  ASSERT_TRUE(a.send(numbered_file(1)));
  EXPECT_EQ(Child([&, &a = a, &b = b] {
              if (a.process() || a.poll_fd() >= 0) return 1;
              if (a.send(make_file()).error().code() != Errc::inert_after_fork) return 2;
              if (b.receive({}).error().code() != Errc::inert_after_fork) return 3;
              const auto gone = std::move(a);
              return 0;
            }).wait(),
            0);
  bool got = false;
  ASSERT_TRUE(b.receive([&](const FdMessage& m) { got = number_of(m.fds.at(0)) == 1; }));
  EXPECT_TRUE(serve({&a, &b}, [&] { return got; }));
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

TEST(FdChannelTest, AConnectionIsNotLostWhenTheTableIsFull) {
  const Path path;
  auto listener = FdListener::listen(path.text).value();
  auto client = FdChannel::connect(path.text).value();
  ASSERT_TRUE(client.send(numbered_file(1)));
  ASSERT_TRUE(serve({&client}, [&] { return client.queued() == 0; }));
  {
    TableFiller filler;
    for (std::size_t free = 0; free < 3; ++free) {
      const auto refused = listener.accept();
      // Off Linux a channel needs fewer descriptors.
      if (refused) {
        ASSERT_TRUE(*refused);
        return;
      }
      EXPECT_EQ(refused.error().code(), std::errc::too_many_files_open);
      filler.leave_free(1);
    }
  }
  auto channel = std::move(*listener.accept().value());
  bool got = false;
  ASSERT_TRUE(channel.receive([&](const FdMessage& m) { got = number_of(m.fds.at(0)) == 1; }));
  EXPECT_TRUE(serve({&channel}, [&] { return got; }));
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
