// SPDX-License-Identifier: Apache-2.0
#include <sys/timerfd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <random>
#include <thread>

#include "harness/signals.h"
#include "request/scene.h"

namespace sockalarm::test {
namespace {

using Clock = std::chrono::steady_clock;
SOCKALARM_SUITE(Limits);

// Blocks until a time or EINTR. True: it was interrupted.
bool block_for(int timer, std::chrono::nanoseconds time) {
  itimerspec when{};
  when.it_value.tv_nsec = std::max<long>(static_cast<long>(time.count()), 1);
  require(::timerfd_settime(timer, 0, &when, nullptr) == 0, "timerfd_settime");
  std::uint64_t expirations = 0;
  return ::read(timer, &expirations, sizeof expirations) < 0 && errno == EINTR;
}

struct Outcome {
  int stopped = 0, ended = 0, late = 0, strays = 0, stale = 0, lost = 0;
};

// One thread's calls with limits around their true duration. Nothing of one may reach the next.
void run_calls(const Scene& scene, int count, unsigned seed, Outcome& outcome) {
  std::mt19937 random(seed);
  std::uniform_int_distribution<int> us(100, 500);
  const UniqueFd timer(::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC));
  Request request = scene.requests.begin(scene.watch, "/").value();
  for (int i = 0; i < count; ++i) {
    const auto duration = std::chrono::microseconds(us(random)),
               limit = std::chrono::microseconds(us(random));
    const auto begin = Clock::now();
    bool interrupted = false;
    const auto result = request.call("around", limit, [&](const std::stop_token& token) {
      if (token.stop_requested() && Clock::now() < begin + limit) ++outcome.stale;
      interrupted = block_for(timer.get(), duration);
      // Interrupted, but not by its own limit: a stray from the call before.
      if (interrupted && !token.stop_requested()) ++outcome.strays;
    });
    const auto took = Clock::now() - begin;
    if (result) {
      ++outcome.ended;
      if (interrupted) ++outcome.lost;
    } else {
      ++outcome.stopped;
      if (took > limit + 50ms) ++outcome.late;
    }
  }
}

TEST_P(Limits, TenThousandCallsAroundTheirLimit) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher, {.limit = 0s});
  constexpr int kThreads = 2, kCalls = 5'000;
  std::vector<Outcome> outcomes(kThreads);
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i)
    threads.emplace_back([&, i] {
      run_calls(scene, kCalls, static_cast<unsigned>(i + 1), outcomes[static_cast<std::size_t>(i)]);
    });
  for (std::thread& thread : threads) thread.join();
  Outcome all;
  for (const Outcome& one : outcomes) {
    EXPECT_EQ(one.stale, 0);
    EXPECT_EQ(one.strays, 0);
    EXPECT_EQ(one.lost, 0);
    all.stopped += one.stopped;
    all.ended += one.ended;
    all.late += one.late;
  }
  EXPECT_EQ(all.stopped + all.ended, kThreads * kCalls);
  EXPECT_GT(all.stopped, kCalls / 10);
  EXPECT_GT(all.ended, kCalls / 10);
  // A busy or emulated machine holds up a thread now and then, never one call in a hundred.
  std::printf("%d of %d calls were stopped late\n", all.late, kThreads * kCalls);
  EXPECT_LE(all.late, kThreads * kCalls / 100);
}

// The thread stays away from the system call for as long as the first pokes come: none of them can end it.
TEST_P(Limits, AWakeUpBetweenTheCheckAndTheCallIsNotLost) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher);
  const SilentPipe pipe;
  for (int round = 0; round < 20; ++round) {
    Request request = scene.begin();
    const auto result = request.call("late", 1ms, [&](const std::stop_token& token) {
      while (!token.stop_requested()) {
      }
      const auto until = Clock::now() + std::chrono::microseconds(200 * round);
      while (Clock::now() < until) {
      }
      EXPECT_EQ(pipe.read(), EINTR);  // blocks for ever, but for another poke
    });
    EXPECT_EQ(code_of(result), Errc::limit_passed);
    EXPECT_GE(request.record().pokes, 1U);
  }
}

// However often it would be poked, a few signals at most are pending, and none is left.
TEST_P(Limits, AThreadThatBlocksTheSignal) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher);
  Request request = scene.begin();
  const SilentPipe pipe;
  const int signal = scene.requests.signal();
  const sigset_t blocked = only(signal);
  sigset_t before;
  const auto result = request.call("blocks it", 5ms, [&](const std::stop_token& token) {
    ::pthread_sigmask(SIG_BLOCK, &blocked, &before);
    EXPECT_TRUE(until_stopped(token));
    EXPECT_TRUE(eventually([&] { return is_pending(signal); }));
    std::this_thread::sleep_for(50ms);
  });
  EXPECT_EQ(code_of(result), Errc::limit_passed);
  EXPECT_GE(request.record().pokes, 1U);
  EXPECT_LE(request.record().pokes, 3U);
  EXPECT_FALSE(is_pending(signal));
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  EXPECT_EQ(code_of(request.call("next", 5ms, [&] { return pipe.read(); })), Errc::limit_passed);
}

