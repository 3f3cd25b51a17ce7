// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <signal.h>
#include <sockalarm/result.h>

#include <string>
#include <vector>

namespace sockalarm::detail {

// The path of an executable file, looked up in PATH as execvp(3) does. errno: ENOENT, EACCES.
Result<std::string> find_program(const std::string& name);

// Starts a program that is nobody's child here: its parent is init, no SIGCHLD comes, nothing is to be waited
// for. stdin is /dev/null, other descriptors than 0, 1 and 2 are closed at its start, handlers are the
// default ones, the mask is `mask`. Returns when the program runs or could not be executed (also said on
// stderr).
Result<void> start_detached(const std::string& path, const std::vector<std::string>& argv,
                            const sigset_t& mask);

// Replaces this process. Only returns if that failed.
Error replace_process(const std::string& path, const std::vector<std::string>& argv, const sigset_t& mask);

}  // namespace sockalarm::detail
