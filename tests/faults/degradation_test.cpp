// SPDX-License-Identifier: Apache-2.0
#include <linux/bpf.h>
#include <sched.h>
#include <sys/mount.h>

#include <algorithm>
#include <iostream>

#include "faults/failing_call.h"
#include "harness/alarms.h"
#include "harness/sockets.h"

// Kernels that refuse a part of what the kernel source needs. The source that is left serves, describe() says
// what was refused, and the alarm fires all the same.
namespace sockalarm::test {
namespace {

void no_kernel_source(const std::string& said) {
  const auto forced = make_watcher(SourceKind::kernel);
  ASSERT_FALSE(forced);
  EXPECT_NE(forced.error().message().find(said), std::string::npos) << forced.error().message();
  std::cout << forced.error().message() << "\n";
}

void epoll_serves_and_says_why(const std::string& said) {
  Journal journal;
  Connection connection = tcp_pair();
  const auto watcher = make_watcher(SourceKind::automatic);
  ASSERT_TRUE(watcher) << watcher.error().message();
  const Description description = watcher->describe();
  EXPECT_EQ(description.source, SourceKind::epoll);
  EXPECT_TRUE(std::any_of(description.why_not.begin(), description.why_not.end(),
                          [&](const std::string& why) { return why.find(said) != std::string::npos; }))
      << ::testing::PrintToString(description.why_not);
  const auto watch = watcher->watch(connection.ours.get());
  ASSERT_TRUE(watch) << watch.error().message();
  const auto alarm = watch->arm(journal.entry("fired"));
  ASSERT_TRUE(alarm) << alarm.error().message();
  connection.peer.reset();
  EXPECT_TRUE(journal.wait_for(1));
}

struct Refusal {
  const char* name;
  CallKind call;
  const char* said;
};

class DegradationTest : public ::testing::TestWithParam<Refusal> {
 protected:
  void SetUp() override {
    SOCKALARM_WATCHER(possible, SourceKind::kernel);
    EXPECT_EQ(possible.describe().source, SourceKind::kernel);
  }
};

TEST_P(DegradationTest, EpollServesAndSaysWhy) {
  FailingCall fault(GetParam().call, kEvery);
  fault.run([] {
    no_kernel_source(GetParam().said);
    epoll_serves_and_says_why(GetParam().said);
  });
  EXPECT_GT(fault.calls(), 0U);
}

INSTANTIATE_TEST_SUITE_P(
    Of, DegradationTest,
    ::testing::Values(
        Refusal{"kernel_without_any_bpf", {"bpf", SYS_bpf, ENOSYS}, "Function not implemented"},
        Refusal{"kernel_refusing_bpf", {"bpf", SYS_bpf, EPERM}, "forbids bpf(2)"},
        Refusal{"kernel_maps_eperm", {"bpf", SYS_bpf, EPERM, BPF_MAP_CREATE}, "forbids bpf(2)"},
        Refusal{"kernel_maps_enomem", {"bpf", SYS_bpf, ENOMEM, BPF_MAP_CREATE}, "Cannot allocate memory"},
        Refusal{"kernel_maps_e2big", {"bpf", SYS_bpf, E2BIG, BPF_MAP_CREATE}, "Argument list too long"},
        Refusal{"kernel_programs_eperm", {"bpf", SYS_bpf, EPERM, BPF_PROG_LOAD}, "forbids bpf(2)"},
        Refusal{"kernel_programs_einval", {"bpf", SYS_bpf, EINVAL, BPF_PROG_LOAD}, "Invalid argument"},
        Refusal{"kernel_attaching_eperm", {"bpf", SYS_bpf, EPERM, BPF_LINK_CREATE}, "attaching"},
        Refusal{"kernel_attaching_ebusy", {"bpf", SYS_bpf, EBUSY, BPF_LINK_CREATE}, "attaching"}),
    [](const auto& which) { return which.param.name; });

// In a mount namespace of a thread, where /sys/kernel/btf is empty.
class WithoutTypesTest : public DegradationTest {};
TEST_P(WithoutTypesTest, EpollServesAndSaysWhy) {
  std::thread([] {
    ASSERT_EQ(::unshare(CLONE_NEWNS), 0);
    ASSERT_EQ(::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr), 0);
    ASSERT_EQ(::mount("none", "/sys/kernel/btf", "tmpfs", 0, nullptr), 0);
    no_kernel_source("BTF");
    epoll_serves_and_says_why("BTF");
  }).join();
}
INSTANTIATE_TEST_SUITE_P(Of, WithoutTypesTest, ::testing::Values(Refusal{"kernel_without_btf", {}, "BTF"}),
                         [](const auto& which) { return which.param.name; });

}  // namespace
}  // namespace sockalarm::test
