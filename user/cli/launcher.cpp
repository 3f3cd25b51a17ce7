// SPDX-License-Identifier: Apache-2.0
#include "cli/launcher.h"

#include <sockalarm/watcher.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <future>

namespace sockalarm::cli {
namespace {

// The library runs actions when something happens to a socket, so something happens to one.
void run_now(const Action& program) {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) return;
  const UniqueFd watched(ends[0]);
  UniqueFd leaving(ends[1]);
  Options options;
  options.source = SourceKind::poll;
  const auto watcher = Watcher::create(std::move(options));
  if (!watcher) return;
  const auto watch = watcher->watch(watched.get());
  if (!watch) return;
  std::promise<void> done;
  const auto alarm = watch->arm({program, call([&done] { done.set_value(); })});
  if (!alarm) return;
  leaving.reset();
  done.get_future().wait();
}

[[noreturn]] void serve(int end, const std::vector<Action>& programs) {
  std::size_t index = 0;
  while (::recv(end, &index, sizeof index, 0) == static_cast<ssize_t>(sizeof index)) {
    run_now(programs.at(index));
    if (::send(end, &index, sizeof index, MSG_NOSIGNAL) < 0) break;
  }
  ::_exit(0);
}

}  // namespace

Result<Launcher> Launcher::start(const std::vector<Action>& programs, int client) {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0)
    return fail(Error::from_errno(errno, "socketpair()"));
  UniqueFd ours(ends[0]), theirs(ends[1]);
  // It survives execve(2), so we may have been born with it.
  ::prctl(PR_SET_CHILD_SUBREAPER, 0);
  const pid_t pid = ::fork();
  if (pid < 0) return fail(Error::from_errno(errno, "fork()"));
  if (pid == 0) {
    ours.reset();
    ::setsid();  // what the terminal sends is not for it
    if (::fork() != 0) ::_exit(0);
    if (client > STDERR_FILENO) ::close(client);
    serve(theirs.get(), programs);
  }
  while (::waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {
  }
  return Launcher(std::move(ours));
}

bool Launcher::launch(std::size_t index) const noexcept {
  if (::send(end_.get(), &index, sizeof index, MSG_NOSIGNAL) < 0) return false;
  ssize_t n = 0;
  do n = ::recv(end_.get(), &index, sizeof index, 0);
  while (n < 0 && errno == EINTR);
  return n == static_cast<ssize_t>(sizeof index);
}

}  // namespace sockalarm::cli
