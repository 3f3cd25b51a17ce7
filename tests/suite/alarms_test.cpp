// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <sys/wait.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <future>
#include <latch>
#include <optional>
#include <thread>

#include "core/open_descriptors.h"
#include "suite/scene.h"
#include "suite/suite.h"

namespace sockalarm::test {
namespace {

SOCKALARM_SUITE(AlarmsTest);

std::vector<int> open_descriptors() { return detail::open_descriptors().value(); }

TEST_P(AlarmsTest, ChainRunsInOrderOnce) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher);
  Journal journal;
  auto alarm = scene.watch.arm(
      ActionChain{journal.entry("one"), sleep_for(5ms), journal.entry("two"), journal.entry("three")});
  EXPECT_TRUE(alarm->active());
  EXPECT_FALSE(alarm->triggered());
  EXPECT_FALSE(alarm->finished());
  EXPECT_EQ(alarm->current_action(), -1);
  EXPECT_EQ(alarm->action_count(), 4U);
  EXPECT_EQ(alarm->cause().what, events::none);
  EXPECT_FALSE(alarm->start()) << "armed already";
  scene.peer_leaves();
  ASSERT_TRUE(journal.wait_for(3));
  ASSERT_TRUE(eventually([&] { return alarm->finished(); }));
  EXPECT_EQ(journal.lines(), (std::vector<std::string>{"one", "two", "three"}));
  EXPECT_FALSE(alarm->active());
  EXPECT_TRUE(alarm->triggered());
  EXPECT_EQ(alarm->current_action(), 4);
  EXPECT_EQ(alarm->cause().what, events::fin);
  EXPECT_EQ(alarm->cancel(), Cancelled::inactive);
  EXPECT_TRUE(alarm->finished());
}

TEST_P(AlarmsTest, ArmedAgainItFiresAgain) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher);
  Journal journal;
  auto alarm = scene.watch.arm(journal.entry("fired"));
  scene.peer_leaves();
  for (std::size_t times = 1; times <= 50; ++times) {
    ASSERT_TRUE(journal.wait_for(times));
    ASSERT_TRUE(eventually([&] { return !alarm->active(); }));
    ASSERT_EQ(journal.lines().size(), times);
    if (times < 50) {
      ASSERT_TRUE(alarm->start());
    }
  }
}

TEST_P(AlarmsTest, CancelPrevents) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher);
  Journal journal;
  auto alarm = scene.watch.arm(journal.entry("cancelled"));
  EXPECT_EQ(alarm->cancel(), Cancelled::prevented);
  EXPECT_EQ(alarm->cancel(), Cancelled::inactive);
  EXPECT_FALSE(alarm->active());
  const auto other = scene.watch.arm(journal.entry("other"));
  scene.peer_leaves();
  ASSERT_TRUE(journal.wait_for(1));
  EXPECT_EQ(journal.lines(), std::vector<std::string>{"other"});
  EXPECT_TRUE(alarm->start()) << "and after all";
  ASSERT_TRUE(journal.wait_for(2));
}

TEST_P(AlarmsTest, ScopeEndDisarms) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher);
  Journal journal;
  {
    const auto alarm = scene.watch.arm(journal.entry("out of scope"));
  }
  scene.peer_leaves();
  const auto alarm = scene.watch.arm(journal.entry("in scope"));
  ASSERT_TRUE(journal.wait_for(1));
  EXPECT_EQ(journal.lines(), std::vector<std::string>{"in scope"});
}

TEST_P(AlarmsTest, CancelDuringASleepEndsTheChain) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher);
  Journal journal;
  auto alarm = scene.watch.arm(ActionChain{journal.entry("before"), sleep_for(1h), journal.entry("after")});
  scene.peer_leaves();
  ASSERT_TRUE(eventually([&] { return alarm->current_action() == 1; }));
  EXPECT_TRUE(alarm->active());
  EXPECT_EQ(alarm->cancel_and_wait(), Cancelled::interrupted);
  EXPECT_FALSE(alarm->active());
  EXPECT_TRUE(alarm->triggered());
  EXPECT_FALSE(alarm->finished());
  EXPECT_EQ(alarm->current_action(), 1);
  EXPECT_TRUE(alarm->start());
  ASSERT_TRUE(journal.wait_for(2));
  EXPECT_EQ(journal.lines(), (std::vector<std::string>{"before", "before"}));
}