// Servers often start their threads with all signals blocked.
TEST_P(Limits, AThreadThatWasStartedWithAllSignalsBlocked) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher);
  sigset_t all, before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  std::thread worker([&] {
    const SilentPipe pipe;
    Request request = scene.begin();
    EXPECT_EQ(code_of(request.call("slow", 5ms, [&] { return pipe.read(); })), Errc::limit_passed);
  });
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  worker.join();
}

TEST_P(Limits, TheSignalIsNoneOfThePrograms) {
  const SignalCounter theirs(SIGRTMAX - 1);  // a handler, and one that is ignored
  struct sigaction ignore{}, was{};
  ignore.sa_handler = SIG_IGN;
  ::sigaction(SIGRTMAX - 2, &ignore, &was);
  SOCKALARM_WATCHER(watcher, GetParam());
  const auto requests = Requests::create(watcher);
  ASSERT_TRUE(requests);
  EXPECT_NE(requests->signal(), SIGRTMAX - 1);
  EXPECT_NE(requests->signal(), SIGRTMAX - 2);
  EXPECT_EQ(requests->signal(), Requests::create(watcher)->signal());
  ::sigaction(SIGRTMAX - 2, &was, nullptr);
}

// It would meet their handler, or its default action, which ends the process.
TEST_P(Limits, ASignalThatTheProgramTakesOverIsNotSent) {
  std::atomic<int> told{0};
  Options options;
  options.log = [&](LogLevel level, std::string_view) { told += level == LogLevel::error; };
  SOCKALARM_WATCHER(watcher, GetParam(), options);
  Scene scene(watcher);
  Request request = scene.begin();
  struct sigaction ours{};
  ::sigaction(scene.requests.signal(), nullptr, &ours);
  {
    const SignalCounter theirs(scene.requests.signal());
    const auto result = request.call("slow", 5ms, [&](const std::stop_token& token) {
      EXPECT_TRUE(until_stopped(token));
      EXPECT_TRUE(eventually([&] { return told > 0; }));
    });
    EXPECT_EQ(code_of(result), Errc::limit_passed);
    EXPECT_EQ(theirs.count(), 0);
  }
  EXPECT_EQ(request.record().pokes, 0U);
  ::sigaction(scene.requests.signal(), &ours, nullptr);
}

TEST_P(Limits, OneThreadAtATime) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher);
  Request request = scene.begin();
  const auto result = request.call("here", 0s, [&] {
    std::thread([&] { EXPECT_EQ(code_of(request.call("there", 0s, [] {})), Errc::invalid_use); }).join();
  });
  EXPECT_TRUE(result);
  // But one after the other.
  std::thread([&] { EXPECT_TRUE(request.call("there", 0s, [] {})); }).join();
}

TEST_P(Limits, ManyRequestsAtOnceEachWithItsOwn) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher);
  std::vector<std::thread> threads;
  for (int i = 0; i < 40; ++i)
    threads.emplace_back([&, i] {
      const SilentPipe pipe;
      Request request = scene.begin();
      const auto limit = std::chrono::milliseconds(5 + i % 20);
      const auto begin = Clock::now();
      const auto result = request.call(std::to_string(i), limit, [&] { return pipe.read(); });
      EXPECT_EQ(code_of(result), Errc::limit_passed);
      EXPECT_GE(Clock::now() - begin, limit);
      EXPECT_NE(result.error().message().find("'" + std::to_string(i) + "'"), std::string::npos);
    });
  for (std::thread& thread : threads) thread.join();
}

TEST_P(Limits, NegativeAndEndlessOnes) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher, {.limit = std::chrono::nanoseconds::max()});
  Request request = scene.begin();
  EXPECT_EQ(code_of(request.call("negative", -1ns, [] {})), Errc::invalid_use);
  EXPECT_TRUE(
      request.call("endless", std::chrono::nanoseconds::max(), [&] { EXPECT_TRUE(request.sleep_for(2ms)); }));
}

TEST_P(Limits, TheWatcherIsGone) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher);
  Request request = scene.begin();
  {
    const Watcher last = std::move(watcher);
  }
  EXPECT_EQ(code_of(scene.requests.begin(scene.watch, "/")), Errc::stopped);
  EXPECT_TRUE(request.call("goes on", 1h, [] {}));
}

}  // namespace
}  // namespace sockalarm::test
