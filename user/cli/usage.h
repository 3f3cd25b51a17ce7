// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/result.h>

#include <string>
#include <utility>

namespace sockalarm::cli {

// What was given on the command line cannot be used; `message` says what was expected.
inline Error usage(std::string message) { return {Errc::invalid_text, std::move(message)}; }

}  // namespace sockalarm::cli
