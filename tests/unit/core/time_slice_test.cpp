// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>
#include <sockalarm/time_slice.h>
#include <sockalarm/watcher.h>

#if SOCKALARM_LINUX
#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <thread>

#include "harness/alarms.h"
#endif

namespace sockalarm::test {
namespace {

using namespace std::chrono_literals;

#if SOCKALARM_LINUX
struct Attributes {
  std::uint32_t size = 48, policy = 0;
  std::uint64_t flags = 0;
  std::int32_t nice = 0;
  std::uint32_t priority = 0;
  std::uint64_t slice = 0, deadline = 0, period = 0;
};

Attributes attributes_of(pid_t thread) {
  Attributes now;
  EXPECT_EQ(::syscall(SYS_sched_getattr, thread, &now, sizeof now, 0), 0);
  return now;
}

bool kernel_has_slices() {
  utsname name{};
  int major = 0, minor = 0;
  return ::uname(&name) == 0 && std::sscanf(name.release, "%d.%d", &major, &minor) == 2 &&
         (major > 6 || (major == 6 && minor >= 12));
}

pid_t thread_named(const std::string& wanted) {
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
    std::string name;
    std::getline(std::ifstream(task.path() / "comm"), name);
    if (name == wanted) return std::stoi(task.path().filename());
  }
  return 0;
}

// In a thread of its own, which takes the slice with it.
template <class F>
void in_thread(F function) {
  std::thread(function).join();
}

TEST(TimeSlice, IsTakenKeptAndGivenBack) {
  if (!kernel_has_slices()) GTEST_SKIP() << "needs Linux 6.12";
  in_thread([] {
    ASSERT_EQ(::setpriority(PRIO_PROCESS, static_cast<id_t>(::gettid()), 5), 0);
    const std::uint64_t usual = attributes_of(0).slice;
    for (const auto slice : {100us, 2500us, 100'000us}) {
      const auto set = set_time_slice(slice);
      ASSERT_TRUE(set) << set.error().message();
      EXPECT_EQ(attributes_of(0).slice, static_cast<std::uint64_t>(slice / 1ns));
      EXPECT_EQ(attributes_of(0).nice, 5);
    }
    in_thread([] { EXPECT_EQ(attributes_of(0).slice, 100'000'000U) << "inherited"; });
    ASSERT_TRUE(set_time_slice(0ns));
    EXPECT_EQ(attributes_of(0).slice, usual);
  });
}

TEST(TimeSlice, OfLengthsThatTheKernelWouldChangeIsAnError) {
  in_thread([] {
    const std::uint64_t usual = attributes_of(0).slice;
    for (const auto slice : {-1ns, 1ns, 99'999ns, 100'000'001ns}) {
      const auto set = set_time_slice(slice);
      ASSERT_FALSE(set);
      EXPECT_EQ(set.error().code(), Errc::invalid_options);
      EXPECT_NE(set.error().message().find(std::to_string(slice.count())), std::string::npos);
    }
    EXPECT_EQ(attributes_of(0).slice, usual);
  });
}

TEST(TimeSlice, LeavesOtherPoliciesAlone) {
  in_thread([] {
    const sched_param none{};
    ASSERT_EQ(::sched_setscheduler(0, SCHED_IDLE, &none), 0);  // needs no privilege, like the slice
    const auto set = set_time_slice(1ms);
    ASSERT_FALSE(set);
    EXPECT_EQ(set.error().code(), Errc::invalid_options);
    EXPECT_EQ(::sched_getscheduler(0), SCHED_IDLE);
  });
}

TEST(TimeSlice, OfAnOlderKernelIsAnErrorThatSaysSo) {
  if (kernel_has_slices()) return;
  in_thread([] {
    const auto set = set_time_slice(1ms);
    ASSERT_FALSE(set);
    EXPECT_EQ(set.error().code(), Errc::unsupported);
    EXPECT_NE(set.error().message().find("6.12"), std::string::npos);
  });
}

TEST(TimeSlice, TheDispatcherHasAShortOneThatItsChildrenDoNotGet) {
  if (!kernel_has_slices()) GTEST_SKIP() << "needs Linux 6.12";
  Options options;
  options.source = SourceKind::epoll;
  const auto watcher = Watcher::create(options);
  ASSERT_TRUE(watcher);
  pid_t dispatcher = 0;
  ASSERT_TRUE(eventually([&] {
    dispatcher = thread_named("sockalarm");
    return dispatcher != 0 && attributes_of(dispatcher).slice == 100'000;
  }));
  EXPECT_EQ(attributes_of(dispatcher).flags & 1U, 1U) << "SCHED_FLAG_RESET_ON_FORK";
}

TEST(TimeSlice, DoesNotTakeTheRealtimePriorityAway) {
  Options options;
  options.source = SourceKind::epoll;
  options.realtime_priority = 7;
  for (int round = 0; round < 50; ++round) {
    const auto watcher = Watcher::create(options);
    ASSERT_TRUE(watcher);
    if (!watcher->describe().why_not.empty()) return;  // not permitted here
    pid_t dispatcher = 0;
    ASSERT_TRUE(eventually([&] { return (dispatcher = thread_named("sockalarm")) != 0; }));
    EXPECT_EQ(attributes_of(dispatcher).policy, static_cast<std::uint32_t>(SCHED_FIFO));
    EXPECT_EQ(attributes_of(dispatcher).priority, 7U);
  }
}
#else
TEST(TimeSlice, IsOnlyOnLinux) {
  const auto set = set_time_slice(1ms);
  ASSERT_FALSE(set);
  EXPECT_EQ(set.error().code(), Errc::unsupported);
}
#endif

}  // namespace
}  // namespace sockalarm::test
