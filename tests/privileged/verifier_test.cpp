// SPDX-License-Identifier: Apache-2.0
// What the kernel's verifier says of each program. The figures are recorded as properties of the tests, from
// which scripts/verifier-stats makes docs/verifier.md.
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <sys/utsname.h>

#include <charconv>
#include <map>
#include <memory>
#include <regex>
#include <sstream>
#include <string>

#include "core/bpf_programs.h"
#include "harness/alarms.h"
#include "observe.skel.h"
#include "sockalarm.skel.h"
#include "sockalarm_task_work.skel.h"

namespace sockalarm::test {
namespace {

using detail::BpfPrograms;

// The verifier gives up after a million instructions (BPF_COMPLEXITY_LIMIT_INSNS, since 5.2), or when the
// functions that call each other have more than 512 bytes of stack (MAX_BPF_STACK). Programs that come near
// load on one kernel and not on the next, whose verifier is another one. docs/verifier.md says these two.
constexpr unsigned kMostProcessed = 100'000, kMostStack = 448;

struct Verdict {
  unsigned processed = 0, states = 0, peak_states = 0;
  std::string stack;  // bytes of the program and of each of its functions: "120+16"
  unsigned instructions = 0, jited_bytes = 0;
};

unsigned number(const std::string& text) {
  unsigned value = 0;
  std::from_chars(text.data(), text.data() + text.size(), value);
  return value;
}

// What BPF_LOG_STATS makes the verifier say at its end (kernel/bpf/verifier.c, print_verification_stats()).
Verdict read_log(const std::string& log) {
  Verdict verdict;
  std::smatch found;
  if (std::regex_search(log, found,
                        std::regex("processed (\\d+) insns .*total_states (\\d+) peak_states (\\d+)")))
    verdict = {number(found[1]), number(found[2]), number(found[3]), {}};
  if (std::regex_search(log, found, std::regex("stack depth ([0-9+]+)"))) verdict.stack = found[1];
  return verdict;
}

struct Object {
  const char* name;
  bool task_work;
  const void* (*bytes)(std::size_t* size);
};
std::ostream& operator<<(std::ostream& out, const Object& object) { return out << object.name; }

// Of the programs that are to be loaded.
std::map<std::string, Verdict> load_with_logs(bpf_object* object) {
  constexpr __u32 kStatistics = 4;  // BPF_LOG_STATS, include/linux/bpf_verifier.h
  std::map<bpf_program*, std::string> logs;
  bpf_program* program = nullptr;
  bpf_object__for_each_program(program, object) {
    if (!bpf_program__autoload(program)) continue;
    std::string& log = logs[program];
    log.resize(4096);
    EXPECT_EQ(bpf_program__set_log_buf(program, log.data(), log.size()), 0);
    EXPECT_EQ(bpf_program__set_log_level(program, kStatistics), 0);
  }
  EXPECT_EQ(bpf_object__load(object), 0);
  std::map<std::string, Verdict> all;
  for (const auto& [loaded, log] : logs) {
    Verdict& verdict = all[bpf_program__name(loaded)] = read_log(log.c_str());  // it ends with the first 0
    bpf_prog_info info{};
    __u32 length = sizeof info;
    EXPECT_EQ(bpf_obj_get_info_by_fd(bpf_program__fd(loaded), &info, &length), 0);
    verdict.instructions = info.xlated_prog_len / sizeof(bpf_insn);
    verdict.jited_bytes = info.jited_prog_len;
  }
  return all;
}

// Loads once more what the library has loaded, in the same way but for the verifier's log: which programs,
// how long the maps, which constants. And on_destroy, which it loads only where on_release cannot be had.
std::map<std::string, Verdict> verdicts(const Object& object, const BpfPrograms& as,
                                        const detail::KernelBtf& btf) {
  std::size_t size = 0;
  const void* bytes = object.bytes(&size);
  const std::unique_ptr<bpf_object, detail::ObjectDeleter> again(bpf_object__open_mem(bytes, size, nullptr));
  bpf_map* map = nullptr;
  bpf_object__for_each_map(map, again.get()) {
    bpf_map* const known = as.map(bpf_map__name(map));
    if (bpf_map__is_internal(map)) {
      std::size_t length = 0;
      const void* constants = bpf_map__initial_value(known, &length);
      EXPECT_EQ(bpf_map__set_initial_value(map, constants, length), 0);
    } else {
      EXPECT_EQ(bpf_map__set_max_entries(map, bpf_map__max_entries(known)), 0);
    }
  }
  bpf_program* program = nullptr;
  bpf_object__for_each_program(program, again.get()) {
    const std::string name = bpf_program__name(program);
    const bool wanted =
        as.loaded(name.c_str()) || (name == "on_destroy" && btf.has_tracepoint("tcp_destroy_sock"));
    EXPECT_EQ(bpf_program__set_autoload(program, wanted), 0);
  }
  return load_with_logs(again.get());
}

unsigned sum(const std::string& stack) {
  std::istringstream numbers(stack);
  unsigned total = 0, one = 0;
  for (char plus = '+'; numbers >> one; numbers >> plus) total += one;
  return total;
}

void record_kernel() {
  utsname system{};
  ::uname(&system);
  ::testing::Test::RecordProperty("kernel", "Linux " + std::string(system.release));
}

void expect_far_from_the_limits(const std::map<std::string, Verdict>& all) {
  for (const auto& [program, verdict] : all) {
    EXPECT_GT(verdict.processed, 0U) << program;
    EXPECT_LE(verdict.processed, kMostProcessed) << program;
    EXPECT_LE(sum(verdict.stack), kMostStack) << program << ": " << verdict.stack;
    ::testing::Test::RecordProperty(
        program, std::to_string(verdict.processed) + " " + std::to_string(verdict.states) + " " +
                     std::to_string(verdict.peak_states) + " " + verdict.stack + " " +
                     std::to_string(verdict.instructions) + " " + std::to_string(verdict.jited_bytes));
  }
}

class VerifierTest : public ::testing::TestWithParam<Object> {};

TEST_P(VerifierTest, EachProgramIsFarFromTheLimits) {
  const detail::KernelBtf btf;
  const auto programs = BpfPrograms::load({1024, 16}, btf, GetParam().task_work);
  if (!programs && !kernel_required()) GTEST_SKIP() << programs.error().message();
  ASSERT_TRUE(programs) << programs.error().message();
  record_kernel();
  if (GetParam().task_work && !programs->delivers()) {
    RecordProperty("left_out", programs->delivers().error().message());
    return;  // the library falls back to the other object, for which there is the other test
  }
  const auto all = verdicts(GetParam(), *programs, btf);
  ASSERT_TRUE(all.contains("on_set_state"));
  expect_far_from_the_limits(all);
}

// The observer's, with every hook that it may have.
TEST(ObserverVerifierTest, observe) {
  struct Destroy {
    void operator()(observe_bpf* skeleton) const noexcept { observe_bpf__destroy(skeleton); }
  };
  const std::unique_ptr<observe_bpf, Destroy> skeleton(observe_bpf__open());
  ASSERT_TRUE(skeleton);
  bpf_program* program = nullptr;
  bpf_object__for_each_program(program, skeleton->obj) bpf_program__set_autoload(program, true);
  skeleton->rodata->has_release = 1;
  skeleton->rodata->wake_after_ns = detail::is_realtime_kernel() ? 0 : 10'000'000;
  record_kernel();
  const auto all = load_with_logs(skeleton->obj);
  ASSERT_TRUE(all.contains("observe_state"));
  expect_far_from_the_limits(all);
}

INSTANTIATE_TEST_SUITE_P(Objects, VerifierTest,
                         ::testing::Values(Object{"sockalarm", false, sockalarm_bpf__elf_bytes},
                                           Object{"sockalarm_task_work", true,
                                                  sockalarm_task_work_bpf__elf_bytes}),
                         [](const auto& object) { return std::string(object.param.name); });

}  // namespace
}  // namespace sockalarm::test
