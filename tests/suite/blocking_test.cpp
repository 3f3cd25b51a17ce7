// SPDX-License-Identifier: Apache-2.0
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <future>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <stdexcept>
#include <thread>

#include "harness/signals.h"
#include "suite/scene.h"
#include "suite/suite.h"

// Actions that may block, and the helper threads that run them.
namespace sockalarm::test {
namespace {

SOCKALARM_SUITE(BlockingTest);

// Holds those who come until it is opened; counts them.
class Gate {
 public:
  void pass() {
    std::unique_lock lock(mutex_);
    most_ = std::max(most_, ++inside_);
    ++came_;
    changed_.notify_all();
    changed_.wait(lock, [&] { return open_; });
    --inside_;
  }
  Action action() {
    return call_blocking([this] { pass(); });
  }
  void open() {
    const std::lock_guard lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }
  bool await(int count) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, kPatience, [&] { return came_ >= count; });
  }
  int came() const {
    const std::lock_guard lock(mutex_);
    return came_;
  }
  int most_at_once() const {
    const std::lock_guard lock(mutex_);
    return most_;
  }

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool open_ = false;
  int inside_ = 0, most_ = 0, came_ = 0;
};

bool blocks_all_signals() {
  sigset_t mask;
  ::pthread_sigmask(SIG_SETMASK, nullptr, &mask);
  return ::sigismember(&mask, SIGTERM) == 1 && ::sigismember(&mask, SIGALRM) == 1;
}

TEST_P(BlockingTest, OtherAlarmsDoNotWait) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene slow(watcher), quick(watcher);
  Gate gate;
  Journal journal;
  const auto blocked = slow.watch.arm(gate.action());
  const auto alarm = quick.watch.arm(journal.entry("served"));
  slow.peer_leaves();
  ASSERT_TRUE(gate.await(1));
  quick.peer_leaves();
  EXPECT_TRUE(journal.wait_for(1));
  EXPECT_TRUE(blocked->active());
  gate.open();
  EXPECT_TRUE(eventually([&] { return blocked->finished(); }));
}

TEST_P(BlockingTest, TheChainKeepsItsOrderAcrossThreads) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher);
  Journal journal;
  std::set<std::thread::id> dispatcher, helpers;
  bool masked = true;
  const auto on = [&](std::set<std::thread::id>& threads, const std::string& name) {
    return [&, name] {
      threads.insert(std::this_thread::get_id());
      masked &= blocks_all_signals();
      journal.write(name);
    };
  };
  const auto alarm = scene.watch.arm(ActionChain{call(on(dispatcher, "1")), call_blocking(on(helpers, "2")),
                                                 call_blocking(on(helpers, "3")), sleep_for(5ms),
                                                 call_blocking(on(helpers, "4")), call(on(dispatcher, "5"))});
  scene.peer_leaves();
  ASSERT_TRUE(eventually([&] { return alarm->finished(); }));
  EXPECT_EQ(journal.lines(), (std::vector<std::string>{"1", "2", "3", "4", "5"}));
  EXPECT_EQ(dispatcher.size(), 1U);
  EXPECT_FALSE(helpers.contains(*dispatcher.begin()));
  EXPECT_TRUE(masked);
  EXPECT_EQ(watcher.stats().actions_run, 6U);
}

TEST_P(BlockingTest, FailuresAreCountedAndTold) {
  Journal told;
  Options options;
  options.log = [&](LogLevel level, std::string_view text) {
    if (level == LogLevel::warning) told.write(std::string(text));
  };
  SOCKALARM_WATCHER(watcher, GetParam(), options);
  Scene scene(watcher);
  Journal journal;
  auto alarm = scene.watch.arm(
      ActionChain{call_blocking([] { throw std::runtime_error("no database"); }), journal.entry("after")});
  scene.peer_leaves();
  ASSERT_TRUE(eventually([&] { return !alarm->active(); }));
  EXPECT_FALSE(alarm->finished());
  EXPECT_EQ(alarm->current_action(), 0);
  EXPECT_EQ(watcher.stats().actions_failed, 1U);
  ASSERT_FALSE(told.lines().empty());
  EXPECT_NE(told.lines().back().find("call_blocking"), std::string::npos) << told.lines().back();
  EXPECT_NE(told.lines().back().find("no database"), std::string::npos) << told.lines().back();

  alarm = scene.watch.arm(
      ActionChain{call_blocking([](const Event&) { return Verdict::stop; }), journal.entry("after")});
  ASSERT_TRUE(eventually([&] { return !alarm->active(); }));
  EXPECT_EQ(watcher.stats().actions_failed, 1U);
  EXPECT_TRUE(journal.lines().empty());
}

