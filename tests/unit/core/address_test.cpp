// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sockalarm/address.h>
#include <sys/un.h>

#include <cstddef>
#include <cstring>
#include <random>

namespace sockalarm {
namespace {

SocketAddress unix_address(std::string_view bytes, std::size_t extra = 0) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, bytes.data(), std::min(bytes.size(), sizeof address.sun_path));
  return {reinterpret_cast<const sockaddr*>(&address),
          static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + bytes.size() + extra)};
}

void expect_round_trip(const SocketAddress& address) {
  const auto again = SocketAddress::parse(to_string(address));
  ASSERT_TRUE(again) << to_string(address) << ": " << again.error().message();
  EXPECT_TRUE(*again == address) << to_string(address);
  EXPECT_EQ(to_string(*again), to_string(address));
}

TEST(Address, ReadsAndWritesTheForms) {
  for (const char* text :
       {"127.0.0.1:3306", "0.0.0.0:0", "255.255.255.255:65535", "[::1]:80", "[::]:0", "[2001:db8::5]:443",
        "unix:/run/db.sock", "unix:relative", "unix:", "unix:/a b,c;d'e\"f"}) {
    const auto address = SocketAddress::parse(text);
    ASSERT_TRUE(address) << address.error().message();
    EXPECT_EQ(to_string(*address), text);
    expect_round_trip(*address);
  }
}

TEST(Address, MappedV4IsTheSamePeer) {
  const auto v4 = SocketAddress::parse("10.1.2.3:80").value();
  const auto mapped = SocketAddress::parse("[::ffff:10.1.2.3]:80").value();
  EXPECT_EQ(mapped.family(), AF_INET6);
  EXPECT_TRUE(v4 == mapped);
  EXPECT_TRUE(mapped == v4);
  EXPECT_EQ(to_string(v4), to_string(mapped));
  EXPECT_FALSE(v4 == SocketAddress::parse("10.1.2.3:81").value());
  EXPECT_FALSE(v4 == SocketAddress::parse("10.1.2.4:80").value());
  EXPECT_FALSE(v4 == SocketAddress::parse("[::10.1.2.3]:80").value());
}

TEST(Address, ScopeCountsForLinkLocalOnly) {
  const unsigned lo = ::if_nametoindex("lo");
  if (lo == 0) GTEST_SKIP() << "no interface lo";
  const auto named = SocketAddress::parse("[fe80::1%lo]:80").value();
  EXPECT_TRUE(named == SocketAddress::parse("[fe80::1%" + std::to_string(lo) + "]:80").value());
  EXPECT_EQ(to_string(named), "[fe80::1%lo]:80");
  EXPECT_FALSE(named == SocketAddress::parse("[fe80::1]:80").value());
  EXPECT_TRUE(SocketAddress::parse("[::1%lo]:80").value() == SocketAddress::parse("[::1]:80").value());
  const auto nameless = SocketAddress::parse("[fe80::1%4294967295]:80").value();
  EXPECT_EQ(to_string(nameless), "[fe80::1%4294967295]:80");
  expect_round_trip(named);
  expect_round_trip(nameless);
}

TEST(Address, RefusesWhatIsNotOne) {
  const std::string long_path = "unix:/" + std::string(sizeof(sockaddr_un::sun_path), 'x');
  for (const std::string& text : {std::string(""),
                                  std::string("127.0.0.1"),
                                  std::string("127.0.0.1:"),
                                  std::string("127.0.0.1:x"),
                                  std::string("127.0.0.1:65536"),
                                  std::string("127.0.0.1:-1"),
                                  std::string("127.0.0.1:+1"),
                                  std::string("127.0.0.1: 1"),
                                  std::string("127.0.0.1:99999999999999999999"),
                                  std::string("127.1:80"),
                                  std::string("256.0.0.1:80"),
                                  std::string("localhost:80"),
                                  std::string(":80"),
                                  std::string("::1:80"),
                                  std::string("[::1]"),
                                  std::string("[::1]80"),
                                  std::string("[::1:80"),
                                  std::string("[]:80"),
                                  std::string("[127.0.0.1]:80"),
                                  std::string("[fe80::1%]:80"),
                                  std::string("[fe80::1%0]:80"),
                                  std::string("[fe80::1%4294967296]:80"),
                                  std::string("[fe80::1%no-such-if]:80"),
                                  std::string("127.0.0.1\0:80", 13),
                                  std::string("127.0.0.1\0x:80", 14),
                                  std::string("[::1\0]:80", 9),
                                  long_path,
                                  std::string("unix:a\0b", 8),
                                  std::string("unix:\\x00"),
                                  std::string("unix:\\"),
                                  std::string("unix:\\x4"),
                                  std::string("unix:\\xzz"),
                                  std::string("unix:\\n")}) {
    const auto address = SocketAddress::parse(text);
    ASSERT_FALSE(address) << text;
    EXPECT_EQ(address.error().code(), Errc::invalid_text);
    EXPECT_NE(address.error().message().find("expected"), std::string::npos);
  }
}

