// SPDX-License-Identifier: Apache-2.0
#include "ipc/frame.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "harness/descriptors.h"

namespace sockalarm::ipc {
namespace {

using Bytes = std::vector<std::byte>;

Bytes frame(FrameHeader header, std::string_view payload = {}) {
  header.length = static_cast<std::uint32_t>(payload.size());
  const auto encoded = encode(header);
  const auto text = test::bytes_of(payload);
  Bytes bytes(kHeaderSize + payload.size());
  std::ranges::copy(text, std::ranges::copy(encoded, bytes.begin()).out);
  return bytes;
}

std::vector<UniqueFd> files(std::size_t count) {
  std::vector<UniqueFd> made;
  while (made.size() < count) made.push_back(test::make_file());
  return made;
}

// Feeds all bytes in pieces, the descriptors with the first. The messages, or the first error.
Result<std::vector<Message>> decode(FrameDecoder& decoder, Bytes bytes, std::vector<UniqueFd> fds = {},
                                    std::size_t piece = 1000) {
  std::vector<Message> messages;
  for (std::size_t at = 0; at < bytes.size();) {
    const std::size_t size = std::min({piece, decoder.wanted_bytes(), bytes.size() - at});
    const auto complete = decoder.feed(std::span(bytes).subspan(at, size), std::exchange(fds, {}));
    if (!complete) return fail(complete.error());
    if (*complete) messages.push_back(decoder.take());
    at += size;
  }
  return messages;
}

constexpr FrameDecoder::Limits kLimits{.bytes = 100, .fds = 300};

TEST(FrameTest, HeadersComeBackAsTheyWere) {
  for (const FrameHeader header : {FrameHeader{0, 0, false}, {1, 253, true}, {0xfedcba98, 1, false}}) {
    const auto parsed = parse_header(encode(header)).value();
    EXPECT_EQ(parsed.length, header.length);
    EXPECT_EQ(parsed.fds, header.fds);
    EXPECT_EQ(parsed.more, header.more);
  }
}

TEST(FrameTest, TheLayoutIsFixed) {
  const auto bytes = encode({.length = 0x01020304, .fds = 0x00fd, .more = true});
  const std::array<unsigned char, 12> expected{'S', 'F', 'D', 1, 1, 0, 0xfd, 0, 4, 3, 2, 1};
  EXPECT_TRUE(std::equal(bytes.begin(), bytes.end(), std::as_bytes(std::span(expected)).begin()));
}

TEST(FrameTest, MessagesInPiecesOfAnySize) {
  for (const std::size_t piece : {1U, 2U, 5U, 13U, 1000U}) {
    FrameDecoder decoder(kLimits);
    Bytes bytes = frame({.fds = 2, .more = true}, "one ");
    for (const auto& next : {frame({}, "two"), frame({}), frame({}, "three")})
      bytes.insert(bytes.end(), next.begin(), next.end());
    const auto messages = decode(decoder, bytes, files(2), piece);
    ASSERT_TRUE(messages) << messages.error().message();
    ASSERT_EQ(messages->size(), 3U);
    EXPECT_EQ((*messages)[0].fds.size(), 2U);
    EXPECT_TRUE(std::ranges::equal((*messages)[0].payload, test::bytes_of("one two")));
    EXPECT_TRUE((*messages)[1].payload.empty());
    EXPECT_TRUE(std::ranges::equal((*messages)[2].payload, test::bytes_of("three")));
    EXPECT_TRUE(decoder.between_messages());
  }
}

TEST(FrameTest, KnowsWhetherItIsAmidAMessage) {
  FrameDecoder decoder(kLimits);
  EXPECT_TRUE(decoder.between_messages());
  ASSERT_TRUE(decode(decoder, frame({.more = true}, "x")));
  EXPECT_FALSE(decoder.between_messages());
  ASSERT_TRUE(decode(decoder, frame({}, "y")));
  EXPECT_TRUE(decoder.between_messages());
  const auto header = encode({});
  ASSERT_TRUE(decoder.feed(std::span(header).first(1), {}));
  EXPECT_FALSE(decoder.between_messages());
}

TEST(FrameTest, MalformedHeadersAreRefused) {
  const auto broken = [](std::size_t at, unsigned char value) {
    Bytes bytes = frame({}, "x");
    bytes[at] = std::byte{value};
    return bytes;
  };
  for (const auto& bytes : {broken(0, 'X'), broken(2, 0), broken(3, 2), broken(4, 2), broken(4, 0x81),
                            broken(5, 1), broken(6, 254), broken(7, 1), frame({.more = true})}) {
    FrameDecoder decoder(kLimits);
    EXPECT_EQ(decode(decoder, bytes).error().code(), Errc::malformed_frame);
  }
}

TEST(FrameTest, DescriptorsMustBeThoseAnnounced) {
  const std::size_t before = test::open_fds();
  for (const std::size_t count : {0U, 1U, 3U, 253U}) {
    FrameDecoder decoder(kLimits);
    EXPECT_EQ(decode(decoder, frame({.fds = 2}), files(count)).error().code(), Errc::malformed_frame);
  }
  EXPECT_EQ(test::open_fds(), before);
}

TEST(FrameTest, DescriptorsAmidThePayloadAreRefused) {
  const std::size_t before = test::open_fds();
  FrameDecoder decoder(kLimits);
  const Bytes bytes = frame({}, "ab");
  ASSERT_TRUE(decoder.feed(std::span(bytes).first(kHeaderSize), {}));
  EXPECT_EQ(decoder.wanted_fds(), 0U);
  EXPECT_EQ(decoder.feed(test::bytes_of("ab"), files(1)).error().code(), Errc::malformed_frame);
  EXPECT_EQ(test::open_fds(), before);
}

TEST(FrameTest, LimitsHoldOverAllFramesOfAMessage) {
  FrameDecoder bytes(kLimits);
  ASSERT_TRUE(decode(bytes, frame({.more = true}, std::string(60, 'x'))));
  EXPECT_EQ(decode(bytes, frame({}, std::string(41, 'x'))).error().code(), Errc::message_too_large);
  FrameDecoder fds(kLimits);
  ASSERT_TRUE(decode(fds, frame({.fds = 253, .more = true}), files(253)));
  EXPECT_EQ(fds.wanted_fds(), 47U);
  EXPECT_EQ(decode(fds, frame({.fds = 48}), files(48)).error().code(), Errc::message_too_large);
}

TEST(FrameTest, AnnouncedSizesTakeNoMemory) {
  FrameDecoder decoder({.bytes = 0xffffffff, .fds = 1});
  ASSERT_TRUE(decoder.feed(encode({.length = 0xffffffff}), {}));
  EXPECT_LE(decoder.wanted_bytes(), 64U * 1024);
}

}  // namespace
}  // namespace sockalarm::ipc
