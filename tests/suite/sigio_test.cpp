// SPDX-License-Identifier: Apache-2.0
#include "core/sigio.h"

#include <fcntl.h>
#include <setjmp.h>
#include <sys/resource.h>

#include <optional>

#include "harness/signals.h"
#include "suite/suite.h"

// What is particular to signal-driven I/O: it uses flags of the socket and signals of the process that others
// may use.

namespace sockalarm::test {
namespace {

std::vector<Way> sigio_ways() {
  std::vector<Way> ways;
  for (const Way& way : tested_sources()) ways.emplace_back(way.source, Delivery::sigio);
  return ways;
}
class SigioTest : public SourceTest {};
INSTANTIATE_TEST_SUITE_P(Source, SigioTest, testing::ValuesIn(sigio_ways()), way_name);

// The signal that describe() names.
int used_signal(const Watcher& watcher) {
  const std::string text = watcher.describe().text;
  const auto at = text.find("real-time signal ");
  return at == std::string::npos ? 0 : std::stoi(text.substr(at + 17));
}

void (*handler_of(int number))(int) {
  struct sigaction now{};
  ::sigaction(number, nullptr, &now);
  return now.sa_handler;
}

TEST_P(SigioTest, OrdinaryDataFiresNothing) {
  SOCKALARM_WATCHER(watcher, GetParam());
  const SignalCounter signals(SIGALRM);
  Connection connection = tcp_pair();
  const auto watch = watcher.watch(connection.ours.get());
  const auto alarm = watch->arm(send_signal(SIGALRM));
  for (int i = 0; i < 100; ++i) {
    send_text(connection.peer.get(), "x");
    await_readable(connection.ours.get());
    char byte = 0;
    ASSERT_EQ(::recv(connection.ours.get(), &byte, 1, 0), 1);
  }
  EXPECT_FALSE(alarm->triggered());
  EXPECT_EQ(signals.count(), 0);
  connection.peer.reset();
  ASSERT_TRUE(eventually([&] { return signals.count() == 1; }));
}

TEST_P(SigioTest, HandlersAndFlagsAreRestored) {
  Connection connection = tcp_pair();
  const int fd = connection.ours.get();
  ASSERT_EQ(::fcntl(fd, F_SETSIG, SIGUSR2), 0);
  const f_owner_ex owner{F_OWNER_PID, ::getpid()};
  ASSERT_EQ(::fcntl(fd, F_SETOWN_EX, &owner), 0);
  const int flags = ::fcntl(fd, F_GETFL);
  static std::atomic<int> theirs;
  theirs = 0;
  struct sigaction own{}, before{};
  own.sa_handler = [](int) { ++theirs; };
  ::sigaction(SIGIO, &own, &before);
  int signal = 0;
  {
    SOCKALARM_WATCHER(watcher, GetParam());
    signal = used_signal(watcher);
    ASSERT_GE(signal, SIGRTMIN);
    EXPECT_NE(handler_of(signal), SIG_DFL);
    const auto watch = watcher.watch(fd);
    {
      const auto alarm = watch->arm(send_signal(SIGALRM));
      EXPECT_EQ(::fcntl(fd, F_GETSIG), signal);
      EXPECT_NE(::fcntl(fd, F_GETFL) & O_ASYNC, 0);
      ::raise(SIGIO);
      EXPECT_EQ(theirs.load(), 1) << "the program's own handler is called as well";
    }
  }
  if (!detail::Sigio::must_stay()) {  // an earlier test of this process closed a socket before its Watch
    EXPECT_EQ(handler_of(signal), SIG_DFL);
    EXPECT_EQ(handler_of(SIGIO), own.sa_handler);
  }
  EXPECT_EQ(::fcntl(fd, F_GETSIG), SIGUSR2);
  EXPECT_EQ(::fcntl(fd, F_GETFL), flags);
  f_owner_ex now{};
  ASSERT_EQ(::fcntl(fd, F_GETOWN_EX, &now), 0);
  EXPECT_EQ(now.type, F_OWNER_PID);
  EXPECT_EQ(now.pid, ::getpid());
  ::sigaction(SIGIO, &before, nullptr);
}

// Such as the dispatcher's, when it has waited for the thread for long enough. The call has been wound back
// by then.
TEST_P(SigioTest, ASignalDuringTheHandlerEndsTheCall) {
  // An earlier test of this process closed a socket before its Watch: the handlers are in place already.
  if (detail::Sigio::must_stay()) return;
  struct sigaction own{}, before{};
  own.sa_handler = [](int) { ::syscall(SYS_tgkill, ::getpid(), thread_id(), SIGALRM); };
  own.sa_flags = SA_RESTART;
  ::sigaction(SIGIO, &own, &before);
  {
    SOCKALARM_WATCHER(watcher, GetParam());
    EXPECT_EQ(watcher.describe().delivery, Delivery::sigio);
    const SignalCounter signals(SIGALRM);
    Connection database = tcp_pair();
    std::promise<pid_t> running;
    std::promise<int> ended;
    std::thread blocked([&] {
      running.set_value(thread_id());
      char byte = 0;
      ended.set_value(::recv(database.ours.get(), &byte, 1, 0) < 0 ? errno : 0);
    });
    const pid_t tid = running.get_future().get();
    EXPECT_TRUE(eventually([&] { return is_asleep(tid); }));
    EXPECT_EQ(::syscall(SYS_tgkill, ::getpid(), tid, SIGIO), 0);
    std::future<int> error = ended.get_future();
    if (error.wait_for(kPatience) != std::future_status::ready) send_text(database.peer.get(), "it went on");
    EXPECT_EQ(error.get(), EINTR);
    blocked.join();
    EXPECT_EQ(signals.count(), 1);
  }
  ::sigaction(SIGIO, &before, nullptr);
}

sigjmp_buf back;

// It runs after the library's, and before what that is to send.
TEST_P(SigioTest, TheProgramsOwnHandlerMayLeaveByALongJump) {
  // An earlier test of this process closed a socket before its Watch: the handlers are in place already.
  if (detail::Sigio::must_stay()) return;
  struct sigaction own{}, before{};
  own.sa_handler = [](int) { ::siglongjmp(back, 1); };
  ::sigaction(SIGIO, &own, &before);
  {
    SOCKALARM_WATCHER(watcher, GetParam());
    const SignalCounter signals(SIGALRM);
    Connection connection = tcp_pair();
    const auto watch = watcher.watch(connection.ours.get());
    const sigset_t block = only(used_signal(watcher));  // so that SIGIO is what the thread gets
    ::pthread_sigmask(SIG_BLOCK, &block, nullptr);
    const auto alarm = watch->arm(send_signal(SIGALRM));
    connection.peer.reset();
    EXPECT_TRUE(eventually([&] { return watch->peer_gone() || is_pending(used_signal(watcher)); }));
    if (::sigsetjmp(back, 1) == 0) ::syscall(SYS_tgkill, ::getpid(), thread_id(), SIGIO);
    ::pthread_sigmask(SIG_UNBLOCK, &block, nullptr);
    EXPECT_TRUE(eventually([&] { return signals.count() == 1; }));
  }
  ::sigaction(SIGIO, &before, nullptr);
}

// Signals that a thread blocks are still pending when the handler goes; the default action would end the
// process.
TEST_P(SigioTest, PendingSignalsGoWithTheHandler) {
  sigset_t all, before;
  ::sigfillset(&all);
  Connection connection = tcp_pair();
  {
    SOCKALARM_WATCHER(watcher, GetParam());
    const auto watch = watcher.watch(connection.ours.get());
    const auto alarm = watch->arm(send_signal(SIGALRM), {.on = events::reset, .deadline = {}});
    ::pthread_sigmask(SIG_SETMASK, &all, &before);
    send_text(connection.peer.get(), "x");
    await_readable(connection.ours.get());
    EXPECT_TRUE(is_pending(used_signal(watcher)));
  }
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

// No room for another real-time signal: the kernel sends SIGIO instead, whose default action ends the
// process.
TEST_P(SigioTest, AFullSignalQueue) {
  SOCKALARM_WATCHER(watcher, GetParam());
  const SignalCounter signals(SIGALRM);
  Connection connection = tcp_pair();
  const auto watch = watcher.watch(connection.ours.get());
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_SIGPENDING, &before), 0);
  const auto alarm = watch->arm(send_signal(SIGALRM));
  const rlimit none{0, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_SIGPENDING, &none), 0);
  connection.peer.reset();
  EXPECT_TRUE(eventually([&] { return signals.count() == 1; }));
  ::setrlimit(RLIMIT_SIGPENDING, &before);
  EXPECT_TRUE(alarm->triggered());
}

