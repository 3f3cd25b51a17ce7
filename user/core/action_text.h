// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/result.h>

#include <chrono>
#include <string>
#include <string_view>

namespace sockalarm::detail {

// Far beyond any use, and small enough to be added to any clock reading.
inline constexpr std::chrono::nanoseconds kLongestSleep = std::chrono::hours(24 * 365 * 100);

// "2s", "250ms", "10us", "5ns", "1m", "3h", "1d", "1.5" (seconds). Decimal digits only, at most
// kLongestSleep; what is finer than a nanosecond is cut off.
Result<std::chrono::nanoseconds> parse_duration(std::string_view text);
// In the largest of s, ms, us, ns that gives a whole number.
std::string duration_text(std::chrono::nanoseconds duration);

}  // namespace sockalarm::detail
