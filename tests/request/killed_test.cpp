// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

#include <csignal>
#include <cstdlib>

#include "locked_file.h"

// The example's safe form of changing a file under a lock, killed at each of its steps.

namespace sockalarm::test {
namespace {

class LockedFile : public testing::Test {
 protected:
  void SetUp() override { ASSERT_NE(::mkdtemp(folder_.data()), nullptr); }
  void TearDown() override {
    for (const char* name : {"/data", "/data.new", "/data.lock"}) ::unlink((folder_ + name).c_str());
    ::rmdir(folder_.c_str());
  }
  std::string data() const { return folder_ + "/data"; }
  std::string lock() const { return folder_ + "/data.lock"; }
  std::string content() const {
    std::string all;
    EXPECT_TRUE(read_file(data(), all));
    return all;
  }

  // In a process that stops at the beginning and the end of each system call, and is killed at the `step`th
  // stop. False: it had ended before.
  bool killed_at(int step, const std::string& line) const {
    const pid_t child = ::fork();
    if (child == 0) {
      ::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr);
      ::raise(SIGSTOP);
      const FileLock held(lock());
      ::_exit(held && put_in_front(data(), line) ? 0 : 1);
    }
    int status = 0;
    EXPECT_EQ(::waitpid(child, &status, 0), child);
    for (int stop = 0; WIFSTOPPED(status); ++stop) {
      if (stop == step) ::kill(child, SIGKILL);
      // A process that is just being killed cannot be told to go on: it has ended, which waitpid() tells.
      ::ptrace(PTRACE_SYSCALL, child, nullptr, nullptr);
      EXPECT_EQ(::waitpid(child, &status, 0), child);
    }
    if (WIFSIGNALED(status)) return true;
    EXPECT_EQ(WEXITSTATUS(status), 0);
    return false;
  }

 private:
  std::string folder_ = "/tmp/sockalarm-test-XXXXXX";
};

TEST_F(LockedFile, KilledAtEveryStep) {
  {
    const FileLock held(lock());
    ASSERT_TRUE(held);
    ASSERT_TRUE(put_in_front(data(), "the first line"));
  }
  std::string before = content();
  ASSERT_EQ(before, "the first line\n");
  int step = 0, changed = 0;
  for (;; ++step) {
    const std::string line = "line of step " + std::to_string(step);
    const bool killed = killed_at(step, line);
    const int fd = ::open(lock().c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    EXPECT_EQ(::flock(fd, LOCK_EX | LOCK_NB), 0) << "locked after step " << step;
    ::close(fd);
    const std::string now = content();
    if (now != before) {
      EXPECT_EQ(now, line + "\n" + before) << "torn at step " << step;
      ++changed;
    }
    before = now;
    if (!killed) break;
  }
  EXPECT_GT(step, 15);    // it was killed in the middle of all of it
  EXPECT_GE(changed, 2);  // after the rename, and when it ran to its end
  EXPECT_LT(changed, step / 2);
}

TEST_F(LockedFile, WhatCannotBeReadIsNotReplaced) {
  ASSERT_EQ(::symlink("data", data().c_str()), 0);  // ELOOP, also for root
  EXPECT_FALSE(put_in_front(data(), "a line"));
  char target[16];
  EXPECT_EQ(::readlink(data().c_str(), target, sizeof target), 4);
}

}  // namespace
}  // namespace sockalarm::test
