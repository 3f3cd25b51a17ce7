// SPDX-License-Identifier: Apache-2.0
#pragma once

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
#include <cstdlib>
#include <functional>
#include <iterator>
#include <optional>
#include <thread>
#include <utility>

namespace sockalarm::test {

// Sees the system calls of a thread, and of what it starts, before the kernel does, without a word of the
// code that makes them: a seccomp filter hands each to a thread of this object (seccomp_unotify(2), Linux
// >= 5.5).
class SyscallSupervisor {
 public:
  // Of a call: 0 lets it pass, an errno is what it fails with. On the supervising thread.
  using Judge = std::function<int(const seccomp_notif&)>;

  // `only`: that one is handed over, else every one. `undo`: a call that was judged was interrupted, and will
  // be made again.
  explicit SyscallSupervisor(Judge judge, std::optional<long> only = {}, Judge undo = {})
      : judge_(std::move(judge)), only_(only), undo_(std::move(undo)), stop_(::eventfd(0, EFD_CLOEXEC)) {}
  ~SyscallSupervisor() {
    const std::uint64_t one = 1;
    if (::write(stop_.get(), &one, sizeof one) != static_cast<ssize_t>(sizeof one)) std::abort();
    if (thread_.joinable()) thread_.join();
  }
  SyscallSupervisor(const SyscallSupervisor&) = delete;
  SyscallSupervisor& operator=(const SyscallSupervisor&) = delete;

  // Puts the calling thread under the filter, to its end. Once. False: the kernel refuses.
  bool begin() {
    std::atomic<int> listener{-1};
    thread_ = std::thread([&] {  // not under the filter: it was there before
      // Not wait(): the other thread may not make a system call to wake this one, until this one serves it.
      while (listener.load() == -1) std::this_thread::yield();
      supervise(UniqueFd(listener.load()));
    });
    // Which architecture calls does not matter: only this program's own calls are counted.
    sock_filter all[] = {{BPF_RET | BPF_K, 0, 0, SECCOMP_RET_USER_NOTIF}};
    sock_filter one[] = {{BPF_LD | BPF_W | BPF_ABS, 0, 0, offsetof(seccomp_data, nr)},
                         {BPF_JMP | BPF_JEQ | BPF_K, 0, 1, static_cast<std::uint32_t>(only_.value_or(0))},
                         {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_USER_NOTIF},
                         {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW}};
    const sock_fprog program = only_ ? sock_fprog{std::size(one), one} : sock_fprog{std::size(all), all};
    long made = -1;
    if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0)
      made = ::syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program);
    listener.store(made < 0 ? -2 : static_cast<int>(made));
    started_.wait(false);  // it has taken the listener
    return made >= 0;
  }

 private:
  void supervise(UniqueFd listener) {
    started_.store(true);
    started_.notify_all();
    pollfd entries[] = {{listener.get(), POLLIN, 0}, {stop_.get(), POLLIN, 0}};
    while ((::poll(entries, 2, -1) >= 0 || errno == EINTR) && (entries[1].revents & POLLIN) == 0) {
      if ((entries[0].revents & POLLIN) == 0) {
        entries[0].fd = -1;  // the last thread under the filter is gone
        continue;
      }
      seccomp_notif request{};
      if (::ioctl(listener.get(), SECCOMP_IOCTL_NOTIF_RECV, &request) != 0) continue;
      seccomp_notif_resp answer{request.id, 0, -judge_(request), 0};
      if (answer.error == 0) answer.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
      if (::ioctl(listener.get(), SECCOMP_IOCTL_NOTIF_SEND, &answer) != 0 && undo_) undo_(request);
    }
  }

  const Judge judge_;
  const std::optional<long> only_;
  const Judge undo_;
  const UniqueFd stop_;
  std::atomic<bool> started_{false};
  std::thread thread_;
};

}  // namespace sockalarm::test
