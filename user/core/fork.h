// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/types.h>

#include <cstdint>

namespace sockalarm::detail {

// How many forks lie between the process that loaded the library and this one. Objects remember it when they
// are made; where it differs, they were inherited and must touch nothing that the parent shares.
std::uint64_t fork_generation() noexcept;

// Told in the child, right after fork(2), when only the forking thread exists. Registration by construction.
class ForkListener {
 public:
  ForkListener();
  virtual ~ForkListener();
  ForkListener(const ForkListener&) = delete;
  ForkListener& operator=(const ForkListener&) = delete;
  virtual void in_child() noexcept = 0;
};

// The kernel's id of the calling thread; remembered per thread, so it costs no system call.
pid_t current_thread() noexcept;

}  // namespace sockalarm::detail
