// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/result.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

// What stands in the files of a spool, in the byte order of the host: they do not travel.
namespace sockalarm::observe::spool_format {

// Castagnoli's polynomial (RFC 3720, B.4), bitwise reflected.
inline std::uint32_t crc32c(std::string_view bytes, std::uint32_t crc = 0) noexcept {
  static constexpr auto kTable = [] {
    std::array<std::uint32_t, 256> table{};
    for (std::uint32_t byte = 0; byte < table.size(); ++byte) {
      std::uint32_t value = byte;
      for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ ((value & 1) != 0 ? 0x82f63b78U : 0U);
      table[byte] = value;
    }
    return table;
  }();
  crc = ~crc;
  for (const char byte : bytes) crc = (crc >> 8) ^ kTable[(crc ^ static_cast<unsigned char>(byte)) & 0xffU];
  return ~crc;
}

template <class T>
std::string_view bytes_of(const T& value) noexcept {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}

// Of a segment. `boot` and `created_since_boot` say its age in the same boot whatever the clock was set to.
struct Header {
  std::array<char, 8> magic{'s', 'k', 'a', 's', 'p', 'o', 'l', '1'};
  std::uint64_t first = 0;
  std::int64_t created = 0, created_since_boot = 0;  // nanoseconds of CLOCK_REALTIME and CLOCK_BOOTTIME
  std::array<char, 36> boot{};                       // as in /proc/sys/kernel/random/boot_id
  std::uint32_t crc = 0;                             // of all before

  std::uint32_t right_crc() const noexcept {
    return crc32c(bytes_of(*this).substr(0, offsetof(Header, crc)));
  }
  bool valid() const noexcept { return magic == Header{}.magic && crc == right_crc(); }
};
static_assert(sizeof(Header) == 72);

// Before the bytes of a record. Its number goes into the CRC, so that no record passes for another.
struct Frame {
  std::uint32_t length = 0, crc = 0;
};
inline std::uint32_t frame_crc(std::uint64_t number, std::string_view bytes) noexcept {
  const auto length = static_cast<std::uint32_t>(bytes.size());
  return crc32c(bytes, crc32c(bytes_of(length), crc32c(bytes_of(number))));
}

// All of the file `acknowledged`.
struct Acknowledged {
  std::uint64_t number = 0;
  std::uint32_t crc = 0, zero = 0;
};

inline constexpr std::uint64_t kLongestSegment = 16ULL << 20;

// As many bytes as there are; an errno where the disk, or memory, fails.
Result<std::size_t> read_at(int fd, char* into, std::size_t size, std::uint64_t offset);

template <class T>
Result<bool> read_whole(int fd, T& value, std::uint64_t offset) {
  const auto size = read_at(fd, reinterpret_cast<char*>(&value), sizeof value, offset);
  if (!size) return fail(size.error());
  return *size == sizeof value;
}

// The bytes of the record at `offset`, if there is a whole one.
Result<std::optional<std::string>> read_frame(int fd, std::uint64_t offset, std::uint64_t number);

}  // namespace sockalarm::observe::spool_format
