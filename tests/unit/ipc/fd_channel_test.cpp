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
    Connection connection = unix_pair();
    ::fcntl(connection.ours.get(), F_SETFL, O_RDWR | mode);
    auto channel = FdChannel::adopt(std::move(connection.ours)).value();
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
  ASSERT_TRUE(serve({&inner}, [&] { return inner.queued() == 0; }));
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
  ASSERT_TRUE(serve({&a}, [&] { return a.queued() == 0; }));
  std::vector<UniqueFd> got;
  bool answered = false;
  for (int i = 0; i < 3; ++i)
    ASSERT_TRUE(b.receive([&](FdMessage m) { got.push_back(std::move(m.fds.at(0))); }));
  ASSERT_TRUE(a.receive([&](const FdMessage& m) { answered = text_of(m) == "busy"; }));
  {
    TableFiller filler;
    // Off Linux one has room in reserve.
    ASSERT_TRUE(serve({&b}, [&] { return b.waiting_for_room(); }));
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
  ASSERT_TRUE(serve({&a}, [&] { return a.queued() == 0; }));
  std::vector<std::size_t> counts;
  for (int i = 0; i < 5; ++i)
    ASSERT_TRUE(b.receive([&](const FdMessage& m) { counts.push_back(m.fds.size()); }));
  {
    TableFiller filler;
    ASSERT_TRUE(serve({&b}, [&] { return b.waiting_for_room(); }));
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
  ASSERT_TRUE(serve({&a}, [&] { return a.queued() == 0; }));
  for (int i = 0; i < 2; ++i) ASSERT_TRUE(a.send(make_file()));
  UniqueFd third = make_file();
  EXPECT_EQ(a.send(std::move(third)).error().code(), Errc::queue_full);
  EXPECT_TRUE(third);
  ASSERT_TRUE(a.send(std::move(next)));
  EXPECT_EQ(a.send(message_of("")).error().code(), Errc::queue_full);
  EXPECT_EQ(a.queued(), 3U);
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
  std::function<void(const FdMessage&)> take = [&](const FdMessage& m) {
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
    threads.emplace_back([&, t] {
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
  std::thread sender([&a] { EXPECT_TRUE(a.send(message_of("x"))); });
  pollfd waited{a.poll_fd(), a.poll_events(), 0};
  EXPECT_EQ(::poll(&waited, 1, 60'000), 1);
  sender.join();
}
#endif

TEST(FdChannelTest, InertAfterFork) {
  auto [a, b] = FdChannel::pair().value();
  ASSERT_TRUE(a.send(numbered_file(1)));
  EXPECT_EQ(Child([&] {
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

}  // namespace
}  // namespace sockalarm
