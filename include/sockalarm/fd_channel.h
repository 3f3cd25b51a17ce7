// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/result.h>
#include <sockalarm/unique_fd.h>
#include <sys/types.h>

#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

// Descriptors passed between processes, in order, without blocking, and without losing one when a descriptor
// table is full. docs/fd-channel.md has the frames, the reasons and examples.
namespace sockalarm {

namespace detail {
class ChannelCore;
class ChannelThread;
}  // namespace detail

// What goes over a channel at once: any bytes and any number of descriptors, either may be empty.
struct FdMessage {
  std::vector<std::byte> payload;
  std::vector<UniqueFd> fds;
};

struct FdChannelOptions {
  // Called once, when the channel is over. Null: orderly, the peer closed its end between two messages (or
  // finish() here has sent all). Else why: Errc::malformed_frame, message_too_large, descriptors_lost, or an
  // errno. What was waiting to be received is then dropped without a call, what was not sent is to be had
  // from take_unsent().
  std::function<void(const Error*)> on_end;
  std::size_t max_queued_messages = 1024;  // the send queue's bounds; a single message may exceed the other
  std::size_t max_queued_bytes = 4 << 20;  // two when the queue is empty
  std::size_t max_queued_fds = 1024;
  std::size_t max_message_bytes = 1 << 20;  // from the peer; more ends the channel
  std::size_t max_message_fds = 1024;
  bool own_thread = false;  // it serves itself (all signals blocked there); process() is not to be called
};

// Who is at the other end, as the kernel noted at connect(2) or socketpair(2): not forged, but maybe handed
// on since. The ends of a socketpair carry its creator on both sides, also after fork(2).
struct PeerCredentials {
  uid_t uid;
  gid_t gid;
  pid_t pid = 0;   // 0: not told by this system (getpeereid(3))
  UniqueFd pidfd;  // Linux >= 6.5 (SO_PEERPIDFD): signals and waits for that very process. Else empty,
                   // because pidfd_open(pid) might name a successor
};

// One end. send() and receive() only put into queues and return at once; process() moves what can be moved
// and calls back. Any thread may call, process() by one at a time (a second one returns). Callbacks come from
// process() alone, in order, without a lock, and may call everything, also destroy the channel. What they
// throw leaves process() (and ends the program with own_thread).
// The destructor drops what is queued and waits for a callback that runs on the channel's own thread, unless
// called in it. After fork(2) a channel is inert in the child: use FdChannelFork.
class FdChannel {
 public:
  // A connected AF_UNIX stream socket, for example one that came over a channel. Taken only when it works: on
  // an error it is still the caller's. Its blocking mode does not matter and stays.
  // Errors: not_a_socket, not_a_stream, not_connected, invalid_options, errno (EMFILE).
  [[nodiscard]] static Result<FdChannel> adopt(UniqueFd&& socket, FdChannelOptions options = {});
  // Both ends, here.
  [[nodiscard]] static Result<std::pair<FdChannel, FdChannel>> pair(FdChannelOptions first = {},
                                                                    FdChannelOptions second = {});
  // To an FdListener, maybe in another process. Never waits: EAGAIN means that its backlog is full.
  [[nodiscard]] static Result<FdChannel> connect(const std::string& path, FdChannelOptions options = {});

  FdChannel(FdChannel&&) noexcept;
  FdChannel& operator=(FdChannel&&) noexcept;
  ~FdChannel();

  // Queues a message; its descriptors are closed here when the kernel has taken them, then `sent` is called
  // (the peer may not have received them yet). On an error the message is still the caller's.
  // Errors: queue_full, message_too_large, channel_ended, inert_after_fork.
  Result<void> send(FdMessage&& message, std::function<void()> sent = {});
  Result<void> send(UniqueFd&& fd, std::function<void()> sent = {});

  // `handler` gets one message: the first it is, among those of several calls. What nobody waits for stays in
  // the kernel, so a peer that sends too much is held back there. Errors: channel_ended, inert_after_fork.
  Result<void> receive(std::function<void(FdMessage)> handler);

  // Nothing more is received; when all is sent the channel ends in order.
  void finish();
  // The socket, to be passed on: everything not yet received is still in it. Only between messages and when
  // nothing is queued to be sent, else EBUSY. The channel is over, without a call of on_end.
  [[nodiscard]] Result<UniqueFd> release();
  // After the end: the messages of which nothing had been sent, oldest first.
  std::vector<FdMessage> take_unsent();

  // For an event loop: when poll_fd() shows poll_events(), or poll_timeout() is over, call process(); ask all
  // three anew before each wait. On Linux the descriptor is an epoll(7) instance: always the same, readable
  // when there is work, also by other threads' calls, and poll_timeout() is none. Elsewhere -1 means:
  // nothing.
  int poll_fd() const noexcept;
  short poll_events() const noexcept;
  std::optional<std::chrono::milliseconds> poll_timeout() const noexcept;
  // Never blocks, and does a bounded amount of work. False: the channel is over.
  bool process();

  bool ended() const noexcept;
  std::size_t queued() const noexcept;  // messages not yet sent
  // A message is there, and the descriptor table has no room for it. It is tried again and again.
  bool waiting_for_room() const noexcept;

  // Errors: channel_ended, errno.
  [[nodiscard]] Result<PeerCredentials> peer() const;

 private:
  friend class FdListener;
  FdChannel(std::shared_ptr<detail::ChannelCore> core,
            std::shared_ptr<detail::ChannelThread> thread) noexcept;
  void stop() noexcept;
  std::shared_ptr<detail::ChannelCore> core_;  // null: moved from
  std::shared_ptr<detail::ChannelThread> thread_;
};

// A channel between a process and its child: made before fork(2), each side then takes its end, and the other
// end is closed there. Only sockets are shared, so threads and event loops do not matter.
class FdChannelFork {
 public:
  [[nodiscard]] static Result<FdChannelFork> create();
  [[nodiscard]] Result<FdChannel> parent(FdChannelOptions options = {});
  [[nodiscard]] Result<FdChannel> child(FdChannelOptions options = {});

 private:
  FdChannelFork(UniqueFd parent, UniqueFd child) : parent_(std::move(parent)), child_(std::move(child)) {}
  UniqueFd parent_, child_;
};

// A place in the file system that others connect to. The file must not exist yet, and is removed by the
// destructor if it is still the same (not in a forked child). Its permissions say who may connect (umask(2)).
class FdListener {
 public:
  [[nodiscard]] static Result<FdListener> listen(const std::string& path, int backlog = 64);
  FdListener(FdListener&&) noexcept;
  FdListener& operator=(FdListener&&) noexcept;
  ~FdListener();

  // Empty: nobody is there. Errors: errno; EMFILE loses nothing, the connection stays in the backlog.
  [[nodiscard]] Result<std::optional<FdChannel>> accept(FdChannelOptions options = {});
  int fd() const noexcept { return fd_.get(); }  // readable when somebody is there

 private:
  FdListener() = default;
  void remove() noexcept;
  UniqueFd fd_;
  std::string path_;
  dev_t device_ = 0;
  ino_t inode_ = 0;
  pid_t pid_ = 0;
};

}  // namespace sockalarm
