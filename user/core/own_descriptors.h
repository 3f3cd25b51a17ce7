// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/result.h>

#include <vector>

namespace sockalarm::detail {

// The numbers of the descriptors that this process has open, in order. From /proc/self/fd, so however many
// there may be; off Linux by asking each number up to the limit. errno: no /proc, no descriptor left to read
// it.
Result<std::vector<int>> own_descriptors();

}  // namespace sockalarm::detail
