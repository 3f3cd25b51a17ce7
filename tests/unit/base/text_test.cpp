// SPDX-License-Identifier: Apache-2.0
#include "base/text.h"

#include <gtest/gtest.h>
#include <iconv.h>

namespace sockalarm {
namespace {

TEST(Escaped, LeavesWhatIsPrintable) {
  for (const char* text :
       {"", "/tmp/a b", "~", "/home/jürgen", "‰", "日本", "🙂", "\xc2\xa0", "\xf4\x8f\xbf\xbd"})
    EXPECT_EQ(escaped(text), text);
}

TEST(Escaped, ControlsAndBackslashes) {
  EXPECT_EQ(escaped("a\nb\x1b[2Jc\x7f"), "a\\x0ab\\x1b[2Jc\\x7f");
  EXPECT_EQ(escaped(std::string_view("\0", 1)), "\\x00");
  EXPECT_EQ(escaped("\\x0a"), "\\x5cx0a");
  EXPECT_EQ(escaped("\xc2\x9b"), "\\xc2\\x9b");           // CSI of ISO 6429
  EXPECT_EQ(escaped("\xe2\x80\xae"), "\\xe2\\x80\\xae");  // RIGHT-TO-LEFT OVERRIDE
}

TEST(Escaped, WhatIsNotUtf8) {
  EXPECT_EQ(escaped("a\xff"), "a\\xff");
  EXPECT_EQ(escaped("\xc3"), "\\xc3");  // cut off
  EXPECT_EQ(escaped("\xe6\x97"), "\\xe6\\x97");
  EXPECT_EQ(escaped("\xc3("), "\\xc3(");
  EXPECT_EQ(escaped("\xc1\x81"), "\\xc1\\x81");  // overlong
  EXPECT_EQ(escaped("\xe0\x81\x81"), "\\xe0\\x81\\x81");
  EXPECT_EQ(escaped("\xf0\x80\x81\x81"), "\\xf0\\x80\\x81\\x81");
  EXPECT_EQ(escaped("\xed\xa0\x80"), "\\xed\\xa0\\x80");           // a surrogate
  EXPECT_EQ(escaped("\xf4\x90\x80\x80"), "\\xf4\\x90\\x80\\x80");  // beyond U+10FFFF
  EXPECT_EQ(escaped("\xbf\xfe"), "\\xbf\\xfe");
}

TEST(OnOneLine, LeavesBackslashesAlone) {
  EXPECT_EQ(on_one_line("a\\x2db\n\xff\u00fc"), "a\\x2db\\x0a\\xff\u00fc");
  EXPECT_EQ(on_one_line(on_one_line("\x1b\\")), "\\x1b\\");
}

// Of any three bytes it makes one line of UTF-8, as another reader of UTF-8 sees it.
TEST(Escaped, AnyBytes) {
  const iconv_t reader = ::iconv_open("UTF-32LE", "UTF-8");
  ASSERT_NE(reader, iconv_t(-1));
  for (unsigned bytes = 0; bytes < 1U << 24; bytes += 13) {
    const char raw[] = {static_cast<char>(bytes >> 16), static_cast<char>(bytes >> 8),
                        static_cast<char>(bytes)};
    std::string text = escaped(std::string_view(raw, sizeof raw));
    for (const char c : text) ASSERT_GE(static_cast<unsigned char>(c), 0x20) << bytes;
    char characters[64];
    char *in = text.data(), *out = characters;
    std::size_t in_left = text.size(), out_left = sizeof characters;
    ASSERT_EQ(::iconv(reader, &in, &in_left, &out, &out_left), 0U) << bytes;
    ASSERT_EQ(in_left, 0U) << bytes;
  }
  ::iconv_close(reader);
}

}  // namespace
}  // namespace sockalarm
