// SPDX-License-Identifier: Apache-2.0
#include <arpa/inet.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sockalarm/action.h>
#include <sockalarm/unique_fd.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <stdexcept>
#include <thread>

#include "core/action_impl.h"
#include "core/open_descriptors.h"

namespace sockalarm {
namespace {

using namespace std::chrono_literals;
using detail::Outcome;

bool says(const Error& error, std::string_view part) {
  return error.message().find(part) != std::string::npos;
}

pid_t this_thread() { return static_cast<pid_t>(::gettid()); }

Outcome run_now(const Action& action, pid_t thread = this_thread()) {
  const Event event{};
  sigset_t mask;
  ::sigemptyset(&mask);
  return action.impl().run({event, thread, mask});
}

// Invalid: says why, and does not try when it is run nevertheless.
void expect_invalid(const Action& action, Errc code, std::string_view part) {
  ASSERT_NE(action.error(), nullptr) << to_string(action);
  EXPECT_EQ(action.error()->code(), code);
  EXPECT_TRUE(says(*action.error(), part)) << action.error()->message();
  EXPECT_TRUE(run_now(action).failure);
}
void expect_failure(const Outcome& outcome, std::string_view part) {
  ASSERT_TRUE(outcome.failure);
  EXPECT_TRUE(says(*outcome.failure, part)) << outcome.failure->message();
  EXPECT_EQ(outcome.next, Outcome::Next::proceed);
}
void expect_success(const Outcome& outcome) {
  EXPECT_FALSE(outcome.failure) << outcome.failure->message();
  EXPECT_EQ(outcome.next, Outcome::Next::proceed);
}

bool is_open(int fd) { return ::fcntl(fd, F_GETFD) >= 0; }

struct Pair {
  UniqueFd one, other;
  Pair() {
    int ends[2] = {-1, -1};
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
    one.reset(ends[0]);
    other.reset(ends[1]);
  }
};

// Connected over loopback; `client`'s peer is `address`.
struct Connection {
  UniqueFd listener, client, server;
  sockaddr_storage name{};
  socklen_t length = sizeof name;
  explicit Connection(int family) {
    const std::string path = "/tmp/sockalarm-actions-test." + std::to_string(::getpid());
    if (family == AF_UNIX) {
      sockaddr_un local{};
      local.sun_family = AF_UNIX;
      path.copy(local.sun_path, sizeof local.sun_path - 1);
      ::unlink(path.c_str());
      std::memcpy(&name, &local, sizeof local);
      length = sizeof local;
    } else {
      const auto any = SocketAddress::parse(family == AF_INET ? "127.0.0.1:0" : "[::1]:0").value();
      std::memcpy(&name, any.data(), any.size());
      length = any.size();
    }
    auto* const generic = reinterpret_cast<sockaddr*>(&name);
    listener.reset(::socket(family, SOCK_STREAM, 0));
    if (::bind(listener.get(), generic, length) != 0 || ::listen(listener.get(), 1) != 0) return;
    length = sizeof name;
    ::getsockname(listener.get(), generic, &length);
    client.reset(::socket(family, SOCK_STREAM, 0));
    if (::connect(client.get(), generic, length) == 0)
      server.reset(::accept(listener.get(), nullptr, nullptr));
    if (family == AF_UNIX) ::unlink(path.c_str());
  }
  SocketAddress address() const { return {reinterpret_cast<const sockaddr*>(&name), length}; }
};

std::atomic<int> signals_seen{0};
std::atomic<pid_t> signalled_thread{0};
class Handler {
 public:
  explicit Handler(int signal) : signal_(signal) {
    signals_seen = 0;
    signalled_thread = 0;
    struct sigaction action{};
    action.sa_handler = [](int) {
      signalled_thread = this_thread();
      ++signals_seen;
    };
    ::sigaction(signal, &action, &before_);
  }
  ~Handler() { ::sigaction(signal_, &before_, nullptr); }

