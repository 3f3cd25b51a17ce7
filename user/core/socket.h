// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/watcher.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <stop_token>

#include "core/core_mutex.h"
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
  std::shared_ptr<AlarmRecord> spare_owner GUARDED_BY(giving);
  std::atomic<AlarmRecord*> spare{nullptr};
  struct StopState;
  std::unique_ptr<StopState> stop_state GUARDED_BY(making);
  WatchHandle* next GUARDED_BY(core_mutex) = nullptr;  // of the same socket
  const int fd;

 private:
  static inline Mutex giving, making;  // seldom wanted, so one each for all
};

// One registered socket, however many Watches (each with its own descriptor of it) and alarms it has; they
// own it. Its destructor unregisters. Members that say nothing of a mutex never change after registration,
// or are atomic, as are the words of `state`. There may be very many of them, so they are small.
struct Socket : std::enable_shared_from_this<Socket> {
  Socket(Core& owner, std::uint64_t identity, StreamKind stream) noexcept REQUIRES(core_mutex)
      : core(&owner), cookie(identity), kind(stream) {}
  ~Socket();
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;

  Core* const core;  // kept alive as long as it has sockets
  const std::uint64_t cookie;
  WatchState* state = nullptr;  // set by Source::add: in the shared table, or our own
  WatchHandle* watches GUARDED_BY(core_mutex) = nullptr;  // a list
  AlarmRecord* alarms GUARDED_BY(core_mutex) = nullptr;   // a list of every record there is, armed or not
  std::uint32_t slot = 0;                                 // of the shared table; 0: none
  // Through which the source asks; it may be closed by now.
  int registered_fd GUARDED_BY(core_mutex) = -1;
  Events momentary GUARDED_BY(core_mutex);  // what the source was told to report beside the sticky ones
#if SOCKALARM_LINUX                         // Sigio's
  std::atomic<pid_t> sigio_owner{0};        // the thread that the kernel signals
  std::unique_ptr<SigioSaved, SigioSavedDeleter> sigio_saved GUARDED_BY(Sigio::owner_mutex);
#endif
  std::uint16_t eof_backoff_ms GUARDED_BY(core_mutex) = 0;  // 0: not checked on a timer
  const StreamKind kind;
  SourceKind served_by = SourceKind::automatic;  // set by Source::add
  bool owns_state = false;
  bool registered GUARDED_BY(core_mutex) = false;     // the source knows it
  bool reads_watched GUARDED_BY(core_mutex) = false;  // eof is awaited with data pending

  // For a Source without a shared table.
  void make_own_state() {
    state = new WatchState{};
    owns_state = true;
  }
};

}  // namespace sockalarm::detail