TEST_P(BlockingTest, TheEndOfTheScopeWaits) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher);
  Gate gate;
  Journal journal;
  std::atomic<bool> returned{false};
  const auto work = call_blocking([&] {
    gate.pass();
    returned = true;
  });
  std::thread opener;
  {
    const auto alarm = scene.watch.arm(ActionChain{work, journal.entry("after")});
    scene.peer_leaves();
    ASSERT_TRUE(gate.await(1));
    opener = std::thread([&, tid = ::gettid()] {
      EXPECT_TRUE(eventually([&] { return is_asleep(tid); }))
          << "in the scope's end, which has cancelled first";
      gate.open();
    });
  }
  EXPECT_TRUE(returned);
  opener.join();
  EXPECT_TRUE(journal.lines().empty()) << "cancelled while it ran, so it was the last one";
}

TEST_P(BlockingTest, WhatWaitsForAHelperCanBeCancelled) {
  Options options;
  options.helper_threads = 1;
  SOCKALARM_WATCHER(watcher, GetParam(), options);
  Scene first(watcher), second(watcher), third(watcher);
  Gate gate;
  std::atomic<bool> ran{false};
  Journal journal;
  const auto blocked = first.watch.arm(gate.action());
  first.peer_leaves();
  ASSERT_TRUE(gate.await(1));
  auto waiting = second.watch.arm(ActionChain{journal.entry("before"), call_blocking([&] { ran = true; })});
  second.peer_leaves();
  ASSERT_TRUE(journal.wait_for(1));
  EXPECT_EQ(waiting->cancel_and_wait(), Cancelled::interrupted);
  EXPECT_FALSE(waiting->active());
  // And armed again it is another matter, although the old piece of work still is in the queue.
  Journal again;
  waiting = second.watch.arm(ActionChain{again.entry("before"), call_blocking([&] { again.write("run"); })});
  ASSERT_TRUE(again.wait_for(1));
  gate.open();
  ASSERT_TRUE(eventually([&] { return waiting->finished(); }));
  EXPECT_EQ(again.lines(), (std::vector<std::string>{"before", "run"}));
  EXPECT_FALSE(ran);
}

TEST_P(BlockingTest, AtMostSoManyHelpers) {
  Options options;
  options.helper_threads = 3;
  SOCKALARM_WATCHER(watcher, GetParam(), options);
  constexpr int kAlarms = 8;
  Gate gate;
  std::vector<std::unique_ptr<Scene>> scenes;
  std::vector<Result<Alarm>> alarms;
  for (int i = 0; i < kAlarms; ++i) {
    scenes.push_back(std::make_unique<Scene>(watcher));
    alarms.push_back(scenes.back()->watch.arm(gate.action()));
  }
  for (const auto& scene : scenes) scene->peer_leaves();
  ASSERT_TRUE(gate.await(3));
  ASSERT_TRUE(eventually([&] { return watcher.stats().fired == kAlarms; }));
  EXPECT_EQ(gate.came(), 3);
  gate.open();
  for (const auto& alarm : alarms) EXPECT_TRUE(eventually([&] { return alarm->finished(); }));
  EXPECT_EQ(gate.came(), kAlarms);
  EXPECT_LE(gate.most_at_once(), 3);
}

TEST_P(BlockingTest, CancelledFromInside) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher);
  std::optional<Alarm> alarm;
  std::promise<void> armed;
  std::promise<Cancelled> found;
  Journal journal;
  const auto work = call_blocking([&] {
    armed.get_future().wait();
    found.set_value(alarm->cancel_and_wait());
  });
  alarm.emplace(scene.watch.arm(ActionChain{work, journal.entry("after")}).value());
  scene.peer_leaves();
  armed.set_value();
  EXPECT_EQ(found.get_future().get(), Cancelled::interrupted);
  EXPECT_TRUE(eventually([&] { return !alarm->active(); }));
  EXPECT_TRUE(journal.lines().empty());
}

// From another alarm's action on the dispatcher: it waits there, too.
TEST_P(BlockingTest, CancelledByAnAction) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher), other(watcher);
  Gate gate;
  std::atomic<bool> returned{false};
  auto blocked = scene.watch.arm(call_blocking([&] {
    gate.pass();
    returned = true;
  }));
  scene.peer_leaves();
  ASSERT_TRUE(gate.await(1));
  std::promise<bool> seen;
  const auto alarm = other.watch.arm(call([&] {
    std::thread opener([&] { gate.open(); });
    blocked->cancel_and_wait();
    seen.set_value(returned);
    opener.join();
  }));
  other.peer_leaves();
  EXPECT_TRUE(seen.get_future().get());
}