 private:
  int signal_;
  struct sigaction before_{};
};
template <class Condition>
bool eventually(Condition condition) {
  for (int i = 0; i < 5000 && !condition(); ++i) std::this_thread::sleep_for(1ms);
  return condition();
}

TEST(Actions, SignalsThatAreNoneAreInvalid) {
  for (const int signal : {0, -1, 99, 1000}) {
    expect_invalid(send_signal(signal, SignalTarget::process), Errc::invalid_action, std::to_string(signal));
    expect_invalid(kill_process(signal, ::getpid()), Errc::invalid_action, std::to_string(signal));
  }
  EXPECT_EQ(send_signal(SIGKILL, SignalTarget::process).error(), nullptr);
  EXPECT_EQ(send_signal(SIGSTOP, SignalTarget::process).error(), nullptr);
}

TEST(Actions, SignalsTheProcess) {
  const Handler handler(SIGUSR1);
  expect_success(run_now(send_signal(SIGUSR1, SignalTarget::process)));
  EXPECT_TRUE(eventually([] { return signals_seen == 1; }));
}

#if SOCKALARM_LINUX
TEST(Actions, SignalsTheArmingThread) {
  const Handler handler(SIGUSR1);
  std::atomic<pid_t> tid{0};
  std::atomic<bool> over{false};
  std::thread arming([&] {
    // TSan makes a thread's signal state in the thread's first call that it knows, and loses a signal that
    // comes meanwhile (libtsan of gcc 12): that call must be over.
    std::this_thread::sleep_for(1ms);
    tid = this_thread();
    while (!over) std::this_thread::sleep_for(1ms);
  });
  ASSERT_TRUE(eventually([&] { return tid != 0; }));
  expect_success(run_now(send_signal(SIGUSR1), tid));
  EXPECT_TRUE(eventually([] { return signals_seen == 1; }));
  EXPECT_EQ(signalled_thread, tid);
  over = true;
  arming.join();
  // join() returns when the kernel clears the thread's id, a little before the thread is gone.
  EXPECT_TRUE(eventually([&] { return run_now(send_signal(SIGUSR1), tid).failure.has_value(); }));
  expect_failure(run_now(send_signal(SIGUSR1), tid), "No such process");
}
#else
TEST(Actions, SignalsToThreadsNeedLinux) { expect_invalid(send_signal(SIGUSR1), Errc::unsupported, "Linux"); }
#endif

TEST(Actions, KillsTheProcessThatItWasBuiltFor) {
  const pid_t child = ::fork();
  if (child == 0) {
    for (;;) ::pause();
  }
  const Action action = kill_process(SIGTERM, child);
  ASSERT_EQ(action.error(), nullptr) << action.error()->message();
  expect_success(run_now(action));
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM);
  expect_failure(run_now(action), "No such process");
  expect_invalid(kill_process(SIGTERM, child), Errc::invalid_action, std::to_string(child));
  for (const pid_t pid : {0, -1, -child})
    expect_invalid(kill_process(SIGTERM, pid), Errc::invalid_action, "above 0");
}

TEST(Actions, ClosesAndShutsDownADescriptor) {
  Pair pair;
  char byte = 0;
  expect_success(run_now(shutdown_write(pair.one.get())));
  EXPECT_EQ(::read(pair.other.get(), &byte, 1), 0);
  expect_success(run_now(shutdown_both(pair.one.get())));
  expect_success(run_now(shutdown_read(pair.other.get())));
  const int fd = pair.one.release();
  const Action action = close_fd(fd);
  expect_success(run_now(action));
  EXPECT_FALSE(is_open(fd));
  expect_failure(run_now(action), "nothing was touched");
}

TEST(Actions, LeavesAReusedNumberAlone) {
  Pair pair, stranger;
  const Action actions[] = {close_fd(pair.one.get()), shutdown_both(pair.one.get())};
  ASSERT_EQ(::dup2(stranger.one.get(), pair.one.get()), pair.one.get());
  for (const Action& action : actions) expect_failure(run_now(action), "nothing was touched");
  EXPECT_EQ(::write(stranger.other.get(), "x", 1), 1);
  EXPECT_TRUE(is_open(pair.one.get()));
}

TEST(Actions, DescriptorsThatCannotDoAreInvalid) {
  const UniqueFd file(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  for (const int fd : {-1, 19'999}) {
    expect_invalid(close_fd(fd), Errc::invalid_action, std::to_string(fd));
    expect_invalid(shutdown_both(fd), Errc::invalid_action, "not open");
    expect_invalid(notify(fd), Errc::invalid_action, std::to_string(fd));
  }
  expect_invalid(shutdown_read(file.get()), Errc::invalid_action, "not a socket");
  EXPECT_TRUE(is_open(file.get()));
  const UniqueFd unconnected(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  expect_failure(run_now(shutdown_both(unconnected.get())), "not connected");
}

class PeerActions : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Families, PeerActions, testing::Values(AF_INET, AF_INET6, AF_UNIX));

TEST_P(PeerActions, CloseEveryDescriptorOfThePeer) {
  Connection connection(GetParam());
  if (!connection.server) GTEST_SKIP() << "no such loopback here";
  const Action action = close_peer(connection.address());
  ASSERT_EQ(action.error(), nullptr);
  const int fd = connection.client.release();
  const int copy = ::dup(fd);
  expect_success(run_now(action));
  EXPECT_FALSE(is_open(fd) || is_open(copy));
  EXPECT_TRUE(is_open(connection.listener.get()) && is_open(connection.server.get()));
  expect_failure(run_now(action), to_string(connection.address()));
}

TEST_P(PeerActions, ShutDownEachSocketOnce) {
  Connection connection(GetParam());
  if (!connection.server) GTEST_SKIP() << "no such loopback here";
  const UniqueFd copy(::dup(connection.client.get()));
  expect_success(run_now(shutdown_write(connection.address())));
  char byte = 0;
  EXPECT_EQ(::read(connection.server.get(), &byte, 1), 0);
  EXPECT_EQ(::write(connection.server.get(), "x", 1), 1);
  EXPECT_EQ(::read(copy.get(), &byte, 1), 1);
  expect_success(run_now(shutdown_both(connection.address())));
  EXPECT_TRUE(is_open(connection.client.get()));
}

TEST(Actions, PeersThatCannotBeToldAreInvalid) {
  expect_invalid(close_peer(SocketAddress::parse("unix:").value()), Errc::invalid_action, "unnamed");
  expect_invalid(shutdown_both(SocketAddress(nullptr, 0)), Errc::invalid_action, "expected");
}

TEST(Actions, SleepsPause) {
  const Outcome outcome = run_now(sleep_for(250ms));
  EXPECT_EQ(outcome.next, Outcome::Next::pause);
  EXPECT_EQ(outcome.pause_for, 250ms);
  expect_invalid(sleep_for(-1ns), Errc::invalid_action, "-1ns");
  expect_invalid(sleep_for(std::chrono::nanoseconds::max()), Errc::invalid_action, "100 years");
}

TEST(Actions, CallsAnswerAndMayThrow) {
  int calls = 0;
  expect_success(run_now(call([&calls] { ++calls; })));
  expect_success(run_now(call([&calls](const Event&) { return ++calls, Verdict::proceed; })));
  const Outcome stopped = run_now(call([](const Event&) { return Verdict::stop; }));
  EXPECT_EQ(stopped.next, Outcome::Next::stop);
  EXPECT_FALSE(stopped.failure);
  EXPECT_EQ(calls, 2);
  const Outcome threw = run_now(call([] { throw std::runtime_error("boo"); }));
  EXPECT_EQ(threw.next, Outcome::Next::stop);
  EXPECT_TRUE(threw.failure && says(*threw.failure, "boo"));
  const Outcome odd = run_now(call([] { throw 7; }));
  EXPECT_TRUE(odd.failure && odd.next == Outcome::Next::stop);
  const Outcome system = run_now(call([] { throw std::system_error(EIO, std::system_category()); }));
  EXPECT_TRUE(system.failure && system.failure->code() == std::errc::io_error);
  expect_invalid(call(std::function<void()>()), Errc::invalid_action, "empty");
  expect_invalid(call(std::function<Verdict(const Event&)>()), Errc::invalid_action, "empty");
}

TEST(Actions, StopsAreRequested) {
  const std::stop_source source;
  const Action action = request_stop(source);
  expect_success(run_now(action));
  EXPECT_TRUE(source.stop_requested());
  expect_success(run_now(action));
  expect_invalid(request_stop(std::stop_source(std::nostopstate)), Errc::invalid_action, "no state");
}

TEST(Actions, CodeEqualsItselfAlone) {
  const Action one = call([] {}), two = call([] {});
  const Action copy = one;
  EXPECT_TRUE(one == copy);
  EXPECT_FALSE(one == two);
  const std::stop_source source;
  EXPECT_FALSE(request_stop(source) == request_stop(source));
  EXPECT_EQ(to_string(one), "call");
  EXPECT_FALSE(one.impl().may_block());
  const Action blocking = call_blocking([] {});
  EXPECT_EQ(to_string(blocking), "call_blocking");
  EXPECT_TRUE(blocking.impl().may_block());
  EXPECT_FALSE(blocking == call_blocking([] {}));
  expect_invalid(call_blocking(std::function<void()>()), Errc::invalid_action, "call_blocking: the function");
  EXPECT_EQ(to_string(request_stop(source)), "stop");
}

TEST(Actions, NotifyAddsOneAndNeverWaits) {
  const UniqueFd event(::eventfd(0, EFD_CLOEXEC));  // blocking: a full one would hold the writer
  const Action action = notify(event.get());
  ASSERT_EQ(action.error(), nullptr) << action.error()->message();
  expect_success(run_now(action));
  expect_success(run_now(action));
  std::uint64_t count = 0;
  ASSERT_EQ(::read(event.get(), &count, sizeof count), static_cast<ssize_t>(sizeof count));
  EXPECT_EQ(count, 2U);
  count = ~std::uint64_t{0} - 1;
  ASSERT_EQ(::write(event.get(), &count, sizeof count), static_cast<ssize_t>(sizeof count));
  expect_success(run_now(action));
  Pair stranger;
  ASSERT_EQ(::dup2(stranger.one.get(), event.get()), event.get());
  expect_failure(run_now(action), "nothing was touched");
#if SOCKALARM_LINUX
  expect_invalid(notify(stranger.one.get()), Errc::invalid_action, "eventfd");
#endif
}

#if !SOCKALARM_LINUX
TEST(Actions, NotifyFitsOnlyWhatCanBeWritten) {
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  UniqueFd reader(ends[0]), writer(ends[1]);
  expect_success(run_now(notify(writer.get())));
  reader.reset();
  expect_failure(run_now(notify(writer.get())), "nobody");
}
#endif

TEST(Actions, ChainsKeepTheFirstError) {
  EXPECT_EQ(ActionChain().error(), nullptr);
  EXPECT_EQ(ActionChain(std::vector<Action>{}).size(), 0U);
  ActionChain chain{sleep_for(1s), close_fd(-1), run({})};
  ASSERT_NE(chain.error(), nullptr);
  EXPECT_TRUE(says(*chain.error(), "-1"));
  const ActionChain copy = chain;
  EXPECT_EQ(copy.error(), chain.error());
  const ActionChain moved = std::move(chain);
  EXPECT_EQ(moved.error(), copy.error());
}

TEST(Actions, FailuresLeaveNoDescriptorBehind) {
  const Pair pair;
  const auto before = detail::open_descriptors().value();
  for (int i = 0; i < 50; ++i) {
    for (const Action& action :
         {send_signal(0), kill_process(SIGTERM, 0), kill_process(SIGTERM, 0x3fffffff), close_fd(-1), run({}),
          run({"/no/such"}), exec({"/no/such"}), notify(pair.one.get() + 1000),
          close_peer(SocketAddress::parse("192.0.2.1:1").value())})
      EXPECT_TRUE(run_now(action).failure);
    (void)parse_action("close:127.0.0.1:");
    (void)kill_process(SIGTERM, ::getpid());
  }
  EXPECT_EQ(detail::open_descriptors().value(), before);
}

}  // namespace
}  // namespace sockalarm
