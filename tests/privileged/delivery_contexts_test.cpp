// SPDX-License-Identifier: Apache-2.0
#include <sched.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <iostream>
#include <list>
#include <span>
#include <sstream>

#include "core/watch_state.h"
#include "harness/network_namespace.h"
#include "harness/signals.h"
#include "suite/suite.h"

// The signal reaches the thread that armed from wherever the kernel notices that a peer has gone: another
// task's system call, an exiting process, a timer on an idle CPU, the packets of another network.

namespace sockalarm::test {

inline std::vector<Way> ways_past_the_dispatcher() {
  return {SourceKind::kernel, {SourceKind::kernel, Delivery::sigio}, {SourceKind::epoll, Delivery::sigio}};
}

namespace {

constexpr int kRounds = 20;

SOCKALARM_SUITE_OVER(ways_past_the_dispatcher, DeliveryContextTest);

// The threads that got SIGALRM, while it lives: a counter would not tell one that got two from two that got
// one.
class SignalLog {
 public:
  SignalLog() {
    length_.store(0);
    struct sigaction action{};
    action.sa_handler = [](int) {
      const std::size_t at = length_.fetch_add(1);
      if (at < threads_.size()) threads_[at].store(thread_id());
    };
    ::sigaction(SIGALRM, &action, &previous_);
  }
  ~SignalLog() { ::sigaction(SIGALRM, &previous_, nullptr); }
  SignalLog(const SignalLog&) = delete;
  SignalLog& operator=(const SignalLog&) = delete;

  // In order of their ids. Only while no signal is under way.
  static std::vector<pid_t> take() {
    const std::size_t length = std::min(length_.exchange(0), threads_.size());
    std::vector<pid_t> all(threads_.begin(), threads_.begin() + static_cast<std::ptrdiff_t>(length));
    std::sort(all.begin(), all.end());
    return all;
  }

 private:
  struct sigaction previous_{};
  inline static std::array<std::atomic<pid_t>, 4096> threads_{};
  inline static std::atomic<std::size_t> length_{0};
};

// A watched connection, and the thread that waits for its end.
struct Target {
  Target(const Watcher& watcher, Connection made)
      : connection(std::move(made)),
        watch(watcher.watch(connection.ours.get()).value()),
        thread(watch, send_signal(SIGALRM)) {}
  ~Target() {
    if (!woke) ::syscall(SYS_tgkill, ::getpid(), thread.tid(), SIGALRM);  // else it would never end
  }
  Target(const Target&) = delete;
  Target& operator=(const Target&) = delete;

  // False: there was no signal.
  bool wakes() { return woke = thread.woke(); }

  Connection connection;
  Watch watch;
  BlockedThread thread;
  bool woke = false;
};

// What happens in one context: every thread gets its signal, once, for the expected reason.
class Context {
 public:
  Context(const Watcher& watcher, std::string name, Events cause)
      : watcher_(watcher), name_(std::move(name)), cause_(cause), before_(watcher.stats()) {}
  ~Context() { conclude(); }
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  template <class Leave>
  void round(std::vector<Connection> connections, Leave leave) {
    if (testing::Test::HasFailure()) return;  // each would cost the whole patience again
    std::list<Target> targets;
    std::vector<pid_t> threads;
    for (Connection& connection : connections)
      threads.push_back(targets.emplace_back(watcher_, std::move(connection)).thread.tid());
    std::sort(threads.begin(), threads.end());
    leave(targets);
    for (Target& target : targets) {
      EXPECT_TRUE(target.wakes()) << name_;
      if (!target.woke) break;
      EXPECT_TRUE(eventually([&] { return target.thread.alarm().finished(); })) << name_;
      EXPECT_EQ(target.thread.alarm().cause().what, cause_) << name_;
    }
    // The threads have ended then, so whatever was pending in one of them has come.
    targets.clear();
    EXPECT_EQ(SignalLog::take(), threads) << name_;
    total_ += threads.size();
  }
  template <class Leave>
  void round(Connection connection, Leave leave) {
    std::vector<Connection> one;
    one.push_back(std::move(connection));
    round(std::move(one), [&](std::list<Target>& targets) { leave(targets.front()); });
  }

