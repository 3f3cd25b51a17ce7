// SPDX-License-Identifier: Apache-2.0
#include "core/spawn.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sockalarm/action.h>
#include <sockalarm/unique_fd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include "core/action_impl.h"
#include "core/open_descriptors.h"

namespace sockalarm::detail {
namespace {

using namespace std::chrono_literals;
namespace fs = std::filesystem;

// TSan and other systems get fork(2), of which the process hears a SIGCHLD.
#if !SOCKALARM_LINUX || defined(__SANITIZE_THREAD__)
#define SOCKALARM_FORKS 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define SOCKALARM_FORKS 1
#endif
#endif

bool says(const Error& error, std::string_view part) {
  return error.message().find(part) != std::string::npos;
}

class SpawnTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = "/tmp/sockalarm-spawn-test.XXXXXX";
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    directory_ = name;
    ::sigemptyset(&mask_);
  }
  void TearDown() override { fs::remove_all(directory_); }

  fs::path file(const std::string& name, const std::string& text, mode_t mode) {
    const fs::path path = directory_ / name;
    std::ofstream(path) << text;
    ::chmod(path.c_str(), mode);
    return path;
  }
  Result<void> start(std::vector<std::string> words, const std::string& path) {
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    return spawn_detached(path, argv.data(), mask_);
  }
  // What a shell script writes to $1, once it is whole.
  std::string output_of(const std::string& script) {
    const fs::path out = directory_ / "out";
    const auto started =
        start({"sh", "-c", "exec 9>\"$1.part\"; { " + script + "; } >&9; mv \"$1.part\" \"$1\"", "sh", out},
              "/bin/sh");
    EXPECT_TRUE(started) << started.error().message();
    for (int i = 0; i < 10'000 && !fs::exists(out); ++i) std::this_thread::sleep_for(1ms);
    std::string text = content(out);
    fs::remove(out);
    return text;
  }
  static std::string content(const fs::path& path) {
    std::stringstream text;
    text << std::ifstream(path).rdbuf();
    return text.str();
  }
  static unsigned long long field(const std::string& status, const std::string& name) {
    const auto at = status.find(name);
    return at == std::string::npos ? ~0ULL : std::stoull(status.substr(at + name.size()), nullptr, 16);
  }
  fs::path directory_;
  sigset_t mask_;
};

class PathVariable {
 public:
  explicit PathVariable(const char* value) : before_(std::getenv("PATH")) {
    value != nullptr ? ::setenv("PATH", value, 1) : ::unsetenv("PATH");
  }
  ~PathVariable() { ::setenv("PATH", before_.c_str(), 1); }

