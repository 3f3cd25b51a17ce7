// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/watcher.h>

#include <functional>
#include <string_view>

namespace sockalarm::detail {

// Options::log. May be empty.
using LogHook = std::function<void(LogLevel, std::string_view)>;

inline void tell(const LogHook& hook, LogLevel level, std::string_view text) noexcept {
  if (!hook) return;
  try {
    hook(level, text);
  } catch (...) {  // a hook that throws must not end the process
  }
}

}  // namespace sockalarm::detail
