// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/watcher.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/sigio.h"
#include "core/socket_look.h"
#include "core/watch_state.h"

namespace sockalarm::detail {

class Core;
struct AlarmRecord;

// One registered socket, however many Watches (each with its own descriptor of it) and alarms it has; they
// own it. Its destructor unregisters. Members are guarded by the Core's mutex but for `state`, whose words
// are atomic, and those that never change after registration.
struct Socket : std::enable_shared_from_this<Socket> {
  Socket(std::shared_ptr<Core> owner, std::uint64_t identity, StreamKind stream) noexcept
      : core(std::move(owner)), cookie(identity), kind(stream) {}
  ~Socket();
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;

  const std::shared_ptr<Core> core;
  const std::uint64_t cookie;
  const StreamKind kind;

  // Set by Source::add.
  SourceKind served_by = SourceKind::automatic;
  WatchState* state = nullptr;
  std::unique_ptr<WatchState> own_state;  // where there is no shared table
  std::uint32_t slot = 0;                 // of the shared table; 0: none
  int registered_fd = -1;                 // which descriptor the source was given; it may be closed by now

  bool registered = false;           // the source knows it
  std::vector<int> fds;              // one per Watch
  std::vector<AlarmRecord*> alarms;  // every record there is, armed or not
  Events momentary;                  // what the source was told to report beside the sticky ones
  bool reads_watched = false;        // eof is awaited with data pending
  std::chrono::milliseconds eof_backoff{0};

#if SOCKALARM_LINUX                   // Sigio's
  std::atomic<pid_t> sigio_owner{0};  // the thread that the kernel signals
  std::unique_ptr<SigioSaved, SigioSavedDeleter> sigio_saved;
#endif
};

}  // namespace sockalarm::detail
