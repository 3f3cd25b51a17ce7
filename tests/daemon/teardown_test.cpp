// SPDX-License-Identifier: Apache-2.0
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <vector>

#include "daemon/raw_client.h"

// Killed at each step of a teardown, the client or the daemon: nothing stays in the kernel. The steps are
// system calls, at which ptrace(2) stops the thread.

namespace sockalarm::test {
namespace {

// A thread of another process. The destructor lets it go on by itself.
class Traced {
 public:
  explicit Traced(pid_t thread) : thread_(thread) {
    require(::ptrace(PTRACE_SEIZE, thread_, nullptr, PTRACE_O_TRACESYSGOOD) == 0, "PTRACE_SEIZE");
    require(::ptrace(PTRACE_INTERRUPT, thread_, nullptr, nullptr) == 0, "PTRACE_INTERRUPT");
    require(::waitpid(thread_, &status_, __WALL) == thread_, "waitpid");
  }
  ~Traced() { ::ptrace(PTRACE_DETACH, thread_, nullptr, nullptr); }
  Traced(const Traced&) = delete;
  Traced& operator=(const Traced&) = delete;

  // After SIGKILL. Its process does not end before whoever traces a thread has seen that thread's end.
  void await_end() {
    while (::waitpid(thread_, &status_, __WALL) == thread_ && WIFSTOPPED(status_)) {
    }
  }
  // Lets it run until it is about to make a system call: the number.
  long next_call() {
    for (;;) {
      // Of the stops only a signal's (ptrace(2), "Signal-delivery-stop") hands something on.
      const bool signal = WSTOPSIG(status_) != (SIGTRAP | 0x80) && status_ >> 16 == 0;
      require(::ptrace(PTRACE_SYSCALL, thread_, nullptr, signal ? WSTOPSIG(status_) : 0) == 0,
              "PTRACE_SYSCALL");
      require(::waitpid(thread_, &status_, __WALL) == thread_ && WIFSTOPPED(status_), "waitpid");
      if (WSTOPSIG(status_) != (SIGTRAP | 0x80)) continue;
      Info info{};
      require(::ptrace(static_cast<__ptrace_request>(0x420e), thread_, sizeof info, &info) > 0,
              "PTRACE_GET_SYSCALL_INFO");
      if (info.op == 1) return static_cast<long>(info.number);
    }
  }

 private:
  // struct ptrace_syscall_info of linux/ptrace.h, which cannot be included beside sys/ptrace.h.
  struct Info {
    std::uint8_t op;  // 1: entry
    std::uint8_t padding[3];
    std::uint32_t arch;
    std::uint64_t instruction_pointer, stack_pointer, number, arguments[6], more[2];
  };

  const pid_t thread_;
  int status_ = 0;
};

bool waits_in_epoll(long call) {
#ifdef SYS_epoll_wait
  if (call == SYS_epoll_wait) return true;
#endif
  return call == SYS_epoll_pwait;
}

// The daemon's thread for the only user that it serves.
pid_t lane_of(pid_t daemon) {
  pid_t lane = 0;
  const auto find = [&] {
    for (const auto& task :
         std::filesystem::directory_iterator("/proc/" + std::to_string(daemon) + "/task")) {
      long call = -1;
      if (std::ifstream(task.path() / "syscall") >> call && waits_in_epoll(call))
        lane = static_cast<pid_t>(std::stol(task.path().filename()));
    }
    return lane != 0;
  };
  require(eventually(find), "no lane");
  return lane;
}

// Runs a lane to the `step`th change of the kernel's maps. False: it had finished before.
bool run_to(Traced& lane, int step) {
  for (int calls = 0;;) {
    const long call = lane.next_call();
    if (call == SYS_bpf && ++calls == step) return true;
    if (waits_in_epoll(call) && calls > 0) return false;
  }
}

// A client with two watches, which it gives up by hanging up.
struct Watching {
  explicit Watching(const DaemonHome& home) : client(home.socket()) {
    require(client->greet().has_value(), "greet");
    for (std::uint32_t slot = 1; slot <= connections.size(); ++slot)
      require(client->watch(connections[slot - 1].ours.get(), slot) == 0, "watch");
    client->send(ipc::Reads{{ipc::Kind::reads, 7}, 1, 0});
    require(client->answer() == 0, "reads");
  }
  std::array<Connection, 2> connections{tcp_pair(), tcp_pair()};
  std::optional<RawClient> client;
};

class TeardownTest : public testing::Test {
 protected:
  TeardownTest() { std::ofstream(config_) << "grace = 1\n"; }
  std::unique_ptr<DaemonProcess> start() const {
    return std::make_unique<DaemonProcess>(home_, std::vector<std::string>{"--config", config_});
  }
  bool nothing_is_left() const {
    return eventually([&] { return clients_in_kernel(home_) == 0 && entries_of(home_, "registry") == 0; });
  }