TEST_P(AlarmsTest, WaitingCancelWaitsForWhatRuns) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher);
  std::latch running(1);
  std::promise<void> may_end;
  std::atomic<bool> ended{false}, later{false};
  auto alarm = scene.watch.arm(ActionChain{call([&] {
                                             running.count_down();
                                             may_end.get_future().wait();
                                             ended.store(true);
                                           }),
                                           call([&] { later.store(true); })});
  scene.peer_leaves();
  running.wait();
  EXPECT_EQ(alarm->cancel(), Cancelled::interrupted);
  EXPECT_FALSE(ended.load());
  std::thread releaser([&] { may_end.set_value(); });
  alarm->cancel_and_wait();
  EXPECT_TRUE(ended.load());
  EXPECT_FALSE(alarm->active());
  EXPECT_FALSE(later.load());
  releaser.join();
}

TEST_P(AlarmsTest, CancelFromInsideItsOwnAction) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher);
  Journal journal;
  Alarm* self = nullptr;
  std::latch known(1);
  auto alarm = scene.watch.arm(
      ActionChain{call([&] {
                    known.wait();
                    journal.write(changed_anything(self->cancel_and_wait()) ? "interrupted" : "not");
                  }),
                  journal.entry("never")});
  self = &*alarm;
  known.count_down();
  scene.peer_leaves();
  ASSERT_TRUE(eventually([&] { return alarm->triggered() && !alarm->active(); }));
  EXPECT_EQ(journal.lines(), std::vector<std::string>{"interrupted"});
  EXPECT_FALSE(alarm->finished());
}

TEST_P(AlarmsTest, DestroyedFromInsideItsOwnAction) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher);
  Journal journal;
  std::optional<Alarm> alarm;
  std::latch known(1);
  alarm.emplace(scene.watch
                    .arm(ActionChain{call([&] {
                                       known.wait();
                                       alarm.reset();
                                       journal.write("destroyed");
                                     }),
                                     journal.entry("never")})
                    .value());
  known.count_down();
  scene.peer_leaves();
  ASSERT_TRUE(journal.wait_for(1));
  const auto next = scene.watch.arm(journal.entry("next"));
  ASSERT_TRUE(journal.wait_for(2));
  EXPECT_EQ(journal.lines(), (std::vector<std::string>{"destroyed", "next"}));
}

TEST_P(AlarmsTest, NoAlarmWaitsForAnothersSleepOrProgram) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene sleeping(watcher), running(watcher), quick(watcher);
  Journal journal;
  const auto first = sleeping.watch.arm(ActionChain{sleep_for(1h), journal.entry("never")});
  sleeping.peer_leaves();
  ASSERT_TRUE(eventually([&] { return first->current_action() == 0; }));
  const auto second = running.watch.arm(ActionChain{run({"sleep", "1"}), sleep_for(1h)});
  running.peer_leaves();
  ASSERT_TRUE(eventually([&] { return second->current_action() == 1; }));
  const auto third = quick.watch.arm(journal.entry("quick"));
  quick.peer_leaves();
  ASSERT_TRUE(journal.wait_for(1));
  EXPECT_EQ(journal.lines(), std::vector<std::string>{"quick"});
}

TEST_P(AlarmsTest, SeveralAlarmsOnOneSocket) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher);
  Journal journal;
  std::vector<Alarm> alarms;
  for (int i = 0; i < 20; ++i) alarms.push_back(scene.watch.arm(journal.entry("x")).value());
  alarms[3].cancel();
  alarms[0].cancel();
  scene.peer_leaves();
  ASSERT_TRUE(journal.wait_for(18));
  ASSERT_TRUE(eventually([&] { return alarms[19].finished(); }));
  EXPECT_EQ(journal.lines().size(), 18U);
}

TEST_P(AlarmsTest, OneSocketWatchedTwiceAndThroughADup) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Connection connection = tcp_pair();
  const UniqueFd duplicate(::dup(connection.ours.get()));
  auto first = watcher.watch(connection.ours.get());
  const auto second = watcher.watch(connection.ours.get());
  const auto third = watcher.watch(duplicate.get());
  ASSERT_TRUE(first && second && third);
  Journal journal;
  const auto a = second->arm(journal.entry("second"));
  const auto b = third->arm(journal.entry("third"));
  {
    const Watch gone = std::move(*first);
  }
  connection.peer.reset();
  ASSERT_TRUE(journal.wait_for(2));
