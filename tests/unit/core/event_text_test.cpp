// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>
#include <sockalarm/event.h>

namespace sockalarm {
namespace {

TEST(EventText, NamesShutOnlyWhenAllFourAreThere) {
  EXPECT_EQ(to_string(events::none), "none");
  EXPECT_EQ(to_string(events::shut), "shut");
  EXPECT_EQ(to_string(events::shut | events::eof), "shut,eof");
  EXPECT_EQ(to_string(events::fin | events::reset), "fin,reset");
  EXPECT_EQ(to_string(events::shut - events::error), "fin,reset,timeout");
}

TEST(EventText, EveryMaskComesBack) {
  for (std::uint32_t bits = 0; bits <= events::all.bits(); ++bits) {
    const auto parsed = parse_events(to_string(Events(bits)));
    ASSERT_TRUE(parsed) << to_string(Events(bits));
    EXPECT_EQ(parsed->bits(), bits);
  }
}

TEST(EventText, TakesBothSeparatorsAndSpaces) {
  EXPECT_EQ(parse_events(" fin |\treset , eof ").value(), events::fin | events::reset | events::eof);
  EXPECT_EQ(parse_events("shut,fin").value(), events::shut);
  EXPECT_EQ(parse_events("none,fin").value(), events::fin);
}

TEST(EventText, SaysWhichWordIsUnknownAndWhichAreKnown) {
  const auto parsed = parse_events("fin,hangup");
  ASSERT_FALSE(parsed);
  EXPECT_EQ(parsed.error().code(), Errc::invalid_text);
  EXPECT_NE(parsed.error().message().find("'hangup'"), std::string::npos);
  for (const char* known : {"fin", "reset", "timeout", "error", "eof", "readable", "urgent", "closed",
                            "deadline", "shut", "none"})
    EXPECT_NE(parsed.error().message().find(known), std::string::npos) << known;
}

TEST(EventText, RefusesMissingWords) {
  for (const char* text : {"", " ", ",", "fin,", ",fin", "fin,,eof", "fin eof", "FIN", "unknown(512)"}) {
    const auto parsed = parse_events(text);
    ASSERT_FALSE(parsed) << text;
    EXPECT_EQ(parsed.error().code(), Errc::invalid_text);
  }
}

}  // namespace
}  // namespace sockalarm
