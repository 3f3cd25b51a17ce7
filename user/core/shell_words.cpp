// SPDX-License-Identifier: Apache-2.0
#include "core/shell_words.h"

#include <optional>

namespace sockalarm::detail {
namespace {

enum class Kind { plain, quoted, quotes };  // quotes: a pair begins here, so a word does, even an empty one

Error bad_quoting(std::string_view text, std::size_t position, const std::string& why) {
  return {Errc::invalid_text,
          why + " at character " + std::to_string(position + 1) + " of '" + std::string(text) + "'"};
}

// Calls visit(kind, position, character) for each character that counts.
template <class Visit>
std::optional<Error> scan(std::string_view text, Visit visit) {
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\') {
      if (i + 1 == text.size()) return bad_quoting(text, i, "nothing follows the backslash");
      ++i;
      if (text[i] != '\n') visit(Kind::quoted, i, text[i]);  // backslash and newline: a continued line
      continue;
    }
    const char quote = text[i];
    if (quote != '\'' && quote != '"') {
      visit(Kind::plain, i, text[i]);
      continue;
    }
    const std::size_t start = i;
    visit(Kind::quotes, i, quote);
    for (++i; i < text.size() && text[i] != quote; ++i) {
      // Between double quotes a backslash is special only before these (POSIX.1-2017 XCU 2.2.3).
      const bool escape = quote == '"' && text[i] == '\\' && i + 1 < text.size() &&
                          std::string_view("$`\"\\\n").find(text[i + 1]) != std::string_view::npos;
      if (escape) ++i;
      if (!escape || text[i] != '\n') visit(Kind::quoted, i, text[i]);
    }
    if (i >= text.size()) return bad_quoting(text, start, std::string("no end of the quote ") + quote);
  }
  return std::nullopt;
}

}  // namespace

Result<std::vector<std::string_view>> split_unquoted(std::string_view text, char separator) {
  std::vector<std::string_view> pieces;
  std::size_t start = 0;
  auto error = scan(text, [&](Kind kind, std::size_t position, char c) {
    if (kind != Kind::plain || c != separator) return;
    pieces.push_back(text.substr(start, position - start));
    start = position + 1;
  });
  if (error) return fail(std::move(*error));
  pieces.push_back(text.substr(start));
  return pieces;
}

Result<std::vector<std::string>> split_words(std::string_view text) {
  std::vector<std::string> words;
  bool in_word = false;
  auto error = scan(text, [&](Kind kind, std::size_t, char c) {
    if (kind == Kind::plain && std::string_view(" \t\r\n").find(c) != std::string_view::npos) {
      in_word = false;
      return;
    }
    if (!in_word) words.emplace_back();
    in_word = true;
    if (kind != Kind::quotes) words.back() += c;
  });
  if (error) return fail(std::move(*error));
  return words;
}

std::string quote_word(std::string_view word) {
  constexpr std::string_view kSafe =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-+=:./@%^[]";
  if (!word.empty() && word.find_first_not_of(kSafe) == std::string_view::npos) return std::string(word);
  std::string text = "'";
  for (const char c : word) {
    if (c == '\'')
      text += "'\\''";
    else
      text += c;
  }
  return text + "'";
}

}  // namespace sockalarm::detail
