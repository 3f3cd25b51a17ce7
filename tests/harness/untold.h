// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <arpa/inet.h>
#include <bpf/btf.h>
#include <linux/perf_event.h>
#include <sched.h>
#include <sockalarm/unique_fd.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <fstream>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "harness/alarms.h"
#include "harness/counting_program.h"

namespace sockalarm::test {

// Counts the changes of state that the running kernel does not tell tracing programs, of the TCP sockets
// whose own port or peer's is one of two. There should be none but what recursion_misses counts;
// Firecracker's 6.18 leaves out all programs while process 1 is the current one, hence each softirq that
// interrupts it, and counts nothing. perf's counters, which are no programs, are on the same tracepoints.
class Untold {
 public:
  Untold(std::uint16_t port, std::uint16_t other) : told_(count_told(port, other)) {
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
    return all - static_cast<std::int64_t>(told_.most());
  }

 private:
  static CountingProgram count_told(std::uint16_t port, std::uint16_t other) {
    return CountingProgram("inet_sock_set_state",
                           {instruction(BPF_LDX | BPF_MEM | BPF_DW, 6, 1, 0, 0),  // r6 = the socket
                            instruction(BPF_ALU64 | BPF_MOV | BPF_X, 1, 10, 0, 0),
                            instruction(BPF_ALU64 | BPF_ADD | BPF_K, 1, 0, 0, -8),
                            instruction(BPF_ALU64 | BPF_MOV | BPF_K, 2, 0, 0, 2),
                            instruction(BPF_ALU64 | BPF_MOV | BPF_X, 3, 6, 0, 0),
                            instruction(BPF_ALU64 | BPF_ADD | BPF_K, 3, 0, 0, 12),  // sock_common: skc_dport
                            instruction(BPF_JMP | BPF_CALL, 0, 0, 0, BPF_FUNC_probe_read_kernel),
                            instruction(BPF_ALU64 | BPF_MOV | BPF_X, 1, 10, 0, 0),
                            instruction(BPF_ALU64 | BPF_ADD | BPF_K, 1, 0, 0, -6),
                            instruction(BPF_ALU64 | BPF_MOV | BPF_K, 2, 0, 0, 2),
                            instruction(BPF_ALU64 | BPF_MOV | BPF_X, 3, 6, 0, 0),
                            instruction(BPF_ALU64 | BPF_ADD | BPF_K, 3, 0, 0, offset_of_own_port()),
                            instruction(BPF_JMP | BPF_CALL, 0, 0, 0, BPF_FUNC_probe_read_kernel),
                            instruction(BPF_LDX | BPF_MEM | BPF_H, 1, 10, -8, 0),
                            instruction(BPF_LDX | BPF_MEM | BPF_H, 2, 10, -6, 0),
                            instruction(BPF_JMP | BPF_JEQ | BPF_K, 1, 0, 4, htons(port)),
                            instruction(BPF_JMP | BPF_JEQ | BPF_K, 1, 0, 3, htons(other)),
                            instruction(BPF_JMP | BPF_JEQ | BPF_K, 2, 0, 2, htons(port)),
                            instruction(BPF_JMP | BPF_JEQ | BPF_K, 2, 0, 1, htons(other)),
                            instruction(BPF_JMP | BPF_JA, 0, 0, CountingProgram::kCounting, 0)});
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

  const CountingProgram told_;
  std::vector<UniqueFd> counters_;  // of each processor
};

}  // namespace sockalarm::test
