// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace sockalarm::cli {

// Figures for people, short enough for the columns of a table.
std::string rate_text(double per_second);  // "0", "0.25", "12.5", "1234"
std::string time_text(double seconds);     // "250us", "1.50ms", "12.5s", "3m05s", "2h10m", "4d02h"
std::string bytes_text(double bytes);      // "512B", "1.5kB", "12MB"

// Of UTF-8 that is printable (escaped() makes it so), counted in characters.
std::size_t width(std::string_view text);
std::string left(std::string text, std::size_t columns);  // padded; what is longer stays whole
std::string right(std::string text, std::size_t columns);
std::string cut(std::string_view text, std::size_t columns);  // what is longer ends in "…"

}  // namespace sockalarm::cli
