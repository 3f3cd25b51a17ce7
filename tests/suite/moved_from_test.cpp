// SPDX-License-Identifier: Apache-2.0
#include <csignal>

#include "suite/suite.h"

namespace sockalarm::test {
namespace {

SOCKALARM_SUITE(MovedFromTest);

// NOLINTBEGIN(bugprone-use-after-move): which is the question here.
TEST_P(MovedFromTest, AnswersAndDoesNothing) {
  SOCKALARM_WATCHER(watcher, GetParam());
  const Connection connection = tcp_pair();
  auto watch = watcher.watch(connection.ours.get()).value();
  auto alarm = watch.arm(ActionChain{}).value();
  const Alarm alarm_now = std::move(alarm);
  EXPECT_TRUE(alarm_now.active());
  EXPECT_FALSE(alarm.start());
  EXPECT_EQ(alarm.cancel(), Cancelled::inactive);
  EXPECT_EQ(alarm.cancel_and_wait(), Cancelled::inactive);
  EXPECT_FALSE(alarm.active() || alarm.triggered() || alarm.finished());
  EXPECT_EQ(alarm.current_action(), -1);
  EXPECT_EQ(alarm.action_count(), 0U);
  EXPECT_TRUE(alarm.cause().what.empty() && alarm.events().empty() && alarm.actions().empty());
  EXPECT_EQ(to_string(alarm), "alarm on descriptor -1 for none, not armed: no action");

  const Watch watch_now = std::move(watch);
  EXPECT_FALSE(watch.peer_gone());
  EXPECT_TRUE(watch.seen().empty());
  EXPECT_EQ(watch.seen_at(), std::chrono::steady_clock::time_point());
  EXPECT_EQ(watch.error(), 0);
  EXPECT_EQ(watch.arm(ActionChain{}).error().code(), Errc::stopped);
  EXPECT_FALSE(watch.stop_token().stop_possible());
  EXPECT_EQ(watch.fd(), -1);
  EXPECT_EQ(watch.cookie(), 0U);
  EXPECT_EQ(watch.source(), SourceKind::automatic);

  const Watcher watcher_now = std::move(watcher);
  EXPECT_EQ(watcher.watch(watch_now.fd()).error().code(), Errc::stopped);
  EXPECT_NE(watcher.describe().text.find("moved from"), std::string::npos);
  EXPECT_EQ(watcher.stats().watches, 0U);
  EXPECT_EQ(watcher_now.stats().watches, 1U);
}

TEST(MovedFromActionsTest, AreWhatTheyWere) {
  Action action = send_signal(SIGURG);
  const Action action_now = std::move(action);
  EXPECT_EQ(to_string(action), to_string(action_now));
  ActionChain chain{send_signal(99)};
  {
    const ActionChain chain_now = std::move(chain);
    EXPECT_NE(chain_now.error(), nullptr);
  }
  EXPECT_EQ(chain.size(), 1U);
  ASSERT_NE(chain.error(), nullptr);
  EXPECT_NE(chain.error()->message().find("99"), std::string::npos);
}
// NOLINTEND(bugprone-use-after-move)

}  // namespace
}  // namespace sockalarm::test
