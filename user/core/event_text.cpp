// SPDX-License-Identifier: Apache-2.0
#include <sockalarm/event.h>

namespace sockalarm {
namespace {

struct Name {
  std::string_view name;
  Events events;
};
// In the order of to_string(), which takes each name whose events are all there and not yet named.
constexpr Name kNames[] = {
    {"shut", events::shut},         {"fin", events::fin},       {"reset", events::reset},
    {"timeout", events::timeout},   {"error", events::error},   {"eof", events::eof},
    {"readable", events::readable}, {"urgent", events::urgent}, {"closed", events::closed},
    {"deadline", events::deadline}, {"none", events::none},
};

constexpr std::string_view kSpaces = " \t\r\n";

std::string_view trimmed(std::string_view text) {
  const auto first = text.find_first_not_of(kSpaces);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kSpaces) - first + 1);
}

Error unknown(std::string_view word, std::string_view text) {
  std::string message =
      word.empty() ? "an event name is missing" : "unknown event '" + std::string(word) + "'";
  message += " in '" + std::string(text) + "'; expected, separated by commas:";
  for (const Name& known : kNames) message.append(" ").append(known.name);
  return {Errc::invalid_text, std::move(message)};
}

const Name* find(std::string_view word) {
  for (const Name& known : kNames)
    if (known.name == word) return &known;
  return nullptr;
}

}  // namespace

std::string to_string(Events events) {
  if (events.empty()) return "none";
  std::string text;
  const auto add = [&text](std::string_view name) {
    if (!text.empty()) text += ',';
    text += name;
  };
  for (const Name& known : kNames) {
    if (known.events.empty() || !events.contains(known.events)) continue;
    add(known.name);
    events = events - known.events;
  }
  if (events)
    add("unknown(" + std::to_string(events.bits()) + ")");  // bits that mean nothing: not for parsing
  return text;
}

Result<Events> parse_events(std::string_view text) {
  Events events;
  std::string_view rest = text;
  for (;;) {
    const auto end = rest.find_first_of(",|");
    const std::string_view word = trimmed(rest.substr(0, end));
    const Name* const known = find(word);
    if (known == nullptr) return fail(unknown(word, text));
    events |= known->events;
    if (end == std::string_view::npos) return events;
    rest.remove_prefix(end + 1);
  }
}

}  // namespace sockalarm
