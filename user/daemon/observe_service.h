// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/result.h>

#include <functional>

#include "daemon/config.h"

namespace sockalarm::daemon {

// sockalarmd --observe: a process of its own, which alarms nobody and needs nothing of the other. Until
// SIGTERM or SIGINT; SIGHUP reads the configuration again. Gives up the privileges that were for loading.
Result<void> observe(const Config& config, const std::function<Result<Config>()>& read_again);

}  // namespace sockalarm::daemon
