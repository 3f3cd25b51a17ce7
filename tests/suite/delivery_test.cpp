// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <optional>
#include <random>

#include "harness/signals.h"
#include "suite/scene.h"
#include "suite/suite.h"

// Signals to the thread that armed, whoever sends them: the kernel in the thread itself, the handler of
// signal-driven I/O, or the dispatcher. They mean the same.

namespace sockalarm::test {
namespace {

SOCKALARM_SUITE_OVER(tested_ways, DeliveryTest);

TEST_P(DeliveryTest, ReachesTheThreadThatArmedOnce) {
  SOCKALARM_WATCHER(watcher, GetParam());
  const SignalCounter signals(SIGALRM);
  Scene scene(watcher);
  BlockedThread thread(scene.watch, send_signal(SIGALRM));
  scene.connection.peer.reset();
  ASSERT_TRUE(thread.woke());
  EXPECT_EQ(signals.thread(), thread.tid());
  EXPECT_TRUE(thread.fired_in_thread()) << "the alarm says that it was this one";
  ASSERT_TRUE(eventually([&] { return thread.alarm().finished(); }));
  EXPECT_EQ(thread.alarm().cause().what, events::fin);
  EXPECT_EQ(signals.count(), 1);
  const Stats stats = watcher.stats();
  EXPECT_EQ(stats.fired, 1U);
  EXPECT_EQ(stats.actions_run, 1U);
  if (watcher.describe().delivery == Delivery::dispatcher) {
    EXPECT_EQ(stats.fired_directly, 0U);
  }
}

TEST_P(DeliveryTest, TheRestOfTheChainFollowsInOrder) {
  SOCKALARM_WATCHER(watcher, GetParam());
  const SignalCounter signals(SIGALRM);
  for (int round = 0; round < 50; ++round) {
    Scene scene(watcher);
    Journal journal;
    // Each waits for the signal before it, since two of a kind that are pending at once are one.
    const auto after = [&](int count) {
      return call([&, count] {
        if (eventually([&] { return signals.count() == 2 * round + count; }))
          journal.write(std::to_string(count));
      });
    };
    BlockedThread thread(scene.watch, ActionChain{send_signal(SIGALRM), sleep_for(1ms), after(1),
                                                  send_signal(SIGALRM), after(2)});
    scene.connection.peer.reset();
    ASSERT_TRUE(thread.woke());
    ASSERT_TRUE(journal.wait_for(2));
    EXPECT_EQ(journal.lines(), (std::vector<std::string>{"1", "2"}));
    ASSERT_TRUE(eventually([&] { return thread.alarm().finished(); }));
    EXPECT_EQ(thread.alarm().current_action(), 5);
  }
  EXPECT_EQ(signals.count(), 100);
}

#if SOCKALARM_LINUX
// A handler without SA_RESTART ends calls that would be restarted otherwise, whoever sends the signal; one
// with it does not. With signal-driven I/O ordinary data, which interrupts the thread too, does not either.
TEST_P(DeliveryTest, EndsASystemCallThatCouldBeRestarted) {
  SOCKALARM_WATCHER(watcher, GetParam());
  const SignalCounter signals(SIGALRM);
  for (int round = 0; round < 20; ++round) {
    Scene scene(watcher);
    Connection database = tcp_pair();
    std::promise<pid_t> armed;
    std::promise<void> ended;
    std::thread blocked([&] {
      const auto alarm = scene.watch.arm(send_signal(SIGALRM));
      armed.set_value(thread_id());
      char byte = 0;
      EXPECT_LT(::recv(database.ours.get(), &byte, 1, 0), 0);
      EXPECT_EQ(errno, EINTR);
      EXPECT_TRUE(alarm->triggered());
      ended.set_value();
    });
    const pid_t tid = armed.get_future().get();
    ASSERT_TRUE(eventually([&] { return is_asleep(tid); }));
    send_text(scene.connection.peer.get(), "x");
    await_readable(scene.connection.ours.get());
    ASSERT_TRUE(eventually([&] { return is_asleep(tid); }));
    scene.connection.peer.reset();
    if (ended.get_future().wait_for(kPatience) != std::future_status::ready)
      send_text(database.peer.get(), "it went on");
    blocked.join();
  }
  EXPECT_EQ(signals.count(), 20);
}
#endif

TEST_P(DeliveryTest, OtherActionsAndTheProcessAreTheDispatchers) {
  SOCKALARM_WATCHER(watcher, GetParam());
  const SignalCounter signals(SIGALRM);
  Scene scene(watcher);
  Journal journal;
  const auto alarm =
      scene.watch.arm(ActionChain{send_signal(SIGALRM, SignalTarget::process), journal.entry("after")});
  scene.connection.peer.reset();
  ASSERT_TRUE(journal.wait_for(1));
  ASSERT_TRUE(eventually([&] { return signals.count() == 1; }));
  EXPECT_EQ(watcher.stats().fired_directly, 0U);
}

// With signal-driven I/O the last thread to arm is signalled, finds out for all, and must tell it.
TEST_P(DeliveryTest, TheLastToArmWaitsForSomethingElse) {
  SOCKALARM_WATCHER(watcher, GetParam());
  const SignalCounter signals(SIGALRM);
  for (int i = 0; i < 100; ++i) {
    Scene scene(watcher);
    BlockedThread one(scene.watch, send_signal(SIGALRM)),
        other(scene.watch, send_signal(SIGALRM), {.on = events::reset, .deadline = {}});
    scene.connection.peer.reset();
    const bool woke = one.woke();
    ::syscall(SYS_tgkill, ::getpid(), other.tid(), SIGALRM);
    if (!woke) ::syscall(SYS_tgkill, ::getpid(), one.tid(), SIGALRM);
    ASSERT_TRUE(woke) << "round " << i;
    EXPECT_FALSE(other.alarm().triggered());
  }
}

TEST_P(DeliveryTest, SeveralThreadsOnOneSocket) {
  SOCKALARM_WATCHER(watcher, GetParam());
  const SignalCounter signals(SIGALRM);
  Scene scene(watcher);
  BlockedThread one(scene.watch, send_signal(SIGALRM)), two(scene.watch, send_signal(SIGALRM)),
      three(scene.watch, send_signal(SIGALRM), {.on = events::reset, .deadline = {}});
  scene.connection.peer.reset();
  ASSERT_TRUE(one.woke());
  ASSERT_TRUE(two.woke());
  EXPECT_FALSE(three.alarm().triggered());
  EXPECT_EQ(signals.count(), 2);
  ::pthread_kill(::pthread_self(), 0);
  EXPECT_EQ(three.alarm().cancel(), Cancelled::prevented);
  ::syscall(SYS_tgkill, ::getpid(), three.tid(), SIGALRM);
  ASSERT_TRUE(three.woke());
}

TEST_P(DeliveryTest, APeerThatLeftBeforeArming) {
  SOCKALARM_WATCHER(watcher, GetParam());
  const SignalCounter signals(SIGALRM);
  Scene scene(watcher);
  scene.connection.peer.reset();
  ASSERT_TRUE(eventually([&] { return scene.watch.peer_gone(); }));
  BlockedThread thread(scene.watch, send_signal(SIGALRM));
  ASSERT_TRUE(thread.woke());
  EXPECT_EQ(signals.thread(), thread.tid());
}

// The race that the ancestor documents: a signal for a scope that has ended. The peer leaves somewhere around
// the end of the scope; what cancel says must be what happened, and nothing may come after it.
TEST_P(DeliveryTest, NothingArrivesAfterTheScopesEnd) {
  SOCKALARM_WATCHER(watcher, GetParam());
  const SignalCounter signals(SIGALRM);
  std::mt19937 random(1);
  int prevented = 0, fired = 0;
  for (int round = 0; round < 1500; ++round) {
    Scene scene(watcher);
    const int before = signals.count();
    const auto wait = std::chrono::microseconds(random() % 120);
    std::thread leaving([&, hard = random() % 2 == 0] {
      const auto until = std::chrono::steady_clock::now() + 60us;
      while (std::chrono::steady_clock::now() < until) {
      }
      if (hard) return reset(scene.connection.peer);
      scene.connection.peer.reset();
    });
    {
      auto alarm = scene.watch.arm(send_signal(SIGALRM)).value();
      const auto until = std::chrono::steady_clock::now() + wait;
      while (std::chrono::steady_clock::now() < until) {
      }
      const Cancelled cancelled = alarm.cancel_and_wait();
      const int came = signals.count() - before;
      EXPECT_TRUE(cancelled == Cancelled::prevented     ? came == 0
                  : cancelled == Cancelled::interrupted ? came <= 1  // perhaps before its first action
                                                        : came == 1)
          << came << " signals though cancel said " << static_cast<int>(cancelled);
      ++(cancelled == Cancelled::prevented ? prevented : fired);
    }
    const int at_the_end = signals.count();
    leaving.join();
    ASSERT_TRUE(eventually([&] { return scene.watch.peer_gone(); }));
    ASSERT_EQ(signals.count(), at_the_end) << "a stray signal in round " << round;
  }
  EXPECT_LE(signals.count(), fired);
  std::cout << prevented << " prevented, " << fired << " fired, " << watcher.stats().fired_directly
            << " directly\n";
}

TEST_P(DeliveryTest, NothingIsSentAfterAnotherThreadsCancel) {
  SOCKALARM_WATCHER(watcher, GetParam());
  const SignalCounter signals(SIGALRM);
  for (int round = 0; round < 300; ++round) {
    Scene scene(watcher);
    const int before = signals.count();
    BlockedThread thread(scene.watch, send_signal(SIGALRM));
    std::thread leaving([&] { scene.connection.peer.reset(); });
    const Cancelled cancelled = thread.alarm().cancel_and_wait();
    leaving.join();
    if (cancelled !=
        Cancelled::inactive) {  // whatever was sent has been sent; the alarms of others still come
      Journal journal;
      const auto marker = scene.watch.arm(journal.entry("the dispatcher has seen it"));
      ASSERT_TRUE(journal.wait_for(1));
      const int came = signals.count() - before;
      EXPECT_LE(came, cancelled == Cancelled::prevented ? 0 : 1) << "round " << round;
      ::syscall(SYS_tgkill, ::getpid(), thread.tid(), SIGALRM);  // let it go on
    }
    ASSERT_TRUE(thread.woke()) << "round " << round;
  }
}

TEST_P(DeliveryTest, ArmedAgainAndAgain) {
  SOCKALARM_WATCHER(watcher, GetParam());
  const SignalCounter signals(SIGALRM);
  for (int round = 1; round <= 200; ++round) {
    Scene scene(watcher);
    auto alarm = scene.watch.arm(send_signal(SIGALRM)).value();
    for (int again = 0; again < 3; ++again) {
      EXPECT_EQ(alarm.cancel(), Cancelled::prevented);
      EXPECT_TRUE(alarm.start());
    }
    scene.connection.peer.reset();
    ASSERT_TRUE(eventually([&] { return signals.count() == round; }));
    EXPECT_TRUE(alarm.triggered());
  }
  EXPECT_EQ(signals.count(), 200);
}

TEST_P(DeliveryTest, ABlockedSignalWaitsAndTheChainGoesOn) {
  SOCKALARM_WATCHER(watcher, GetParam());
  const SignalCounter signals(SIGALRM);
  Scene scene(watcher);
  sigset_t only, before;
  ::sigemptyset(&only);
  ::sigaddset(&only, SIGALRM);
  ::pthread_sigmask(SIG_BLOCK, &only, &before);
  Journal journal;
  {
    const auto alarm = scene.watch.arm(ActionChain{send_signal(SIGALRM), journal.entry("went on")});
    scene.connection.peer.reset();
    EXPECT_TRUE(journal.wait_for(1));
    EXPECT_EQ(signals.count(), 0);
  }
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  EXPECT_TRUE(eventually([&] { return signals.count() == 1; })) << "it had fired, so it comes";
}

// Its handler of signal-driven I/O does not run either. Whoever is to notice has to be woken for it: of what
// the dispatcher finds by chance, about once a second, so many would take too long.
TEST_P(DeliveryTest, AThreadThatBlocksEverySignalDoesNotHoldUpTheChain) {
  constexpr int kRounds = 60;
  SOCKALARM_WATCHER(watcher, GetParam());
  const SignalCounter signals(SIGALRM);
  std::atomic<int> rounds{0};
  std::atomic<bool> given_up{false};
  std::thread deaf([&] {
    sigset_t all;
    ::sigfillset(&all);
    ::pthread_sigmask(SIG_BLOCK, &all, nullptr);
    for (; rounds < kRounds && !given_up; ++rounds) {
      Scene scene(watcher);
      Journal journal;
      const auto alarm = scene.watch.arm(ActionChain{send_signal(SIGALRM), journal.entry("went on")});
      scene.connection.peer.reset();
      if (!journal.wait_for(1)) return;
    }
  });
  EXPECT_TRUE(eventually([&] { return rounds == kRounds; })) << rounds << " rounds";
  given_up = true;
  deaf.join();
  EXPECT_EQ(signals.count(), 0) << "they ended with their thread";
}

TEST_P(DeliveryTest, AThreadThatHasEndedDoesNotHoldUpTheChain) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher);
  Journal journal;
  std::optional<Alarm> alarm;
  pid_t tid = 0;
  std::thread([&] {
    tid = ::gettid();
    alarm.emplace(scene.watch.arm(ActionChain{send_signal(SIGALRM), journal.entry("went on")}).value());
  }).join();
  // It can be joined a moment before the kernel has taken it away (CLONE_CHILD_CLEARTID, clone(2)).
  ASSERT_TRUE(eventually([&] { return ::syscall(SYS_tgkill, ::getpid(), tid, 0) != 0; }));
  scene.connection.peer.reset();
  ASSERT_TRUE(journal.wait_for(1));
  EXPECT_EQ(watcher.stats().actions_failed, 1U) << "the signal reached nobody";
  ASSERT_TRUE(eventually([&] { return alarm->finished(); }));
}

