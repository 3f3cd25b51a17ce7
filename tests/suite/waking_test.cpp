// SPDX-License-Identifier: Apache-2.0
#include <sched.h>

#include <future>
#include <tuple>

#include "suite/suite.h"

// The dispatcher's ways to wait mean the same; they differ in what they cost.

namespace sockalarm::test {
namespace {

class WakingTest : public testing::TestWithParam<std::tuple<Way, Waking>> {};
INSTANTIATE_TEST_SUITE_P(Source, WakingTest,
                         testing::Combine(testing::ValuesIn(tested_sources()),
                                          testing::Values(Waking::adaptive, Waking::spin)),
                         [](const auto& of) {
                           return std::string(to_string(std::get<0>(of.param).source)) + "_" +
                                  std::string(to_string(std::get<1>(of.param)));
                         });

// Peers that leave one after the other with pauses around the time that the dispatcher spins for: it is found
// falling asleep, asleep, and looking.
TEST_P(WakingTest, NothingIsMissedAroundFallingAsleep) {
  Options options;
  options.waking = std::get<1>(GetParam());
  options.spin_for = std::chrono::microseconds(30);
  options.ring_bytes = 4096;
  SOCKALARM_WATCHER(watcher, std::get<0>(GetParam()), options);
  for (int round = 0; round < 400; ++round) {
    Connection connection = tcp_pair();
    const auto watch = watcher.watch(connection.ours.get());
    Journal journal;
    const auto alarm = watch->arm(journal.cause());
    const auto until = std::chrono::steady_clock::now() + std::chrono::microseconds(round % 100);
    while (std::chrono::steady_clock::now() < until) {
    }
    connection.peer.reset();
    ASSERT_TRUE(journal.wait_for(1)) << "round " << round;
  }
}

TEST_P(WakingTest, TimersJobsAndOtherSocketsAreServed) {
  Options options;
  options.waking = std::get<1>(GetParam());
  SOCKALARM_WATCHER(watcher, std::get<0>(GetParam()), options);
  Journal journal;
  Connection tcp = tcp_pair(), local = unix_pair();
  const auto watch = watcher.watch(tcp.ours.get()), local_watch = watcher.watch(local.ours.get());
  const auto deadline = watch->arm(ActionChain{sleep_for(3ms), journal.entry("deadline")},
                                   {.on = events::none, .deadline = 3ms});
  ASSERT_TRUE(journal.wait_for(1));
  const auto local_alarm = local_watch->arm(journal.entry("unix"));
  local.peer.reset();
  ASSERT_TRUE(journal.wait_for(2));
  tcp.peer.reset();
  ASSERT_TRUE(eventually([&] { return watch->peer_gone(); }));
  const auto late = watch->arm(journal.entry("fired by arming"));
  ASSERT_TRUE(journal.wait_for(3));
}

TEST(WakingOptionsTest, OutOfRangeIsAnError) {
  for (const int priority : {-1, 100}) {
    Options options;
    options.realtime_priority = priority;
    const auto watcher = Watcher::create(options);
    ASSERT_FALSE(watcher);
    EXPECT_EQ(watcher.error().code(), Errc::invalid_options);
    EXPECT_NE(watcher.error().message().find(std::to_string(priority)), std::string::npos);
  }
  Options options;
  options.spin_for = -1us;
  EXPECT_FALSE(Watcher::create(options));
}

#if SOCKALARM_LINUX
// Granted or refused, it is told.
TEST(WakingOptionsTest, RealtimePriorityIsGrantedOrTheReasonIsTold) {
  Options options;
  options.source = SourceKind::epoll;
  options.delivery = Delivery::dispatcher;
  options.realtime_priority = 5;
  const auto watcher = Watcher::create(options);
  ASSERT_TRUE(watcher);
  Connection connection = tcp_pair();
  const auto watch = watcher->watch(connection.ours.get());
  std::promise<int> policy;
  const auto alarm = watch->arm(call([&] { policy.set_value(::sched_getscheduler(0)); }));
  connection.peer.reset();
  const int in_force = policy.get_future().get();
  if (watcher->describe().why_not.empty()) {
    EXPECT_EQ(in_force & ~SCHED_RESET_ON_FORK, SCHED_FIFO);
  } else {
    EXPECT_EQ(in_force & ~SCHED_RESET_ON_FORK, SCHED_OTHER);
    EXPECT_NE(watcher->describe().why_not.front().find("SCHED_FIFO with priority 5"), std::string::npos);
  }
}
#endif

}  // namespace
}  // namespace sockalarm::test
