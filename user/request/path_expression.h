// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <re2/re2.h>

namespace sockalarm::detail {

// Paths come from clients and are bytes: with UTF-8, '.' would match neither a stray byte nor a newline, and
// who puts one into a path would get out of its limit.
inline re2::RE2::Options path_options() {
  re2::RE2::Options options(re2::RE2::Quiet);
  options.set_encoding(re2::RE2::Options::EncodingLatin1);
  options.set_dot_nl(true);
  return options;
}

}  // namespace sockalarm::detail
