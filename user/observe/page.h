// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string_view>

namespace sockalarm::observe {

// The answer to GET /: text/html in UTF-8, all in one; it asks for v1/totals beside itself. It is
// page/index.html.
std::string_view page() noexcept;

// Its header Content-Security-Policy: this script and this style by their hashes, and nothing from elsewhere.
std::string_view page_policy() noexcept;

}  // namespace sockalarm::observe