 private:
  std::string before_;
};

TEST_F(SpawnTest, FindsProgramsInPathInOrder) {
  fs::create_directories(directory_ / "a" / "tool");
  fs::create_directory(directory_ / "b");
  fs::create_directory(directory_ / "c");
  file("b/tool", "#!/bin/sh\n", 0644);
  file("c/tool", "#!/bin/sh\n", 0755);
  const std::string d = directory_;
  {
    const PathVariable path((d + "/none:" + d + "/a:" + d + "/b:" + d + "/c").c_str());
    EXPECT_EQ(find_program("tool").value(),
              d + "/c/tool");  // a directory and an unexecutable file come before
  }
  {
    const PathVariable path((d + "/b").c_str());
    const auto found = find_program("tool");
    ASSERT_FALSE(found);
    EXPECT_EQ(found.error().code(), Errc::invalid_action);
    EXPECT_TRUE(says(found.error(), "'tool'") && says(found.error(), "Permission denied"))
        << found.error().message();
  }
  const auto absent = find_program("no-such-program-anywhere");
  ASSERT_FALSE(absent);
  EXPECT_TRUE(says(absent.error(), "'no-such-program-anywhere'") && says(absent.error(), "No such file"));
  const PathVariable none(nullptr);
  EXPECT_EQ(find_program("sh").value(), "/bin/sh");
}

TEST_F(SpawnTest, PathsAreTakenAsTheyAreButMadeAbsolute) {
  const fs::path tool = file("tool", "#!/bin/sh\n", 0755);
  EXPECT_EQ(find_program(tool).value(), tool);
  const fs::path before = fs::current_path();
  fs::current_path(directory_);
  const auto relative = find_program("./tool");
  const PathVariable path("");  // the empty directory is this one
  const auto here = find_program("tool");
  fs::current_path(before);
  ASSERT_TRUE(relative && here);
  EXPECT_TRUE(fs::equivalent(*relative, tool) && fs::equivalent(*here, tool));
  for (const std::string& bad :
       {std::string(""), directory_.string(), (directory_ / "none").string(), tool.string() + "/x"})
    EXPECT_EQ(find_program(bad).error().code(), Errc::invalid_action) << bad;
}

TEST_F(SpawnTest, TheProgramIsNobodysChild) {
  std::istringstream text(output_of("echo $$ $PPID; cut -d' ' -f6 /proc/$$/stat"));
  pid_t pid = 0, parent = 0, session = 0;
  text >> pid >> parent >> session;
  EXPECT_NE(parent, ::getpid());
  EXPECT_GT(pid, 0);
  EXPECT_EQ(session, pid);
  EXPECT_NE(session, ::getsid(0));
  EXPECT_EQ(::waitpid(-1, nullptr, WNOHANG), -1);
  EXPECT_EQ(errno, ECHILD);
#ifdef __WALL
  EXPECT_EQ(::waitpid(-1, nullptr, WNOHANG | __WALL), -1);
  EXPECT_EQ(errno, ECHILD);
#endif
}

#ifndef SOCKALARM_FORKS
TEST_F(SpawnTest, NoSigchldComes) {
  static std::atomic<int> seen;
  seen = 0;
  struct sigaction action{}, before{};
  action.sa_handler = [](int) { ++seen; };
  ::sigaction(SIGCHLD, &action, &before);
  for (int i = 0; i < 20; ++i) output_of("echo");
  (void)start({"x"}, "/no/such/program");
  ::sigaction(SIGCHLD, &before, nullptr);
  EXPECT_EQ(seen, 0);
}
#endif

TEST_F(SpawnTest, StdinIsNullAndOtherDescriptorsAreNotPassedOn) {
  int ends[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);  // without O_CLOEXEC
  const UniqueFd one(ends[0]), other(ends[1]);
  const std::string text = output_of("readlink /proc/$$/fd/0; ls -l /proc/$$/fd");
  EXPECT_EQ(text.substr(0, text.find('\n')), "/dev/null");
#if SOCKALARM_LINUX
  EXPECT_EQ(text.find("socket:"), std::string::npos) << text;
#endif
}

TEST_F(SpawnTest, SignalsAreAsNewAndTheMaskIsTheGivenOne) {
  ::sigaddset(&mask_, SIGUSR2);
  sigset_t before;
  sigset_t block;
  ::sigfillset(&block);
  ::pthread_sigmask(SIG_SETMASK, &block, &before);
  ::signal(SIGPIPE, SIG_IGN);
  ::signal(SIGHUP, SIG_IGN);
  const fs::path out = directory_ / "status";  // no shell in between: it has a mask of its own
  EXPECT_TRUE(start({"cp", "/proc/self/status", out}, find_program("cp").value()));
  std::string text;
  for (int i = 0; i < 10'000 && text.find("ctxt_switches") == std::string::npos; ++i) {
    std::this_thread::sleep_for(1ms);
    text = content(out);
  }
  ::signal(SIGPIPE, SIG_DFL);
  ::signal(SIGHUP, SIG_DFL);
  sigset_t now;
  ::pthread_sigmask(SIG_SETMASK, &before, &now);
  EXPECT_EQ(::sigismember(&now, SIGTERM), 1);  // the caller's own mask is as it was
  EXPECT_EQ(field(text, "SigBlk:"), 1ULL << (SIGUSR2 - 1)) << text;
  EXPECT_EQ(field(text, "SigIgn:") & ((1ULL << (SIGPIPE - 1)) | (1ULL << (SIGHUP - 1))), 0U) << text;
}

TEST_F(SpawnTest, AFailureIsReturnedAndSaidOnStderr) {
  const fs::path garbage = file("garbage", "\x01\x02", 0755);
  testing::internal::CaptureStderr();
  const auto started = start({"garbage"}, garbage);
  const std::string said = testing::internal::GetCapturedStderr();
  ASSERT_FALSE(started);
  EXPECT_EQ(started.error().code(), std::errc::executable_format_error);
  EXPECT_TRUE(says(started.error(), garbage.string()));
  EXPECT_NE(said.find(garbage.string()), std::string::npos);
  EXPECT_EQ(::waitpid(-1, nullptr, WNOHANG), -1);
}

TEST_F(SpawnTest, AFullStderrDoesNotHoldTheCaller) {
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC | O_NONBLOCK), 0);
  UniqueFd reader(ends[0]), writer(ends[1]);
  const std::string filler(65'536, 'x');
  while (::write(writer.get(), filler.data(), filler.size()) > 0) {
  }
  ::fcntl(writer.get(), F_SETFL, 0);  // blocking from here on
  const UniqueFd before(::dup(STDERR_FILENO));
  ::dup2(writer.get(), STDERR_FILENO);
  const auto full = start({"x"}, "/no/such/program");
  reader.reset();
  const auto broken = start({"x"}, "/no/such/program");  // and no SIGPIPE
  ::dup2(before.get(), STDERR_FILENO);
  EXPECT_FALSE(full || broken);
}

