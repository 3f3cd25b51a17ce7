// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>

namespace sockalarm {

// The root of the host's cgroup v2 hierarchy, wherever it is mounted (proc_pid_mountinfo(5)), also in a
// container that has it. Linux.
std::optional<std::string> cgroup2_root();

}  // namespace sockalarm
