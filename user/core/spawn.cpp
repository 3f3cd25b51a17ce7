// SPDX-License-Identifier: Apache-2.0
#include "core/spawn.h"

#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sockalarm/unique_fd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string_view>

#if SOCKALARM_LINUX
#include <sched.h>
#include <sys/syscall.h>
#endif

// A child that shares the memory would confuse TSan, which keeps state for each thread.
#if defined(__SANITIZE_THREAD__)
#define SOCKALARM_SHARE_MEMORY 0
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define SOCKALARM_SHARE_MEMORY 0
#endif
#endif
#ifndef SOCKALARM_SHARE_MEMORY
#define SOCKALARM_SHARE_MEMORY SOCKALARM_LINUX
#endif

// What runs in a child is on a stack that sanitizers know nothing of, and in memory that may be the parent's.
#define SOCKALARM_IN_CHILD __attribute__((noinline, no_sanitize("address", "thread", "undefined")))

extern char** environ;

#include "base/blocked_signals.h"

namespace sockalarm::detail {
namespace {

// Only effective ids count when a program is executed; access(2) would ask with the real ones.
int why_not_executable(const char* path) {
  struct stat status{};
  if (::stat(path, &status) != 0) return errno;
  if (!S_ISREG(status.st_mode)) return EACCES;
  return ::faccessat(AT_FDCWD, path, X_OK, AT_EACCESS) == 0 ? 0 : errno;
}

// A later chdir(2) must not change what was found.
std::string absolute(const std::string& path) {
  std::error_code error;
  const auto full = std::filesystem::absolute(path, error);
  return error ? path : full.string();
}

Error not_found(int number, const std::string& name, const std::string& where) {
  return {Errc::invalid_action, Error::from_errno(number, "program '" + name + "'" + where).message() +
                                    "; expected an executable file"};
}

std::string search_path() {
  if (const char* const path = std::getenv("PATH")) return path;
  return "/bin:/usr/bin";  // as execvp(3) of glibc >= 2.24
}

// What a child does, and what became of it.
struct Plan {
  const char* path;
  char* const* argv;
  const sigset_t* mask;
  std::byte* second_stack;  // its upper end
  struct Report {
    const char* step;  // what failed; null: nothing
    int error;
  } report;
};

SOCKALARM_IN_CHILD void default_signal_actions() {
#if SOCKALARM_LINUX
  // Straight to the kernel: sigaction(3) takes a lock for SIGABRT (glibc >= 2.41), which another thread of
  // the parent might hold. All zero is SIG_DFL without flags in every architecture's struct kernel_sigaction.
  static constexpr unsigned char kDefault[64]{};
  for (int signal = 1; signal < _NSIG; ++signal)
    ::syscall(SYS_rt_sigaction, signal, kDefault, nullptr, static_cast<std::size_t>(_NSIG / 8));
#else
  struct sigaction action{};
  action.sa_handler = SIG_DFL;
  for (int signal = 1; signal < NSIG; ++signal) ::sigaction(signal, &action, nullptr);
#endif
}

// Only async-signal-safe calls from here on: other threads' locks may be held for ever. Returns if it failed.
SOCKALARM_IN_CHILD void become_program(Plan& plan) {
  ::setsid();
  const int null = ::open("/dev/null", O_RDONLY);
  if (null < 0 || (null != STDIN_FILENO && ::dup2(null, STDIN_FILENO) < 0)) {
    plan.report = {"opening /dev/null as stdin", errno};
    return;
  }
  if (null != STDIN_FILENO) ::close(null);
#if SOCKALARM_LINUX && defined(SYS_close_range)
  // A watched socket that the program held open would never close. 4: CLOSE_RANGE_CLOEXEC, Linux 5.11.
  ::syscall(SYS_close_range, 3U, ~0U, 4U);
#endif
  default_signal_actions();
  ::sigprocmask(SIG_SETMASK, plan.mask, nullptr);
  ::execve(plan.path, plan.argv, environ);
  plan.report = {"executing it", errno};
}

#if SOCKALARM_SHARE_MEMORY

constexpr std::size_t kStackSize = 64 * 1024;

SOCKALARM_IN_CHILD int second_child(void* argument) {
  become_program(*static_cast<Plan*>(argument));
  return 127;
}

// Its only purpose is to end, so that the second child is an orphan.
SOCKALARM_IN_CHILD int first_child(void* argument) {
  Plan& plan = *static_cast<Plan*>(argument);
  const pid_t pid = ::clone(second_child, plan.second_stack, CLONE_VM | CLONE_VFORK, argument);
  if (pid < 0)
    plan.report = {"clone", errno};
  else if (plan.report.step != nullptr)
    ::waitpid(pid, nullptr, __WALL);  // it failed: whoever reaps our orphans need not hear of it
  return 0;
}

// Like vfork(2) twice, each child on a stack of its own: the calling thread stands still until the program is
// executed, and what failed is simply in `plan`. No exit signal: no SIGCHLD, and no wait() of the program
// that does not say __WALL sees the child (clone(2)).
void start(Plan& plan) {
  const auto stacks = std::make_unique_for_overwrite<std::byte[]>(2 * kStackSize);
  std::byte* const first_stack = stacks.get() + kStackSize;  // stacks grow downwards
  plan.second_stack = first_stack + kStackSize;
  const pid_t pid = ::clone(first_child, first_stack, CLONE_VM | CLONE_VFORK, &plan);
  if (pid < 0) {
    plan.report = {"clone", errno};
    return;
  }
  while (::waitpid(pid, nullptr, __WALL) < 0 && errno == EINTR) {
  }
}

#else

// Writing ends with the exec, by FD_CLOEXEC. Not below 3, where the program's own descriptors will be.
bool make_report_pipe(UniqueFd& read_end, UniqueFd& write_end) {
  int ends[2];
  if (::pipe(ends) != 0) return false;
  const UniqueFd first(ends[0]), second(ends[1]);
  read_end.reset(::fcntl(first.get(), F_DUPFD_CLOEXEC, 3));
  write_end.reset(::fcntl(second.get(), F_DUPFD_CLOEXEC, 3));
  return read_end && write_end;
}

SOCKALARM_IN_CHILD void in_first_child(Plan& plan, int report_fd) {
  const pid_t pid = ::fork();
  if (pid > 0) return;
  if (pid == 0)
    become_program(plan);
  else
    plan.report = {"fork", errno};
  // The step's text is at the same address in the parent.
  [[maybe_unused]] const ssize_t n = ::write(report_fd, &plan.report, sizeof plan.report);
}

void start(Plan& plan) {
  UniqueFd read_end, write_end;
  if (!make_report_pipe(read_end, write_end)) {
    plan.report = {"pipe", errno};
    return;
  }
  const pid_t pid = ::fork();
  if (pid < 0) {
    plan.report = {"fork", errno};
    return;
  }
  if (pid == 0) {
    in_first_child(plan, write_end.get());
    ::_exit(127);
  }
  write_end.reset();
  while (::waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {
  }
  Plan::Report report{};
  if (::read(read_end.get(), &report, sizeof report) == static_cast<ssize_t>(sizeof report))
    plan.report = report;
}

#endif

// Never waits: a pipe that poll(2) calls writable takes PIPE_BUF bytes, and one without a reader is not
// written to.
void complain(const Error& error) {
  const std::string line = ("sockalarm: " + error.message()).substr(0, _POSIX_PIPE_BUF - 1) + "\n";
  pollfd out{STDERR_FILENO, POLLOUT, 0};
  if (::poll(&out, 1, 0) != 1 || out.revents != POLLOUT) return;
  [[maybe_unused]] const ssize_t n = ::write(STDERR_FILENO, line.data(), line.size());
}

}  // namespace

Result<std::string> find_program(const std::string& name) {
  if (name.empty())
    return fail(Error(Errc::invalid_action, "the program's name is empty; expected an executable file"));
  if (name.find('/') != std::string::npos) {
    if (const int why = why_not_executable(name.c_str())) return fail(not_found(why, name, ""));
    return absolute(name);
  }
  const std::string path = search_path();
  int why = ENOENT;
  for (std::string_view rest = path;;) {
    const auto end = rest.find(':');
    std::string candidate(end == 0 || rest.empty() ? "." : rest.substr(0, end));  // empty: here (execvp(3))
    candidate.append("/").append(name);
    const int reason = why_not_executable(candidate.c_str());
    if (reason == 0) return absolute(candidate);
    if (reason == EACCES) why = EACCES;  // says more than that it is not elsewhere
    if (end == std::string_view::npos) break;
    rest.remove_prefix(end + 1);
  }
  return fail(not_found(why, name, " in PATH (" + path + ")"));
}

Result<void> spawn_detached(const std::string& path, char* const argv[], const sigset_t& mask) {
  Plan plan{path.c_str(), argv, &mask, nullptr, {}};
  {
    const BlockedSignals blocked;  // a program's handler must not run in a child that shares its memory
    start(plan);
  }
  if (plan.report.step == nullptr) return {};
  auto error = Error::from_errno(plan.report.error, "starting " + path + ": " + plan.report.step);
  complain(error);
  return fail(std::move(error));
}

}  // namespace sockalarm::detail
