// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <string>

// A file of lines that many processes put lines in front of, so that whatever ends one of them at whatever
// step, the file is whole and the lock is free:
//  - the lock belongs to a descriptor, and the descriptor to a scope: an exception, a return and the end of
//    the process give it back (flock(2));
//  - it is a file of its own, since the data file is replaced: a lock on that would be one on the old file;
//  - the new content is written beside, and takes the old one's place in one step (rename(2)).

class FileLock {
 public:
  // Waits; a signal ends the wait, and then it is not held.
  explicit FileLock(const std::string& path)
      : fd_(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600)),
        held_(fd_ >= 0 && ::flock(fd_, LOCK_EX) == 0) {}
  ~FileLock() {
    if (fd_ >= 0) ::close(fd_);
  }
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;
  explicit operator bool() const { return held_; }

 private:
  const int fd_;
  const bool held_;
};

// A file that is not there is empty. False: it cannot be read to its end, so it must not be replaced either.
inline bool read_file(const std::string& path, std::string& content) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return errno == ENOENT;
  char bytes[4096];
  ssize_t n = 0;
  while ((n = ::read(fd, bytes, sizeof bytes)) > 0 || (n < 0 && errno == EINTR))
    if (n > 0) content.append(bytes, static_cast<std::size_t>(n));
  ::close(fd);
  return n == 0;
}

// With the lock held.
inline bool put_in_front(const std::string& path, const std::string& line) {
  std::string content = line + "\n";
  if (!read_file(path, content)) return false;
  const std::string beside = path + ".new";
  const int fd = ::open(beside.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (fd < 0) return false;
  std::size_t done = 0;
  while (done < content.size()) {
    const ssize_t n = ::write(fd, content.data() + done, content.size() - done);
    if (n < 0 && errno != EINTR) break;
    if (n > 0) done += static_cast<std::size_t>(n);
  }
  const bool written = done == content.size() && ::fsync(fd) == 0;
  return (::close(fd) == 0) & written && std::rename(beside.c_str(), path.c_str()) == 0;
}
