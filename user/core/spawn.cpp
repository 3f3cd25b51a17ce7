// SPDX-License-Identifier: Apache-2.0
#include "core/spawn.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "base/text.h"
#include "base/unique_fd.h"

extern char** environ;

namespace sockalarm::detail {
namespace {

// 0: it can be executed.
int why_not_executable(const std::string& path) noexcept {
  struct stat status{};
  if (::stat(path.c_str(), &status) != 0) return errno;
  if (!S_ISREG(status.st_mode)) return EACCES;
  return ::access(path.c_str(), X_OK) == 0 ? 0 : errno;
}

std::vector<char*> pointers(const std::vector<std::string>& argv) {
  std::vector<char*> list;
  for (const std::string& word : argv) list.push_back(const_cast<char*>(word.c_str()));
  list.push_back(nullptr);
  return list;
}

// What the forked processes need, made beforehand: they may only use what is async-signal-safe, since another
// thread may hold any lock.
struct Launch {
  const char* path;
  char* const* argv;
  const sigset_t* mask;
  int null;    // /dev/null
  int report;  // where errno of a failed exec goes; closed by a successful one
  const char* complaint;
  std::size_t complaint_length;
  char* stacks;  // two of kStack bytes
};
constexpr std::size_t kStack = 64 * 1024;

[[noreturn]] void become_program(const Launch& launch) noexcept {
  struct sigaction standard{};
  standard.sa_handler = SIG_DFL;
  for (int signal = 1; signal < NSIG; ++signal) ::sigaction(signal, &standard, nullptr);
  ::dup2(launch.null, STDIN_FILENO);
#if SOCKALARM_LINUX
  // A copy of the watched socket in the program would keep the connection open. Not closed but marked:
  // `report` must live until the exec. CLOSE_RANGE_CLOEXEC is of Linux 5.11; before it, descriptors rely on
  // O_CLOEXEC.
  ::close_range(3, ~0U, CLOSE_RANGE_CLOEXEC);
#endif
  ::sigprocmask(SIG_SETMASK, launch.mask, nullptr);
  ::execve(launch.path, launch.argv, environ);
  const int failed = errno;
  [[maybe_unused]] ssize_t n = ::write(STDERR_FILENO, launch.complaint, launch.complaint_length);
  n = ::write(launch.report, &failed, sizeof failed);
  ::_exit(127);
}

// The process in between: it ends at once, so that init inherits the program.
int start_and_leave(void* argument) noexcept;
int run_program(void* argument) noexcept { become_program(*static_cast<const Launch*>(argument)); }

#if SOCKALARM_LINUX
// As posix_spawn(3) does it: the new process borrows our memory and we sleep until it executes or exits, so
// the cost does not grow with our size. No exit signal: the program's SIGCHLD handler and wait(2) never see
// it.
pid_t spawn(int (*function)(void*), const Launch& launch) noexcept {
  char* const top =
      launch.stacks + (function == &run_program ? kStack : 2 * kStack);  // one for each generation
#if defined(__SANITIZE_THREAD__)  // takes two processes in one memory for a race
  constexpr int kFlags = 0;
#else
  constexpr int kFlags = CLONE_VM | CLONE_VFORK;
#endif
  return ::clone(function, top, kFlags, const_cast<Launch*>(&launch));
}
constexpr int kWaitFlags = __WALL;
#else
pid_t spawn(int (*function)(void*), const Launch& launch) noexcept {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(function(const_cast<Launch*>(&launch)));
  return child;
}
constexpr int kWaitFlags = 0;
#endif

int start_and_leave(void* argument) noexcept {
  const auto& launch = *static_cast<const Launch*>(argument);
  ::setsid();
  if (spawn(&run_program, launch) < 0) {
    const int failed = errno;
    [[maybe_unused]] const ssize_t n = ::write(launch.report, &failed, sizeof failed);
  }
  ::_exit(0);
}

}  // namespace

Result<std::string> find_program(const std::string& name) {
  if (name.empty()) return fail(Error(Errc::invalid_action, "the program's name is empty"));
  int why = ENOENT;
  if (name.find('/') != std::string::npos) {
    why = why_not_executable(name);
    if (why == 0) return name;
    return fail(Error::from_errno(why, "program " + quoted(name)));
  }
  const char* path = std::getenv("PATH");
  std::string_view rest = path != nullptr ? path : "/bin:/usr/bin";
  for (;;) {
    const std::size_t colon = rest.find(':');
    const std::string_view directory = rest.substr(0, colon);
    const std::string candidate = std::string(directory.empty() ? "." : directory) + "/" + name;
    const int failed = why_not_executable(candidate);
    if (failed == 0) return candidate;
    if (failed == EACCES) why = EACCES;
    if (colon == std::string_view::npos) break;
    rest.remove_prefix(colon + 1);
  }
  return fail(Error::from_errno(why, "program " + quoted(name) + " (looked for in PATH)"));
}

Result<void> start_detached(const std::string& path, const std::vector<std::string>& argv,
                            const sigset_t& mask) {
  const std::string complaint = "sockalarm: cannot execute " + path + "\n";
  const auto words = pointers(argv);
  const UniqueFd null(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  if (!null) return fail(Error::from_errno(errno, "/dev/null"));
  int ends[2];
  if (::pipe(ends) != 0) return fail(Error::from_errno(errno, "pipe()"));
  const UniqueFd result(ends[0]);
  UniqueFd report(ends[1]);
  ::fcntl(result.get(), F_SETFD, FD_CLOEXEC);
  ::fcntl(report.get(), F_SETFD, FD_CLOEXEC);
  std::vector<char> stacks(2 * kStack);
  const Launch launch{path.c_str(),     words.data(),     &mask,        null.get(), report.get(),
                      complaint.data(), complaint.size(), stacks.data()};

  const pid_t middle = spawn(&start_and_leave, launch);
  if (middle < 0) return fail(Error::from_errno(errno, "starting a process for " + path));
  report.reset();
  while (::waitpid(middle, nullptr, kWaitFlags) < 0 && errno == EINTR) {
  }
  int failed = 0;
  ssize_t n = 0;
  do n = ::read(result.get(), &failed, sizeof failed);
  while (n < 0 && errno == EINTR);
  if (n == static_cast<ssize_t>(sizeof failed)) return fail(Error::from_errno(failed, "executing " + path));
  return {};
}

Error replace_process(const std::string& path, const std::vector<std::string>& argv, const sigset_t& mask) {
  const auto words = pointers(argv);
  sigset_t before;
  ::pthread_sigmask(SIG_SETMASK, &mask, &before);
  ::execve(path.c_str(), words.data(), environ);
  const int failed = errno;
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return Error::from_errno(failed, "executing " + path);
}

}  // namespace sockalarm::detail
