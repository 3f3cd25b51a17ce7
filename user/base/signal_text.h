// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace sockalarm::detail {

// "ALRM", "RTMIN+3"; empty: there is no such signal, or the C library keeps it for itself (32 and 33 in
// glibc).
std::string signal_name(int signal);

// A name with or without SIG in any case, RTMIN+n, RTMAX-n, or any number, which is not checked.
std::optional<int> parse_signal(std::string_view text);

// The highest real-time signal that has its default action in this process; 0: there is none.
int free_realtime_signal() noexcept;

}  // namespace sockalarm::detail
