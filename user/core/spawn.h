// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <signal.h>
#include <sockalarm/result.h>

#include <string>

namespace sockalarm::detail {

// The absolute path of the program that `name` means now: looked up in PATH unless it has a '/', and a
// regular file that this process may execute. Errc::invalid_action names it and where it was sought.
Result<std::string> find_program(const std::string& name);

// Starts the program detached: in a session of its own and nobody's child (init's, or the nearest
// subreaper's: see prctl(2); a process that is one, or that is pid 1, must reap what it gets). stdin is
// /dev/null, stdout and stderr are shared, signals have their default actions and `mask`, and no other
// descriptor is passed on (Linux >= 5.11; before that those with O_CLOEXEC are not). Returns when the program
// has been executed, or with the reason why not, which it also writes to stderr. `argv` ends with a null
// pointer. Linux: the caller gets no SIGCHLD and its memory is not copied. Elsewhere one SIGCHLD comes, of a
// child that is reaped here.
Result<void> spawn_detached(const std::string& path, char* const argv[], const sigset_t& mask);

}  // namespace sockalarm::detail