#if SOCKALARM_LINUX
  EXPECT_EQ(second->cookie(), third->cookie());
  EXPECT_EQ(watcher.stats().watches, 1U);
#endif
}

// Each alarm shuts the socket down that the next one waits for.
TEST_P(AlarmsTest, Cascade) {
  SOCKALARM_WATCHER(watcher, GetParam());
  constexpr std::size_t kDepth = 10;
  std::vector<Connection> connections(kDepth);
  for (Connection& connection : connections) connection = tcp_pair();
  Journal journal;
  std::vector<Watch> watches;
  std::vector<Alarm> alarms;
  for (std::size_t i = 0; i < kDepth; ++i) {
    watches.push_back(watcher.watch(connections[i].ours.get()).value());
    const Action next =
        i + 1 < kDepth ? shutdown_both(connections[i + 1].peer.get()) : journal.entry("the last");
    alarms.push_back(watches.back().arm(next).value());
  }
  connections[0].peer.reset();
  ASSERT_TRUE(journal.wait_for(1));
  for (const Alarm& alarm : alarms) EXPECT_TRUE(eventually([&] { return alarm.finished(); }));
}

TEST_P(AlarmsTest, AlarmOutlivesItsWatch) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Connection connection = tcp_pair();
  Journal journal;
  const auto alarm = watcher.watch(connection.ours.get())->arm(journal.cause());
  connection.peer.reset();
  ASSERT_TRUE(journal.wait_for(1));
  EXPECT_EQ(journal.lines().front(), "fin");
}

TEST_P(AlarmsTest, AThrownExceptionStopsTheChainAndIsToldAndCounted) {
  std::mutex mutex;
  std::string told;
  Options options;
  options.log = [&](LogLevel, std::string_view text) {
    const std::lock_guard lock(mutex);
    told += text;
  };
  SOCKALARM_WATCHER(watcher, GetParam(), options);
  Scene scene(watcher);
  Journal journal;
  const auto alarm = scene.watch.arm(
      ActionChain{call([] { throw std::runtime_error("no paper"); }), journal.entry("never")});
  scene.peer_leaves();
  ASSERT_TRUE(eventually([&] { return alarm->triggered() && !alarm->active(); }));
  EXPECT_FALSE(alarm->finished());
  EXPECT_EQ(watcher.stats().actions_failed, 1U);
  const std::lock_guard lock(mutex);
  EXPECT_NE(told.find("no paper"), std::string::npos) << told;
}

TEST_P(AlarmsTest, AFailingActionIsToldAndTheChainGoesOn) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher);
  Journal journal;
  UniqueFd victim(::dup(scene.connection.ours.get()));
  const Action closing = close_fd(victim.get());
  victim.reset();
  const auto alarm = scene.watch.arm(ActionChain{closing, journal.entry("went on")});
  scene.peer_leaves();
  ASSERT_TRUE(journal.wait_for(1));
  EXPECT_EQ(watcher.stats().actions_failed, 1U);
}

TEST_P(AlarmsTest, VerdictStopEndsTheChain) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher);
  Journal journal;
  const auto alarm =
      scene.watch.arm(ActionChain{call([](const Event&) { return Verdict::stop; }), journal.entry("never")});
  scene.peer_leaves();
  ASSERT_TRUE(eventually([&] { return alarm->triggered() && !alarm->active(); }));
  EXPECT_FALSE(alarm->finished());
  EXPECT_TRUE(journal.lines().empty());
  EXPECT_EQ(watcher.stats().actions_failed, 0U);
}

TEST_P(AlarmsTest, StopToken) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher);
  const std::stop_token token = scene.watch.stop_token();
  EXPECT_FALSE(token.stop_requested());
  EXPECT_EQ(token, scene.watch.stop_token());
  std::promise<void> stopped;
  const std::stop_callback callback(token, [&] { stopped.set_value(); });
  scene.peer_leaves();
  EXPECT_EQ(stopped.get_future().wait_for(kPatience), std::future_status::ready);
}

