// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <thread>

#include "harness/syscall_supervisor.h"

namespace sockalarm::test {

struct CallKind {
  const char* name;
  long number;
  int error;
  std::optional<std::uint64_t> first_argument{};  // only calls with this one
};

inline constexpr unsigned kEvery = std::numeric_limits<unsigned>::max();

// A fault at the boundary of system calls.
class FailingCall {
 public:
  // The `nth` call of that kind fails, counted from 1, or every one.
  FailingCall(const CallKind& kind, unsigned nth)
      : kind_(kind),
        nth_(nth),
        supervisor_([this](const seccomp_notif& call) { return judge(call); }, kind.number,
                    [this](const seccomp_notif& call) {
                      if (counts(call)) calls_.fetch_sub(1);
                      return 0;
                    }) {}

  // `body` runs on a thread of its own, which is under the filter from here to its end, and so are all
  // threads and processes that it starts.
  void run(const std::function<void()>& body) {
    std::thread([&] {
      ASSERT_TRUE(supervisor_.begin());
      body();
      over();
    }).join();
  }
  // From here on all calls pass, and are not counted.
  void over() noexcept { active_.store(false); }

  unsigned calls() const noexcept { return calls_.load(); }
  bool failed() const noexcept { return nth_ == kEvery ? calls() > 0 : calls() >= nth_; }

 private:
  // Counted before the caller goes on, and may end.
  int judge(const seccomp_notif& call) {
    if (!counts(call)) return 0;
    const unsigned number = calls_.fetch_add(1) + 1;
    return nth_ == kEvery || number == nth_ ? kind_.error : 0;
  }
  bool counts(const seccomp_notif& call) const {
    return active_.load() && (!kind_.first_argument || *kind_.first_argument == call.data.args[0]) &&
           is_this_program(call.pid);
  }

  // Not one that it has started, which is under the filter, too.
  static bool is_this_program(std::uint32_t tid) {
    static const std::string kOurs = program_of("self");
    return program_of(std::to_string(tid)) == kOurs;
  }
  static std::string program_of(const std::string& process) {
    char name[4096];
    const ssize_t n = ::readlink(("/proc/" + process + "/exe").c_str(), name, sizeof name);
    return {name, n > 0 ? static_cast<std::size_t>(n) : 0};
  }

  const CallKind kind_;
  const unsigned nth_;
  std::atomic<bool> active_{true};
  std::atomic<unsigned> calls_{0};
  SyscallSupervisor supervisor_;  // last: its thread uses the others
};

}  // namespace sockalarm::test
