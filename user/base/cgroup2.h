// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>

namespace sockalarm {

// The root of the cgroup v2 hierarchy, wherever it is mounted (proc_pid_mountinfo(5)). Linux.
std::optional<std::string> cgroup2_root();

}  // namespace sockalarm
