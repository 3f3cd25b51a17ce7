// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sockalarm/unique_fd.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <iterator>
#include <limits>
#include <optional>
#include <string>
#include <thread>

// Faults at the boundary of system calls, without a word of the library: a seccomp filter hands each call of
// one kind to a supervisor, which lets it pass or gives it an error (seccomp_unotify(2), Linux >= 5.5).
namespace sockalarm::test {

struct CallKind {
  const char* name;
  long number;
  int error;
  std::optional<std::uint64_t> first_argument{};  // only calls with this one
};

inline constexpr unsigned kEvery = std::numeric_limits<unsigned>::max();

class FailingCall {
 public:
  // The `nth` call of that kind fails, counted from 1, or every one.
  FailingCall(const CallKind& kind, unsigned nth)
      : kind_(kind), nth_(nth), stop_(::eventfd(0, EFD_CLOEXEC)) {}
  ~FailingCall() {
    const std::uint64_t one = 1;
    EXPECT_EQ(::write(stop_.get(), &one, sizeof one), static_cast<ssize_t>(sizeof one));
    if (supervisor_.joinable()) supervisor_.join();
  }
  FailingCall(const FailingCall&) = delete;
  FailingCall& operator=(const FailingCall&) = delete;

  // `body` runs on a thread of its own, which is under the filter from here to its end, and so are all
  // threads and processes that it starts.
  void run(const std::function<void()>& body) {
    std::thread([&] {
      ASSERT_TRUE(install());
      body();
      over();
    }).join();
  }
  // From here on all calls pass, and are not counted.
  void over() noexcept { active_.store(false); }

  unsigned calls() const noexcept { return calls_.load(); }
  bool failed() const noexcept { return nth_ == kEvery ? calls() > 0 : calls() >= nth_; }

 private:
  // The supervisor is not under the filter: it was there before.
  bool install() {
    std::atomic<int> listener{-1};
    supervisor_ = std::thread([&] {
      listener.wait(-1);
      supervise(UniqueFd(listener.load()));
    });
    // Which architecture calls does not matter: only this program's own calls are counted.
    sock_filter filter[] = {{BPF_LD | BPF_W | BPF_ABS, 0, 0, offsetof(seccomp_data, nr)},
                            {BPF_JMP | BPF_JEQ | BPF_K, 0, 1, static_cast<std::uint32_t>(kind_.number)},
                            {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_USER_NOTIF},
                            {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW}};
    const sock_fprog program{std::size(filter), filter};
    long made = -1;
    if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0)
      made = ::syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program);
    listener.store(made < 0 ? -2 : static_cast<int>(made));
    listener.notify_one();
    supervisor_started_.wait(false);  // it has taken the listener
    return made >= 0;
  }

  void supervise(UniqueFd listener) {
    supervisor_started_.store(true);
    supervisor_started_.notify_all();
    pollfd entries[] = {{listener.get(), POLLIN, 0}, {stop_.get(), POLLIN, 0}};
    while ((::poll(entries, 2, -1) >= 0 || errno == EINTR) && (entries[1].revents & POLLIN) == 0) {
      if ((entries[0].revents & POLLIN) == 0) {
        entries[0].fd = -1;  // the last thread under the filter is gone
        continue;
      }
      seccomp_notif request{};
      if (::ioctl(listener.get(), SECCOMP_IOCTL_NOTIF_RECV, &request) != 0) continue;
      seccomp_notif_resp answer{request.id, 0, 0, SECCOMP_USER_NOTIF_FLAG_CONTINUE};
      const bool counts = active_.load() &&
                          (!kind_.first_argument || *kind_.first_argument == request.data.args[0]) &&
                          is_this_program(request.pid);
      // Counted before the caller goes on, and may end.
      const unsigned number = counts ? calls_.fetch_add(1) + 1 : 0;
      if (counts && (nth_ == kEvery || number == nth_)) {
        answer.flags = 0;
        answer.error = -kind_.error;
      }
      // Not sent: the caller was interrupted, and will call again.
      if (::ioctl(listener.get(), SECCOMP_IOCTL_NOTIF_SEND, &answer) != 0 && counts) calls_.fetch_sub(1);
    }
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
  const UniqueFd stop_;
  std::atomic<bool> active_{true}, supervisor_started_{false};
  std::atomic<unsigned> calls_{0};
  std::thread supervisor_;
};

}  // namespace sockalarm::test
