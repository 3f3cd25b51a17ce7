// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/result.h>

#include <chrono>
#include <string>

namespace sockalarm::cli {

// "5s", "250ms", "1m", "3h", "1d" or "1.5", given for `option`. Errors: Errc::invalid_text.
Result<std::chrono::nanoseconds> parse_time(const std::string& option, const std::string& text);

}  // namespace sockalarm::cli
