// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

// What malloc(3) and its relatives did in a program that is linked with counted_malloc.cpp: its own code,
// operator new and the libraries.
namespace sockalarm::test {

std::uint64_t allocations() noexcept;  // so far
// That were not given back. What the C library keeps for later threads is among them.
long live_blocks() noexcept;

}  // namespace sockalarm::test
