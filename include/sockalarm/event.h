// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/result.h>

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

namespace sockalarm {

// A set of events. A value; any thread.
class Events {
 public:
  constexpr Events() noexcept = default;
  constexpr explicit Events(std::uint32_t bits) noexcept : bits_(bits) {}

  constexpr std::uint32_t bits() const noexcept { return bits_; }
  constexpr bool empty() const noexcept { return bits_ == 0; }
  constexpr explicit operator bool() const noexcept { return bits_ != 0; }
  constexpr bool contains(Events other) const noexcept { return (bits_ & other.bits_) == other.bits_; }

  friend constexpr Events operator|(Events a, Events b) noexcept { return Events(a.bits_ | b.bits_); }
  friend constexpr Events operator&(Events a, Events b) noexcept { return Events(a.bits_ & b.bits_); }
  friend constexpr Events operator-(Events a, Events b) noexcept { return Events(a.bits_ & ~b.bits_); }
  constexpr Events& operator|=(Events other) noexcept { return *this = *this | other; }
  friend constexpr bool operator==(Events, Events) noexcept = default;

 private:
  std::uint32_t bits_ = 0;
};

// What can be known of a socket. The first four are sticky: once seen, they stay true for the socket's life.
namespace events {
inline constexpr Events none{};
inline constexpr Events fin{1U << 0};       // the peer sent FIN: half-close or close. It may still read!
inline constexpr Events reset{1U << 1};     // the peer's RST: it is certainly gone
inline constexpr Events timeout{1U << 2};   // retransmission, keepalive or TCP_USER_TIMEOUT gave up
inline constexpr Events error{1U << 3};     // any other fatal error: unreachable, destroyed by the operator
inline constexpr Events eof{1U << 4};       // FIN, and everything before it was read. Sticky
inline constexpr Events readable{1U << 5};  // a read would not block: data or end of stream
inline constexpr Events urgent{1U << 6};    // TCP urgent data
inline constexpr Events closed{1U << 7};    // this process closed the descriptor, or it became another file
inline constexpr Events deadline{1U << 8};  // the alarm's own time limit passed
inline constexpr Events shut = fin | reset | timeout | error;
inline constexpr Events all{(1U << 9) - 1};
}  // namespace events

// "fin,reset"; "shut" for all four of it; "none".
std::string to_string(Events events);

// Names separated by commas or '|': fin reset timeout error eof readable urgent closed deadline shut none.
// Errc::invalid_text names the unknown word and the known ones.
[[nodiscard]] Result<Events> parse_events(std::string_view text);

// What set an alarm off.
struct Event {
  Events what;                               // the wanted events that had happened when the alarm fired
  int error = 0;                             // errno of a reset, timeout or error, if known; else 0
  std::chrono::steady_clock::time_point at;  // when it happened, by the kernel's clock where that is known
  std::uint64_t cookie = 0;                  // the socket (Linux: SO_COOKIE)
};

}  // namespace sockalarm
