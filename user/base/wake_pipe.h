// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <fcntl.h>
#include <sockalarm/result.h>
#include <sockalarm/unique_fd.h>
#include <unistd.h>

#include <cerrno>

namespace sockalarm {

// Wakes a thread that sits in poll(). Plain POSIX. wake() by any thread, also in a signal handler.
class WakePipe {
 public:
  static Result<WakePipe> make() {
    int ends[2];
    if (::pipe(ends) != 0) return fail(Error::from_errno(errno, "pipe()"));
    WakePipe made;
    made.read_ = UniqueFd(ends[0]);
    made.write_ = UniqueFd(ends[1]);
    for (const int end : ends)
      if (::fcntl(end, F_SETFD, FD_CLOEXEC) != 0 || ::fcntl(end, F_SETFL, O_NONBLOCK) != 0)
        return fail(Error::from_errno(errno, "fcntl() on a pipe"));
    return made;
  }

  int fd() const noexcept { return read_.get(); }  // readable from wake() until clear()
  void wake() const noexcept {
    const char byte = 0;
    while (::write(write_.get(), &byte, 1) < 0 && errno == EINTR) {  // EAGAIN: woken already
    }
  }
  void clear() const noexcept {
    char buffer[256];
    while (::read(read_.get(), buffer, sizeof buffer) == static_cast<ssize_t>(sizeof buffer)) {
    }
  }
  void close() noexcept {
    read_.reset();
    write_.reset();
  }

 private:
  UniqueFd read_, write_;
};

}  // namespace sockalarm
