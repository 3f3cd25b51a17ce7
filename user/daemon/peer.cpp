// SPDX-License-Identifier: Apache-2.0
#include "daemon/peer.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <sstream>
#include <string>

#include "base/text.h"

namespace sockalarm::daemon {
namespace {

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77  // Linux 6.5
#endif

UniqueFd open_process(pid_t pid) noexcept {
  return UniqueFd(pid > 0 ? static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)) : -1);
}

std::uint64_t start_of(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string stat;
  std::getline(file, stat, '\0');
  const auto name_ends = stat.rfind(") ");  // the name may hold anything
  if (name_ends == std::string::npos) return 0;
  std::istringstream fields(stat.substr(name_ends + 2));
  std::string field;
  for (int number = 3; number <= 22; ++number)
    if (!(fields >> field)) return 0;
  return parse_number<std::uint64_t>(field).value_or(0);
}

}  // namespace

bool has_ended(const UniqueFd& process) noexcept {
  pollfd entry{process.get(), POLLIN, 0};
  return ::poll(&entry, 1, 0) != 0;  // also if it cannot be asked
}

Result<Peer> peer_of(int socket) {
  ucred credentials{};
  socklen_t length = sizeof credentials;
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &length) != 0)
    return fail(Error::from_errno(errno, "SO_PEERCRED"));
  Peer peer;
  peer.uid = credentials.uid;
  peer.gid = credentials.gid;
  peer.pid = credentials.pid;
  int process = -1;
  length = sizeof process;
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERPIDFD, &process, &length) == 0)
    peer.process = UniqueFd(process);
  else if (errno == ENOPROTOOPT)  // before 6.5: by number, which in theory may be another process's by now
    peer.process = open_process(peer.pid);
  if (!peer.process && peer.pid == 0) return peer;
  // It has ended, or we have run out of descriptors. Nobody would tell when the number is another process's.
  if (!peer.process) return fail(Error::from_errno(errno, "a pidfd of process " + std::to_string(peer.pid)));
  peer.started = start_of(peer.pid);
  if (has_ended(peer.process)) peer.started = 0;  // then that may be a later process's
  return peer;
}

UniqueFd find_process(pid_t pid, std::uint64_t started) {
  UniqueFd process = open_process(pid);
  if (!process || started == 0 || start_of(pid) != started || has_ended(process)) process.reset();
  return process;
}

bool in_initial_pid_namespace() noexcept {
  constexpr ino_t kInitial = 0xEFFFFFFC;  // PROC_PID_INIT_INO, include/linux/proc_ns.h
  struct stat status{};
  return ::stat("/proc/self/ns/pid", &status) == 0 && status.st_ino == kInitial;
}

}  // namespace sockalarm::daemon
