// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/result.h>

#include <vector>

namespace sockalarm::detail {

// The descriptors this process has open. Another thread may close any of them before it is looked at.
// Linux: read from /proc, which costs one descriptor; the errors are opendir(3)'s.
Result<std::vector<int>> open_descriptors();

}  // namespace sockalarm::detail
