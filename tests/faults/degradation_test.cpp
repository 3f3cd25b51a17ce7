// SPDX-License-Identifier: Apache-2.0
#include <linux/bpf.h>
#include <sched.h>
#include <sys/mount.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>

#include "faults/failing_call.h"
#include "harness/alarms.h"
#include "harness/signals.h"
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

// What this thread sees of /sys is its own from here on.
void leave_mount_namespace() {
  ASSERT_EQ(::unshare(CLONE_NEWNS), 0);
  ASSERT_EQ(::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr), 0);
}

class WithoutTypesTest : public DegradationTest {};
TEST_P(WithoutTypesTest, EpollServesAndSaysWhy) {
  std::thread([] {
    ASSERT_NO_FATAL_FAILURE(leave_mount_namespace());
    ASSERT_EQ(::mount("none", "/sys/kernel/btf", "tmpfs", 0, nullptr), 0);
    no_kernel_source("BTF");
    epoll_serves_and_says_why("BTF");
  }).join();
}
INSTANTIATE_TEST_SUITE_P(Of, WithoutTypesTest, ::testing::Values(Refusal{"kernel_without_btf", {}, "BTF"}),
                         [](const auto& which) { return which.param.name; });

// A kernel whose type information has a name no more: what the library goes by.
class WithoutNameTest : public DegradationTest {
 protected:
  static void SetUpTestSuite() {
    std::ifstream file(kTypes, std::ios::binary);
    types_.assign(std::istreambuf_iterator<char>(file), {});
  }
  // `body` runs where the kernel has no such name.
  static void without(const std::string& name, const std::function<void()>& body) {
    std::thread([&] {
      ASSERT_NO_FATAL_FAILURE(leave_mount_namespace());
      const std::string whole = std::string(1, '\0') + name + std::string(1, '\0');
      std::string types = types_;
      const std::size_t at = types.find(whole);
      ASSERT_NE(at, std::string::npos) << "this kernel has no " << name << " anyway";
      types[at + 1] = '?';
      std::string copy = std::filesystem::temp_directory_path() / "sockalarm-types-XXXXXX";
      const UniqueFd file(::mkstemp(copy.data()));
      ASSERT_TRUE(file);
      EXPECT_EQ(::write(file.get(), types.data(), types.size()), static_cast<ssize_t>(types.size()));
      EXPECT_EQ(::mount(copy.c_str(), kTypes, nullptr, MS_BIND, nullptr), 0);
      ::unlink(copy.c_str());
      body();
    }).join();
  }
  // The row of `sockalarm doctor`.
  static Feature feature(const std::string& name) {
    for (Feature& one : probe_features())
      if (one.name == name) return one;
    ADD_FAILURE() << "no feature " << name;
    return {};
  }

 private:
  static constexpr const char* kTypes = "/sys/kernel/btf/vmlinux";
  static inline std::string types_;
};

TEST_P(WithoutNameTest, NothingWithoutTheStateChanges) {
  without("btf_trace_inet_sock_set_state", [] {
    no_kernel_source("no tracepoint inet_sock_set_state");
    epoll_serves_and_says_why("no tracepoint inet_sock_set_state");
    EXPECT_FALSE(feature("tracepoint inet_sock_set_state").available);
    EXPECT_FALSE(feature("tracepoint inet_sock_set_state").remedy.empty());
  });
}

TEST_P(WithoutNameTest, TheKernelSourceServesWithoutTheOthers) {
  for (const char* name : {"inet_sk_error_report", "tcp_destroy_sock", "tcp_rcv_space_adjust"}) {
    without(std::string("btf_trace_") + name, [name] {
      EXPECT_FALSE(feature(std::string("tracepoint ") + name).available);
      Journal gone, closed, eof;
      Connection connection = tcp_pair();
      const auto watcher = make_watcher(SourceKind::kernel);
      ASSERT_TRUE(watcher) << name << ": " << watcher.error().message();
      const auto watch = watcher->watch(connection.ours.get());
      ASSERT_TRUE(watch) << watch.error().message();
      const auto on_gone = watch->arm(gone.entry("fired"));
      const auto on_eof = watch->arm(eof.entry("fired"), {.on = events::eof, .deadline = {}});
      const auto on_closed = watch->arm(closed.entry("fired"), {.on = events::closed, .deadline = {}});
      connection.peer.reset();
      EXPECT_TRUE(gone.wait_for(1)) << name;
      EXPECT_TRUE(eof.wait_for(1)) << name;
      connection.ours.reset();
      EXPECT_TRUE(closed.wait_for(1)) << name;
    });
  }
}

TEST_P(WithoutNameTest, TheDispatcherDeliversWithoutTaskWork) {
  constexpr const char* kTaskWork = "bpf_task_work_schedule_signal_impl";
  if (!feature("task work").available) return;  // a kernel that is so by itself: the other tests show it
  without(kTaskWork, [] {
    EXPECT_FALSE(feature("task work").available);
    const auto watcher = make_watcher(SourceKind::kernel);
    ASSERT_TRUE(watcher) << watcher.error().message();
    EXPECT_EQ(watcher->describe().delivery, Delivery::dispatcher);
    EXPECT_NE(::testing::PrintToString(watcher->describe().why_not).find(kTaskWork), std::string::npos);
    const SignalCounter signals(SIGUSR2);
    Connection connection = tcp_pair();
    const auto watch = watcher->watch(connection.ours.get());
    ASSERT_TRUE(watch) << watch.error().message();
    const auto alarm = watch->arm(send_signal(SIGUSR2));
    connection.peer.reset();
    EXPECT_TRUE(eventually([&] { return signals.count() == 1; }));
  });
}
INSTANTIATE_TEST_SUITE_P(Of, WithoutNameTest, ::testing::Values(Refusal{"kernel_without_a_name", {}, ""}),
                         [](const auto& which) { return which.param.name; });

}  // namespace
}  // namespace sockalarm::test
