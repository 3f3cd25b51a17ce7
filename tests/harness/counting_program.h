// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bpf/bpf.h>
#include <linux/bpf.h>
#include <sockalarm/unique_fd.h>

#include <cstdint>
#include <vector>

#include "core/bpf_programs.h"
#include "harness/sockets.h"

namespace sockalarm::test {

inline bpf_insn instruction(int code, int to, int from, int offset, int value) {
  bpf_insn made{};
  made.code = static_cast<std::uint8_t>(code);
  made.dst_reg = static_cast<std::uint8_t>(to) & 15;
  made.src_reg = static_cast<std::uint8_t>(from) & 15;
  made.off = static_cast<std::int16_t>(offset);
  made.imm = value;
  return made;
}

// Counts how often the kernel tells a program of a tracepoint of a socket; too short to be interrupted often.
class CountingProgram {
 public:
  // The instructions between the end of `filter` and the return, which it jumps over if it does not want one.
  static constexpr int kCounting = 9;

  // `filter` begins with the tracepoint's arguments in r1, and has the stack but for its first 4 bytes.
  CountingProgram(const char* tracepoint, std::vector<bpf_insn> filter)
      : map_(::bpf_map_create(BPF_MAP_TYPE_ARRAY, "counted", 4, 8, 1, nullptr)) {
    require(bool(map_), "bpf_map_create");
    const bpf_insn counting[] = {
        instruction(BPF_ST | BPF_MEM | BPF_W, 10, 0, -4, 0),  // the key
        instruction(BPF_ALU64 | BPF_MOV | BPF_X, 2, 10, 0, 0),
        instruction(BPF_ALU64 | BPF_ADD | BPF_K, 2, 0, 0, -4),
        instruction(BPF_LD | BPF_IMM | BPF_DW, 1, BPF_PSEUDO_MAP_FD, 0, map_.get()),
        instruction(0, 0, 0, 0, 0),
        instruction(BPF_JMP | BPF_CALL, 0, 0, 0, BPF_FUNC_map_lookup_elem),
        instruction(BPF_JMP | BPF_JEQ | BPF_K, 0, 0, 2, 0),
        instruction(BPF_ALU64 | BPF_MOV | BPF_K, 1, 0, 0, 1),
        instruction(BPF_STX | BPF_ATOMIC | BPF_DW, 0, 1, 0, BPF_ADD),
        instruction(BPF_ALU64 | BPF_MOV | BPF_K, 0, 0, 0, 0),
        instruction(BPF_JMP | BPF_EXIT, 0, 0, 0, 0),
    };
    filter.insert(filter.end(), std::begin(counting), std::end(counting));
    program_ = UniqueFd(::bpf_prog_load(BPF_PROG_TYPE_RAW_TRACEPOINT, "counting", "GPL", filter.data(),
                                        filter.size(), nullptr));
    require(bool(program_), "bpf_prog_load");
    link_ = UniqueFd(::bpf_raw_tracepoint_open(tracepoint, program_.get()));
    require(bool(link_), "bpf_raw_tracepoint_open");
  }

  std::uint64_t count() const {
    const std::uint32_t key = 0;
    std::uint64_t count = 0;
    require(::bpf_map_lookup_elem(map_.get(), &key, &count) == 0, "bpf_map_lookup_elem");
    return count;
  }
  // Of the host's sockets, with those for which it was left out.
  std::uint64_t most() const { return count() + detail::missed_runs(program_.get()); }

 private:
  UniqueFd map_, program_, link_;
};

}  // namespace sockalarm::test
