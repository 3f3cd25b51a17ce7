// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/result.h>
#include <sockalarm/unique_fd.h>

#include <cstddef>
#include <string_view>

namespace sockalarm::observe {

// What makes a wait for a descriptor end, for good. stop() by any thread.
class StopSignal {
 public:
  StopSignal();
  void stop() const noexcept;
  // Until `fd` may be written to. An error: stopped, also if it could be written to.
  Result<void> wait_writable(int fd) const;

 private:
  UniqueFd event_;
  int failed_ = 0;  // errno: there is none
};

// Writes to a descriptor that may be shared, as standard output is, so its flags stay as they are. Whoever
// should read may not: write() waits for that, but no longer than until stop().
class StoppableWriter {
 public:
  explicit StoppableWriter(UniqueFd fd);

  // All of it, or says by `written` how much less. What a pipe gets up to PIPE_BUF is in one piece. One
  // thread, with SIGPIPE blocked.
  Result<void> write(std::string_view text, std::size_t& written);
  void stop() const noexcept { stop_.stop(); }  // any thread

 private:
  enum class Kind { file, socket, other };

  Kind kind_ = Kind::other;
  UniqueFd fd_;
  StopSignal stop_;
};

}  // namespace sockalarm::observe