  std::uint64_t direct() const { return watcher_.stats().fired_directly - before_.fired_directly; }

 private:
  void conclude() const {
    std::cout << name_ << ": directly " << direct() << " of " << total_ << std::endl;
    EXPECT_EQ(watcher_.stats().fired - before_.fired, total_) << name_;
    const Delivery delivery = watcher_.describe().delivery;
    if (delivery == Delivery::task_work) {
      EXPECT_GT(direct(), 0U) << name_;
    }
    if (delivery == Delivery::dispatcher) {
      EXPECT_EQ(direct(), 0U) << name_;
    }
  }

  const Watcher& watcher_;
  const std::string name_;
  const Events cause_;
  const Stats before_;
  const SignalLog log_;
  std::size_t total_ = 0;
};

// A process that holds peers and does with them what it is told.
class PeerProcess {
 public:
  explicit PeerProcess(const Listener& listener) : listener_(listener) {
    int ends[2];
    require(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0, "socketpair");
    UniqueFd theirs(ends[1]);
    orders_ = UniqueFd(ends[0]);
    pid_ = ::fork();
    require(pid_ >= 0, "fork");
    if (pid_ > 0) return;
    orders_.reset();
    serve(theirs.get(), listener);
  }
  ~PeerProcess() { kill(); }
  PeerProcess(const PeerProcess&) = delete;
  PeerProcess& operator=(const PeerProcess&) = delete;

  Connection connect() {
    order(kConnect);
    return {accept_from(listener_), UniqueFd()};
  }
  void close() { order(kClose); }
  void reset() { order(kReset); }
  void exit() {
    orders_.reset();
    ::waitpid(std::exchange(pid_, -1), nullptr, 0);
  }
  void kill() noexcept {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(std::exchange(pid_, -1), nullptr, 0);
  }

 private:
  static constexpr char kConnect = 'c', kClose = 'x', kReset = 'r';

  void order(char what) {
    require(::send(orders_.get(), &what, 1, MSG_NOSIGNAL) == 1, "an order");
    require(::recv(orders_.get(), &what, 1, 0) == 1, "its answer");
  }

  // Until nobody gives orders any more; the peers it has by then leave with it.
  [[noreturn]] static void serve(int orders, const Listener& listener) noexcept try {
    std::vector<UniqueFd> peers;
    for (char what = 0; ::recv(orders, &what, 1, 0) == 1; ::send(orders, &what, 1, MSG_NOSIGNAL)) {
      if (what == kConnect) {
        peers.push_back(connect_to(listener));
        continue;
      }
      if (what == kReset)
        for (UniqueFd& peer : peers) test::reset(peer);
      peers.clear();
    }
    ::_exit(0);  // without closing them one by one
  } catch (const std::exception& error) {
    std::cerr << "the process with the peers: " << error.what() << std::endl;
    ::_exit(1);
  }

