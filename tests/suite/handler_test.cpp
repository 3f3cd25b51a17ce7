// SPDX-License-Identifier: Apache-2.0
#include <setjmp.h>

#include <array>
#include <vector>

#include "harness/signals.h"
#include "suite/scene.h"
#include "suite/suite.h"

// What the program's handler finds, and may do, is what sigaction(2) says, whoever sends the signal.

namespace sockalarm::test {
namespace {

// Without an alternate stack, which ASan gives each thread: then signal-driven I/O calls the handler itself.
class HandlerTest : public SourceTest {
 protected:
  void SetUp() override {
    SourceTest::SetUp();
    stack_t none{};
    none.ss_flags = SS_DISABLE;
    ASSERT_EQ(::sigaltstack(&none, &before_), 0);
  }
  void TearDown() override {
    ::sigaltstack(&before_, nullptr);
    SourceTest::TearDown();
  }

 private:
  stack_t before_{};
};
INSTANTIATE_TEST_SUITE_P(Source, HandlerTest, testing::ValuesIn(tested_ways()), way_name);

constexpr int kSignal = SIGALRM, kOther = SIGUSR1, kBlocked = SIGUSR2;

class Handled {
 public:
  Handled(int number, void (*handler)(int, siginfo_t*, void*), int flags, std::vector<int> also_blocked = {})
      : number_(number) {
    struct sigaction action{};
    action.sa_sigaction = handler;
    action.sa_flags = flags | SA_SIGINFO;
    for (const int other : also_blocked) ::sigaddset(&action.sa_mask, other);
    ::sigaction(number_, &action, &previous_);
  }
  ~Handled() { ::sigaction(number_, &previous_, nullptr); }
  Handled(const Handled&) = delete;
  Handled& operator=(const Handled&) = delete;

