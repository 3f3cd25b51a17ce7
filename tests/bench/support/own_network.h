// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <cstdio>
#include <fstream>

#include "harness/sockets.h"

namespace sockalarm::bench {

using test::require;

// In a network of our own there is no TIME_WAIT: its sockets would pile up from slice to slice. The state
// changes that the programs see stay the same. Without the right to that, many source addresses have to do.
inline bool enter_own_network() {
  if (::unshare(CLONE_NEWNET) != 0) return false;
  const UniqueFd any(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  ifreq loopback{};
  std::snprintf(loopback.ifr_name, sizeof loopback.ifr_name, "lo");
  ::ioctl(any.get(), SIOCGIFFLAGS, &loopback);
  loopback.ifr_flags = static_cast<short>(loopback.ifr_flags | IFF_UP);
  require(::ioctl(any.get(), SIOCSIFFLAGS, &loopback) == 0, "the loopback interface");
  std::ofstream limit("/proc/sys/net/ipv4/tcp_max_tw_buckets");
  return bool(limit << 0 << std::flush);
}

}  // namespace sockalarm::bench
