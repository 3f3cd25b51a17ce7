// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>
#include <sockalarm/request.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <thread>
#include <vector>

namespace sockalarm {
namespace {

// A write that nobody reads.
void write_into_nothing() {
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  ::close(ends[0]);
  EXPECT_EQ(::write(ends[1], "x", 1), -1);
  EXPECT_EQ(errno, EPIPE);
  ::close(ends[1]);
}

bool is_blocked() {
  sigset_t now;
  ::pthread_sigmask(SIG_BLOCK, nullptr, &now);
  return ::sigismember(&now, SIGPIPE) == 1;
}

bool is_pending() {
  sigset_t pending;
  return ::sigpending(&pending) == 0 && ::sigismember(&pending, SIGPIPE) == 1;
}

void set_blocked(bool blocked) {
  sigset_t only;
  ::sigemptyset(&only);
  ::sigaddset(&only, SIGPIPE);
  ::pthread_sigmask(blocked ? SIG_BLOCK : SIG_UNBLOCK, &only, nullptr);
}

TEST(SigpipeGuard, TakesTheSignalAndRestoresWhatWas) {
  ASSERT_FALSE(is_blocked());
  {
    SigpipeGuard guard;
    EXPECT_FALSE(guard.raised());
    write_into_nothing();
    EXPECT_TRUE(guard.raised());
    EXPECT_TRUE(guard.raised());
    write_into_nothing();
  }
  EXPECT_FALSE(is_blocked());
  EXPECT_FALSE(is_pending());
}

TEST(SigpipeGuard, WhatWasBlockedStaysBlocked) {
  set_blocked(true);
  {
    SigpipeGuard guard;
    write_into_nothing();
  }
  EXPECT_TRUE(is_blocked());
  EXPECT_FALSE(is_pending());
  set_blocked(false);
}

TEST(SigpipeGuard, OneThatWasPendingStaysPending) {
  set_blocked(true);
  write_into_nothing();
  ASSERT_TRUE(is_pending());
  {
    SigpipeGuard guard;
    write_into_nothing();
  }
  EXPECT_TRUE(is_pending());
  sigset_t only;
  ::sigemptyset(&only);
  ::sigaddset(&only, SIGPIPE);
  int number = 0;
  ::sigwait(&only, &number);
  set_blocked(false);
}

TEST(SigpipeGuard, Nested) {
  {
    SigpipeGuard outer;
    {
      SigpipeGuard inner;
      write_into_nothing();
      EXPECT_TRUE(inner.raised());
    }
    EXPECT_TRUE(is_blocked());
    write_into_nothing();
    EXPECT_TRUE(outer.raised());
  }
  EXPECT_FALSE(is_blocked());
}

TEST(SigpipeGuard, WhereItIsIgnoredItIsAFactAllTheSame) {
  struct sigaction ignore{}, was{};
  ignore.sa_handler = SIG_IGN;
  ::sigaction(SIGPIPE, &ignore, &was);
  {
    SigpipeGuard guard;
    write_into_nothing();
    EXPECT_TRUE(guard.raised());
  }
  ::sigaction(SIGPIPE, &was, nullptr);
}

TEST(SigpipeGuard, EachThreadItsOwn) {
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i)
    threads.emplace_back([i] {
      for (int round = 0; round < 200; ++round) {
        SigpipeGuard guard;
        if (i % 2 == 0) write_into_nothing();
        EXPECT_EQ(guard.raised(), i % 2 == 0);
      }
    });
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace sockalarm
