// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/diagnostics.h>
#include <sockalarm/result.h>
#include <sockalarm/unique_fd.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/session_memory.h"

struct btf;
struct bpf_link;
struct bpf_map;
struct bpf_object;
struct bpf_program;

namespace sockalarm::detail {

// Which names this kernel's type information has. Only its strings are looked through: parsing all of it
// takes longer than loading the programs. A name that is there as a whole string is there as what we take it
// for.
class KernelBtf {
 public:
  KernelBtf();

  int error() const noexcept { return error_; }
  bool has_function(std::string_view name) const { return has(name); }
  bool has_tracepoint(std::string_view name) const { return has("btf_trace_" + std::string(name)); }

 private:
  static std::string_view strings_of(std::string_view btf);
  bool has(std::string_view name) const;

  Mapping mapping_;
  std::string content_;     // where it cannot be mapped
  std::string_view names_;  // of one of the two
  int error_ = 0;
};

struct LinkDeleter {
  void operator()(bpf_link* link) const noexcept;
};
using Link = std::unique_ptr<bpf_link, LinkDeleter>;

struct ObjectDeleter {
  void operator()(bpf_object* object) const noexcept;
};

// Says of a failed bpf(2) which capability is missing, if it is that.
Error explain(int failed, const std::string& what, const std::string& libbpf_says);

// Runs a step of libbpf that gives a negative errno if it fails, and keeps quiet what libbpf says of that: it
// is part of the error.
Result<void> run_quietly(const std::string& what, const std::function<int()>& step);
Result<Link> attach_tracepoint(const bpf_program* program, const std::string& hook);
Result<Link> attach_release(const bpf_program* program);
// Whether the release hook will hear of every socket that is closed on this host.
bool release_suffices();
// CONFIG_PREEMPT_RT, which is part of the version since 5.4 (init/version.c's UTS_VERSION).
bool is_realtime_kernel();
// Whether programs on tracepoints, which must not sleep, may write into rings under PREEMPT_RT, where a
// spinlock_t sleeps: the ring's is a raw one since 6.12 (CVE-2024-50138), and in stable kernels with that
// change.
Result<void> check_ring_lock(const btf* kernel);
// Not a realtime kernel, or one that passes that check.
Result<void> check_realtime();

// Of the instructions and constants that come with this library. Another build has the same unless its
// programs do something else.
std::uint64_t programs_hash();

// The programs and maps of bpf/, loaded, and attached where that was asked for. What is destroyed detaches.
class BpfPrograms {
 public:
  struct Sizes {
    std::uint32_t sockets;  // length of the registry
    std::uint32_t clients;  // tables and rings
  };
  // From the most that can be had to the least; the last failure is the one to tell. direct: with the
  // programs that deliver signals by task work, if this kernel has it.
  static Result<BpfPrograms> load(Sizes sizes, const KernelBtf& btf, bool direct);
  // To what tells of ends and errors.
  Result<void> attach();
  // To what raises `closed`. False: not to be had here.
  bool attach_closing();
  // The program on the receive path.
  Result<Link> attach_reads() const;
  bool has_reads() const noexcept { return loaded("on_read"); }

  // Whether signals are delivered by task work; else why not.
  Result<void> delivers() const;

  bpf_map* map(const char* name) const noexcept;
  int map_fd(const char* name) const noexcept;
  bool loaded(const char* program) const noexcept;
  int program_fd(const char* name) const noexcept;
  bpf_program* program(const char* name) const noexcept;
  struct Attached {
    const char* program;
    Link link;
  };
  const std::vector<Attached>& attached() const noexcept { return links_; }

 private:
  Result<void> try_load(Sizes sizes, const KernelBtf& btf, bool direct, bool with_release);
  void autoload(const char* name, bool on) const noexcept;

  std::optional<Error> no_task_work_ =
      Error(Errc::unsupported, "task work was not asked for (Options::delivery)");
  std::unique_ptr<bpf_object, ObjectDeleter> object_;
  std::vector<Attached> links_;
  bool closing_attached_ = false;
};

// Runs of a program that the kernel left out so far. One system call.
std::uint64_t missed_runs(int program) noexcept;

// A table (value_size of a watch state) or a ring (value_size 0), not yet in any outer map.
Result<UniqueFd> make_table(std::uint32_t slots);
Result<UniqueFd> make_ring(std::size_t bytes);
Result<void> insert_map(int outer, std::uint32_t client, int inner, const char* name);
// Another program like introduce_thread (sockalarm.bpf.c), for one client alone: whoever has a program may
// bind maps to it (BPF_PROG_BIND_MAP asks for no capability), which then live as long as it does.
Result<UniqueFd> make_introduction();

// One row for each program and map type, as far as they can be tried here.
std::vector<Feature> probe_programs();

}  // namespace sockalarm::detail