TEST_P(AlarmsTest, DestroyingTheWatcherEndsChainsAfterTheRunningAction) {
  std::optional<Scene> scene, parked_scene;
  std::optional<Result<Alarm>> alarm, parked, armed;
  std::latch running(1);
  std::atomic<bool> ended{false}, later{false};
  {
    SOCKALARM_WATCHER(watcher, GetParam());
    scene.emplace(watcher);
    parked_scene.emplace(watcher);
    parked.emplace(parked_scene->watch.arm(ActionChain{sleep_for(1h), call([&] { later.store(true); })}));
    parked_scene->peer_leaves();
    ASSERT_TRUE(eventually([&] { return (*parked)->current_action() == 0; }));
    armed.emplace(parked_scene->watch.arm(call([] {}), {.on = events::reset, .deadline = {}}));
    alarm.emplace(scene->watch.arm(ActionChain{call([&] {
                                                 running.count_down();
                                                 // Until the Watcher is being destroyed.
                                                 ended.store(eventually([&] {
                                                   return !parked_scene->watch.arm(
                                                       call([] {}), {.on = events::reset, .deadline = {}});
                                                 }));
                                               }),
                                               call([&] { later.store(true); })}));
    scene->peer_leaves();
    running.wait();
    {
      const Watcher destroyed = std::move(watcher);
    }
    EXPECT_TRUE(ended.load());
  }
  EXPECT_FALSE(later.load());
  EXPECT_FALSE((*alarm)->active());
  EXPECT_FALSE((*parked)->active());
  EXPECT_EQ((*armed)->cancel(), Cancelled::prevented);
  EXPECT_FALSE((*alarm)->start());
  const auto refused = scene->watch.arm();
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), Errc::stopped);
  EXPECT_FALSE(scene->watch.stop_token().stop_possible());
}

TEST_P(AlarmsTest, WatcherDestroyedFromInsideAnAction) {
  auto made = make_watcher(GetParam());
  if (!made && GetParam() == SourceKind::kernel && !kernel_required()) GTEST_SKIP() << made.error().message();
  ASSERT_TRUE(made) << made.error().message();
  std::optional<Watcher> watcher(std::move(*made));
  Scene scene(*watcher);
  Journal journal;
  std::latch known(1);
  const auto alarm = scene.watch.arm(ActionChain{call([&] {
                                                   known.wait();
                                                   watcher.reset();
                                                   journal.write("destroyed");
                                                 }),
                                                 journal.entry("never")});
  known.count_down();
  scene.peer_leaves();
  ASSERT_TRUE(journal.wait_for(1));
  ASSERT_TRUE(eventually([&] { return !alarm->active(); }));
  EXPECT_EQ(journal.lines(), std::vector<std::string>{"destroyed"});
}

TEST_P(AlarmsTest, TheLongestTimesDoNotOverflow) {
  Options options;
  options.closed_check = std::chrono::milliseconds::max();
  SOCKALARM_WATCHER(watcher, GetParam(), options);
  Scene scene(watcher);
  Journal journal;
  const auto never = scene.watch.arm(journal.entry("too early"),
                                     {.on = events::closed, .deadline = std::chrono::nanoseconds::max()});
  const auto soon = scene.watch.arm(journal.entry("in time"), {.on = events::none, .deadline = 20ms});
  ASSERT_TRUE(journal.wait_for(1));
  EXPECT_EQ(journal.lines(), std::vector<std::string>{"in time"});
  EXPECT_TRUE(never->active());
}

