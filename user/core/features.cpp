// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <sockalarm/diagnostics.h>
#include <sockalarm/unique_fd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>

#include "core/sources.h"

#if SOCKALARM_LINUX
#include <sys/epoll.h>
#include <sys/syscall.h>
#endif
#if SOCKALARM_BPF
#include "core/bpf_session.h"
#endif

namespace sockalarm {
namespace {

Feature yes(std::string name, std::string detail) { return {std::move(name), true, std::move(detail), {}}; }
Feature no(std::string name, std::string detail, std::string remedy) {
  return {std::move(name), false, std::move(detail), std::move(remedy)};
}

Feature source(SourceKind kind, const std::string& remedy) {
  Options options;
  options.source = kind;
  const auto chosen = detail::choose_source(options);
  const std::string name = std::string(to_string(kind)) + " source";
  return chosen ? yes(name, "works") : no(name, chosen.error().message(), remedy);
}

#if SOCKALARM_LINUX
// A system call with nonsense for arguments: only ENOSYS says that it is not there.
Feature system_call(const char* name, long number, const char* what_for, const char* since) {
  errno = 0;
  ::syscall(number, -1, -1, -1, -1, -1, -1);
  if (errno != ENOSYS) return yes(name, what_for);
  return no(name, std::string("not in this kernel; ") + what_for,
            std::string("Linux ") + since + " or newer");
}

Feature mptcp() {
  constexpr int kProtocol = 262;  // IPPROTO_MPTCP
  const UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, kProtocol));
  if (fd) return yes("MPTCP", "watched by epoll");
  return no("MPTCP", Error::from_errno(errno, "socket()").message(),
            "only needed for MPTCP connections; Linux 5.6, sysctl net.mptcp.enabled");
}
#endif

Feature descriptors() {
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  return yes("descriptors",
             "at most " + std::to_string(limit.rlim_cur) + " per process, and so many sockets to watch");
}

Feature kernel() {
  utsname name{};
  ::uname(&name);
  return yes("system", std::string(name.sysname) + " " + name.release + " " + name.machine);
}

}  // namespace

std::vector<Feature> probe_features() {
  std::vector<Feature> features{kernel()};
  features.push_back(source(SourceKind::daemon, "only needed without privileges: start sockalarmd"));
  features.push_back(
      source(SourceKind::kernel,
             "see the lines below; without it epoll serves, a little later and with less to tell"));
#if SOCKALARM_BPF
  for (Feature& feature : detail::BpfSession::probe()) features.push_back(std::move(feature));
#endif
  features.push_back(source(SourceKind::epoll, "Linux; elsewhere poll serves"));
  features.push_back(source(SourceKind::poll, "raise the descriptor limit"));
#if SOCKALARM_LINUX
  features.push_back(system_call("epoll_pwait2", SYS_epoll_pwait2, "deadlines finer than 1 ms", "5.11"));
  features.push_back(system_call("pidfd_open", SYS_pidfd_open,
                                 "kill: never hits a later process of the same number", "5.3"));
  features.push_back(
      system_call("pidfd_getfd", SYS_pidfd_getfd, "sockalarm fds PID shows the addresses of sockets", "5.6"));
  features.push_back(
      system_call("close_range", SYS_close_range, "programs that are run inherit no sockets", "5.11"));
  features.push_back(mptcp());
#endif
  features.push_back(descriptors());
  return features;
}

#if !SOCKALARM_LINUX
Result<std::string> daemon_status(const std::string& /*socket*/) {
  return fail(Error(Errc::unsupported, "the daemon is only on Linux"));
}
#endif

}  // namespace sockalarm
