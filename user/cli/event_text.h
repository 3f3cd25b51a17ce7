// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace sockalarm::cli {

// One line for a record (docs/schema), in columns below event_heading(). Names in it are anybody's: what
// could move the cursor or end the line is escaped. What is not known is "-".
std::string event_text(const nlohmann::json& record, bool with_host);
std::string event_heading(bool with_host);

// The record that `line` is, as one object: as it came, unless a terminal might take some of it for more than
// text.
std::string event_json(std::string_view line, const nlohmann::json& record);

}  // namespace sockalarm::cli