  const Listener& listener_;
  UniqueFd orders_;
  pid_t pid_ = -1;
};

TEST_P(DeliveryContextTest, PeerClosesInAnotherThread) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Context context(watcher, "peer closes, a thread of this process", events::fin);
  for (int i = 0; i < kRounds; ++i)
    context.round(tcp_pair(),
                  [](Target& target) { std::thread([&] { target.connection.peer.reset(); }).join(); });
}

TEST_P(DeliveryContextTest, PeerClosesInAProcessThatLivesOn) {
  SOCKALARM_WATCHER(watcher, GetParam());
  const Listener listener = listen_on(AF_INET);
  PeerProcess peer(listener);
  Context context(watcher, "peer closes, another process", events::fin);
  for (int i = 0; i < kRounds; ++i) context.round(peer.connect(), [&](Target&) { peer.close(); });
}

TEST_P(DeliveryContextTest, PeerProcessExits) {
  SOCKALARM_WATCHER(watcher, GetParam());
  const Listener listener = listen_on(AF_INET);
  Context context(watcher, "peer exits", events::fin);
  for (int i = 0; i < kRounds; ++i) {
    PeerProcess peer(listener);
    context.round(peer.connect(), [&](Target&) { peer.exit(); });
  }
}

TEST_P(DeliveryContextTest, PeerProcessIsKilled) {
  SOCKALARM_WATCHER(watcher, GetParam());
  const Listener listener = listen_on(AF_INET);
  Context context(watcher, "peer is killed", events::fin);
  for (int i = 0; i < kRounds; ++i) {
    PeerProcess peer(listener);
    context.round(peer.connect(), [&](Target&) { peer.kill(); });
  }
}

TEST_P(DeliveryContextTest, PeerResets) {
  SOCKALARM_WATCHER(watcher, GetParam());
  {
    Context context(watcher, "reset, a thread of this process", events::reset);
    for (int i = 0; i < kRounds; ++i)
      context.round(tcp_pair(),
                    [](Target& target) { std::thread([&] { reset(target.connection.peer); }).join(); });
  }
  const Listener listener = listen_on(AF_INET);
  PeerProcess peer(listener);
  Context context(watcher, "reset, another process", events::reset);
  for (int i = 0; i < kRounds; ++i) context.round(peer.connect(), [&](Target&) { peer.reset(); });
}

void set(int fd, int level, int option, int value) {
  require(::setsockopt(fd, level, option, &value, sizeof value) == 0, "setsockopt");
}

// Connections whose peers can be cut off at once.
struct CutOff {
  CutOff() {
    net.run([&] {
      const Listener listener = listen_on(AF_INET);
      for (int i = 0; i < kRounds; ++i) {
        Connection& connection = connections.emplace_back();
        connection.ours = connect_to(listener);
        connection.peer = accept_from(listener);
      }
    });
  }
  void cut(const std::list<Target>& targets) const {
    net.on_packets_to(local_port(targets.front().connection.peer.get()), "drop");
  }
  // Their timers all start now.
  void send_into_the_void(const std::list<Target>& targets) const {
    cut(targets);
    for (const Target& target : targets) send_text(target.connection.ours.get(), "into the void");
  }

  NetworkNamespace net;
  std::vector<Connection> connections;
};

TEST_P(DeliveryContextTest, UserTimeout) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Context context(watcher, "TCP_USER_TIMEOUT", events::timeout);
  CutOff cut_off;
  for (const Connection& connection : cut_off.connections)
    set(connection.ours.get(), IPPROTO_TCP, TCP_USER_TIMEOUT, 200);
  context.round(std::move(cut_off.connections),
                [&](const std::list<Target>& targets) { cut_off.send_into_the_void(targets); });
}

TEST_P(DeliveryContextTest, RetransmissionsGiveUp) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Context context(watcher, "retransmissions give up", events::timeout);
  CutOff cut_off;
  cut_off.net.sysctl("net/ipv4/tcp_retries2", 1);
  context.round(std::move(cut_off.connections),
                [&](const std::list<Target>& targets) { cut_off.send_into_the_void(targets); });
}

TEST_P(DeliveryContextTest, KeepaliveGivesUp) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Context context(watcher, "keepalive gives up", events::timeout);
  CutOff cut_off;
  context.round(std::move(cut_off.connections), [&](const std::list<Target>& targets) {
    cut_off.cut(targets);
    for (const Target& target : targets) {
      const int fd = target.connection.ours.get();
      for (const int option : {TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT}) set(fd, IPPROTO_TCP, option, 1);
      set(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
    }
  });
}

