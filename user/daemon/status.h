// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/types.h>

#include <string>

#include "daemon/client.h"

namespace sockalarm::daemon {

// JSON for whoever asks: all of it for root and the daemon's own user, else what is that user's.
// docs/protocol.md describes it.
std::string status_text(const Shared& shared, uid_t asked_by);

}  // namespace sockalarm::daemon
