// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <iostream>
#include <limits>
#include <memory>
#include <optional>
#include <set>

#include "faults/failing_call.h"
#include "harness/alarms.h"
#include "harness/counted_malloc.h"
#include "harness/descriptors.h"

// System calls of the library fail: of every kind below the first, then the second, until a run needs no more
// of them. Whatever happens, there is an error that says what failed, or the alarm fires, once; nothing
// hangs, and no descriptor, no memory and no mapping is left.
namespace sockalarm::test {
namespace {

// With an error that the man page has for it, or EINTR where a signal may interrupt it. Calls that fail only
// if their arguments are wrong, such as getsockopt(2) of an open socket, are left out.
constexpr CallKind kKinds[] = {
    {"bpf", SYS_bpf, ENOMEM},
    {"mmap", SYS_mmap, ENOMEM},
    {"epoll_create1", SYS_epoll_create1, EMFILE},
    {"epoll_ctl", SYS_epoll_ctl, ENOSPC},
#if defined(SYS_epoll_wait)  // newer architectures have only the calls with a signal mask
    {"epoll_wait", SYS_epoll_wait, EINTR},
    {"poll", SYS_poll, EINTR},
#endif
    {"epoll_pwait", SYS_epoll_pwait, EINTR},
    {"epoll_pwait2", SYS_epoll_pwait2, EINTR},
    {"ppoll", SYS_ppoll, EINTR},
    {"eventfd", SYS_eventfd2, EMFILE},
    {"pipe", SYS_pipe2, ENFILE},
    {"socketpair", SYS_socketpair, EMFILE},
    {"timerfd_settime", SYS_timerfd_settime, ENOMEM},
    {"pidfd_open", SYS_pidfd_open, EMFILE},
    {"wait4", SYS_wait4, EINTR},
    {"timerfd_create", SYS_timerfd_create, EMFILE},
    {"clone3", SYS_clone3, EAGAIN},
    {"clone", SYS_clone, EAGAIN},
    {"execve", SYS_execve, EACCES},
    {"getsockname", SYS_getsockname, ENOBUFS},
    {"getpeername", SYS_getpeername, ENOBUFS},
    {"fcntl", SYS_fcntl, EMFILE},
    {"openat", SYS_openat, EMFILE},
    {"read", SYS_read, EINTR},
    {"write", SYS_write, EINTR},
    {"fstat", SYS_newfstatat, ENOMEM},
    {"ioctl", SYS_ioctl, ENOMEM},
    {"socket", SYS_socket, EMFILE},
    {"connect", SYS_connect, ECONNREFUSED},
    {"sendmsg", SYS_sendmsg, ENOBUFS},
    {"sendto", SYS_sendto, ENOBUFS},
    {"recvmsg", SYS_recvmsg, ENOMEM},
    {"recvfrom", SYS_recvfrom, ENOMEM},
    {"sched_setattr", SYS_sched_setattr, EPERM},
};

// One run of what is tested, under a fault.
struct Outcome {
  std::optional<Error> error;  // the library refused
  bool good = false;           // or it did what it should
  std::string told;            // what the log heard
};

struct Sum {
  unsigned failures = 0, refused = 0;
  std::set<std::string> messages;
};

// What runs under a fault, made where no call fails.
using Scene = std::function<void(FailingCall&, Outcome&)>;

// Lines of /proc/self/maps: of rings, tables and stacks, which malloc() knows nothing of. Read without
// allocating.
long mappings() {
  const UniqueFd file(::open("/proc/self/maps", O_RDONLY | O_CLOEXEC));
  long lines = 0;
  char part[4096];
  for (ssize_t n = 0; (n = ::read(file.get(), part, sizeof part)) > 0;)
    lines += std::count(part, part + n, '\n');
  return lines;
}

struct Left {
  long blocks = 0, mappings = 0;
};

// What is left by a scene under one fault, without what is known of it.
Left left_by(const std::function<Scene()>& prepare, const CallKind& kind, unsigned nth, Outcome& outcome,
             bool& hit) {
  const long before = live_blocks(), mapped = mappings();
  {
    const Scene scene = prepare();
    FailingCall fault(kind, nth);
    fault.run([&] { scene(fault, outcome); });
    hit = fault.failed();
  }
  const long after = live_blocks(), still_mapped = mappings();
  const Outcome copy = outcome;
  return {after - before - (live_blocks() - after), still_mapped - mapped};
}

// What a library makes once, or keeps for the next thread, is made in one run, not in each.
Left leaks(const std::function<Scene()>& prepare, const CallKind& kind, unsigned nth) {
  Left least{std::numeric_limits<long>::max(), std::numeric_limits<long>::max()};
  for (int run = 0; run < 3; ++run) {
    Outcome outcome;
    bool hit = false;
    const Left left = left_by(prepare, kind, nth, outcome, hit);
    least = {std::min(least.blocks, left.blocks), std::min(least.mappings, left.mappings)};
    if (least.blocks <= 0 && least.mappings <= 0) return {};
  }
  return least;
}

// A scene under every fault of every kind. Loading BPF programs makes hundreds of calls of some kinds, most
// of them in loops: of those a part, or all with SOCKALARM_EVERY_FAULT=1 (eight minutes).
constexpr unsigned kEach = 40, kStride = 31;
Sum under_every_fault(const std::function<Scene()>& prepare) {
  const bool all = std::getenv("SOCKALARM_EVERY_FAULT") != nullptr;
  Sum sum;
  for (const CallKind& kind : kKinds) {
    bool hit = true;
    for (unsigned nth = 1; hit && !::testing::Test::HasFailure(); nth += nth < kEach || all ? 1 : kStride) {
      const std::size_t before = open_fds();
      Outcome outcome;
      Left left = left_by(prepare, kind, nth, outcome, hit);
      const std::string where = std::string(kind.name) + " number " + std::to_string(nth) + " fails: ";
      EXPECT_EQ(open_fds(), before) << where << "descriptors are left";
      if (left.blocks > 0 || left.mappings > 0) left = leaks(prepare, kind, nth);
      EXPECT_LE(left.blocks, 0) << where << "blocks of memory are left";
      EXPECT_LE(left.mappings, 0) << where << "mappings are left";
      EXPECT_TRUE(outcome.good || outcome.error)
          << where << "neither an error nor the alarm; the log: " << outcome.told;
      if (!hit) {
        EXPECT_FALSE(outcome.error) << where << "not at all, but " << outcome.error->message();
        continue;
      }
      ++sum.failures;
      if (!outcome.error) continue;
      ++sum.refused;
      EXPECT_NE(outcome.error->message().find(std::strerror(kind.error)), std::string::npos)
          << where << outcome.error->message();
      sum.messages.insert(std::string(kind.name) + ": " + outcome.error->message());
    }
  }
  return sum;
}

void print(const Sum& sum) {
  for (const std::string& message : sum.messages) std::cout << "  " << message << "\n";
  if (::testing::Test::HasFailure()) return;
  std::cout << sum.failures << " failures injected: " << sum.refused << " refused with an error, "
            << sum.failures - sum.refused << " served all the same; 0 leaks, 0 hangs\n";
}

class FaultsTest : public ::testing::TestWithParam<SourceKind> {
 protected:
  void SetUp() override {
    if (GetParam() == SourceKind::kernel) {
      SOCKALARM_WATCHER(possible, GetParam());
      EXPECT_EQ(possible.describe().source, SourceKind::kernel);
    }
  }
  static Scene client_leaves() {
    auto connection = std::make_shared<Connection>(tcp_pair());
    return [=](FailingCall&, Outcome& outcome) {
      Journal journal, log;
      outcome.error = leave(*connection, journal, logging_to(log, LogLevel::warning));
      outcome.good = journal.lines().size() == 1;
      for (const std::string& line : log.lines()) outcome.told += line + "; ";
    };
  }