TEST_F(SpawnTest, LeavesNothingBehind) {
  const auto before = open_descriptors().value();
  for (int i = 0; i < 30; ++i) {
    EXPECT_TRUE(start({"true"}, find_program("true").value()));
    testing::internal::CaptureStderr();
    EXPECT_FALSE(start({"x"}, "/no/such/program"));
    testing::internal::GetCapturedStderr();
  }
  EXPECT_EQ(open_descriptors().value(), before);
  EXPECT_EQ(::waitpid(-1, nullptr, WNOHANG), -1);
}

TEST_F(SpawnTest, ManyThreadsMayStartPrograms) {
  std::vector<std::thread> threads;
  std::atomic<int> started{0};
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&] {
      for (int i = 0; i < 25; ++i)
        if (start({"true"}, "/bin/true")) ++started;
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(started, 100);
}

// exec replaces the process, so a child does it.
TEST_F(SpawnTest, ExecReplacesTheProcessWithTheProgramsMask) {
  const fs::path out = directory_ / "status";
  ::sigaddset(&mask_, SIGUSR2);
  const Action action = exec({"cp", "/proc/self/status", out});
  ASSERT_EQ(action.error(), nullptr);
  const pid_t child = ::fork();
  if (child == 0) {
    sigset_t all;
    ::sigfillset(&all);
    ::pthread_sigmask(SIG_SETMASK, &all, nullptr);
    const Event event{};
    (void)action.impl().run({event, 0, mask_});
    ::_exit(99);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(WIFEXITED(status) ? WEXITSTATUS(status) : -1, 0);
  EXPECT_EQ(field(content(out), "SigBlk:"), 1ULL << (SIGUSR2 - 1));
}

TEST_F(SpawnTest, AFailedExecIsReported) {
  const fs::path garbage = file("garbage", "\x01\x02", 0755);
  const Event event{};
  const Action action = exec({garbage.string()});
  ASSERT_EQ(action.error(), nullptr);
  const Outcome outcome = action.impl().run({event, 0, mask_});
  ASSERT_TRUE(outcome.failure);
  EXPECT_EQ(outcome.failure->code(), std::errc::executable_format_error);
  const Action gone = run({garbage.string()});
  fs::remove(garbage);
  testing::internal::CaptureStderr();
  const Outcome removed = gone.impl().run({event, 0, mask_});
  EXPECT_NE(testing::internal::GetCapturedStderr(), "");
  ASSERT_TRUE(removed.failure);
  EXPECT_EQ(removed.failure->code(), std::errc::no_such_file_or_directory);
}

}  // namespace
}  // namespace sockalarm::detail
