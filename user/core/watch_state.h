// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/event.h>

#include <atomic>
#include <cstdint>

#include "sockalarm_abi.h"

namespace sockalarm::detail {

// One socket's shared words, whoever reports: in the kernel's table for the kernel source, on the heap for
// the others. sockalarm_abi.h says who writes which word and why that is enough.
using WatchState = ::sockalarm_watch_state;

static_assert(events::fin.bits() == SOCKALARM_FIN && events::reset.bits() == SOCKALARM_RESET &&
              events::timeout.bits() == SOCKALARM_TIMEOUT && events::error.bits() == SOCKALARM_ERROR &&
              events::eof.bits() == SOCKALARM_EOF && events::closed.bits() == SOCKALARM_CLOSED);

// The control word taken apart.
struct Control {
  enum class State : std::uint8_t {
    idle = SOCKALARM_IDLE,
    armed = SOCKALARM_ARMED,
    fired = SOCKALARM_FIRED,            // won by the library: the dispatcher runs the whole chain
    delivering = SOCKALARM_DELIVERING,  // won in the arming thread, where the signal is being sent
    delivered = SOCKALARM_DELIVERED     // and has been sent: the dispatcher runs the rest
  };

  std::uint32_t generation = 0;
  Events interest;
  State state = State::idle;

  // Went off in this generation, whoever won it.
  constexpr bool has_fired() const noexcept { return state >= State::fired; }

  static constexpr Control unpack(std::uint64_t word) noexcept {
    return {static_cast<std::uint32_t>(word >> 32),
            Events(static_cast<std::uint32_t>(word >> SOCKALARM_INTEREST_SHIFT) & SOCKALARM_INTEREST_MASK),
            static_cast<State>(word & SOCKALARM_STATE_MASK)};
  }
  constexpr std::uint64_t pack() const noexcept {
    return std::uint64_t{generation} << 32 | std::uint64_t{interest.bits()} << SOCKALARM_INTEREST_SHIFT |
           static_cast<std::uint64_t>(state);
  }
};

inline std::atomic_ref<std::uint64_t> shared(std::uint64_t& word) noexcept {
  return std::atomic_ref<std::uint64_t>(word);
}
inline std::atomic_ref<std::uint32_t> shared(std::uint32_t& word) noexcept {
  return std::atomic_ref<std::uint32_t>(word);
}

inline Events seen(WatchState& state) noexcept {
  return Events(static_cast<std::uint32_t>(shared(state.seen).load())) & events::all;
}

inline std::uint64_t to_ns(std::chrono::steady_clock::time_point at) noexcept {
  return static_cast<std::uint64_t>(at.time_since_epoch() / std::chrono::nanoseconds(1));
}
inline std::chrono::steady_clock::time_point from_ns(std::uint64_t ns) noexcept {
  return std::chrono::steady_clock::time_point(
      std::chrono::duration_cast<std::chrono::steady_clock::duration>(std::chrono::nanoseconds(ns)));
}

// When the first of `what` happened; the epoch if the state does not say.
inline std::chrono::steady_clock::time_point seen_at(WatchState& state, Events what) noexcept {
  const std::uint64_t fin = (what & events::fin) ? shared(state.fin_at).load() : 0;
  const std::uint64_t end = (what & (events::shut - events::fin)) ? shared(state.end_at).load() : 0;
  return from_ns(fin != 0 && (end == 0 || fin < end) ? fin : end);
}

// What the kernel program does, for events that this process found out itself.
inline void mark_seen(WatchState& state, Events what, int error, std::uint64_t at) noexcept {
  std::uint64_t unset = 0;
  if (what & events::fin) shared(state.fin_at).compare_exchange_strong(unset, at);
  unset = 0;
  if (what & (events::shut - events::fin)) {
    if (error != 0) shared(state.error).store(static_cast<std::uint32_t>(error));
    shared(state.end_at).compare_exchange_strong(unset, at);
  }
  shared(state.seen).fetch_or(what.bits());  // our own slot: its generation cannot change while we hold it
}

}  // namespace sockalarm::detail
