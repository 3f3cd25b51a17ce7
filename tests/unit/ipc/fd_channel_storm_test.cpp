// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>
#include <sockalarm/fd_channel.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <future>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "harness/channels.h"
#if SOCKALARM_LINUX
#include <sys/eventfd.h>
#endif

// Tables filled and emptied by another thread while descriptors arrive.
namespace sockalarm {
namespace {

using namespace test;

// Fills this process' table and makes room again, by random amounts, as fast as it can.
class RandomFiller {
 public:
  explicit RandomFiller(unsigned seed) : thread_([this, seed] { run(seed); }) {}
  ~RandomFiller() {
    over_.store(true);
    thread_.join();
  }
  RandomFiller(const RandomFiller&) = delete;
  RandomFiller& operator=(const RandomFiller&) = delete;
  long times_full() const { return full_.load(); }

 private:
  void run(unsigned seed) {
    std::mt19937 random(seed);
    std::vector<UniqueFd> held;
    while (!over_.load()) {
      std::shuffle(held.begin(), held.end(), random);
      held.resize(random() % (held.size() + 1));
      for (;;) {
        UniqueFd next(::fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 0));
        if (!next) break;
        held.push_back(std::move(next));
      }
      ++full_;
      if (random() % 4 == 0) held.clear();
      if (random() % 4 == 0) std::this_thread::yield();
    }
  }

