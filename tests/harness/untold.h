// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <arpa/inet.h>
#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <linux/bpf.h>
#include <linux/perf_event.h>
#include <sched.h>
#include <sockalarm/unique_fd.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <fstream>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "harness/alarms.h"

namespace sockalarm::test {

// Counts the changes of state that the running kernel does not tell tracing programs, of the TCP sockets
// whose own port or peer's is one of two. There should be none but what recursion_misses counts;
// Firecracker's 6.18 leaves out all programs while process 1 is the current one, hence each softirq that
// interrupts it, and counts nothing. perf's counters, which are no programs, are on the same tracepoints.
class Untold {
 public:
  Untold(std::uint16_t port, std::uint16_t other)
      : told_(::bpf_map_create(BPF_MAP_TYPE_ARRAY, "told", 4, 8, 1, nullptr)) {
    const int map = told_.get(), own_port = offset_of_own_port();
    const bpf_insn code[] = {
        instruction(BPF_LDX | BPF_MEM | BPF_DW, 6, 1, 0, 0),  // r6 = the tracepoint's socket
        instruction(BPF_ALU64 | BPF_MOV | BPF_X, 1, 10, 0, 0),
        instruction(BPF_ALU64 | BPF_ADD | BPF_K, 1, 0, 0, -8),
        instruction(BPF_ALU64 | BPF_MOV | BPF_K, 2, 0, 0, 2),
        instruction(BPF_ALU64 | BPF_MOV | BPF_X, 3, 6, 0, 0),
        instruction(BPF_ALU64 | BPF_ADD | BPF_K, 3, 0, 0, 12),  // struct sock_common: skc_dport
        instruction(BPF_JMP | BPF_CALL, 0, 0, 0, BPF_FUNC_probe_read_kernel),
        instruction(BPF_ALU64 | BPF_MOV | BPF_X, 1, 10, 0, 0),
        instruction(BPF_ALU64 | BPF_ADD | BPF_K, 1, 0, 0, -6),
        instruction(BPF_ALU64 | BPF_MOV | BPF_K, 2, 0, 0, 2),
        instruction(BPF_ALU64 | BPF_MOV | BPF_X, 3, 6, 0, 0),
        instruction(BPF_ALU64 | BPF_ADD | BPF_K, 3, 0, 0, own_port),
        instruction(BPF_JMP | BPF_CALL, 0, 0, 0, BPF_FUNC_probe_read_kernel),
        instruction(BPF_LDX | BPF_MEM | BPF_H, 1, 10, -8, 0),
        instruction(BPF_LDX | BPF_MEM | BPF_H, 2, 10, -6, 0),
        instruction(BPF_JMP | BPF_JEQ | BPF_K, 1, 0, 4, htons(port)),
        instruction(BPF_JMP | BPF_JEQ | BPF_K, 1, 0, 3, htons(other)),
        instruction(BPF_JMP | BPF_JEQ | BPF_K, 2, 0, 2, htons(port)),
        instruction(BPF_JMP | BPF_JEQ | BPF_K, 2, 0, 1, htons(other)),
        instruction(BPF_JMP | BPF_JA, 0, 0, 9, 0),
        instruction(BPF_ST | BPF_MEM | BPF_W, 10, 0, -4, 0),  // the key
        instruction(BPF_ALU64 | BPF_MOV | BPF_X, 2, 10, 0, 0),
        instruction(BPF_ALU64 | BPF_ADD | BPF_K, 2, 0, 0, -4),
        instruction(BPF_LD | BPF_IMM | BPF_DW, 1, BPF_PSEUDO_MAP_FD, 0, map),
        instruction(0, 0, 0, 0, 0),
        instruction(BPF_JMP | BPF_CALL, 0, 0, 0, BPF_FUNC_map_lookup_elem),
        instruction(BPF_JMP | BPF_JEQ | BPF_K, 0, 0, 2, 0),
        instruction(BPF_ALU64 | BPF_MOV | BPF_K, 1, 0, 0, 1),
        instruction(BPF_STX | BPF_ATOMIC | BPF_DW, 0, 1, 0, BPF_ADD),
        instruction(BPF_ALU64 | BPF_MOV | BPF_K, 0, 0, 0, 0),
        instruction(BPF_JMP | BPF_EXIT, 0, 0, 0, 0),
    };
    program_ = UniqueFd(
        ::bpf_prog_load(BPF_PROG_TYPE_RAW_TRACEPOINT, "told", "GPL", code, std::size(code), nullptr));
    require(bool(program_), "bpf_prog_load");
    link_ = UniqueFd(::bpf_raw_tracepoint_open("inet_sock_set_state", program_.get()));
    require(bool(link_), "bpf_raw_tracepoint_open");
    count_by_perf(port, other);
  }