 private:
  const int number_;
  struct sigaction previous_{};
};

// What this thread waits for. Handlers write to it, so that one that runs before the call ends it, too.
class Bell {
 public:
  Bell() : ends_(unix_pair()) {
    bell = ends_.peer.get();
    const timeval patience{std::chrono::duration_cast<std::chrono::seconds>(kPatience).count(), 0};
    ::setsockopt(ends_.ours.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  }
  static void ring() {
    const int saved = errno;
    ::send(bell, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
    errno = saved;
  }
  bool rang() {
    char byte = 0;
    ssize_t got = -1;
    do got = ::recv(ends_.ours.get(), &byte, 1, 0);
    while (got < 0 && errno == EINTR);
    return got == 1;
  }

 private:
  Connection ends_;
  inline static volatile int bell = -1;
};

sigset_t blocked_now() {
  sigset_t now;
  ::pthread_sigmask(SIG_SETMASK, nullptr, &now);
  return now;
}

std::vector<int> members(const sigset_t& set) {
  std::vector<int> found;
  for (int number = 1; number < NSIG; ++number)
    if (::sigismember(&set, number) == 1) found.push_back(number);
  return found;
}

sigset_t seen_mask;

TEST_P(HandlerTest, OnlyWhatItAskedForIsBlocked) {
  SOCKALARM_WATCHER(watcher, GetParam());
  const auto handler = [](int, siginfo_t*, void*) {
    seen_mask = blocked_now();
    Bell::ring();
  };
  const sigset_t block = only(kBlocked);
  sigset_t before;
  ::pthread_sigmask(SIG_BLOCK, &block, &before);
  const auto during = [&](int flags) {
    const sigset_t own = blocked_now();
    const Handled handled(kSignal, handler, flags, {kOther});
    Bell bell;
    Scene scene(watcher);
    const auto alarm = scene.watch.arm(send_signal(kSignal));
    scene.peer_leaves();
    EXPECT_TRUE(bell.rang());
    EXPECT_EQ(members(blocked_now()), members(own));
    return members(seen_mask);
  };
  sigset_t expected = blocked_now();
  ::sigaddset(&expected, kOther);
  EXPECT_EQ(during(SA_NODEFER), members(expected));
  ::sigaddset(&expected, kSignal);
  EXPECT_EQ(during(0), members(expected));
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

siginfo_t seen_info;
volatile bool seen_direct = false;

TEST_P(HandlerTest, SiginfoSaysWhoSentIt) {
  SOCKALARM_WATCHER(watcher, GetParam());
  const Handled handled(
      kSignal,
      [](int, siginfo_t* info, void* context) {
        seen_info = *info;
        seen_direct = static_cast<void*>(info) < context;  // the kernel puts it above, in the same frame
        Bell::ring();
      },
      0);
  Bell bell;
  Scene scene(watcher);
  const auto alarm = scene.watch.arm(send_signal(kSignal));
  scene.peer_leaves();
  ASSERT_TRUE(bell.rang());
  if (watcher.describe().delivery == Delivery::sigio && watcher.stats().fired_directly == 1)
    EXPECT_TRUE(seen_direct);
  else
    EXPECT_FALSE(seen_direct);
  EXPECT_EQ(seen_info.si_signo, kSignal);
  if (seen_info.si_code == SI_KERNEL) {
    EXPECT_EQ(watcher.describe().delivery, Delivery::task_work);
    return;
  }
#if SOCKALARM_LINUX
  EXPECT_EQ(seen_info.si_code, SI_TKILL);
#endif
  EXPECT_EQ(seen_info.si_pid, ::getpid());
  EXPECT_EQ(seen_info.si_uid, ::getuid());
}

TEST_P(HandlerTest, ItMayBeForOneSignalOnly) {
  SOCKALARM_WATCHER(watcher, GetParam());
  const Handled handled(
      kSignal, [](int, siginfo_t*, void*) { Bell::ring(); }, static_cast<int>(SA_RESETHAND));
  Bell bell;
  Scene scene(watcher);
  const auto alarm = scene.watch.arm(send_signal(kSignal));
  scene.peer_leaves();
  ASSERT_TRUE(bell.rang());
  struct sigaction now{};
  ::sigaction(kSignal, nullptr, &now);
  EXPECT_EQ(now.sa_handler, SIG_DFL);
}

const void* volatile seen_stack = nullptr;

TEST_P(HandlerTest, RunsOnTheStackThatItAskedFor) {
  SOCKALARM_WATCHER(watcher, GetParam());
  const auto handler = [](int, siginfo_t*, void*) {
    seen_stack = __builtin_frame_address(0);
    Bell::ring();
  };
  std::vector<char> memory(256 * 1024);
  stack_t own{}, before{};
  own.ss_sp = memory.data();
  own.ss_size = memory.size();
  ASSERT_EQ(::sigaltstack(&own, &before), 0);
  for (const int flags : {0, SA_ONSTACK}) {
    const Handled handled(kSignal, handler, flags);
    Bell bell;
    Scene scene(watcher);
    const auto alarm = scene.watch.arm(send_signal(kSignal));
    scene.peer_leaves();
    EXPECT_TRUE(bell.rang());
    const auto* at = static_cast<const char*>(seen_stack);
    EXPECT_EQ(at >= memory.data() && at < memory.data() + memory.size(), flags == SA_ONSTACK);
  }
  ::sigaltstack(&before, nullptr);
}

sigjmp_buf back;

TEST_P(HandlerTest, MayLeaveByALongJump) {
  SOCKALARM_WATCHER(watcher, GetParam());
  const Handled handled(kSignal, [](int, siginfo_t*, void*) { ::siglongjmp(back, 1); }, 0);
  const auto own = members(blocked_now());
  const std::array<int, 5> rounds{1, 2, 3, 4, 5};
  for ([[maybe_unused]] const int round : rounds) {
    Bell bell;
    Scene scene(watcher);
    // Blocked but for the call: it is not to leave the calls of the library halfway. All of them, so that
    // what tells of the peer is not handled before either.
    sigset_t block;
    ::sigfillset(&block);
    ::pthread_sigmask(SIG_BLOCK, &block, nullptr);
    const auto alarm = scene.watch.arm(send_signal(kSignal));
    scene.peer_leaves();
    volatile bool left = false;
    if (::sigsetjmp(back, 1) == 0) {
      ::pthread_sigmask(SIG_UNBLOCK, &block, nullptr);
      bell.rang();
    } else {
      left = true;
    }
    ::pthread_sigmask(SIG_UNBLOCK, &block, nullptr);
    EXPECT_TRUE(left);
    EXPECT_EQ(members(blocked_now()), own);
    EXPECT_TRUE(alarm->triggered());
  }
}

volatile sig_atomic_t inner_came = 0, inner_within = 0;
std::atomic<bool> outer_runs{false};

// A handler may wait for another alarm of its thread.
TEST_P(HandlerTest, AnotherAlarmMayComeMeanwhile) {
  SOCKALARM_WATCHER(watcher, GetParam());
  inner_came = 0;
  inner_within = 0;
  outer_runs = false;
  const Handled inner(kOther, [](int, siginfo_t*, void*) { inner_came = 1; }, 0);
  const Handled outer(
      kSignal,
      [](int, siginfo_t*, void*) {
        outer_runs = true;
        const timespec a_while{0, 1'000'000};
        for (int ms = 0; ms < 10'000 && inner_came == 0; ++ms) ::nanosleep(&a_while, nullptr);
        inner_within = inner_came;
        Bell::ring();
      },
      0);
  Bell bell;
  Scene first(watcher), second(watcher);
  const auto one = first.watch.arm(send_signal(kSignal));
  const auto two = second.watch.arm(send_signal(kOther));
  std::thread leaves([&] {
    first.peer_leaves();
    eventually([&] { return outer_runs.load(); });
    second.peer_leaves();
  });
  EXPECT_TRUE(bell.rang());
  leaves.join();
  EXPECT_EQ(inner_within, 1);
}

std::array<std::atomic<int>, NSIG> times;

// The lower one's handler, which the kernel runs after the other's.
TEST_P(HandlerTest, AnotherOneThatLeavesByALongJumpTakesNothingAlong) {
  SOCKALARM_WATCHER(watcher, GetParam());
  constexpr int kLower = SIGUSR1, kHigher = SIGALRM;
  static_assert(kLower < kHigher);
  times[kHigher] = 0;
  const Handled leaves(kLower, [](int, siginfo_t*, void*) { ::siglongjmp(back, 1); }, 0);
  const Handled counts(kHigher, [](int, siginfo_t*, void*) { ++times[kHigher]; }, 0);
  Bell bell;
  Scene first(watcher), second(watcher);
  sigset_t all, before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  const auto one = first.watch.arm(send_signal(kLower));
  const auto two = second.watch.arm(send_signal(kHigher));
  first.peer_leaves();
  second.peer_leaves();
  EXPECT_TRUE(eventually([&] { return first.watch.peer_gone() && second.watch.peer_gone(); }));
  if (::sigsetjmp(back, 0) == 0) {
    ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
    bell.rang();
  }
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  EXPECT_TRUE(eventually([&] { return times[kHigher] == 1; }));
  EXPECT_TRUE(one->triggered() && two->triggered());
}

// Whose peers have left while the thread did not look: all come, each once.
TEST_P(HandlerTest, SeveralAtOnceComeOnceEach) {
  SOCKALARM_WATCHER(watcher, GetParam());
  const std::vector<int> numbers{kSignal, kOther, kBlocked};
  const sigset_t all = [] {
    sigset_t set;
    ::sigfillset(&set);
    return set;
  }();
  const auto handler = [](int number, siginfo_t*, void*) { ++times[static_cast<std::size_t>(number)]; };
  std::vector<std::unique_ptr<Handled>> handled;
  std::vector<std::unique_ptr<Scene>> scenes;
  std::vector<Alarm> alarms;
  for (const int number : numbers) {
    times[static_cast<std::size_t>(number)] = 0;
    handled.push_back(std::make_unique<Handled>(number, handler, 0));
    scenes.push_back(std::make_unique<Scene>(watcher));
    alarms.push_back(scenes.back()->watch.arm(send_signal(number)).value());
  }
  sigset_t before;
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  for (const auto& scene : scenes) scene->peer_leaves();
  for (const auto& scene : scenes) EXPECT_TRUE(eventually([&] { return scene->watch.peer_gone(); }));
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  for (const int number : numbers)
    EXPECT_TRUE(eventually([&] { return times[static_cast<std::size_t>(number)] == 1; })) << number;
  alarms.clear();
  for (const int number : numbers) EXPECT_EQ(times[static_cast<std::size_t>(number)], 1) << number;
}

}  // namespace
}  // namespace sockalarm::test