  std::atomic<bool> over_{false};
  std::atomic<long> full_{0};
  std::thread thread_;
};

// Sends messages of 0 to 8 descriptors, numbered by `make`, until there were `count` of them.
int send_all(FdChannel& channel, int count, int most, const std::function<UniqueFd(int)>& make) {
  std::mt19937 random(1);
  int next = 0;
  while (next < count) {
    FdMessage message = message_of(std::to_string(next));
    for (int n = static_cast<int>(random() % static_cast<unsigned>(most + 1)); n > 0 && next < count; --n)
      message.fds.push_back(make(next++));
    while (!channel.send(std::move(message)))
      if (channel.ended() || !serve({&channel}, [&] { return channel.queued() < 100 || channel.ended(); }))
        return 1;
  }
  channel.finish();
  return serve({&channel}, [&] { return channel.ended(); }) ? 0 : 2;
}

struct Receiver {
  explicit Receiver(std::function<int(const UniqueFd&)> number) : number_of_fd(std::move(number)) {}
  void attach(FdChannel& to) {
    channel = &to;
    again();
  }
  void again() {
    static_cast<void>(channel->receive([this](const FdMessage& message) {
      if (text_of(message) != std::to_string(count)) ++wrong;
      for (const UniqueFd& fd : message.fds)
        if (number_of_fd(fd) != count++) ++wrong;
      again();
    }));
  }
  std::function<int(const UniqueFd&)> number_of_fd;
  FdChannel* channel = nullptr;
  int count = 0, wrong = 0;
};

#if SOCKALARM_LINUX
// Each descriptor is a counter that holds its number until it is read once: a second copy would be empty.
UniqueFd make_counter(int number) {
  UniqueFd fd(::eventfd(static_cast<unsigned>(number) + 1, EFD_CLOEXEC | EFD_NONBLOCK));
  require(bool(fd), "eventfd");
  return fd;
}
int read_counter(const UniqueFd& fd) {
  eventfd_t value = 0;
  return ::eventfd_read(fd.get(), &value) == 0 ? static_cast<int>(value) - 1 : -1;
}

void storm(int count, bool own_thread) {
  const std::size_t before = open_fds();
  auto fork = FdChannelFork::create().value();
  Child child([&] {
    auto channel = fork.child().value();
    return send_all(channel, count, 8, make_counter);
  });
  Receiver receiver(read_counter);
  std::promise<void> ended;
  auto over = ended.get_future();
  bool orderly = false;
  bool stuck = false;
  {
    FdChannelOptions options;
    options.own_thread = own_thread;
    options.on_end = [&](const Error* error) {
      orderly = error == nullptr;
      if (error != nullptr) ADD_FAILURE() << error->message();
      ended.set_value();
    };
    const DescriptorLimit limit(96);
    auto channel = fork.parent(std::move(options)).value();
    RandomFiller filler(7);
    receiver.attach(channel);
    const auto is_over = [&] {
      stuck = stuck || channel.waiting_for_room();
      return over.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
    };
    if (own_thread) {
      EXPECT_EQ(over.wait_for(std::chrono::minutes(4)), std::future_status::ready);
    } else {
      EXPECT_TRUE(serve({&channel}, is_over, std::chrono::minutes(4)));
      EXPECT_TRUE(stuck);
    }
    EXPECT_GT(filler.times_full(), 0);
  }
  EXPECT_TRUE(orderly);
  EXPECT_EQ(child.wait(), 0);
  EXPECT_EQ(receiver.count, count);
  EXPECT_EQ(receiver.wrong, 0);
  EXPECT_EQ(open_fds(), before);
}

TEST(FdChannelStormTest, AHundredThousandThroughATableThatIsFilledAndEmptied) { storm(100'000, false); }
TEST(FdChannelStormTest, OnItsOwnThread) { storm(10'000, true); }

// A user without privileges has at most RLIMIT_NOFILE descriptors in flight (ETOOMANYREFS): also that is only
// a reason to wait.
TEST(FdChannelStormTest, MoreInFlightThanTheSenderMayHave) {
  auto fork = FdChannelFork::create().value();
  int ready[2];
  ASSERT_EQ(::pipe2(ready, O_CLOEXEC), 0);
  const UniqueFd ready_read(ready[0]);
  UniqueFd ready_write(ready[1]);
  constexpr int kCount = 200;
  Child child([&] {
    if (::getuid() == 0 && ::setuid(61234) != 0)
      return 4;  // a user of its own: in flight is counted per user
    auto channel = fork.child().value();
    const DescriptorLimit limit(32);
    int sent = 0, next = 0;
    bool told = false;
    while (sent < kCount) {
      while (next < kCount && channel.queued() < 5) {
        if (!channel.send(make_counter(next), [&] { ++sent; })) return 1;
        ++next;
      }
      channel.process();
      if (sent > 20 && channel.queued() == 5 && !std::exchange(told, true) &&
          ::write(ready_write.get(), "x", 1) != 1)
        return 2;
      if (told && !serve({&channel}, [&] { return channel.queued() < 5; })) return 3;
    }
    return 0;
  });
  ready_write.reset();
  auto channel = fork.parent().value();
  await_readable(ready_read.get());
  int count = 0;
  bool order = true;
  for (int i = 0; i < kCount; ++i)
    ASSERT_TRUE(
        channel.receive([&](const FdMessage& m) { order = read_counter(m.fds.at(0)) == count++ && order; }));
  EXPECT_TRUE(serve({&channel}, [&] { return count == kCount || channel.ended(); }));
  EXPECT_EQ(count, kCount);
  EXPECT_TRUE(order);
  EXPECT_EQ(child.wait(), 0);
}
#endif

// What holds on every system: in order, none twice, none lost without a word.
TEST(FdChannelStormTest, NothingIsLostWithoutAWord) {
  auto fork = FdChannelFork::create().value();
  constexpr int kCount = 3000;
  Child child([&] {
    auto channel = fork.child().value();
    send_all(channel, kCount, 1, numbered_file);
    return 0;
  });
  Receiver receiver(number_of);
  std::optional<Error> why;
  FdChannelOptions options;
  options.on_end = [&](const Error* error) {
    if (error != nullptr) why = *error;
  };
  {
    const DescriptorLimit limit(64);
    auto channel = fork.parent(std::move(options)).value();
    const RandomFiller filler(3);
    receiver.attach(channel);
    EXPECT_TRUE(serve({&channel}, [&] { return channel.ended(); }));
  }
  EXPECT_EQ(receiver.wrong, 0);
  if (why) {
    EXPECT_EQ(why->code(), Errc::descriptors_lost);
  } else {
    EXPECT_EQ(receiver.count, kCount);
  }
#if SOCKALARM_LINUX
  EXPECT_FALSE(why);
#endif
}

}  // namespace
}  // namespace sockalarm