#if SOCKALARM_LINUX
// vfork(2) waits in the kernel, out of reach of any signal, until the child is done.
TEST_P(DeliveryTest, AThreadThatIsStuckInTheKernelDoesNotHoldUpTheChain) {
  SOCKALARM_WATCHER(watcher, GetParam());
  const SignalCounter signals(SIGALRM);
  Scene scene(watcher);
  Journal journal;
  int gate[2];
  ASSERT_EQ(::pipe2(gate, O_CLOEXEC), 0);
  const UniqueFd out(gate[0]);
  UniqueFd in(gate[1]);
  std::promise<void> armed;
  std::thread stuck([&] {
    const auto alarm = scene.watch.arm(ActionChain{send_signal(SIGALRM), journal.entry("went on")});
    armed.set_value();
    char byte = 0;
    const pid_t child = ::vfork();
    if (child == 0) {
      while (::read(out.get(), &byte, 1) < 0) {
      }
      ::_exit(0);
    }
    int status = 0;
    while (::waitpid(child, &status, 0) < 0) {
    }
    EXPECT_TRUE(eventually([&] { return signals.count() == 1; }));
  });
  armed.get_future().wait();
  ::shutdown(scene.connection.peer.get(), SHUT_RDWR);  // the child has a copy of the descriptor
  EXPECT_TRUE(journal.wait_for(1));
  const char byte = 0;
  ASSERT_EQ(::write(in.get(), &byte, 1), 1);
  stuck.join();
  EXPECT_EQ(signals.count(), 1);
}

