// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <sys/mman.h>

#include <iostream>
#include <optional>
#include <set>

#include "faults/failing_call.h"
#include "harness/alarms.h"
#include "harness/descriptors.h"

// Each system call that the library makes fails once, in every place: the first, the second, until a run
// needs no more of them. Whatever happens, there is an error that names the call, or the alarm fires, once;
// nothing hangs and no descriptor is left.
namespace sockalarm::test {
namespace {

// What each may say where it really fails (man pages), and EINTR where it may be interrupted. Not those that
// fail only if their arguments are wrong, such as getsockopt(2) of an open socket.
constexpr CallKind kKinds[] = {
    {"bpf", SYS_bpf, ENOMEM},
    {"mmap", SYS_mmap, ENOMEM},
    {"epoll_create1", SYS_epoll_create1, EMFILE},
    {"epoll_ctl", SYS_epoll_ctl, ENOSPC},
    {"epoll_wait", SYS_epoll_wait, EINTR},
    {"epoll_pwait2", SYS_epoll_pwait2, EINTR},
    {"poll", SYS_poll, EINTR},
    {"ppoll", SYS_ppoll, EINTR},
    {"eventfd", SYS_eventfd2, EMFILE},
    {"pipe", SYS_pipe2, ENFILE},
    {"timerfd_create", SYS_timerfd_create, EMFILE},
    {"signalfd", SYS_signalfd4, EMFILE},
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
    {"statx", SYS_statx, ENOMEM},
    {"ioctl", SYS_ioctl, ENOMEM},
    {"socket", SYS_socket, EMFILE},
    {"connect", SYS_connect, ECONNREFUSED},
    {"sendmsg", SYS_sendmsg, ENOBUFS},
    {"sendto", SYS_sendto, ENOBUFS},
    {"recvmsg", SYS_recvmsg, ENOMEM},
    {"recvfrom", SYS_recvfrom, ENOMEM},
    {"perf_event_open", SYS_perf_event_open, EACCES},
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

// A scene under every fault of every kind. Loading BPF programs makes hundreds of calls of some kinds, most
// of them in loops: of those a part, or all with SOCKALARM_EVERY_FAULT=1 (six minutes).
constexpr unsigned kEach = 40, kStride = 31;
Sum under_every_fault(const std::function<Scene()>& prepare) {
  const bool all = std::getenv("SOCKALARM_EVERY_FAULT") != nullptr;
  Sum sum;
  for (const CallKind& kind : kKinds) {
    bool hit = true;
    for (unsigned nth = 1; hit && !::testing::Test::HasFailure(); nth += nth < kEach || all ? 1 : kStride) {
      const std::size_t before = open_fds();
      Outcome outcome;
      {
        const Scene scene = prepare();
        FailingCall fault(kind, nth);
        fault.run([&] { scene(fault, outcome); });
        hit = fault.failed();
      }
      const std::string where = std::string(kind.name) + " number " + std::to_string(nth) + " fails: ";
      EXPECT_EQ(open_fds(), before) << where << "descriptors are left";
      EXPECT_TRUE(outcome.good || outcome.error)
          << where << "neither an error nor the alarm; the log: " << outcome.told;
      if (!hit) {
        EXPECT_FALSE(outcome.error) << where << "not at all, but " << outcome.error->message();
        continue;
      }
      ++sum.failures;
      if (!outcome.error) continue;
      ++sum.refused;
      EXPECT_FALSE(outcome.error->message().empty()) << where;
      sum.messages.insert(std::string(kind.name) + ": " + outcome.error->message());
    }
  }
  return sum;
}

void print(const Sum& sum) {
  for (const std::string& message : sum.messages) std::cout << "  " << message << "\n";
  std::cout << sum.failures << " failures injected: " << sum.refused << " refused with an error, "
            << sum.failures - sum.refused << " without consequence; 0 leaks, 0 hangs\n";
}

class FaultsTest : public ::testing::TestWithParam<SourceKind> {
 protected:
  void SetUp() override {
    if (GetParam() == SourceKind::kernel) {
      SOCKALARM_WATCHER(possible, GetParam());
      EXPECT_EQ(possible.describe().source, SourceKind::kernel);
    }
  }
  // Ends with `action` when the client has left. `done` says whether the chain ran, once.
  static Scene client_leaves(const std::function<Action(Journal&)>& action,
                             const std::function<bool(Journal&)>& done) {
    auto connection = std::make_shared<Connection>(tcp_pair());
    return [=](FailingCall& fault, Outcome& outcome) {
      Journal journal, log;
      outcome.error = leave(*connection, action(journal), logging_to(log, LogLevel::warning), [&] {
        outcome.good = done(journal);
        fault.over();
      });
      outcome.good = outcome.good && journal.lines().size() <= 1;
      for (const std::string& line : log.lines()) outcome.told += line + "; ";
    };
  }

 private:
  static std::optional<Error> leave(Connection& connection, const Action& action, Options options,
                                    const std::function<void()>& after) {
    const auto watcher = make_watcher(GetParam(), std::move(options));
    if (!watcher) return watcher.error();
    const auto watch = watcher->watch(connection.ours.get());
    if (!watch) return watch.error();
    const auto alarm = watch->arm(action);
    if (!alarm) return alarm.error();
    connection.peer.reset();
    after();
    return {};
  }
};

TEST_P(FaultsTest, TheAlarmFiresOrAnErrorSaysWhyNot) {
  const Sum sum = under_every_fault([] {
    return client_leaves([](Journal& journal) { return journal.entry("fired"); },
                         [](Journal& journal) { return journal.wait_for(1); });
  });
  EXPECT_GT(sum.failures, 10U);
  print(sum);
}

std::string name_of(const ::testing::TestParamInfo<SourceKind>& info) {
  return info.param == SourceKind::automatic ? "kernel_or_other" : std::string(to_string(info.param));
}
#if SOCKALARM_TEST_KERNEL
constexpr SourceKind kSources[] = {SourceKind::epoll, SourceKind::poll, SourceKind::kernel,
                                   SourceKind::automatic};
#else
constexpr SourceKind kSources[] = {SourceKind::epoll, SourceKind::poll};
#endif
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
        if (const auto sent = sender.send(std::move(file)); !sent) outcome.error = sent.error();
        const auto asked = receiver.receive([&received](FdMessage message) {
          for (UniqueFd& fd : message.fds) received.push_back(std::move(fd));
        });
        if (!asked) outcome.error = asked.error();
      }
      const auto over = [&] { return received.size() == kMessages || (sender.ended() && receiver.ended()); };
      const auto end = std::chrono::steady_clock::now() + kPatience;
      while (!over() && std::chrono::steady_clock::now() < end) {
        sender.process();
        receiver.process();
      }
      fault.over();
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

// A program that cannot be started is a failed action, which the log hears of.
TEST(FaultsTest, TheProgramRunsOrTheLogSaysWhyNot) {
  const Sum sum = under_every_fault([] {
    auto connection = std::make_shared<Connection>(tcp_pair());

    return [=](FailingCall& fault, Outcome& outcome) {
      Journal log;
      const auto body = [&]() -> std::optional<Error> {
        const auto watcher = make_watcher(SourceKind::epoll, logging_to(log, LogLevel::warning));
        if (!watcher) return watcher.error();
        const auto watch = watcher->watch(connection->ours.get());
        if (!watch) return watch.error();
        const Action program = sockalarm::run({"/bin/sh", "-c", "true"});
        const auto alarm = watch->arm(program);
        if (!alarm) return alarm.error();
        connection->peer.reset();
        const bool finished = eventually([&] { return alarm->finished(); });
        fault.over();
        const Stats stats = watcher->stats();
        outcome.good = finished && (stats.actions_failed == 0 || !log.lines().empty());
        return {};
      };
      outcome.error = body();
      for (const std::string& line : log.lines()) outcome.told += line + "; ";
    };
  });
  EXPECT_GT(sum.failures, 10U);
  print(sum);
}

}  // namespace
}  // namespace sockalarm::test
