// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <sys/file.h>
#include <sys/wait.h>

#include <atomic>
#include <csignal>
#include <fstream>
#include <random>
#include <thread>

#include "harness/signals.h"
#include "request/scene.h"

namespace sockalarm::test {
namespace {

using Clock = std::chrono::steady_clock;
SOCKALARM_SUITE(Shields);

TEST_P(Shields, LimitsWaitAndGoOffAtTheEnd) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher);
  Request request = scene.begin();
  const SilentPipe pipe;
  const auto result = request.call("locked", 200ms, [&](const std::stop_token& token) {
    {
      const Shield shield = request.shield();
      EXPECT_TRUE(request.sleep_for(300ms));  // its whole time
      EXPECT_FALSE(token.stop_requested());
      EXPECT_FALSE(request.stopped());
    }
    EXPECT_TRUE(token.stop_requested());
    EXPECT_EQ(pipe.read(), EINTR);
  });
  EXPECT_EQ(code_of(result), Errc::limit_passed);
  const Record record = request.record();
  ASSERT_EQ(record.sounded.size(), 1U);
  EXPECT_GE(record.sounded[0].after, 200ms);
  EXPECT_GT(record.sounded[0].held, 0ms);
  EXPECT_EQ(record.held_back, record.sounded[0].held);
  EXPECT_GE(record.shielded, 300ms);
}

TEST_P(Shields, TheOutermostOneCounts) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher);
  Request request = scene.begin();
  const auto result = request.call("locked", 200ms, [&](const std::stop_token& token) {
    auto outer = std::make_unique<Shield>(request.shield());
    {
      const Shield inner = request.shield();
      EXPECT_TRUE(request.sleep_for(300ms));
    }
    EXPECT_FALSE(token.stop_requested());
    Shield moved = std::move(*outer);
    outer.reset();
    EXPECT_FALSE(token.stop_requested());
    {
      const Shield end = std::move(moved);
    }
    EXPECT_TRUE(token.stop_requested());
  });
  EXPECT_EQ(code_of(result), Errc::limit_passed);
}

TEST_P(Shields, AreOfTheirRequestAlone) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher);
  Request one = scene.begin(), other = scene.begin();
  const Shield shield = one.shield();
  const SilentPipe pipe;
  EXPECT_EQ(code_of(other.call("slow", 5ms, [&] { return pipe.read(); })), Errc::limit_passed);
}

// What was due first is the cause, also when both were held back.
TEST_P(Shields, TheEarlierCauseWins) {
  SOCKALARM_WATCHER(watcher, GetParam());
  for (const bool peer_first : {true, false}) {
    Scene scene(watcher, {.limit = 200ms});
    Request request = scene.begin();
    {
      const Shield shield = request.shield();
      if (!peer_first) {
        EXPECT_TRUE(request.sleep_for(250ms));
      }
      scene.leave();
      EXPECT_TRUE(eventually([&] { return request.aborted(); }));
      if (peer_first) {
        EXPECT_TRUE(request.sleep_for(250ms));
      }
    }
    ASSERT_TRUE(request.stopped());
    EXPECT_EQ(request.stopped()->cause, peer_first ? StopCause::peer_gone : StopCause::request_limit);
  }
}

// Poked already, the call cleans up in peace, and is poked again afterwards.
TEST_P(Shields, CleaningUpAfterAStop) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher);
  Request request = scene.begin();
  const SilentPipe pipe;
  const auto result = request.call("slow", 2ms, [&] {
    EXPECT_EQ(pipe.read(), EINTR);
    {
      const Shield shield = request.shield();
      const timespec nap{0, 30'000'000};
      EXPECT_EQ(::nanosleep(&nap, nullptr), 0);
      EXPECT_EQ(request.call("roll back", 1h, [] { return 7; }), 7);
    }
    EXPECT_EQ(pipe.read(), EINTR);
  });
  EXPECT_EQ(code_of(result), Errc::limit_passed);
}

// What was sent before the shield had begun and has not arrived.
TEST_P(Shields, ASignalThatIsPendingIsTakenFirst) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher);
  Request request = scene.begin();
  const int signal = scene.requests.signal();
  const sigset_t blocked = only(signal);
  const auto result = request.call("slow", 5ms, [&] {
    ::pthread_sigmask(SIG_BLOCK, &blocked, nullptr);
    EXPECT_TRUE(eventually([&] { return is_pending(signal); }));
    {
      const Shield shield = request.shield();
      EXPECT_FALSE(is_pending(signal));
    }
    ::pthread_sigmask(SIG_UNBLOCK, &blocked, nullptr);
  });
  EXPECT_EQ(code_of(result), Errc::limit_passed);
}