// The flags belong to the open file description: a dup, or a program that takes the owner over, changes them
// for us.
TEST_P(SigioTest, WhatOthersDoToTheSharedFlagsLosesNothing) {
  SOCKALARM_WATCHER(watcher, GetParam());
  const SignalCounter signals(SIGALRM);
  for (int way = 0; way < 3; ++way) {
    Connection connection = tcp_pair();
    const UniqueFd duplicate(::dup(connection.ours.get()));
    const auto watch = watcher.watch(connection.ours.get());
    Journal journal;
    const auto alarm = watch->arm(ActionChain{send_signal(SIGALRM), journal.entry("went on")});
    if (way == 0) ::fcntl(duplicate.get(), F_SETFL, ::fcntl(duplicate.get(), F_GETFL) & ~O_ASYNC);
    if (way == 1) ::fcntl(duplicate.get(), F_SETOWN, 0);
    connection.peer.reset();
    ASSERT_TRUE(journal.wait_for(1)) << "way " << way;
    ASSERT_TRUE(eventually([&] { return signals.count() == way + 1; }));
  }
}

// Whoever reads is woken by that, and then the kernel sends no signal: the dispatcher does.
TEST_P(SigioTest, WhileAnotherThreadReads) {
  SOCKALARM_WATCHER(watcher, GetParam());
  const SignalCounter signals(SIGALRM);
  Connection connection = tcp_pair();
  const auto watch = watcher.watch(connection.ours.get());
  std::thread reader([&] {
    sigset_t all;
    ::sigfillset(&all);
    ::pthread_sigmask(SIG_SETMASK, &all, nullptr);
    char byte = 0;
    EXPECT_EQ(::recv(connection.ours.get(), &byte, 1, 0), 0);
  });
  BlockedThread thread(*watch, send_signal(SIGALRM));
  connection.peer.reset();
  EXPECT_TRUE(thread.woke());
  reader.join();
  EXPECT_EQ(signals.count(), 1);
}

TEST_P(SigioTest, UnixSockets) {
  SOCKALARM_WATCHER(watcher, GetParam());
  const SignalCounter signals(SIGALRM);
  Connection connection = unix_pair();
  const auto watch = watcher.watch(connection.ours.get());
  BlockedThread thread(*watch, send_signal(SIGALRM));
  connection.peer.reset();
  EXPECT_TRUE(thread.woke());
  EXPECT_EQ(signals.count(), 1);
}

}  // namespace
}  // namespace sockalarm::test
