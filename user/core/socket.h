// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/watcher.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <stop_token>

#include "core/sigio.h"
#include "core/socket_look.h"
#include "core/watch_state.h"

namespace sockalarm::detail {

class Core;
struct AlarmRecord;

// What a Watch owns: one of a socket's registrations, with the descriptor it was made through.
struct WatchHandle {
  WatchHandle(std::shared_ptr<Socket> of, int descriptor);
  ~WatchHandle();
  WatchHandle(const WatchHandle&) = delete;
  WatchHandle& operator=(const WatchHandle&) = delete;

  AlarmRecord* take_record();
  std::stop_token stop_token(Events on);

  const std::shared_ptr<Socket> socket;
  // The Watch's first record, used for one Alarm after the other: arming allocates nothing. Made by the first
  // arm(), which stores `spare` last.
  std::shared_ptr<AlarmRecord> spare_owner;
  std::atomic<AlarmRecord*> spare{nullptr};
  struct StopState;
  std::unique_ptr<StopState> stop_state;  // under the Core's mutex for extras
  WatchHandle* next = nullptr;            // of the same socket; under the Core's mutex
  const int fd;
};

// One registered socket, however many Watches (each with its own descriptor of it) and alarms it has; they
// own it. Its destructor unregisters. Members are guarded by the Core's mutex but for `state`, whose words
// are atomic, and those that never change after registration. There may be very many of them, so they are
// small.
struct Socket : std::enable_shared_from_this<Socket> {
  // With the Core's mutex held.
  Socket(Core& owner, std::uint64_t identity, StreamKind stream) noexcept
      : core(&owner), cookie(identity), kind(stream) {}
  ~Socket();
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;

  Core* const core;  // kept alive as long as it has sockets
  const std::uint64_t cookie;
  WatchState* state = nullptr;        // set by Source::add: in the shared table, or our own
  WatchHandle* watches = nullptr;     // a list
  AlarmRecord* alarms = nullptr;      // a list of every record there is, armed or not
  std::uint32_t slot = 0;             // of the shared table; 0: none
  int registered_fd = -1;             // through which the source asks; it may be closed by now
  Events momentary;                   // what the source was told to report beside the sticky ones
#if SOCKALARM_LINUX                   // Sigio's
  std::atomic<pid_t> sigio_owner{0};  // the thread that the kernel signals
  std::unique_ptr<SigioSaved, SigioSavedDeleter> sigio_saved;
#endif
  std::uint16_t eof_backoff_ms = 0;  // 0: not checked on a timer
  const StreamKind kind;
  SourceKind served_by = SourceKind::automatic;  // set by Source::add
  bool owns_state = false;
  bool registered = false;     // the source knows it
  bool reads_watched = false;  // eof is awaited with data pending

  // For a Source without a shared table.
  void make_own_state() {
    state = new WatchState{};
    owns_state = true;
  }
};

}  // namespace sockalarm::detail