  DaemonHome home_;
  const std::string config_ = home_.file("config.toml");
};

constexpr int kLeastSteps = 5;  // two watches, the ring, the table, the client

// The client lives on, without its connection: the next daemon awaits it, and gives it up.
TEST_F(TeardownTest, TheDaemonIsKilledAtEveryStep) {
  int step = 1;
  for (bool killed = true; killed; ++step) {
    auto daemon = start();
    Watching watching(home_);
    {
      Traced lane(lane_of(daemon->pid()));
      watching.client.reset();
      killed = run_to(lane, step);
      if (killed) daemon->signal(SIGKILL);
      if (killed) lane.await_end();
    }
    if (killed) {
      daemon->kill();
      EXPECT_GT(clients_in_kernel(home_), 0U) << step;
      daemon = start();
    }
    EXPECT_TRUE(nothing_is_left()) << "step " << step << ": " << clients_in_kernel(home_) << ", "
                                   << entries_of(home_, "registry");
  }
  EXPECT_GE(step - 2, kLeastSteps);  // the last round killed nobody
}

TEST_F(TeardownTest, TheClientIsKilledAtEveryStepOfTheDaemon) {
  const auto daemon = start();
  int step = 1;
  for (bool killed = true; killed; ++step) {
    Worker worker([&] {
      auto watching = std::make_shared<Watching>(home_);
      return [watching](char letter) -> std::uint64_t {
        if (letter == 'h') watching->client.reset();
        return 1;
      };
    });
    ASSERT_EQ(worker.ask('x'), 1U);
    {
      Traced lane(lane_of(daemon->pid()));
      worker.tell('h');
      killed = run_to(lane, step);
      worker.kill();
    }
    EXPECT_TRUE(nothing_is_left()) << "step " << step;
    EXPECT_TRUE(daemon->running());
  }
  EXPECT_GE(step - 2, kLeastSteps);
}

// By the library: a Watcher with its watches and alarms is destroyed.
TEST_F(TeardownTest, TheClientIsKilledAtEveryStepOfItsOwn) {
  struct Held {
    explicit Held(const DaemonHome& home) : watcher(daemon_watcher(home)) {}
    std::optional<Watcher> watcher;
    Connection connection = tcp_pair();
    std::optional<Watch> watch;
    std::optional<Alarm> alarm;
  };
  const auto daemon = start();
  int step = 1;
  for (bool killed = true; killed; ++step) {
    Worker worker([&] {
      auto held = std::make_shared<Held>(home_);
      held->watch.emplace(held->watcher->watch(held->connection.ours.get()).value());
      held->alarm.emplace(held->watch->arm(send_signal(SIGURG), {.on = events::shut | events::eof}).value());
      return [held](char letter) -> std::uint64_t {
        if (letter == 'x') return held->watch->source() == SourceKind::daemon ? 1 : 0;
        held->alarm.reset();
        held->watch.reset();
        held->watcher.reset();
        ::syscall(SYS_getppid);  // the end, for whoever counts
        return 1;
      };
    });
    ASSERT_EQ(worker.ask('x'), 1U);
    {
      Traced thread(worker.pid());
      worker.tell('d');
      long call = thread.next_call();
      for (int calls = 1; calls < step && call != SYS_getppid; ++calls) call = thread.next_call();
      killed = call != SYS_getppid;
      worker.kill();
    }
    EXPECT_TRUE(nothing_is_left()) << "step " << step;
    EXPECT_TRUE(daemon->running());
  }
  EXPECT_GT(step, kLeastSteps);
}

}  // namespace
}  // namespace sockalarm::test
