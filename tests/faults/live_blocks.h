// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace sockalarm::test {

// Blocks of memory that this program has and has not given back: of its own code, and of the libraries that
// it uses. What the C library itself keeps for later threads is among them.
long live_blocks() noexcept;

}  // namespace sockalarm::test