#if SOCKALARM_LINUX
TEST_P(Shields, DirectSignalsOfTheRequestsAlarmsWait) {
  SOCKALARM_WATCHER(watcher, GetParam());
  const SignalCounter signals(SIGALRM);
  Journal journal;
  Scene scene(watcher);
  Request request = scene.begin();
  ASSERT_TRUE(request.arm(send_signal(SIGALRM)));
  ASSERT_TRUE(request.arm(journal.entry("called")));
  {
    const Shield shield = request.shield();
    EXPECT_EQ(code_of(request.arm(send_signal(SIGALRM))), Errc::invalid_use);
    scene.leave();
    ASSERT_TRUE(eventually([&] { return request.aborted(); }));
    EXPECT_TRUE(request.sleep_for(20ms));
    EXPECT_EQ(signals.count(), 0);
    EXPECT_TRUE(journal.lines().empty());
  }
  EXPECT_TRUE(eventually([&] { return signals.count() == 1; }));
  EXPECT_TRUE(journal.wait_for(1));
  ASSERT_TRUE(request.finish());
  EXPECT_EQ(signals.count(), 1);
  EXPECT_EQ(signals.thread(), thread_id());
}

// A chain that had begun goes on, but its signals to the thread wait.
TEST_P(Shields, AChainThatHadBegunSignalsAfterwards) {
  SOCKALARM_WATCHER(watcher, GetParam());
  const SignalCounter signals(SIGALRM);
  Journal journal;
  std::atomic<bool> shielded{false};
  Scene scene(watcher);
  Request request = scene.begin();
  ASSERT_TRUE(request.arm({journal.entry("begun"),
                           call([&] { EXPECT_TRUE(eventually([&] { return shielded.load(); })); }),
                           send_signal(SIGALRM), journal.entry("sent")}));
  scene.leave();
  ASSERT_TRUE(journal.wait_for(1));
  {
    const Shield shield = request.shield();
    shielded = true;
    ASSERT_TRUE(journal.wait_for(2));
    EXPECT_EQ(signals.count(), 0);
  }
  EXPECT_EQ(signals.count(), 1);
}

TEST_P(Shields, NoAlarmOfTheRequestGoesOffAfterItsEnd) {
  SOCKALARM_WATCHER(watcher, GetParam());
  const SignalCounter signals(SIGALRM);
  Scene scene(watcher);
  {
    Request request = scene.begin();
    ASSERT_TRUE(request.arm(send_signal(SIGALRM)));
  }
  scene.leave();
  ASSERT_TRUE(scene.sees_it());
  Request request = scene.begin();  // the dispatcher has been through with it when this one is stopped
  EXPECT_TRUE(until_stopped(request.stop_token()));
  EXPECT_EQ(signals.count(), 0);
}
#endif

TEST_P(Shields, OneThatOutlivesItsRequestIsAnError) {
  Journal told;
  SOCKALARM_WATCHER(watcher, GetParam(), logging_to(told, LogLevel::error));
  Scene scene(watcher);
  std::optional<Shield> left;
  {
    Request request = scene.begin("/forgetful");
    left.emplace(request.shield());
    bool cleaned = false;
    request.on_cleanup([&](bool) { cleaned = true; });
    const auto ended = request.finish();
    EXPECT_EQ(code_of(ended), Errc::invalid_use);
    EXPECT_NE(ended.error().message().find("/forgetful"), std::string::npos);
    EXPECT_TRUE(cleaned);
    EXPECT_EQ(request.record().shields_left, 1U);
  }
  const std::vector<std::string> log = told.lines();
  ASSERT_EQ(log.size(), 1U);
  EXPECT_NE(log[0].find("outlived"), std::string::npos);
  // It holds nothing back in the next request, neither while it is there nor when it ends.
  const SilentPipe pipe;
  Request next = scene.begin();
  EXPECT_EQ(code_of(next.call("slow", 5ms, [&] { return pipe.read(); })), Errc::limit_passed);
  const Shield own = next.shield();
  left.reset();
  EXPECT_TRUE(next.call("shielded", 1ms, [&] { EXPECT_TRUE(next.sleep_for(10ms)); }));
}

TEST_P(Shields, ARequestEndedInsideOneOfItsCallsIsAnError) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher);
  Request request = scene.begin();
  const auto result = request.call("outer", 1h, [&] {
    return request.call("inner", 1h, [&] {
      EXPECT_EQ(code_of(request.finish()), Errc::invalid_use);
      EXPECT_EQ(code_of(request.call("later", 1h, [] {})), Errc::invalid_use);
      return 7;
    });
  });
  ASSERT_TRUE(result);
  EXPECT_EQ(*result, 7);
  EXPECT_TRUE(request.finish());  // the second time it does nothing
}

// ---- A client leaves at a random moment of a handler with shields and locks.

