// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

// What user/daemon knows of BPF, without a kernel: maps of this process instead, tables and rings are files
// in memory. Linked in place of kernel_side.cpp and bpf_programs.cpp, so that a fuzzer needs no privilege,
// and finds out what the daemon would have asked the kernel for.
namespace sockalarm::fuzz {

std::size_t registered() noexcept;  // sockets
std::size_t clients() noexcept;
std::size_t readers() noexcept;
// A registration that no client may get: slot 0 or beyond its table, or of nobody.
bool nonsense_registered() noexcept;

}  // namespace sockalarm::fuzz