TEST_P(BlockingTest, TheWatchersEndWaitsForWhatRuns) {
  Options options;
  options.helper_threads = 1;
  auto made = make_watcher(GetParam(), options);
  if (!made && !kernel_required() && GetParam() == SourceKind::kernel) GTEST_SKIP();
  ASSERT_TRUE(made) << made.error().message();
  std::optional<Watcher> watcher(std::move(*made));
  Scene first(*watcher), second(*watcher);
  Gate gate;
  Journal journal;
  std::atomic<bool> returned{false};
  const auto running = first.watch.arm(ActionChain{call_blocking([&] {
                                                     gate.pass();
                                                     returned = true;
                                                   }),
                                                   journal.entry("after")});
  first.peer_leaves();
  ASSERT_TRUE(gate.await(1));
  const auto waiting = second.watch.arm(ActionChain{journal.entry("queued"), gate.action()});
  second.peer_leaves();
  ASSERT_TRUE(journal.wait_for(1));
  std::thread opener([&, tid = ::gettid()] {
    EXPECT_TRUE(eventually([&] { return is_asleep(tid); })) << "in the watcher's end, which has stopped it";
    gate.open();
  });
  watcher.reset();
  EXPECT_TRUE(returned);
  opener.join();
  EXPECT_FALSE(running->active());
  EXPECT_FALSE(waiting->active());
  EXPECT_FALSE(running->finished());
  EXPECT_EQ(journal.lines(), std::vector<std::string>{"queued"});
}

// Handlers that end at any moment around their client's leaving: what blocks runs once or not at all, and
// never after the scope.
TEST_P(BlockingTest, RunsOnceOrNotAtAllAndNeverAfterTheScope) {
  Options options;
  options.helper_threads = 4;
  SOCKALARM_WATCHER(watcher, GetParam(), options);
  constexpr int kThreads = 4, kRounds = 100;
  std::atomic<int> wrong{0}, ran{0};
  const auto handler = [&](unsigned seed) {
    std::mt19937 random(seed);
    for (int round = 0; round < kRounds; ++round) {
      Scene scene(watcher);
      std::atomic<int> calls{0};
      std::atomic<bool> over{false};
      std::thread leaver([&] { scene.peer_leaves(); });
      {
        const auto alarm = scene.watch.arm(ActionChain{call_blocking([&] {
                                                         if (over) ++wrong;
                                                         ++calls;
                                                       }),
                                                       call([&] {
                                                         if (over) ++wrong;
                                                       })});
        const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(random() % 400);
        while (std::chrono::steady_clock::now() < end) std::this_thread::yield();
      }
      over = true;
      if (calls > 1) ++wrong;
      ran += calls;
      leaver.join();
    }
  };
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < kThreads; ++i) threads.emplace_back(handler, i);
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  RecordProperty("ran", ran);
}

TEST_P(BlockingTest, RepeatedUntilTheScopeEnds) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher);
  std::atomic<int> calls{0};
  int at_the_end = 0;
  {
    const auto alarm = scene.watch.arm(repeated(call_blocking([&] { ++calls; }), 1000, 1ms));
    scene.peer_leaves();
    EXPECT_TRUE(eventually([&] { return calls >= 5; }));
  }
  at_the_end = calls;
  EXPECT_LT(at_the_end, 1000);
  Journal later;
  const auto alarm = scene.watch.arm(ActionChain{sleep_for(20ms), later.entry("later")});
  EXPECT_TRUE(later.wait_for(1));
  EXPECT_EQ(calls, at_the_end);
}

TEST(RepeatedTest, PausesDoubleUpToASecond) {
  EXPECT_EQ(to_string(repeated(notify(0), 0)), "");
  EXPECT_EQ(to_string(repeated(send_signal(SIGALRM), 1)), "sig:ALRM");
  EXPECT_EQ(to_string(repeated(send_signal(SIGALRM, SignalTarget::process), 4, 300ms)),
            "sig:ALRM:process; sleep:300ms; sig:ALRM:process; sleep:600ms; sig:ALRM:process; sleep:1s; "
            "sig:ALRM:process");
}

TEST(HelperThreadsTest, OutOfRange) {
  for (const int count : {0, -1, 1025}) {
    Options options;
    options.helper_threads = count;
    const auto watcher = Watcher::create(options);
    ASSERT_FALSE(watcher);
    EXPECT_EQ(watcher.error().code(), Errc::invalid_options);
    EXPECT_NE(watcher.error().message().find("helper_threads"), std::string::npos);
  }
}

}  // namespace
}  // namespace sockalarm::test