// One number and the same number again: torn if they differ.
class DataFile {
 public:
  DataFile() { require(::mkdtemp(folder_.data()) != nullptr, "mkdtemp"); }
  ~DataFile() {
    for (const std::string& path : {data(), data() + ".new", lock()}) ::unlink(path.c_str());
    ::rmdir(folder_.c_str());
  }
  std::string data() const { return folder_ + "/data"; }
  std::string lock() const { return folder_ + "/lock"; }

  // The number in it; -1: torn.
  long whole() const {
    std::ifstream file(data());
    long first = 0, second = 0;
    std::string end;
    if (!(file >> first)) return file.is_open() ? -1 : 0;
    return file >> second >> end && first == second && end == "." ? first : -1;
  }
  bool lock_is_free() const {
    const UniqueFd fd(::open(lock().c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    return ::flock(fd.get(), LOCK_EX | LOCK_NB) == 0;
  }

  // Written in place, in small steps, with a system call each that a signal would end: only the shield keeps
  // it whole.
  void increment(Request& request) {
    const UniqueFd locked(::open(lock().c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    if (::flock(locked.get(), LOCK_EX) != 0) return;  // left waiting: nothing was begun
    const Shield shield = request.shield();
    const long next = whole() + 1;
    const UniqueFd file(::open(data().c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
    const std::string text = std::to_string(next) + " " + std::to_string(next) + " .\n";
    for (const char c : text) {
      const timespec pause{0, 1'000};
      if (::nanosleep(&pause, nullptr) != 0) return;  // interrupted: torn
      if (::write(file.get(), &c, 1) != 1) return;
    }
  }

 private:
  std::string folder_ = "/tmp/sockalarm-test-XXXXXX";
};

// Three changes of the file, with something between them that takes a moment.
void handle(Request& request, DataFile& file, const std::stop_token& token) {
  for (int step = 0; step < 3 && !token.stop_requested(); ++step) {
    file.increment(request);
    const timespec work{0, 100'000};
    ::nanosleep(&work, nullptr);
  }
}

TEST_P(Shields, AThousandClientsLeaveAtRandomMoments) {
  SOCKALARM_WATCHER(watcher, GetParam());
  const auto requests = Requests::create(watcher, {.limit = 0s}).value();
  DataFile file;
  // Moments in a handler and just after it, however long one takes here.
  const auto before = Clock::now();
  for (int i = 0; i < 10; ++i) {
    Request request = requests.begin("/").value();
    ASSERT_TRUE(
        request.call("handler", 0s, [&](const std::stop_token& token) { handle(request, file, token); }));
  }
  const auto ten = std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - before);
  std::mt19937 random(7);
  std::uniform_int_distribution<long> us(0, ten.count() * 2 / 10);
  int stopped = 0, finished = 0;
  for (int i = 0; i < 1'000; ++i) {
    Connection connection = tcp_pair();
    const Watch watch = watcher.watch(connection.ours.get()).value();
    std::atomic<int> cleanups{0};
    std::atomic<bool> begun{false};
    const auto moment = std::chrono::microseconds(us(random));
    std::thread client([&] {
      while (!begun.load()) std::this_thread::yield();
      const auto until = Clock::now() + moment;
      while (Clock::now() < until) std::this_thread::yield();
      connection.peer.reset();
    });
    {
      Request request = requests.begin(watch, "/").value();
      request.on_cleanup([&](bool) { ++cleanups; });
      begun.store(true);
      const auto result =
          request.call("handler", 0s, [&](const std::stop_token& token) { handle(request, file, token); });
      ++(result ? finished : stopped);
      request.on_cleanup([&](bool) { ++cleanups; });
    }
    client.join();
    ASSERT_GE(file.whole(), 0) << "torn in round " << i;
    ASSERT_TRUE(file.lock_is_free()) << "locked after round " << i;
    ASSERT_EQ(cleanups.load(), 2);
  }
  EXPECT_GT(stopped, 0);
  EXPECT_GT(finished, 0);
}

TEST_P(Shields, AForkedChildIsInert) {
  SOCKALARM_WATCHER(watcher, GetParam());
  Scene scene(watcher);
  int cleanups = 0;
  {
    Request request = scene.begin();
    request.on_cleanup([&](bool) { ++cleanups; });
    const pid_t child = ::fork();
    if (child == 0) {
      bool ok = code_of(request.call("never", 0s, [] {})) == Errc::inert_after_fork;
      ok &= code_of(request.finish()) == Errc::inert_after_fork && cleanups == 0;
      ok &= code_of(scene.requests.begin(scene.watch, "/")) == Errc::inert_after_fork;
      ok &= code_of(request.sleep_for(1h)) == Errc::inert_after_fork;
      ::_exit(ok ? 0 : 1);
    }
    int status = -1;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
    EXPECT_EQ(cleanups, 0);
  }
  EXPECT_EQ(cleanups, 1);
}

}  // namespace
}  // namespace sockalarm::test
