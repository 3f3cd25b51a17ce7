// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/result.h>
#include <sockalarm/unique_fd.h>

#include <chrono>
#include <optional>
#include <string>

// What is between the daemon and its service manager; nothing where there is none.
namespace sockalarm::daemon::service {

// The socket that it listens on already (sd_listen_fds(3)); empty: none was passed.
Result<UniqueFd> passed_listener();
void ready(const std::string& status);
void stopping();
void alive();
// How often to say so; empty: nobody listens. Half of what is allowed.
std::optional<std::chrono::milliseconds> watchdog_interval();

// While the configuration is read again.
class Reloading {
 public:
  Reloading();
  ~Reloading();
  Reloading(const Reloading&) = delete;
  Reloading& operator=(const Reloading&) = delete;
};

}  // namespace sockalarm::daemon::service
