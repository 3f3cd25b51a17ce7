// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>

namespace sockalarm::detail {

// Which open file a descriptor number means right now: the socket cookie where there is one (Linux: never
// reused while the host is up), else a hash of fstat(2)'s device and inode. Empty: the descriptor is not
// open.
std::optional<std::uint64_t> file_identity(int fd) noexcept;

}  // namespace sockalarm::detail
