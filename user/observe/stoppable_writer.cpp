// SPDX-License-Identifier: Apache-2.0
#include "observe/stoppable_writer.h"

#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <string>

namespace sockalarm::observe {
namespace {

// As /proc says it: a path, or pipe:[1234].
std::string name_of(int fd) {
  char name[PATH_MAX];
  const ssize_t size = ::readlink(("/proc/self/fd/" + std::to_string(fd)).c_str(), name, sizeof name);
  return size > 0 ? std::string(name, static_cast<std::size_t>(size)) : "descriptor " + std::to_string(fd);
}

}  // namespace

StopSignal::StopSignal() : event_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  if (!event_) failed_ = errno;
}

void StopSignal::stop() const noexcept {
  const std::uint64_t one = 1;
  while (::write(event_.get(), &one, sizeof one) < 0 && errno == EINTR) {
  }
}

Result<void> StopSignal::wait_writable(int fd) const {
  if (!event_) return fail(Error::from_errno(failed_, "eventfd()"));  // it would be a wait without an end
  pollfd entries[] = {{fd, POLLOUT, 0}, {event_.get(), POLLIN, 0}};
  while (::poll(entries, 2, -1) < 0)
    if (errno != EINTR) return fail(Error::from_errno(errno, "poll()"));
  if (entries[1].revents != 0)
    return fail(Error(std::make_error_code(std::errc::operation_canceled), "nobody took what was written"));
  return {};
}

// Where a description of its own can be had (a pipe, a terminal), that one does not block, and nobody else
// sees it. It cannot if the pipe belongs to another user, or has no reader.
StoppableWriter::StoppableWriter(UniqueFd fd) : fd_(std::move(fd)) {
  struct stat status{};
  if (!fd_ || ::fstat(fd_.get(), &status) != 0) return;
  kind_ = S_ISREG(status.st_mode) ? Kind::file : S_ISSOCK(status.st_mode) ? Kind::socket : Kind::other;
  if (kind_ != Kind::other) return;
  UniqueFd own(::open(("/proc/self/fd/" + std::to_string(fd_.get())).c_str(),
                      O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC));
  if (own) fd_ = std::move(own);
}

// A file never waits for somebody. Of what else is writable by poll(2), a pipe takes PIPE_BUF bytes at once.
Result<void> StoppableWriter::write(std::string_view text, std::size_t& written) {
  written = 0;
  while (written < text.size()) {
    std::size_t length = text.size() - written;
    if (kind_ != Kind::file) {
      if (auto ready = stop_.wait_writable(fd_.get()); !ready) return ready;
      length = std::min<std::size_t>(length, PIPE_BUF);
    }
    const char* const from = text.data() + written;
    const ssize_t count = kind_ == Kind::socket ? ::send(fd_.get(), from, length, MSG_DONTWAIT | MSG_NOSIGNAL)
                                                : ::write(fd_.get(), from, length);
    if (count >= 0)
      written += static_cast<std::size_t>(count);
    else if (const int error = errno; error != EINTR && (error != EAGAIN || kind_ == Kind::file))
      return fail(Error::from_errno(error, "write() to " + name_of(fd_.get())));
  }
  return {};
}

}  // namespace sockalarm::observe
