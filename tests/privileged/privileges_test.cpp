// SPDX-License-Identifier: Apache-2.0
#include <cap-ng.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <iostream>
#include <thread>

#include "harness/alarms.h"
#include "harness/sockets.h"

// What a process gets that may do less than root. Each test body runs in a child that gives up its
// privileges.

namespace sockalarm::test {
namespace {

// True if `body` said so in a child process; what it wrote to stderr is the test's.
bool in_child(bool (*body)()) {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(body() ? 0 : 1);
  int status = -1;
  ::waitpid(child, &status, 0);
  return status == 0;
}

bool check(bool condition, const std::string& what) {
  if (!condition) std::cerr << "not so: " << what << "\n";
  return condition;
}

bool fires(const Watcher& watcher, SourceKind expected) {
  Connection connection = tcp_pair();
  const auto watch = watcher.watch(connection.ours.get());
  Journal journal;
  const auto alarm = watch->arm(journal.cause());
  const auto closed = watch->arm(journal.cause(), {.on = events::closed, .deadline = {}});
  connection.peer.reset();
  const bool peer_seen = journal.wait_for(1);
  connection.ours.reset();
  return check(watch->source() == expected, "served by " + std::string(to_string(expected))) &&
         check(peer_seen, "the peer's leaving was seen") &&
         check(journal.wait_for(2), "our own closing was seen");
}

TEST(PrivilegesTest, WithoutAnyTheChoiceIsEpollAndTheReasonIsNamed) {
  EXPECT_TRUE(in_child([] {
    if (::setresgid(65534, 65534, 65534) != 0 || ::setresuid(65534, 65534, 65534) != 0) return false;
    const auto watcher = Watcher::create();
    if (!check(watcher.has_value(), "there is a Watcher")) return false;
    const Description description = watcher->describe();
    const auto forced = make_watcher(SourceKind::kernel);
    return check(description.source == SourceKind::epoll, "epoll") &&
           check(description.why_not.size() == 3, "a reason for each source, one for the delivery") &&
           check(description.delivery == Delivery::dispatcher, "delivery by the dispatcher") &&
           check(description.why_not[2].find("no task work") != std::string::npos, description.why_not[2]) &&
           check(description.why_not[0].find("no daemon listens there") != std::string::npos,
                 description.why_not[0]) &&
           check(description.why_not[1].find("CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN") != std::string::npos,
                 description.why_not[1]) &&
           check(!forced && forced.error().code() == std::errc::operation_not_permitted, "forced: EPERM") &&
           fires(*watcher, SourceKind::epoll);
  }));
}

TEST(PrivilegesTest, WithoutNetAdminTheKernelSourceWorksByTheOtherHook) {
  EXPECT_TRUE(in_child([] {
    capng_get_caps_process();
    for (const int dropped : {CAP_NET_ADMIN, CAP_SYS_ADMIN})
      capng_update(CAPNG_DROP, static_cast<capng_type_t>(CAPNG_EFFECTIVE | CAPNG_PERMITTED),
                   static_cast<unsigned>(dropped));
    if (!check(capng_apply(CAPNG_SELECT_CAPS) == 0, "capabilities dropped")) return false;
    const auto watcher = make_watcher(SourceKind::kernel);
    if (!check(watcher.has_value(), watcher ? "" : watcher.error().message())) return false;
    return fires(*watcher, SourceKind::kernel);
  }));
}

// Without that capability and all that imply it.
bool epoll_serves_without(int capability, const std::string& name) {
  capng_get_caps_process();
  for (const int dropped : {capability, CAP_SYS_ADMIN})
    capng_update(CAPNG_DROP, static_cast<capng_type_t>(CAPNG_EFFECTIVE | CAPNG_PERMITTED),
                 static_cast<unsigned>(dropped));
  capng_apply(CAPNG_SELECT_CAPS);
  const auto forced = make_watcher(SourceKind::kernel);
  const auto chosen = make_watcher(SourceKind::automatic);
  return check(!forced, "refused") &&
         check(forced.error().message().find("lacks " + name + " (") != std::string::npos,
               forced.error().message()) &&
         check(chosen.has_value(), "another serves") && fires(*chosen, SourceKind::epoll);
}

TEST(PrivilegesTest, WithoutBpfTheMissingCapabilityIsNamed) {
  EXPECT_TRUE(in_child([] { return epoll_serves_without(CAP_BPF, "CAP_BPF"); }));
}

TEST(PrivilegesTest, WithoutPerfmonTheMissingCapabilityIsNamed) {
  EXPECT_TRUE(in_child([] { return epoll_serves_without(CAP_PERFMON, "CAP_PERFMON"); }));
}

// libbpf's print function is one for all threads.
TEST(PrivilegesTest, SeveralThreadsMayLoadAtOnce) {
  std::vector<std::thread> threads;
  std::atomic<int> made{0};
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      if (make_watcher(SourceKind::kernel)) ++made;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(made.load(), 4);
}

}  // namespace
}  // namespace sockalarm::test
