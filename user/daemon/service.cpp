// SPDX-License-Identifier: Apache-2.0
#include "daemon/service.h"

#include <cap-ng.h>
#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <systemd/sd-daemon.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <filesystem>
#include <iterator>
#include <vector>

namespace sockalarm::daemon::service {
namespace {

sigset_t our_signals() {
  sigset_t set;
  ::sigemptyset(&set);
  for (const int one : {SIGTERM, SIGINT, SIGHUP}) ::sigaddset(&set, one);
  return set;
}

// Of what is at the path; {0, 0}: nothing.
std::pair<dev_t, ino_t> inode_at(const std::string& path) {
  struct stat status{};
  if (::lstat(path.c_str(), &status) != 0) return {};
  return {status.st_dev, status.st_ino};
}

}  // namespace

SocketFile::SocketFile(std::string path) : path_(std::move(path)), inode_(inode_at(path_)) {}

// What cannot be taken away, as in a directory of somebody else's, the next one replaces.
SocketFile::~SocketFile() {
  if (!path_.empty() && inode_at(path_) == inode_) ::unlink(path_.c_str());
}

Result<UniqueFd> passed_listener() {
  const int count = ::sd_listen_fds(1);
  if (count <= 0) return UniqueFd();
  UniqueFd fd(SD_LISTEN_FDS_START);
  if (count > 1 || ::sd_is_socket(fd.get(), AF_UNIX, SOCK_SEQPACKET, 1) <= 0)
    return fail(Error(
        Errc::invalid_options,
        "the service manager passed something else than one listening socket (ListenSequentialPacket=)"));
  // systemd passes it blocking (systemd.service(5), NonBlocking=), and the server accepts until nobody waits.
  if (::fcntl(fd.get(), F_SETFL, O_NONBLOCK) != 0)
    return fail(Error::from_errno(errno, "making the passed socket non-blocking"));
  return fd;
}

Result<Listener> listen_at(const std::string& path, mode_t mode, int type) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path)
    return fail(Error(Errc::invalid_options, "socket: '" + path + "' is not a path of 1 to 107 bytes"));
  path.copy(address.sun_path, path.size());
  const auto* const name = reinterpret_cast<const sockaddr*>(&address);
  const UniqueFd probe(::socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!probe) return fail(Error::from_errno(errno, "socket()"));
  if (::connect(probe.get(), name, sizeof address) == 0 || errno == EAGAIN)
    return fail(Error::from_errno(EADDRINUSE, "a daemon listens at " + path + " already"));
  // Where it is by default there is nothing after each boot.
  std::error_code ignored;  // bind() tells
  std::filesystem::create_directory(std::filesystem::path(path).parent_path(), ignored);
  struct stat status{};
  if (::lstat(path.c_str(), &status) == 0 && S_ISSOCK(status.st_mode)) ::unlink(path.c_str());
  Listener listener;
  listener.fd = UniqueFd(::socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!listener.fd || ::bind(listener.fd.get(), name, sizeof address) != 0)
    return fail(Error::from_errno(errno, "listening at " + path));
  listener.file = SocketFile(path);
  if (::chmod(path.c_str(), mode) != 0 || ::listen(listener.fd.get(), 256) != 0)
    return fail(Error::from_errno(errno, "listening at " + path));
  return listener;
}

void block_signals() {
  const sigset_t ours = our_signals();
  ::pthread_sigmask(SIG_BLOCK, &ours, nullptr);
}

Result<UniqueFd> signals() {
  const sigset_t ours = our_signals();
  UniqueFd fd(::signalfd(-1, &ours, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!fd) return fail(Error::from_errno(errno, "signalfd()"));
  return fd;
}

int next_signal(const UniqueFd& signals) {
  signalfd_siginfo info{};
  return ::read(signals.get(), &info, sizeof info) == sizeof info ? static_cast<int>(info.ssi_signo) : 0;
}

Result<void> drop_privileges(std::initializer_list<unsigned> kept) {
  ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  capng_get_caps_process();
  const bool may_bound = capng_have_capability(CAPNG_EFFECTIVE, CAP_SETPCAP) != 0;
  std::vector<unsigned> had;
  std::copy_if(kept.begin(), kept.end(), std::back_inserter(had),
               [](unsigned one) { return capng_have_capability(CAPNG_PERMITTED, one) != 0; });
  capng_clear(CAPNG_SELECT_BOTH);
  // NOLINTNEXTLINE(clang-analyzer-optin.core.EnumCastOutOfRange): they are bits
  constexpr auto kOwn = static_cast<capng_type_t>(CAPNG_EFFECTIVE | CAPNG_PERMITTED);
  for (const unsigned one : had) capng_update(CAPNG_ADD, kOwn, one);
  if (const int failed = capng_apply(may_bound ? CAPNG_SELECT_BOTH : CAPNG_SELECT_CAPS); failed != 0)
    return fail(Error(Errc::unsupported,
                      "dropping capabilities failed (capng_apply: " + std::to_string(failed) + ")"));
  return {};
}

void ready(const std::string& status) { ::sd_notifyf(0, "READY=1\nSTATUS=%s", status.c_str()); }
void stopping() { ::sd_notify(0, "STOPPING=1"); }
void alive() { ::sd_notify(0, "WATCHDOG=1"); }

std::optional<std::chrono::milliseconds> watchdog_interval() {
  std::uint64_t us = 0;
  if (::sd_watchdog_enabled(0, &us) <= 0) return std::nullopt;
  return std::chrono::milliseconds(std::max<std::uint64_t>(us / 2000, 1));
}

Reloading::Reloading() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  ::sd_notifyf(0, "RELOADING=1\nMONOTONIC_USEC=%lld",
               static_cast<long long>(now.tv_sec) * 1'000'000 + now.tv_nsec / 1000);
}
Reloading::~Reloading() { ::sd_notify(0, "READY=1"); }

}  // namespace sockalarm::daemon::service
