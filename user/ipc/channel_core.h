// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/fd_channel.h>
#include <sys/types.h>

#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "ipc/frame.h"
#include "ipc/frame_reader.h"
#include "ipc/readiness.h"

namespace sockalarm::detail {

// What a channel is made of besides its socket. Made first, so that a table that is full is known before a
// connection is accepted.
struct ChannelParts {
  ipc::Readiness readiness;
  ipc::FrameReader reader;
  static Result<ChannelParts> create();
};

// The state of a channel. One mutex guards all of it; no callback is called, and no function object of the
// caller destroyed, while it is held. Only process() reads, writes and calls back, and only one thread is in
// it: `processing_`. After fork(2) the child touches nothing: the mutex may have been held.
class ChannelCore {
 public:
  using Clock = ipc::Readiness::Clock;

  ChannelCore(UniqueFd socket, ChannelParts parts, FdChannelOptions options);

  Result<void> send(FdMessage&& message, std::function<void()> sent);
  Result<void> receive(std::function<void(FdMessage)> handler);
  void finish();
  Result<UniqueFd> release();
  void abandon() noexcept;  // the FdChannel is gone: no further callback begins
  std::vector<FdMessage> take_unsent();

  int poll_fd() const noexcept;
  short poll_events() const noexcept;
  std::optional<std::chrono::milliseconds> poll_timeout() const noexcept;
  bool process();

  bool ended() const noexcept { return over_.load(std::memory_order_acquire); }
  std::size_t queued() const noexcept;
  bool waiting_for_room() const noexcept;
  Result<PeerCredentials> peer() const;
  bool foreign() const noexcept;  // inherited by fork(2)

  // Called, with the mutex held, when a wait that has begun must begin anew. Set before any thread runs.
  std::function<void()> on_wish_changed;

 private:
  struct Outgoing {
    FdMessage message;
    std::function<void()> sent;
    std::size_t bytes = 0, fds = 0;  // as counted in the queue
    std::size_t fds_sent = 0;        // with the frames before this one
    std::size_t offset = 0;          // of the frame, header included
    bool untouched() const noexcept { return fds_sent == 0 && offset == 0; }
  };
  struct Delivery {
    std::function<void(FdMessage)> handler;
    FdMessage message;
  };
  // A cause to wait before the next attempt, longer each time.
  struct Backoff {
    std::optional<Clock::time_point> until;
    std::chrono::milliseconds delay{0};
    bool waiting(Clock::time_point now) const noexcept { return until && now < *until; }
    void longer(Clock::time_point now) noexcept;
    void over() noexcept { *this = {}; }
  };
  class Turn;

  bool take_turn(Turn& turn);
  std::optional<std::function<void()>> send_one();
  Result<std::size_t> send_some(Outgoing& first) REQUIRES(mutex_);
  std::optional<Delivery> receive_one();
  void look_for_end();
  void settle();
  void update_wish() noexcept REQUIRES(mutex_);
  Error over_error() const;

  const pid_t pid_;
  mutable Mutex mutex_;
  FdChannelOptions options_ GUARDED_BY(mutex_);  // on_end is moved out by the end
  UniqueFd socket_ GUARDED_BY(mutex_);
  ipc::Readiness readiness_ GUARDED_BY(mutex_);
  ipc::FrameReader reader_ GUARDED_BY(mutex_);
  ipc::FrameDecoder decoder_ GUARDED_BY(mutex_);
  std::deque<Outgoing> outgoing_ GUARDED_BY(mutex_);
  std::size_t queued_bytes_ GUARDED_BY(mutex_) = 0, queued_fds_ GUARDED_BY(mutex_) = 0;
  std::deque<std::function<void(FdMessage)>> receivers_ GUARDED_BY(mutex_);
  Backoff sending_ GUARDED_BY(mutex_), receiving_ GUARDED_BY(mutex_);
  bool processing_ GUARDED_BY(mutex_) = false;
  bool finishing_ GUARDED_BY(mutex_) = false;
  bool peer_ended_ GUARDED_BY(mutex_) = false;  // nothing more will come
  // The peer has hung up, and left messages that nobody waits for.
  bool unwanted_hangup_ GUARDED_BY(mutex_) = false;
  std::optional<Error> send_error_ GUARDED_BY(mutex_);  // nothing more can be sent
  std::optional<Error> error_ GUARDED_BY(mutex_);       // the end is decided, and why
  // Written with the mutex held: true from the end on. Read without it.
  std::atomic<bool> over_{false};
  bool abandoned_ GUARDED_BY(mutex_) = false;
};

}  // namespace sockalarm::detail
