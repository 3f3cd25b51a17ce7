// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/source.h"

namespace sockalarm::detail {

class BpfSession;

Result<std::unique_ptr<Source>> make_poll_source(PollStyle style);
Result<std::unique_ptr<Source>> make_epoll_source();
Result<std::unique_ptr<Source>> make_kernel_source(const Options& options);
Result<std::unique_ptr<Source>> make_kernel_source(std::unique_ptr<BpfSession> session);
Result<std::unique_ptr<Source>> make_daemon_source(const Options& options);

struct ChosenSource {
  std::unique_ptr<Source> source;
  std::vector<std::string> why_not;  // one line for each better source that was refused
};

// The best source to be had, or the one that Options force.
Result<ChosenSource> choose_source(const Options& options);

}  // namespace sockalarm::detail