TEST_P(DeliveryContextTest, OverAVethPair) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Context context(watcher, "over a veth pair", events::fin);
  const NetworkNamespace ours, theirs;
  // The pair goes with the networks. `which`: a busybox shell would take its own ip, which makes no pairs.
  ours.shell("ip=$(which ip); $ip link add here type veth peer name there netns " + theirs.path());
  ours.shell("ip=$(which ip); $ip addr add 192.0.2.1/24 dev here && $ip link set here up");
  theirs.shell("ip=$(which ip); $ip addr add 192.0.2.2/24 dev there && $ip link set there up");
  Listener listener;
  theirs.run([&] { listener = listen_on(AF_INET, 64, 0, "192.0.2.2"); });
  for (int i = 0; i < kRounds; ++i) {
    Connection connection;
    ours.run([&] { connection.ours = connect_to(listener); });
    connection.peer = accept_from(listener);
    context.round(std::move(connection), [](Target& target) { target.connection.peer.reset(); });
  }
}

// Each signal in a thread of its own: standard signals of one thread that are pending at once are one.
TEST_P(DeliveryContextTest, StormOf500) {
  SOCKALARM_WATCHER(watcher, GetParam());
  constexpr int kSockets = 500;
  const Listener listener = listen_on(AF_INET);
  PeerProcess peer(listener);
  Context context(watcher, "storm", events::fin);
  std::vector<Connection> connections;
  for (int i = 0; i < kSockets; ++i) connections.push_back(peer.connect());
  context.round(std::move(connections), [&](const std::list<Target>&) { peer.kill(); });
}

// Runs `body` in a new process, as the first of a pid namespace that is so many levels below ours. Gives its
// exit status.
int in_pid_namespace(int levels, const std::function<void()>& body) {
  std::cout << std::flush;
  const pid_t child = ::fork();
  if (child == 0) {
    try {
      if (levels > 0) ::_exit(::unshare(CLONE_NEWPID) == 0 ? in_pid_namespace(levels - 1, body) : 1);
      body();
      std::cout << std::flush;
      ::_exit(testing::Test::HasFailure() ? 1 : 0);
    } catch (const std::exception& error) {
      std::cerr << error.what() << std::endl;
      ::_exit(1);
    }
  }
  int status = -1;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

TEST_P(DeliveryContextTest, PidNamespaces) {
  constexpr int kNoWatcher = 77;
  for (const int levels : {1, 2}) {
    const int status = in_pid_namespace(levels, [&, way = GetParam()] {
      const auto watcher = make_watcher(way);
      if (!watcher) {
        std::cerr << watcher.error().message() << std::endl;
        ::_exit(kNoWatcher);
      }
      EXPECT_EQ(thread_id(), 1) << "ids differ from the host's";
      Context context(*watcher, "pid namespace, level " + std::to_string(levels), events::fin);
      for (std::uint64_t round = 1; round <= kRounds; ++round) {
        context.round(tcp_pair(), [](Target& target) { target.connection.peer.reset(); });
        if (watcher->describe().delivery == Delivery::task_work) {
          EXPECT_EQ(context.direct(), round);
        }
      }
    });
    if (status == kNoWatcher && GetParam() == SourceKind::kernel && !kernel_required()) GTEST_SKIP();
    EXPECT_EQ(status, 0) << levels << " levels";
  }
}

// The watch state of `watch` in the table that the kernel side reads. The library has it mapped; which of its
// mappings that is, the cookie tells. Null: there is none.
detail::WatchState* shared_state(const Watch& watch) {
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    if (line.find(" rw-s ") == std::string::npos || line.find("anon_inode:bpf-map") == std::string::npos)
      continue;
    std::istringstream range(line);
    std::uintptr_t begin = 0, end = 0;
    char dash = 0;
    range >> std::hex >> begin >> dash >> end;
    const std::span states(reinterpret_cast<detail::WatchState*>(begin),  // NOLINT(performance-no-int-to-ptr)
                           (end - begin) / sizeof(detail::WatchState));
    for (detail::WatchState& state : states.subspan(1))
      if (detail::shared(state.cookie).load() == watch.cookie()) return &state;
  }
  return nullptr;
}

