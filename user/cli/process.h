// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <signal.h>
#include <sockalarm/result.h>
#include <sys/types.h>

#include <string>
#include <vector>

namespace sockalarm::cli {

struct LaunchOptions {
  std::vector<std::string> argv;
  bool own_group = true;        // a process group of its own, as timeout(1) makes it
  sigset_t mask{};              // the signal mask it starts with
  bool ignore_sigchld = false;  // it starts with SIGCHLD ignored
};

// Why the command did not start: it cannot be executed, or we could not even try.
struct StartFailure {
  Error error;
  bool executing;
};

// The command that sockalarm runs, with everything that it starts. Its descendants come to us when their
// parents end (PR_SET_CHILD_SUBREAPER, prctl(2)), so that none is lost; if we die, the kernel kills the
// command. One thread.
class Command {
 public:
  // Executing: errno ENOENT: not found; others: found but not executable.
  static tl::expected<Command, StartFailure> start(const LaunchOptions& options);

  // To its process group, and SIGCONT after it in case it was stopped (not after TSTP, KILL).
  void signal(int number) const noexcept;
  // To everything that is left of it, the group or not.
  void signal_all(int number) const;
  bool has_descendants() const;

  // Collects what has ended. True once: the command itself did, and status() is known.
  bool reap() noexcept;
  bool ended() const noexcept { return ended_; }
  // As the shell counts: 128 + n for a signal.
  int status() const noexcept;
  pid_t pid() const noexcept { return pid_; }

 private:
  Command(pid_t pid, bool own_group) noexcept : pid_(pid), own_group_(own_group) {}

  pid_t pid_;
  bool own_group_;
  bool ended_ = false;
  int wait_status_ = 0;
};

}  // namespace sockalarm::cli
