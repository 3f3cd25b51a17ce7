// SPDX-License-Identifier: Apache-2.0
#include <sys/resource.h>
#include <sys/wait.h>

#include <atomic>
#include <csignal>
#include <thread>

#include "harness/signals.h"
#include "request/scene.h"

// What programs do that they should not, or that happens to them: nothing of it may reach the next request.

namespace sockalarm::test {
namespace {

using Clock = std::chrono::steady_clock;
SOCKALARM_SUITE(Misuse);

// A read that only a signal of the library may end; SIGALRM ends a hang.
void expect_to_be_poked_out_of(const SilentPipe& pipe) {
  const SignalCounter hang_guard(SIGALRM);
  ::alarm(5);
  EXPECT_EQ(pipe.read(), EINTR);
  ::alarm(0);
  EXPECT_EQ(hang_guard.count(), 0);
}

TEST_P(Misuse, ACleanupAfterTheEndIsNotTheNextRequests) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher);
  int run = 0;
  {
    Request request = scene.begin("/first");
    ASSERT_TRUE(request.finish());
    request.on_cleanup([&](bool) { ++run; });
  }
  const int by_its_own_end = run;
  {
    Request next = scene.begin("/second");
  }
  EXPECT_EQ(run, by_its_own_end);
  EXPECT_EQ(run, 1);  // it runs however the request ends, and it has ended
}

TEST_P(Misuse, ARequestEndedInItsCallWithTheLastRequests) {
  SOCKALARM_WATCHER(watcher, GetParam());
  std::optional<Requests> requests(Requests::create(watcher).value());
  std::optional<Request> request(requests->begin("/").value());
  requests.reset();
  const auto result = request->call("outer", 1h, [&] {
    return request->call("inner", 1h, [&] {
      request.reset();
      return 7;
    });
  });
  ASSERT_TRUE(result);
  EXPECT_EQ(*result, 7);
}

// RLIMIT_SIGPENDING: a signal that could not be queued is sent again.
TEST_P(Misuse, ASignalThatCannotBeQueuedIsSentAgain) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher);
  const SilentPipe pipe;
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_SIGPENDING, &before), 0);
  rlimit none = before;
  none.rlim_cur = 0;
  Request request = scene.begin();
  const auto result = request.call("slow", 5ms, [&](const std::stop_token& token) {
    ASSERT_EQ(::setrlimit(RLIMIT_SIGPENDING, &none), 0);
    EXPECT_TRUE(until_stopped(token));
    std::this_thread::sleep_for(20ms);
    ASSERT_EQ(::setrlimit(RLIMIT_SIGPENDING, &before), 0);
    expect_to_be_poked_out_of(pipe);
  });
  EXPECT_EQ(code_of(result), Errc::limit_passed);
}

// By sigwait(3) here. TSan puts handlers off, until a read() has ended that began after the signal came.
TEST_P(Misuse, ASignalThatSomebodyElseTookIsSentAgain) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher);
  const SilentPipe pipe;
  const int signal = scene.requests.signal();
  const sigset_t blocked = only(signal);
  Request request = scene.begin();
  const auto result = request.call("slow", 5ms, [&] {
    ::pthread_sigmask(SIG_BLOCK, &blocked, nullptr);
    EXPECT_TRUE(eventually([&] { return is_pending(signal); }));
    int number = 0;
    ::sigwait(&blocked, &number);
    ::pthread_sigmask(SIG_UNBLOCK, &blocked, nullptr);
    expect_to_be_poked_out_of(pipe);
  });
  EXPECT_EQ(code_of(result), Errc::limit_passed);
}

TEST_P(Misuse, AForkedChildComesOutOfTheCall) {
  SOCKALARM_WATCHER(watcher, GetParam());
  int told = 0;
  Scene scene(watcher, {.handler = [&](Sounding&) { ++told; }});
  for (int i = 0; i < 50; ++i) {
    Request request = scene.begin();
    pid_t child = -1;
    const auto result = request.call("forks", 1ms, [&](const std::stop_token& token) {
      const auto until = Clock::now() + std::chrono::microseconds(900 + 5 * i);
      while (Clock::now() < until) {
      }
      child = ::fork();
      if (child == 0) ::alarm(5);
      if (child != 0) {
        EXPECT_TRUE(until_stopped(token));
      }
      return 7;
    });
    if (child == 0) ::_exit(told == 0 && result == 7 ? 0 : 1);
    int status = -1;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0) << "round " << i;
    told = 0;
  }
}

