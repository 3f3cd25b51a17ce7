// SPDX-License-Identifier: Apache-2.0
#include "cli/process.h"

#include <fcntl.h>
#include <sockalarm/unique_fd.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>

#include "cli/commands.h"

namespace sockalarm::cli {
namespace {

// Between fork and exec: only what is async-signal-safe.
[[noreturn]] void become(char* const* argv, const LaunchOptions& options, pid_t parent, int report) noexcept {
  if (options.own_group) ::setpgid(0, 0);
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) ::_exit(1);  // it died before the line above
  if (options.ignore_sigchld) ::signal(SIGCHLD, SIG_IGN);
  ::sigprocmask(SIG_SETMASK, &options.mask, nullptr);
  ::execvp(argv[0], argv);
  const int failed = errno;
  [[maybe_unused]] const ssize_t n = ::write(report, &failed, sizeof failed);
  ::_exit(127);
}

// Children of one process, from /proc (CONFIG_PROC_CHILDREN); empty where that is not to be had.
std::vector<pid_t> children_of(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/task/" + std::to_string(pid) + "/children");
  std::vector<pid_t> children;
  for (pid_t child = 0; file >> child;) children.push_back(child);
  return children;
}

tl::unexpected<StartFailure> ours(const char* call) {
  return tl::unexpected(StartFailure{Error::from_errno(errno, call), false});
}

}  // namespace

tl::expected<Command, StartFailure> Command::start(const LaunchOptions& options) {
  if (::prctl(PR_SET_CHILD_SUBREAPER, 1) != 0) return ours("prctl(PR_SET_CHILD_SUBREAPER)");
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return ours("pipe2()");
  const UniqueFd result(ends[0]);
  UniqueFd report(ends[1]);
  std::vector<char*> argv;
  argv.reserve(options.argv.size() + 1);
  for (const std::string& word : options.argv) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);

  const pid_t parent = ::getpid();
  const pid_t pid = ::_Fork();  // without fork handlers: it executes at once (glibc 2.34)
  if (pid == 0) become(argv.data(), options, parent, report.get());
  if (pid < 0) return ours("fork()");
  if (options.own_group) ::setpgid(pid, pid);  // on both sides, so that it is done whoever comes first
  report.reset();
  int failed = 0;
  ssize_t n = 0;
  do n = ::read(result.get(), &failed, sizeof failed);
  while (n < 0 && errno == EINTR);
  if (n != static_cast<ssize_t>(sizeof failed)) return Command(pid, options.own_group);
  ::waitpid(pid, nullptr, 0);
  return tl::unexpected(StartFailure{Error::from_errno(failed, options.argv.front()), true});
}

void Command::signal(int number) const noexcept {
  if (ended_) return;
  const pid_t whom = own_group_ ? -pid_ : pid_;
  ::kill(whom, number);
  if (number != SIGKILL && number != SIGCONT && number != SIGTSTP) ::kill(whom, SIGCONT);
}

void Command::signal_all(int number) const {
  signal(number);
  // Parents before their children: who ends leaves its children to us, and a later pass finds them.
  std::vector<pid_t> all = children_of(::getpid());
  for (std::size_t i = 0; i < all.size(); ++i) {
    const auto below = children_of(all[i]);
    all.insert(all.end(), below.begin(), below.end());
  }
  for (const pid_t pid : all) {
    if (pid == pid_) continue;
    ::kill(pid, number);
    ::kill(pid, SIGCONT);
  }
}

bool Command::has_descendants() const { return !children_of(::getpid()).empty(); }

bool Command::reap() noexcept {
  bool just_ended = false;
  int status = 0;
  pid_t pid = 0;
  while ((pid = ::waitpid(-1, &status, WNOHANG)) > 0) {
    if (pid != pid_) continue;
    wait_status_ = status;
    just_ended = ended_ = true;
  }
  // Somebody else collected it: how it ended is lost, and waiting for it would never end.
  if (pid < 0 && errno == ECHILD && !ended_) {
    wait_status_ = W_EXITCODE(kExitFailed, 0);
    just_ended = ended_ = true;
  }
  return just_ended;
}

int Command::status() const noexcept {
  return WIFSIGNALED(wait_status_) ? 128 + WTERMSIG(wait_status_) : WEXITSTATUS(wait_status_);
}

}  // namespace sockalarm::cli