TEST(Address, NamesOfAnyBytesAreOneLineAndComeBack) {
  for (const std::string path :
       {"/tmp/\n7: tcp", "/tmp/\x1b[2J", "/tmp/\xff\xc3", "/tmp/\xc2\x9b", "/tmp/\\"}) {
    const std::string text = to_string(unix_address(path));
    EXPECT_EQ(text.find_first_of("\n\x1b\xff\xc3\x9b"), std::string::npos) << text;
    EXPECT_TRUE(SocketAddress::parse(text).value() == unix_address(path)) << text;
  }
}

TEST(Address, UnixPathEndsAtItsNul) {
  EXPECT_TRUE(unix_address("/run/x") == unix_address("/run/x", 1));
  EXPECT_TRUE(unix_address("/run/x") == unix_address("/run/x", 20));
  const std::string longest(sizeof(sockaddr_un::sun_path), 'p');  // no room for a NUL
  EXPECT_EQ(to_string(unix_address(longest)), "unix:" + longest);
  expect_round_trip(unix_address(longest));
}

TEST(Address, OddBytesSurvive) {
  for (const std::string_view name :
       {std::string_view("@path"), std::string_view("a\\b\nc\x7f"), std::string_view("\xc3\xa9")})
    expect_round_trip(unix_address(name));
}

#if SOCKALARM_LINUX
TEST(Address, AbstractNamesCountEveryByte) {
  const auto plain = unix_address(std::string_view("\0name", 5));
  const auto padded = unix_address(std::string_view("\0name\0", 6));
  EXPECT_EQ(to_string(plain), "unix:@name");
  EXPECT_EQ(to_string(padded), "unix:@name\\x00");
  EXPECT_FALSE(plain == padded);
  EXPECT_FALSE(plain == unix_address("@name"));
  EXPECT_FALSE(plain == unix_address(""));
  for (const auto& address :
       {plain, padded, unix_address(std::string_view("\0\0\0", 3)), unix_address(std::string_view("\0", 1))})
    expect_round_trip(address);
}
#else
TEST(Address, AbstractNamesNeedLinux) {
  EXPECT_EQ(SocketAddress::parse("unix:@x").error().code(), Errc::unsupported);
}
#endif

TEST(Address, OtherFamiliesAndCutOnesEqualNothing) {
  sockaddr_storage other{};
  other.ss_family = AF_UNSPEC;
  const auto* const generic = reinterpret_cast<const sockaddr*>(&other);
  const SocketAddress unspecified(generic, sizeof other);
  EXPECT_FALSE(unspecified == unspecified);
  other.ss_family = AF_INET;
  const SocketAddress cut(generic, 4);
  EXPECT_FALSE(cut == cut);
  const SocketAddress nothing(nullptr, 16), tiny(generic, 1), huge(generic, 4096);
  EXPECT_EQ(nothing.size(), 0U);
  EXPECT_EQ(tiny.size(), 0U);
  EXPECT_EQ(huge.size(), sizeof(sockaddr_storage));
  for (const auto& address : {unspecified, cut, nothing, tiny})
    EXPECT_FALSE(SocketAddress::parse(to_string(address)));
}

TEST(Address, AnyBytesAreHandled) {
  std::minstd_rand random(1);
  const auto byte = [&random] { return static_cast<unsigned char>(random() >> 8); };
  for (int round = 0; round < 20'000; ++round) {
    sockaddr_storage storage;
    for (std::size_t i = 0; i < sizeof storage; ++i) reinterpret_cast<unsigned char*>(&storage)[i] = byte();
    constexpr sa_family_t kFamilies[] = {AF_INET, AF_INET6, AF_UNIX, 77};
    storage.ss_family = kFamilies[byte() % 4];
    const SocketAddress address(reinterpret_cast<const sockaddr*>(&storage), byte());
    if (address == address) expect_round_trip(address);
    std::string text = to_string(address);
    if (!text.empty()) text[random() % text.size()] = static_cast<char>(byte());
    if (const auto parsed = SocketAddress::parse(text)) expect_round_trip(*parsed);
  }
}

}  // namespace
}  // namespace sockalarm