// The peer leaves after the limit, and the limit is forgiven.
TEST_P(Misuse, APeerThatLeavesAfterAForgivenLimitIsTold) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher, {.limit = 200ms, .handler = [](Sounding& sounding) { sounding.fatal = false; }});
  Request request = scene.begin();
  const auto result = request.call("slow", 0s, [&](const std::stop_token& token) {
    EXPECT_TRUE(until_stopped(token));
    scene.leave();
    EXPECT_TRUE(scene.sees_it());
    // The dispatcher has been through with it when another one is told.
    Request other = scene.begin();
    EXPECT_TRUE(until_stopped(other.stop_token()));
  });
  EXPECT_TRUE(result);
  EXPECT_TRUE(until_stopped(request.stop_token()));
}

// Two dispatchers look at one request then: none pokes while the other one still stops tokens.
TEST_P(Misuse, AWatchOfAnotherWatcher) {
  SOCKALARM_WATCHER(watcher, GetParam());
  SOCKALARM_WATCHER(other, GetParam());
  Scene scene(watcher);
  const auto requests = Requests::create(other, {.limit = 5ms}).value();
  Request request = requests.begin(scene.watch, "/").value();
  Request after = scene.begin();
  const std::stop_token told_after = after.stop_token();
  const SilentPipe pipe;
  const std::stop_callback first(request.stop_token(), [&] {  // before that of the call
    scene.leave();
    EXPECT_TRUE(until_stopped(told_after));  // their dispatcher has looked at `request`
  });
  const auto result = request.call("slow", 0s, [&](const std::stop_token& token) {
    EXPECT_EQ(pipe.read(), EINTR);
    EXPECT_TRUE(token.stop_requested());
  });
  EXPECT_EQ(code_of(result), Errc::request_limit_passed);
}

// FIN is none of the policy's, so it is neither the cause nor when it happened.
TEST_P(Misuse, TheTimeIsThatOfTheEventWhichCounts) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher, {.on = events::reset | events::timeout});
  Request request = scene.begin();
  ::shutdown(scene.connection.peer.get(), SHUT_WR);
  ASSERT_TRUE(scene.sees_it());
  std::this_thread::sleep_for(5ms);
  const auto before = Clock::now();
  reset(scene.connection.peer);
  EXPECT_EQ(code_of(request.sleep_for(1h)), Errc::peer_gone);
  ASSERT_TRUE(request.stopped());
  EXPECT_EQ(request.stopped()->events, events::reset);
  EXPECT_GE(request.stopped()->at, before);
  ASSERT_TRUE(request.finish());
  EXPECT_LE(request.record().busy, Clock::now() - before);
}

// A signal that was pending when it was forked is not pending in the child.
TEST_P(Misuse, AForkedChildHasCallsOfItsOwn) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher);
  Request request = scene.begin();
  const sigset_t blocked = only(scene.requests.signal());
  sigset_t before;
  pid_t child = -1;
  const auto result = request.call("forks", 1ms, [&](const std::stop_token&) {
    ::pthread_sigmask(SIG_BLOCK, &blocked, &before);
    EXPECT_TRUE(eventually([&] { return request.record().pokes == 1; }));
    child = ::fork();
  });
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (child == 0) {
    ::alarm(5);
    Options options;
    options.source = GetParam().source;
    auto own = Watcher::create(options);
    if (!own) ::_exit(2);
    Scene next(*own);
    const SilentPipe pipe;
    Request again = next.begin();
    const auto slow = again.call("slow", 5ms, [&] { return pipe.read(); });
    ::_exit(code_of(slow) == Errc::limit_passed ? 0 : 1);
  }
  EXPECT_EQ(code_of(result), Errc::limit_passed);
  int status = -1;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

// A thread that knew the first signal lets the second one in, too.
TEST_P(Misuse, AnotherSignalAfterOneThatWasTakenOver) {
  SOCKALARM_WATCHER(watcher, GetParam());
  sigset_t all, before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  std::thread worker([&] {
    Scene first(watcher);
    Request known = first.begin();
    EXPECT_TRUE(known.call("known", 0s, [] {}));
    struct sigaction ours{};
    ::sigaction(first.requests.signal(), nullptr, &ours);
    const SignalCounter theirs(first.requests.signal());
    Scene second(watcher);
    ASSERT_NE(second.requests.signal(), first.requests.signal());
    const SilentPipe pipe;
    Request request = second.begin();
    std::atomic<bool> left{false};
    std::jthread hang_guard([&] {
      for (int i = 0; i < 500 && !left; ++i) std::this_thread::sleep_for(10ms);
      if (!left) pipe.write();
    });
    EXPECT_EQ(code_of(request.call("slow", 5ms, [&] { EXPECT_EQ(pipe.read(), EINTR); })), Errc::limit_passed);
    left = true;
  });
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  worker.join();
}

}  // namespace
}  // namespace sockalarm::test
