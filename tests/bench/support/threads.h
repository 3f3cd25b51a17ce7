// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sockalarm/unique_fd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "bench/support/basics.h"
#include "harness/sockets.h"

namespace sockalarm::bench {

inline pid_t thread_id() noexcept { return static_cast<pid_t>(::syscall(SYS_gettid)); }

// The other threads of this process, as they are now. Lets a measurement begin only when all of them sleep:
// what one contender's threads still do must not be paid by the next.
class OtherThreads {
 public:
  OtherThreads() {
    DIR* tasks = ::opendir("/proc/self/task");
    test::require(tasks != nullptr, "/proc/self/task");
    const std::string self = std::to_string(thread_id());
    while (const dirent* entry = ::readdir(tasks)) {
      if (entry->d_name[0] == '.' || self == entry->d_name) continue;
      ids_.push_back(std::stoi(entry->d_name));
      stats_.emplace_back(
          ::open(("/proc/self/task/" + std::string(entry->d_name) + "/stat").c_str(), O_RDONLY | O_CLOEXEC));
    }
    ::closedir(tasks);
  }

  void await_asleep() const {
    const std::int64_t patience = now_ns() + 10'000'000'000;
    while (!asleep() && now_ns() < patience) sleep_us(50);
  }
  const std::vector<pid_t>& ids() const noexcept { return ids_; }

 private:
  bool asleep() const {
    for (const UniqueFd& stat : stats_) {
      std::array<char, 128> line{};
      if (::pread(stat.get(), line.data(), line.size() - 1, 0) <= 0) continue;  // it has ended
      const char* name_end = std::strrchr(line.data(), ')');
      if (name_end != nullptr && name_end[1] != '\0' && name_end[2] == 'R') return false;
    }
    return true;
  }
  std::vector<pid_t> ids_;
  std::vector<UniqueFd> stats_;
};

// Gives some threads the last CPU for themselves while it lives: the calling thread and the peer keep off it.
// Does nothing where there is only one.
class OwnCpu {
 public:
  OwnCpu(const std::vector<pid_t>& threads, pid_t peer) : others_{0, peer} {
    if (::sched_getaffinity(0, sizeof before_, &before_) != 0 || CPU_COUNT(&before_) < 2) {
      others_.clear();
      return;
    }
    unsigned last = CPU_SETSIZE - 1;
    while (!CPU_ISSET(last, &before_)) --last;
    cpu_set_t one, rest = before_;
    CPU_ZERO(&one);
    CPU_SET(last, &one);
    CPU_CLR(last, &rest);
    for (const pid_t thread : threads) ::sched_setaffinity(thread, sizeof one, &one);
    for (const pid_t other : others_) ::sched_setaffinity(other, sizeof rest, &rest);
  }
  ~OwnCpu() {
    for (const pid_t other : others_) ::sched_setaffinity(other, sizeof before_, &before_);
  }
  OwnCpu(const OwnCpu&) = delete;
  OwnCpu& operator=(const OwnCpu&) = delete;

 private:
  std::vector<pid_t> others_;
  cpu_set_t before_{};
};

// Creates a thread to which no signal of the process is delivered.
template <class Body>
std::thread quiet_thread(Body body) {
  sigset_t all, before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  std::thread thread(std::move(body));
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return thread;
}

// The reason why not, or nothing: it runs under SCHED_FIFO now.
inline std::optional<std::string> make_realtime(pthread_t thread, int priority) {
  sched_param parameter{};
  parameter.sched_priority = priority;
  const int failed = ::pthread_setschedparam(thread, SCHED_FIFO, &parameter);
  if (failed == 0) return std::nullopt;
  return std::string("SCHED_FIFO: ") + std::strerror(failed);
}

}  // namespace sockalarm::bench