TEST_P(DeliveryTest, AStoppedProcessGetsItWhenItGoesOn) {
  Connection connection = tcp_pair();
  int ready[2];
  ASSERT_EQ(::pipe2(ready, O_CLOEXEC), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    connection.peer.reset();
    const SignalCounter signals(SIGALRM);
    auto watcher = make_watcher(GetParam());
    if (!watcher) ::_exit(2);
    auto watch = watcher->watch(connection.ours.get());
    auto alarm = watch->arm(send_signal(SIGALRM));
    [[maybe_unused]] const ssize_t n = ::write(ready[1], "x", 1);
    ::_exit(eventually([&] { return signals.count() == 1; }) && alarm->triggered() ? 0 : 1);
  }
  connection.ours.reset();
  char byte = 0;
  ::close(ready[1]);
  const bool up = ::read(ready[0], &byte, 1) == 1;
  ::close(ready[0]);
  int status = 0;
  if (up) {
    ::kill(child, SIGSTOP);
    ::waitpid(child, &status, WUNTRACED);
    connection.peer.reset();
    ::kill(child, SIGCONT);
  }
  ::waitpid(child, &status, 0);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 2 && !kernel_required()) GTEST_SKIP();
  EXPECT_EQ(status, 0);
}
#endif

TEST_P(DeliveryTest, NoSignalAfterTheWatcherIsGone) {
  std::optional<Watch> watch;
  Connection connection = tcp_pair();
  const SignalCounter signals(SIGALRM);
  std::optional<Alarm> alarm;
  {
    SOCKALARM_WATCHER(watcher, GetParam());
    watch.emplace(watcher.watch(connection.ours.get()).value());
    alarm.emplace(watch->arm(send_signal(SIGALRM)).value());
  }
  connection.peer.reset();
  await_readable(connection.ours.get());
  ::syscall(SYS_getppid);
  EXPECT_EQ(signals.count(), 0);
  EXPECT_FALSE(alarm->start());
}

TEST(DeliveryChoiceTest, WhatCannotBeHadIsAnError) {
  for (const SourceKind source : {SourceKind::epoll, SourceKind::poll}) {
    Options options;
    options.source = source;
    options.delivery = Delivery::task_work;
    const auto watcher = Watcher::create(options);
    ASSERT_FALSE(watcher);
    EXPECT_NE(watcher.error().message().find("have task work"), std::string::npos)
        << watcher.error().message();
  }
}

}  // namespace
}  // namespace sockalarm::test
