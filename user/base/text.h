// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <charconv>
#include <optional>
#include <string>
#include <string_view>

namespace sockalarm {

inline std::string_view trim(std::string_view text) noexcept {
  constexpr std::string_view kSpace = " \t\r\n";
  const auto first = text.find_first_not_of(kSpace);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kSpace) - first + 1);
}

// The whole text as a decimal number that fits T; empty otherwise.
template <class T>
std::optional<T> parse_number(std::string_view text) noexcept {
  T value{};
  // cppcheck-suppress invalidLifetime; what is returned is a number, which refers to nothing
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || error != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return value;
}

// For names that anybody may choose: a backslash and every byte that is not part of printable UTF-8 as \xHH,
// so that the text stays on its line, moves no terminal's cursor, and is valid UTF-8 itself.
std::string escaped(std::string_view bytes);
// The same for what is not shown yet, but kept and compared: a backslash stays, so that whoever shows it may
// escape it. To do it again changes nothing.
std::string on_one_line(std::string_view bytes);

inline std::string quoted(std::string_view text) { return "'" + std::string(text) + "'"; }

}  // namespace sockalarm
