// SPDX-License-Identifier: Apache-2.0
#include "core/ring_reader.h"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

namespace sockalarm::detail {
namespace {

// A ring as the kernel lays it out, in plain memory: what lies behind the data is the data again.
class FakeRing {
 public:
  static constexpr std::size_t kPage = 4096, kSize = 4096;

  RingReader reader() {
    return {&consumer_, reinterpret_cast<const std::uint64_t*>(memory_.data()), kPage, kSize};
  }

  // Writes 4 bytes to a place in the data and its mirror.
  void write_header(std::uint64_t position, std::uint32_t word) { write(position, &word, sizeof word); }
  void write(std::uint64_t position, const void* bytes, std::size_t length) {
    for (std::size_t i = 0; i < length; ++i) {
      const std::size_t at = (position + i) % kSize;
      memory_[kPage + at] = memory_[kPage + kSize + at] = static_cast<const std::byte*>(bytes)[i];
    }
  }
  std::uint64_t push(std::uint64_t cookie, std::uint32_t flags = 0,
                     std::uint32_t length = sizeof(sockalarm_record)) {
    sockalarm_record record{};
    record.cookie = cookie;
    write_header(produced_, length | flags);
    write(produced_ + 8, &record, std::min<std::size_t>(length, sizeof record));
    const auto at = produced_;
    set_producer(produced_ + ((length + 8 + 7) & ~7U));
    return at;
  }
  void set_producer(std::uint64_t position) {
    produced_ = position;
    std::memcpy(memory_.data(), &produced_, sizeof produced_);
  }
  std::uint64_t consumer() const { return consumer_; }
  void start_at(std::uint64_t position) {
    consumer_ = position;
    set_producer(position);
  }
  std::uint64_t producer() const { return produced_; }

 private:
  std::uint64_t consumer_ = 0, produced_ = 0;
  alignas(8) std::vector<std::byte> memory_ = std::vector<std::byte>(kPage + 2 * kSize);
};

constexpr std::uint32_t kBusy = 1U << 31, kDiscarded = 1U << 30;

std::vector<std::uint64_t> drain(RingReader& reader) {
  std::vector<sockalarm_record> records;
  reader.drain(records);
  std::vector<std::uint64_t> cookies;
  for (const auto& record : records) cookies.push_back(record.cookie);
  return cookies;
}

TEST(RingReaderTest, RecordsInOrderAndTheirRoomIsFreed) {
  FakeRing ring;
  RingReader reader = ring.reader();
  EXPECT_TRUE(drain(reader).empty());
  for (std::uint64_t i = 1; i <= 3; ++i) ring.push(i);
  EXPECT_EQ(drain(reader), (std::vector<std::uint64_t>{1, 2, 3}));
  EXPECT_EQ(ring.consumer(), ring.producer());
  EXPECT_TRUE(drain(reader).empty());
}

TEST(RingReaderTest, AcrossTheEndOfTheData) {
  FakeRing ring;
  ring.start_at(FakeRing::kSize * 5 - 16);
  RingReader reader = ring.reader();
  ring.push(7);
  ring.push(8);
  EXPECT_EQ(drain(reader), (std::vector<std::uint64_t>{7, 8}));
}

TEST(RingReaderTest, StopsAtARecordThatIsStillBeingWritten) {
  FakeRing ring;
  RingReader reader = ring.reader();
  ring.push(1);
  const auto busy = ring.push(2, kBusy);
  ring.push(3);
  EXPECT_EQ(drain(reader), std::vector<std::uint64_t>{1});
  ring.write_header(busy, sizeof(sockalarm_record));
  EXPECT_EQ(drain(reader), (std::vector<std::uint64_t>{2, 3}));
}

TEST(RingReaderTest, SkipsDiscardedRecordsAndCountsForeignOnes) {
  FakeRing ring;
  RingReader reader = ring.reader();
  ring.push(1, kDiscarded);
  ring.push(2, 0, 16);
  ring.push(3, 0, sizeof(sockalarm_record) + 8);
  ring.push(4);
  EXPECT_EQ(drain(reader), std::vector<std::uint64_t>{4});
  EXPECT_EQ(reader.bad(), 2U);
}

TEST(RingReaderTest, NeverReadsBeyondWhatWasProduced) {
  FakeRing ring;
  RingReader reader = ring.reader();
  ring.push(1);
  const auto lying = ring.push(2);
  ring.write_header(lying, 0x3fffffff);
  EXPECT_EQ(drain(reader), std::vector<std::uint64_t>{1});
  EXPECT_EQ(reader.bad(), 1U);
  EXPECT_EQ(ring.consumer(), ring.producer());
  ring.push(3);
  EXPECT_EQ(drain(reader), std::vector<std::uint64_t>{3});
  ring.set_producer(ring.consumer() + 3 * FakeRing::kSize);  // more than fits
  EXPECT_TRUE(drain(reader).empty());
}

}  // namespace
}  // namespace sockalarm::detail
