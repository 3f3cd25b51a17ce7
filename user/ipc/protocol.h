// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>

// What sockalarmd and its clients say to each other; docs/protocol.md explains it. One struct is one frame,
// in the byte order of the host, over a Unix socket of type SOCK_SEQPACKET. Frames with a descriptor carry
// exactly one.
namespace sockalarm::ipc {

inline constexpr std::uint32_t kMagic = 0x4d4c4153;  // "SALM"
inline constexpr std::uint16_t kLeastVersion = 1, kVersion = 1;
inline constexpr const char* kDefaultSocket = "/run/sockalarm/sockalarmd.sock";

enum class Kind : std::uint32_t {
  // from the client
  hello = 1,
  table = 2,  // with HELLO's `resume`: here is mine. With a descriptor
  ring = 3,
  watch = 4,  // with the socket
  unwatch = 5,
  reads = 6,
  status = 7,
  missed = 8,
  // from the daemon
  welcome = 0x81,
  give_table = 0x82,  // with a descriptor
  give_ring = 0x83,
  give_introduction = 0x84,
  reply = 0x85,
  text = 0x86,
  count = 0x87,
};

struct Header {
  Kind kind;
  std::uint32_t id;  // chosen by the client; the answer carries it
};

struct Hello {
  Header header;
  std::uint32_t magic;
  std::uint16_t least_version, version;
  std::uint32_t slots;       // wanted length of the table, slot 0 included; 0: none, for questions only
  std::uint32_t ring_bytes;  // a power of two >= a page
  std::uint32_t resume;      // 1: TABLE and RING follow
  std::uint32_t reserved;
};

struct Welcome {
  Header header;
  std::uint32_t version;
  std::uint32_t abi;  // of table and ring
  std::uint32_t slots, ring_bytes;
  std::uint32_t resumed;    // 1: every registration is as it was; 0 after `resume`: there are none any more
  std::uint32_t task_work;  // 1: GIVE_INTRODUCTION follows
};

struct Watch {
  Header header;
  std::uint64_t cookie;  // that the client takes the socket for
  std::uint32_t slot, generation;
};

struct Unwatch {
  Header header;
  std::uint64_t cookie;
};

struct Reads {
  Header header;
  std::uint32_t on, reserved;
};

struct Reply {
  Header header;
  std::uint32_t error;  // errno; 0: done
  std::uint32_t length;
  std::array<char, 240> message;  // of an error, for people
};

struct Count {
  Header header;
  std::uint64_t value;  // runs of the program that the kernel left out so far
};

struct Text {
  Header header;
  std::uint32_t more;  // 1: another one follows
  std::uint32_t length;
  std::array<char, 4080> part;
};

inline constexpr std::uint32_t kAbi = 1;
inline constexpr std::size_t kLongestRequest = 256;  // room for what later versions may add

static_assert(sizeof(Hello) == 32 && sizeof(Welcome) == 32 && sizeof(Watch) == 24 && sizeof(Unwatch) == 16);
static_assert(sizeof(Reads) == 16 && sizeof(Count) == 16 && sizeof(Reply) == 256 && sizeof(Text) == 4096);

}  // namespace sockalarm::ipc
