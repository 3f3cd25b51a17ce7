// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/result.h>

#include <string>
#include <string_view>
#include <vector>

namespace sockalarm::detail {

// Quoting as in sh(1): '...', "...", backslash; nothing is expanded and no other character is special.
// The only error is Errc::invalid_text: a quote that does not end, or a backslash with nothing behind it.

// Cuts at each unquoted `separator`. The pieces point into `text` and keep their quotes; there is at least
// one.
Result<std::vector<std::string_view>> split_unquoted(std::string_view text, char separator);

// Words between unquoted white space, their quotes removed. '' is an empty word.
Result<std::vector<std::string>> split_words(std::string_view text);

// The text that split_words() reads as this one word, and that has no unquoted separator.
std::string quote_word(std::string_view word);

}  // namespace sockalarm::detail
