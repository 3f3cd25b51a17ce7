// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <semaphore.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <fstream>
#include <functional>
#include <future>
#include <optional>
#include <thread>

#include "harness/alarms.h"

namespace sockalarm::test {

inline pid_t thread_id() { return static_cast<pid_t>(::syscall(SYS_gettid)); }

// Counts one signal while it lives, and remembers the last thread that got it.
class SignalCounter {
 public:
  explicit SignalCounter(int number) : number_(number) {
    count_.store(0);
    thread_.store(0);
    struct sigaction action{};
    action.sa_handler = [](int) {
      thread_.store(thread_id());
      count_.fetch_add(1);
    };
    ::sigaction(number_, &action, &previous_);  // no SA_RESTART: whatever blocks is left
  }
  ~SignalCounter() { ::sigaction(number_, &previous_, nullptr); }
  SignalCounter(const SignalCounter&) = delete;
  SignalCounter& operator=(const SignalCounter&) = delete;

  int count() const { return count_.load(); }
  pid_t thread() const { return thread_.load(); }

 private:
  const int number_;
  struct sigaction previous_{};
  inline static std::atomic<int> count_{0};
  inline static std::atomic<pid_t> thread_{0};
};

inline sigset_t only(int number) {
  sigset_t set;
  ::sigemptyset(&set);
  ::sigaddset(&set, number);
  return set;
}

// Of the calling thread or its process.
inline bool is_pending(int number) {
  sigset_t pending;
  return ::sigpending(&pending) == 0 && ::sigismember(&pending, number) == 1;
}

// Is that thread of this process asleep, as in a system call that waits? proc_pid_stat(5)
inline bool is_asleep(pid_t tid) {
  std::ifstream file("/proc/self/task/" + std::to_string(tid) + "/stat");
  std::string stat;
  std::getline(file, stat);
  const auto name_ends = stat.rfind(") ");
  return name_ends != std::string::npos && stat[name_ends + 2] == 'S';
}

// A thread that arms, then blocks in a system call until the signal has come, like a handler in a slow query.
class BlockedThread {
 public:
  BlockedThread(const Watch& watch, const ActionChain& chain, ArmOptions options = {}, int signal = SIGALRM)
      : signal_(signal), thread_([this, &watch, chain, options] {
          // Blocked but for the wait itself, so that the signal cannot slip in before it.
          sigset_t only, before;
          ::sigemptyset(&only);
          ::sigaddset(&only, signal_);
          ::pthread_sigmask(SIG_BLOCK, &only, &before);
          alarm_.emplace(watch.arm(chain, options).value());
          armed_.set_value(thread_id());
          ::sigsuspend(&before);
          ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
          fired_in_thread_ = alarm_->triggered();
          woken_.set_value();
          while (::sem_wait(&released_.one) != 0) {
          }
          alarm_.reset();
        }) {
    tid_ = armed_.get_future().get();
  }
  ~BlockedThread() {
    ::sem_post(&released_.one);
    thread_.join();
  }

  bool woke() { return woken_.get_future().wait_for(kPatience) == std::future_status::ready; }
  bool fired_in_thread() const { return fired_in_thread_; }  // after woke()
  pid_t tid() const { return tid_; }
  Alarm& alarm() { return *alarm_; }

 private:
  const int signal_;
  std::optional<Alarm> alarm_;
  std::promise<pid_t> armed_;
  std::promise<void> woken_;
  // Not another promise: under TSan a signal reaches a thread that waits only in calls that TSan knows to
  // block.
  struct Semaphore {
    Semaphore() { ::sem_init(&one, 0, 0); }
    ~Semaphore() { ::sem_destroy(&one); }
    Semaphore(const Semaphore&) = delete;
    Semaphore& operator=(const Semaphore&) = delete;
    sem_t one{};
  } released_;
  bool fired_in_thread_ = false;
  pid_t tid_ = 0;
  std::thread thread_;
};

}  // namespace sockalarm::test
