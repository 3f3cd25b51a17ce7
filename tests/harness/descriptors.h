// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <dirent.h>
#include <fcntl.h>
#include <sockalarm/unique_fd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <span>
#include <string_view>
#include <vector>

#include "harness/sockets.h"

// Descriptors, how many there are, and tables without room for more.
namespace sockalarm::test {

inline std::span<const std::byte> bytes_of(std::string_view text) { return std::as_bytes(std::span(text)); }

inline UniqueFd make_file() {
  char name[] = "/tmp/sockalarm-test-XXXXXX";
  UniqueFd fd(::mkostemp(name, O_CLOEXEC));
  require(bool(fd), "mkostemp");
  ::unlink(name);
  return fd;
}

inline bool same_file(int a, int b) {
  struct stat first{}, second{};
  return ::fstat(a, &first) == 0 && ::fstat(b, &second) == 0 && first.st_dev == second.st_dev &&
         first.st_ino == second.st_ino;
}

// sendmsg(2) as it is, with as many descriptors as wanted and where none belong: 253 at most (SCM_MAX_FD).
// False: not all of the bytes went; errno says why.
inline bool send_with_fds(int socket, std::span<const std::byte> bytes, std::span<const int> fds) {
  std::vector<char> control(CMSG_SPACE(fds.size_bytes()));
  iovec piece{const_cast<std::byte*>(bytes.data()), bytes.size()};
  msghdr message{};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  cmsghdr* const part = CMSG_FIRSTHDR(&message);
  part->cmsg_level = SOL_SOCKET;
  part->cmsg_type = SCM_RIGHTS;
  part->cmsg_len = CMSG_LEN(fds.size_bytes());
  std::memcpy(CMSG_DATA(part), fds.data(), fds.size_bytes());
  return ::sendmsg(socket, &message, MSG_NOSIGNAL) == static_cast<ssize_t>(bytes.size());
}

// By trying each number, which works with a full table, too.
inline std::size_t open_fds() {
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  std::size_t count = 0;
  const int end = static_cast<int>(limit.rlim_cur < 65536 ? limit.rlim_cur : 65536);
  for (int fd = 0; fd < end; ++fd) count += ::fcntl(fd, F_GETFD) >= 0 ? 1 : 0;
  return count;
}

// While it lives, this process may have at most `limit` descriptors, or `room` numbers more than the highest
// in use.
class DescriptorLimit {
 public:
  explicit DescriptorLimit(std::size_t limit) {
    ::getrlimit(RLIMIT_NOFILE, &before_);
    rlimit lower = before_;
    lower.rlim_cur = limit;
    require(::setrlimit(RLIMIT_NOFILE, &lower) == 0, "setrlimit");
  }
  ~DescriptorLimit() { ::setrlimit(RLIMIT_NOFILE, &before_); }
  DescriptorLimit(const DescriptorLimit&) = delete;
  DescriptorLimit& operator=(const DescriptorLimit&) = delete;

 private:
  rlimit before_{};
};

// While it lives, the table of this process is full but for what leave_free() gave.
class TableFiller {
 public:
  explicit TableFiller(std::size_t limit = 512) : limit_(limit) { fill(); }

  void fill() {
    for (;;) {
      const int fd = ::fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 0);
      if (fd < 0) return;
      fillers_.emplace_back(fd);
    }
  }
  // Up to `count`, fewer if there are no more of its own.
  void leave_free(std::size_t count) {
    for (; count > 0 && !fillers_.empty(); --count) fillers_.pop_back();
  }

 private:
  const DescriptorLimit limit_;
  std::vector<UniqueFd> fillers_;
};

}  // namespace sockalarm::test