 private:
  static std::optional<Error> leave(Connection& connection, Journal& journal, Options options) {
    const auto watcher = make_watcher(GetParam(), std::move(options));
    if (!watcher) return watcher.error();
    const auto watch = watcher->watch(connection.ours.get());
    if (!watch) return watch.error();
    const auto alarm = watch->arm(journal.entry("fired"));
    if (!alarm) return alarm.error();
    connection.peer.reset();
    journal.wait_for(1);
    return {};
  }
};

TEST_P(FaultsTest, TheAlarmFiresOrAnErrorSaysWhyNot) {
  const Sum sum = under_every_fault(client_leaves);
  EXPECT_GT(sum.failures, 10U);
  print(sum);
}

std::string name_of(const ::testing::TestParamInfo<SourceKind>& info) {
  return info.param == SourceKind::automatic ? "kernel_or_other" : std::string(to_string(info.param));
}
constexpr SourceKind kSources[] = {
#if SOCKALARM_TEST_KERNEL
    SourceKind::kernel, SourceKind::automatic,
#endif
#if SOCKALARM_TEST_DAEMON
    SourceKind::daemon,  // which the faults do not reach: they are this process's
#endif
    SourceKind::epoll, SourceKind::poll};
INSTANTIATE_TEST_SUITE_P(Source, FaultsTest, ::testing::ValuesIn(kSources), name_of);

// Descriptors go over a channel, and all arrive, in order; or both ends hear why not.
TEST(FaultsTest, DescriptorsArriveOrAnErrorSaysWhyNot) {
  constexpr std::size_t kMessages = 3;
  const Sum sum = under_every_fault([] {
    return [](FailingCall& fault, Outcome& outcome) {
      std::vector<UniqueFd> received;
      const auto ended = [&outcome](const Error* why) {
        if (why != nullptr && !outcome.error) outcome.error = *why;
      };
      auto ends = FdChannel::pair({.on_end = ended}, {.on_end = ended});
      if (!ends) {
        outcome.error = ends.error();
        return;
      }
      auto& [sender, receiver] = *ends;
      for (std::size_t i = 0; i < kMessages; ++i) {
        UniqueFd file(::memfd_create(std::to_string(i).c_str(), MFD_CLOEXEC));
        const auto sent = sender.send(std::move(file));
        const auto asked = receiver.receive([&received](FdMessage message) {
          for (UniqueFd& fd : message.fds) received.push_back(std::move(fd));
        });
        if (!sent || !asked) {
          outcome.error = sent ? asked.error() : sent.error();
          return;
        }
      }
      const auto over = [&] { return received.size() == kMessages || (sender.ended() && receiver.ended()); };
      const auto end = std::chrono::steady_clock::now() + kPatience;
      while (!over() && std::chrono::steady_clock::now() < end) {
        pollfd ends_now[] = {{sender.poll_fd(), POLLIN, 0}, {receiver.poll_fd(), POLLIN, 0}};
        ::poll(ends_now, 2, 1000);
        sender.process();
        receiver.process();
      }
      fault.over();
      EXPECT_TRUE(over());
      outcome.good = received.size() == kMessages;
      for (std::size_t i = 0; i < received.size(); ++i) {
        char name[64]{};
        const std::string link = "/proc/self/fd/" + std::to_string(received[i].get());
        EXPECT_GT(::readlink(link.c_str(), name, sizeof name - 1), 0);
        EXPECT_EQ(std::string(name), "/memfd:" + std::to_string(i) + " (deleted)");
      }
    };
  });
  EXPECT_GT(sum.failures, 5U);
  print(sum);
}

// The witness of memory itself.
TEST(FaultsTest, MemoryThatIsLeftIsSeen) {
  const long before = live_blocks();
  auto block = std::make_unique<int>();
  EXPECT_EQ(live_blocks(), before + 1);
  block.reset();
  EXPECT_EQ(live_blocks(), before);
  static std::vector<std::unique_ptr<int>> kept;
  kept.reserve(10);
  const auto forgetful = [] {
    return [](FailingCall&, Outcome& outcome) {
      kept.push_back(std::make_unique<int>());
      outcome.good = true;
    };
  };
  EXPECT_GT(leaks(forgetful, kKinds[0], 1).blocks, 0);
  EXPECT_LE(leaks(forgetful, kKinds[0], 1).mappings, 0);
  kept.clear();
}

TEST(FaultsTest, MappingsThatAreLeftAreSeen) {
  static std::vector<void*> kept;
  constexpr std::size_t kPage = 4096;
  kept.reserve(10);
  const auto forgetful = [] {
    return [](FailingCall&, Outcome& outcome) {
      // Shared ones, which the kernel does not join to their neighbours.
      kept.push_back(::mmap(nullptr, kPage, PROT_READ, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
      outcome.good = kept.back() != MAP_FAILED;
    };
  };
  EXPECT_GT(leaks(forgetful, kKinds[0], 1).mappings, 0);
  for (void* const one : kept) ::munmap(one, kPage);
  kept.clear();
}

// A program that cannot be started is a failed action, which the log hears of.
TEST(FaultsTest, TheProgramRunsOrTheLogSaysWhyNot) {
  static const std::string kWitness =
      std::filesystem::temp_directory_path() / ("sockalarm-witness-" + std::to_string(::getpid()));
  const auto body = [](Connection& connection, Journal& log, Outcome& outcome) -> std::optional<Error> {
    const auto watcher = make_watcher(SourceKind::epoll, logging_to(log, LogLevel::warning));
    if (!watcher) return watcher.error();
    const auto watch = watcher->watch(connection.ours.get());
    if (!watch) return watch.error();
    const auto alarm = watch->arm(sockalarm::run({"/bin/mkdir", kWitness}));
    if (!alarm) return alarm.error();
    connection.peer.reset();
    outcome.good =
        eventually([&] { return ::access(kWitness.c_str(), F_OK) == 0 || !log.lines().empty(); }) &&
        eventually([&] { return alarm->finished(); });
    return {};
  };
  const Sum sum = under_every_fault([&] {
    std::filesystem::remove(kWitness);
    auto connection = std::make_shared<Connection>(tcp_pair());
    return [=](FailingCall&, Outcome& outcome) {
      Journal log;
      outcome.error = body(*connection, log, outcome);
      for (const std::string& line : log.lines()) outcome.told += line + "; ";
    };
  });
  std::filesystem::remove(kWitness);
  EXPECT_GT(sum.failures, 10U);
  print(sum);
}

}  // namespace
}  // namespace sockalarm::test
