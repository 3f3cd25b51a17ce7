// SPDX-License-Identifier: Apache-2.0
#include "cli/times.h"

#include <sockalarm/action.h>

#include "base/text.h"
#include "cli/usage.h"

namespace sockalarm::cli {

Result<std::chrono::nanoseconds> parse_time(const std::string& option, const std::string& text) {
  // The library's own reading of durations, with the action's name cut from its messages.
  const auto action = parse_action("sleep:" + text);
  if (!action)
    return fail(usage(option + " " + sockalarm::quoted(text) +
                      " is not a time; expected 5s, 250ms, 1m, 3h, 1d or 1.5"));
  const std::string canonical = to_string(*action).substr(6);
  const auto unit = canonical.find_first_not_of("0123456789");
  const auto count = std::stoll(canonical.substr(0, unit));
  const std::string name = canonical.substr(unit);
  // Zero means never, so that what only rounds to it must not pass for it.
  if (count == 0 && text.find_first_of("123456789") != std::string::npos)
    return fail(usage(option + " " + sockalarm::quoted(text) +
                      " is less than a nanosecond; expected 1ns or more, or 0 " + "for never"));
  if (name == "s") return std::chrono::seconds(count);
  return std::chrono::nanoseconds(count * (name == "ms" ? 1'000'000 : name == "us" ? 1'000 : 1));
}

}  // namespace sockalarm::cli
