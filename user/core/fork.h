// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>

namespace sockalarm::detail {

// How many forks lie between the process that loaded the library and this one. Objects remember it when they
// are made; where it differs, they were inherited and must touch nothing that the parent shares.
std::uint64_t fork_generation() noexcept;

// Calls a function in the child, right after fork(2), when only the forking thread exists. As the last member
// of what it serves it is there only while the rest is whole.
class ForkHandler {
 public:
  explicit ForkHandler(std::function<void()> in_child);
  ~ForkHandler();
  ForkHandler(const ForkHandler&) = delete;
  ForkHandler& operator=(const ForkHandler&) = delete;
  void in_child() const { in_child_(); }

 private:
  const std::function<void()> in_child_;
};

// The kernel's id of the calling thread; remembered per thread, so it costs no system call.
pid_t current_thread() noexcept;

}  // namespace sockalarm::detail
