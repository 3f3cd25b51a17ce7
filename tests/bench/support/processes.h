// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <exception>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "harness/sockets.h"

namespace sockalarm::bench {

using test::require;

// A process of the harness's own, ended by its number when the object goes, or with its parent. Make it
// before any thread: a child of fork() has only the calling one, and locks others held stay locked.
class Child {
 public:
  template <class Body>
  explicit Child(Body body) : pid_(::fork()) {
    require(pid_ >= 0, "fork");
    if (pid_ != 0) return;
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    int status = 1;
    try {
      body();
      status = 0;
    } catch (const std::exception& error) {
      std::fprintf(stderr, "child: %s\n", error.what());
    }
    ::_exit(status);
  }
  Child(Child&& other) noexcept : pid_(std::exchange(other.pid_, -1)) {}
  Child& operator=(Child&&) = delete;
  ~Child() {
    if (pid_ > 0) ::kill(pid_, SIGKILL);
    wait();
  }

  pid_t pid() const noexcept { return pid_; }
  // True if it ended by itself, and well.
  bool wait() noexcept {
    int status = -1;
    if (pid_ > 0) ::waitpid(std::exchange(pid_, -1), &status, 0);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
  }

 private:
  pid_t pid_;
};

// One T that this process and its children see.
template <class T>
class SharedMemory {
 public:
  SharedMemory() {
    void* memory = ::mmap(nullptr, sizeof(T), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    require(memory != MAP_FAILED, "mmap");
    value_ = new (memory) T{};
  }
  ~SharedMemory() { ::munmap(value_, sizeof(T)); }
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;
  T* operator->() const noexcept { return value_; }
  T& operator*() const noexcept { return *value_; }

 private:
  T* value_;
};

// Processes that only compute, stopped until resume().
class Hogs {
 public:
  explicit Hogs(int count) {
    for (int i = 0; i < count; ++i) {
      hogs_.emplace_back([] {
        ::raise(SIGSTOP);
        for (;;) asm volatile("");
      });
    }
  }
  void resume() { signal_all(SIGCONT); }
  void pause() { signal_all(SIGSTOP); }

 private:
  void signal_all(int signal) {
    for (const Child& hog : hogs_) ::kill(hog.pid(), signal);
  }
  std::vector<Child> hogs_;
};

}  // namespace sockalarm::bench
