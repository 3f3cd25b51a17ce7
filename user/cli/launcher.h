// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/action.h>
#include <sockalarm/result.h>
#include <sockalarm/unique_fd.h>

#include <cstddef>
#include <vector>

namespace sockalarm::cli {

// Starts the programs of run: actions from a process that is not below us. Ours adopts the orphans of the
// Command and ends them all, and a program started from here would be an orphan like them.
// The process is there before it is needed, for it must be forked before there are threads and before
// Command::start(); it ends when we do.
class Launcher {
 public:
  // `programs` are run: actions. `client` is not kept open, unless it is one of the standard descriptors.
  static Result<Launcher> start(const std::vector<Action>& programs, int client);
  // Returns when the program has been executed, or could not be: stderr was told why. False: the process is
  // gone. One thread at a time.
  bool launch(std::size_t index) const noexcept;

 private:
  explicit Launcher(UniqueFd end) noexcept : end_(std::move(end)) {}
  UniqueFd end_;
};

}  // namespace sockalarm::cli