// What the parent does with a socket's place afterwards is no news for the child.
TEST_P(AlarmsTest, AForkedChildDoesNotSeeTheParentsLaterSockets) {
  Options options;
  options.max_watches = 1;
  SOCKALARM_WATCHER(watcher, GetParam(), options);
  std::optional<Scene> first(std::in_place, watcher);
  int go[2];
  ASSERT_EQ(::pipe2(go, O_CLOEXEC), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    ::close(go[1]);
    char byte = 0;
    while (::read(go[0], &byte, 1) < 0) {
    }
    ::_exit(first->watch.peer_gone() ? 1 : 0);
  }
  ::close(go[0]);
  first.reset();
  Scene second(watcher);
  second.peer_leaves();
  EXPECT_TRUE(eventually([&] { return second.watch.peer_gone(); }));
  ::close(go[1]);
  int status = -1;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

#if SOCKALARM_CHILD_THREADS
TEST_P(AlarmsTest, ForkWhileAnotherThreadMakesAWatcher) {
  SOCKALARM_WATCHER(watcher, GetParam());  // the test is skipped where there is none
  EXPECT_EQ(watcher.stats().watches, 0U);
  std::atomic<bool> over{false};
  std::thread making([&] {
    while (!over.load()) (void)make_watcher(GetParam());
  });
  for (int i = 0; i < 10; ++i) {
    const pid_t child = ::fork();
    if (child == 0) {
      ::alarm(30);  // instead of hanging for ever
      ::_exit(make_watcher(GetParam()).has_value() ? 0 : 1);
    }
    int status = -1;
    EXPECT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
  }
  over.store(true);
  making.join();
}
#endif

TEST_P(AlarmsTest, InTheForkedChildEverythingIsInert) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher);
  Journal journal;
  auto alarm = scene.watch.arm(journal.entry("parent"));
  const pid_t child = ::fork();
  if (child == 0) {
    const auto watched = watcher.watch(scene.connection.ours.get());
    const auto armed = scene.watch.arm();
    const bool inert = !watched && watched.error().code() == Errc::inert_after_fork && !armed &&
                       armed.error().code() == Errc::inert_after_fork &&
                       alarm->cancel() == Cancelled::inactive && !alarm->start() && !scene.watch.peer_gone();
    // The child can make its own.
    bool own_works = true;
#if SOCKALARM_CHILD_THREADS
    own_works = false;
    if (auto own = make_watcher(GetParam())) {
      Connection connection = tcp_pair();
      const auto watch = own->watch(connection.ours.get());
      Journal own_journal;
      const auto own_alarm = watch->arm(own_journal.entry("child"));
      connection.peer.reset();
      own_works = own_journal.wait_for(1);
    }
#endif
    {
      const Watcher destroyed = std::move(watcher);
    }
    ::_exit(inert && own_works ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_TRUE(alarm->active()) << "untouched by the child";
  scene.peer_leaves();
  ASSERT_TRUE(journal.wait_for(1));
}

#if SOCKALARM_LINUX
std::atomic<pid_t> signalled_thread{0};

TEST_P(AlarmsTest, TheDefaultActionSignalsTheArmingThreadOutOfItsSystemCall) {
  SOCKALARM_WATCHER(watcher, GetParam());
  struct sigaction action{}, before{};
  action.sa_handler = [](int) { signalled_thread.store(::gettid()); };
  ::sigaction(SIGALRM, &action, &before);  // without SA_RESTART
  Scene scene(watcher);
  std::latch armed(1);
  pid_t armer = 0;
  int result = 0, error = 0;
  std::thread blocked([&] {
    armer = ::gettid();
    int ends[2];
    require(::pipe2(ends, O_CLOEXEC) == 0, "pipe2");
    const UniqueFd read_end(ends[0]), write_end(ends[1]);
    const auto alarm = scene.watch.arm({.on = events::shut, .deadline = {}});
    armed.count_down();
    char byte = 0;
    result = static_cast<int>(::read(read_end.get(), &byte, 1));  // for ever, but for the signal
    error = errno;
  });
  armed.wait();
  // Not before it blocks: a signal between arm() and read() would be lost, as the classic race has it.
  ASSERT_TRUE(eventually([&] {
    std::FILE* file = std::fopen(("/proc/self/task/" + std::to_string(armer) + "/stat").c_str(), "re");
    char line[256] = "";
    const bool read = file != nullptr && std::fgets(line, sizeof line, file) != nullptr;
    if (file != nullptr) std::fclose(file);
    return read && std::string(line).find(") S ") != std::string::npos;
  }));
  scene.peer_leaves();
  blocked.join();
  EXPECT_EQ(result, -1);
  EXPECT_EQ(error, EINTR);
  EXPECT_EQ(signalled_thread.load(), armer);
  ::sigaction(SIGALRM, &before, nullptr);
}

// After the scope no signal arrives, even if it was on its way.
TEST_P(AlarmsTest, NoStraySignalAfterTheScope) {
  SOCKALARM_WATCHER(watcher, GetParam());
  static thread_local volatile std::sig_atomic_t in_scope;
  static std::atomic<int> strays;
  strays.store(0);
  struct sigaction action{}, before{};
  action.sa_handler = [](int) {
    if (!in_scope) strays.fetch_add(1);
  };
  ::sigaction(SIGALRM, &action, &before);
  for (int round = 0; round < 200; ++round) {
    Scene scene(watcher);
    std::thread leaver([&] { scene.peer_leaves(); });
    in_scope = 1;
    {
      const auto alarm = scene.watch.arm();
      const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(round);
      while (std::chrono::steady_clock::now() < end) {
      }
    }
    in_scope = 0;
    leaver.join();
  }
  EXPECT_EQ(strays.load(), 0);
  ::sigaction(SIGALRM, &before, nullptr);
}
#endif

TEST_P(AlarmsTest, InWords) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher);
  const auto alarm = scene.watch.arm(ActionChain{send_signal(SIGURG, SignalTarget::process), sleep_for(2s)});
  const std::string number = std::to_string(alarm->fd());
  EXPECT_EQ(to_string(*alarm),
            "alarm on descriptor " + number + " for shut, armed: 1 sig:URG:process; 2 sleep:2s");
}

