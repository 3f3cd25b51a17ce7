// SPDX-License-Identifier: Apache-2.0
#include "base/text.h"

#include <algorithm>

namespace sockalarm {
namespace {

bool continues(char c) { return (static_cast<unsigned char>(c) & 0xc0) == 0x80; }

// The length of the printable character that `bytes` begins with; 0: there is none. RFC 3629: no overlong
// forms, no surrogates, at most U+10FFFF. Not printable are the controls of ASCII and ISO 6429 (U+0080 to
// U+009F), and what turns or breaks lines: U+2028 to U+202E and U+2066 to U+2069.
std::size_t printable(std::string_view bytes) {
  const auto first = static_cast<unsigned char>(bytes.front());
  if (first < 0x80) return first >= 0x20 && first != 0x7f ? 1 : 0;
  const std::size_t length = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
  if (first < 0xc2 || first > 0xf4 || bytes.size() < length) return 0;
  char32_t character = first & (0xffU >> (length + 1));
  for (std::size_t i = 1; i < length; ++i) {
    if (!continues(bytes[i])) return 0;
    character = character << 6 | (static_cast<unsigned char>(bytes[i]) & 0x3fU);
  }
  constexpr char32_t kSmallest[] = {0, 0, 0xa0, 0x800, 0x10000};
  const auto within = [character](char32_t from, char32_t to) {
    return character >= from && character <= to;
  };
  if (character < kSmallest[length] || character > 0x10ffff || within(0xd800, 0xdfff) ||
      within(0x2028, 0x202e) || within(0x2066, 0x2069))
    return 0;
  return length;
}

std::string escaped(std::string_view bytes, bool backslashes) {
  static constexpr char kHex[] = "0123456789abcdef";
  std::string text;
  while (!bytes.empty()) {
    const std::size_t length = backslashes && bytes.front() == '\\' ? 0 : printable(bytes);
    if (length != 0) {
      text += bytes.substr(0, length);
    } else {
      const auto byte = static_cast<unsigned char>(bytes.front());
      text.append("\\x").append(1, kHex[byte >> 4]).append(1, kHex[byte & 15]);
    }
    bytes.remove_prefix(std::max<std::size_t>(length, 1));
  }
  return text;
}

}  // namespace

std::string escaped(std::string_view bytes) { return escaped(bytes, true); }
std::string on_one_line(std::string_view bytes) { return escaped(bytes, false); }

}  // namespace sockalarm