// A thread of another process, which blocks SIGALRM: a signal that it got stays pending.
class Bystander {
 public:
  Bystander() {
    int ends[2];
    require(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0, "socketpair");
    UniqueFd theirs(ends[1]);
    talk_ = UniqueFd(ends[0]);
    pid_ = ::fork();
    require(pid_ >= 0, "fork");
    if (pid_ == 0) {
      talk_.reset();
      std::thread([&] { stand_by(theirs.get()); }).join();
      ::_exit(1);
    }
    require(::recv(talk_.get(), &tid_, sizeof tid_, 0) == sizeof tid_, "the bystander's id");
  }
  ~Bystander() { end(); }
  Bystander(const Bystander&) = delete;
  Bystander& operator=(const Bystander&) = delete;

  pid_t tid() const { return tid_; }
  // Whatever was to be done in that thread has been done then: it has come back from a system call since.
  bool was_signalled() { return end() != 0; }

 private:
  [[noreturn]] static void stand_by(int talk) {
    sigset_t set;
    ::sigemptyset(&set);
    ::sigaddset(&set, SIGALRM);
    ::pthread_sigmask(SIG_BLOCK, &set, nullptr);
    const pid_t tid = thread_id();
    ::send(talk, &tid, sizeof tid, MSG_NOSIGNAL);
    char byte = 0;
    while (::recv(talk, &byte, 1, 0) < 0) {
    }
    ::sigpending(&set);
    ::_exit(::sigismember(&set, SIGALRM) == 1 ? 1 : 0);
  }
  int end() {
    if (pid_ <= 0) return -1;
    talk_.reset();
    int status = -1;
    ::waitpid(std::exchange(pid_, -1), &status, 0);
    return status;
  }

  UniqueFd talk_;
  pid_t pid_ = -1, tid_ = 0;
};

// The table is the client's to write, so a thread id in it is only a claim; the process stands in the
// registry, which is not.
#if SOCKALARM_CHILD_THREADS
TEST(DeliveryContextForgeryTest, NoThreadOfAnotherProcessIsSignalled) {
  SOCKALARM_WATCHER(watcher, SourceKind::kernel);
  const SignalLog log;
  for (int i = 0; i < kRounds; ++i) {
    Bystander bystander;
    Target target(watcher, tcp_pair());
    detail::WatchState* const state = shared_state(target.watch);
    if (state == nullptr) ADD_FAILURE() << "the table was not found";
    if (state != nullptr) detail::shared(state->tid).store(static_cast<std::uint32_t>(bystander.tid()));
    target.connection.peer.reset();
    ASSERT_TRUE(target.wakes()) << "the dispatcher does it instead";
    EXPECT_TRUE(eventually([&] { return target.thread.alarm().finished(); }));
    EXPECT_EQ(target.thread.alarm().cause().what, events::fin);
    EXPECT_FALSE(bystander.was_signalled());
    EXPECT_EQ(SignalLog::take(), std::vector<pid_t>{target.thread.tid()});
  }
  EXPECT_EQ(watcher.stats().fired, static_cast<std::uint64_t>(kRounds));
  EXPECT_EQ(watcher.stats().fired_directly, 0U);
}
#endif

// Shows that the test above forges the word that counts: a thread of this process is signalled.
TEST(DeliveryContextForgeryTest, AnotherThreadOfThisProcessIs) {
  SOCKALARM_WATCHER(watcher, SourceKind::kernel);
  if (watcher.describe().delivery != Delivery::task_work) return;  // nobody acts on the word
  const SignalLog log;
  Target target(watcher, tcp_pair());
  Connection other = tcp_pair();
  const auto others_watch = watcher.watch(other.ours.get());
  const auto others_alarm = others_watch->arm(send_signal(SIGALRM));
  detail::WatchState* const state = shared_state(target.watch);
  const detail::WatchState* const others = shared_state(*others_watch);
  EXPECT_TRUE(state != nullptr && others != nullptr);
  if (state != nullptr && others != nullptr) detail::shared(state->tid).store(others->tid);
  target.connection.peer.reset();
  EXPECT_TRUE(eventually([&] { return target.thread.alarm().finished(); }));
  EXPECT_EQ(SignalLog::take(), std::vector<pid_t>{thread_id()});
  EXPECT_EQ(watcher.stats().fired_directly, 1U);
}

}  // namespace
}  // namespace sockalarm::test