TEST_P(AlarmsTest, BadInputSaysWhatIsWrongAndLeaksNothing) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher);
  const UniqueFd file(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  const UniqueFd datagram(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  const UniqueFd unconnected(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const Listener listener = listen_on(AF_INET);
  const auto before = open_descriptors();

  const auto refused = [&](int fd, std::error_code code, const char* word) {
    const auto watch = watcher.watch(fd);
    ASSERT_FALSE(watch) << fd;
    EXPECT_EQ(watch.error().code(), code) << watch.error().message();
    EXPECT_NE(watch.error().message().find(word), std::string::npos) << watch.error().message();
    EXPECT_NE(watch.error().message().find(std::to_string(fd)), std::string::npos) << watch.error().message();
  };
  refused(-1, std::error_code(EBADF, std::system_category()), "Bad file descriptor");
  refused(19'999, std::error_code(EBADF, std::system_category()), "Bad file descriptor");
  refused(file.get(), Errc::not_a_socket, "not a socket");
  refused(datagram.get(), Errc::not_a_stream, "datagram");
  refused(unconnected.get(), Errc::not_connected, "not connected");
  refused(listener.fd.get(), Errc::not_connected, "listening");

  for (const Action& bad :
       {send_signal(0), send_signal(99), run({"/no/such/program"}), run({}), close_fd(19'999),
        kill_process(0, 1), kill_process(SIGTERM, -1), sleep_for(-1s), call(std::function<void()>())}) {
    const auto alarm = scene.watch.arm(bad);
    EXPECT_FALSE(alarm) << to_string(bad);
  }
  EXPECT_FALSE(scene.watch.arm(ActionChain{}, {.on = events::none, .deadline = {}}));
  EXPECT_FALSE(scene.watch.arm(ActionChain{}, {.on = Events(1U << 20), .deadline = {}}));
  EXPECT_FALSE(scene.watch.arm(ActionChain{}, {.on = events::shut, .deadline = -1s}));
  EXPECT_FALSE(parse_events("fin,bogus"));
  EXPECT_FALSE(ActionChain::parse("sig:ALRM; what is this"));
  EXPECT_EQ(open_descriptors(), before);
}

TEST_P(AlarmsTest, NothingIsLeftOpen) {
  const auto before = open_descriptors();
  {
    SOCKALARM_WATCHER(watcher, GetParam());
    std::vector<Scene> scenes;
    for (int i = 0; i < 20; ++i) scenes.emplace_back(watcher);
    const auto alarm = scenes[0].watch.arm(ActionChain{});
    const auto now = open_descriptors();
    for (const int fd : now) {
      if (std::find(before.begin(), before.end(), fd) != before.end()) continue;
      EXPECT_TRUE(::fcntl(fd, F_GETFD) & FD_CLOEXEC)
          << "descriptor " << fd << " would be inherited by programs";
    }
  }
  EXPECT_EQ(open_descriptors(), before);
}

}  // namespace
}  // namespace sockalarm::test