  // 0 also where it cannot be counted.
  std::int64_t count() const {
    if (counters_.empty()) return 0;
    std::int64_t all = 0;
    for (const UniqueFd& counter : counters_) {
      std::uint64_t count = 0;
      require(::read(counter.get(), &count, sizeof count) == sizeof count, "read() of a perf event");
      all += static_cast<std::int64_t>(count);
    }
    const std::uint32_t key = 0;
    std::uint64_t told = 0;
    require(::bpf_map_lookup_elem(told_.get(), &key, &told) == 0, "bpf_map_lookup_elem");
    bpf_prog_info info{};
    std::uint32_t size = sizeof info;
    require(::bpf_obj_get_info_by_fd(program_.get(), &info, &size) == 0, "bpf_obj_get_info_by_fd");
    return all - static_cast<std::int64_t>(told + info.recursion_misses);
  }

 private:
  static bpf_insn instruction(int code, int to, int from, int offset, int value) {
    bpf_insn made{};
    made.code = static_cast<std::uint8_t>(code);
    made.dst_reg = static_cast<std::uint8_t>(to) & 15;
    made.src_reg = static_cast<std::uint8_t>(from) & 15;
    made.off = static_cast<std::int16_t>(offset);
    made.imm = value;
    return made;
  }
  // Which stays when the socket gives it back, before the change to CLOSE is told.
  static int offset_of_own_port() {
    const std::unique_ptr<btf, decltype(&::btf__free)> types(::btf__load_vmlinux_btf(), ::btf__free);
    require(types != nullptr, "the kernel's BTF");
    const int id = ::btf__find_by_name_kind(types.get(), "inet_sock", BTF_KIND_STRUCT);
    require(id > 0, "struct inet_sock");
    const btf_type* const type = ::btf__type_by_id(types.get(), static_cast<std::uint32_t>(id));
    for (std::uint32_t i = 0; i < btf_vlen(type); ++i)
      if (std::string(::btf__name_by_offset(types.get(), btf_members(type)[i].name_off)) == "inet_sport")
        return static_cast<int>(btf_member_bit_offset(type, i) / 8);
    throw std::runtime_error("struct inet_sock has no inet_sport");
  }
  // From a tracefs that goes with the thread; 0: there is none.
  static std::uint64_t id_of_tracepoint() {
    std::uint64_t id = 0;
    std::thread([&] {
      if (::unshare(CLONE_NEWNS) != 0 || ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
          ::mount("tracefs", "/sys/kernel/tracing", "tracefs", 0, nullptr) != 0)
        return;
      std::ifstream("/sys/kernel/tracing/events/sock/inet_sock_set_state/id") >> id;
    }).join();
    return id;
  }
  void count_by_perf(std::uint16_t port, std::uint16_t other) {
    const std::uint64_t id = id_of_tracepoint();
    perf_event_attr what{};
    what.type = PERF_TYPE_TRACEPOINT;
    what.size = sizeof what;
    what.config = id;
    std::string filter;
    for (const char* end : {"sport", "dport"})
      for (const std::uint16_t one : {port, other})
        filter += (filter.empty() ? "" : " || ") + std::string(end) + " == " + std::to_string(one);
    for (int cpu = 0; id != 0 && cpu < static_cast<int>(::sysconf(_SC_NPROCESSORS_CONF)); ++cpu) {
      UniqueFd counter(
          static_cast<int>(::syscall(SYS_perf_event_open, &what, -1, cpu, -1, PERF_FLAG_FD_CLOEXEC)));
      if (!counter || ::ioctl(counter.get(), PERF_EVENT_IOC_SET_FILTER, filter.c_str()) != 0)
        return counters_.clear();
      counters_.push_back(std::move(counter));
    }
  }

  UniqueFd told_, program_, link_;
  std::vector<UniqueFd> counters_;  // of each processor
};

}  // namespace sockalarm::test
