// SPDX-License-Identifier: Apache-2.0
#include "daemon/service.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <systemd/sd-daemon.h>
#include <time.h>

#include <algorithm>
#include <cerrno>

namespace sockalarm::daemon::service {

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
