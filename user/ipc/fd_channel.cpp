// SPDX-License-Identifier: Apache-2.0
#include <sockalarm/fd_channel.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "ipc/channel_core.h"
#include "ipc/channel_thread.h"
#include "ipc/unix_socket.h"

namespace sockalarm {
namespace {

using detail::ChannelCore;
using detail::ChannelParts;
using detail::ChannelThread;

// All that a channel needs but its socket, so that nothing can fail any more when there is one.
struct Prepared {
  ChannelParts parts;
  std::shared_ptr<ChannelThread> thread;
};

Result<Prepared> prepare(const FdChannelOptions& options) {
  if (options.max_queued_messages == 0 || options.max_message_bytes > UINT32_MAX)
    return fail(
        Error(Errc::invalid_options,
              "a channel's max_queued_messages must be 1 or more, its max_message_bytes below 4 GiB"));
  auto parts = ChannelParts::create();
  if (!parts) return fail(parts.error());
  Prepared prepared{std::move(*parts), nullptr};
  if (options.own_thread) {
    auto thread = ChannelThread::create();
    if (!thread) return fail(thread.error());
    prepared.thread = std::move(*thread);
  }
  return prepared;
}

struct Made {
  std::shared_ptr<ChannelCore> core;
  std::shared_ptr<ChannelThread> thread;
};

// Takes the socket only when it works.
Result<Made> make(Prepared prepared, UniqueFd& socket, FdChannelOptions options) {
  ipc::make_plain(socket.get());
  auto core = std::make_shared<ChannelCore>(std::move(socket), std::move(prepared.parts), std::move(options));
  if (prepared.thread) {
    core->on_wish_changed = [thread = prepared.thread.get()] { thread->wake(); };
    if (const auto started = prepared.thread->start(core); !started) {
      socket = core->release().value_or(UniqueFd());
      return fail(started.error());
    }
  }
  return Made{std::move(core), std::move(prepared.thread)};
}

}  // namespace

FdChannel::FdChannel(std::shared_ptr<ChannelCore> core, std::shared_ptr<ChannelThread> thread) noexcept
    : core_(std::move(core)), thread_(std::move(thread)) {}
FdChannel::FdChannel(FdChannel&&) noexcept = default;
FdChannel& FdChannel::operator=(FdChannel&& other) noexcept {
  if (this == &other) return *this;
  stop();
  core_ = std::move(other.core_);
  thread_ = std::move(other.thread_);
  return *this;
}
FdChannel::~FdChannel() { stop(); }

void FdChannel::stop() noexcept {
  if (!core_) return;
  core_->abandon();
  if (thread_) thread_->stop(core_->foreign());
  thread_.reset();
  core_.reset();
}

Result<FdChannel> FdChannel::adopt(UniqueFd&& socket, FdChannelOptions options) {
  if (const auto checked = ipc::check_connected(socket.get()); !checked) return fail(checked.error());
  auto prepared = prepare(options);
  if (!prepared) return fail(prepared.error().with_context("making a channel"));
  auto made = make(std::move(*prepared), socket, std::move(options));
  if (!made) return fail(made.error());
  return FdChannel(std::move(made->core), std::move(made->thread));
}

Result<std::pair<FdChannel, FdChannel>> FdChannel::pair(FdChannelOptions first, FdChannelOptions second) {
  auto ends = ipc::socket_pair();
  if (!ends) return fail(ends.error());
  auto one = adopt(std::move(ends->first), std::move(first));
  if (!one) return fail(one.error());
  auto other = adopt(std::move(ends->second), std::move(second));
  if (!other) return fail(other.error());
  return std::pair(std::move(*one), std::move(*other));
}

Result<FdChannel> FdChannel::connect(const std::string& path, FdChannelOptions options) {
  auto socket = ipc::connect_to(path);
  if (!socket) return fail(socket.error());
  return adopt(std::move(*socket), std::move(options));
}

Result<void> FdChannel::send(FdMessage&& message, std::function<void()> sent) {
  return core_->send(std::move(message), std::move(sent));
}

Result<void> FdChannel::send(UniqueFd&& fd, std::function<void()> sent) {
  FdMessage message;
  message.fds.push_back(std::move(fd));
  auto queued = core_->send(std::move(message), std::move(sent));
  // A message that was refused has not been moved.
  if (!queued) fd = std::move(message.fds.front());  // NOLINT(bugprone-use-after-move)
  return queued;
}

Result<void> FdChannel::receive(std::function<void(FdMessage)> handler) {
  return core_->receive(std::move(handler));
}

void FdChannel::finish() { core_->finish(); }
Result<UniqueFd> FdChannel::release() { return core_->release(); }
std::vector<FdMessage> FdChannel::take_unsent() { return core_->take_unsent(); }
int FdChannel::poll_fd() const noexcept { return core_->poll_fd(); }
short FdChannel::poll_events() const noexcept { return core_->poll_events(); }
std::optional<std::chrono::milliseconds> FdChannel::poll_timeout() const noexcept {
  return core_->poll_timeout();
}

bool FdChannel::process() {
  const auto core = core_;  // a callback may destroy the channel
  return core->process();
}

bool FdChannel::ended() const noexcept { return core_->ended(); }
std::size_t FdChannel::queued() const noexcept { return core_->queued(); }
bool FdChannel::waiting_for_room() const noexcept { return core_->waiting_for_room(); }
Result<PeerCredentials> FdChannel::peer() const { return core_->peer(); }

Result<FdChannelFork> FdChannelFork::create() {
  auto ends = ipc::socket_pair();
  if (!ends) return fail(ends.error());
  return FdChannelFork(std::move(ends->first), std::move(ends->second));
}

Result<FdChannel> FdChannelFork::parent(FdChannelOptions options) {
  child_.reset();
  return FdChannel::adopt(std::move(parent_), std::move(options));
}

Result<FdChannel> FdChannelFork::child(FdChannelOptions options) {
  parent_.reset();
  return FdChannel::adopt(std::move(child_), std::move(options));
}

Result<FdListener> FdListener::listen(const std::string& path, int backlog) {
  auto fd = ipc::listen_at(path, backlog);
  if (!fd) return fail(fd.error());
  FdListener listener;
  listener.fd_ = std::move(*fd);
  struct stat file{};
  if (::lstat(path.c_str(), &file) == 0) {
    listener.path_ = path;
    listener.device_ = file.st_dev;
    listener.inode_ = file.st_ino;
    listener.pid_ = ::getpid();
  }
  return listener;
}

FdListener::FdListener(FdListener&& other) noexcept
    : fd_(std::move(other.fd_)),
      path_(std::exchange(other.path_, {})),
      device_(other.device_),
      inode_(other.inode_),
      pid_(other.pid_) {}

FdListener& FdListener::operator=(FdListener&& other) noexcept {
  if (this == &other) return *this;
  remove();
  fd_ = std::move(other.fd_);
  path_ = std::exchange(other.path_, {});
  device_ = other.device_;
  inode_ = other.inode_;
  pid_ = other.pid_;
  return *this;
}

FdListener::~FdListener() { remove(); }

void FdListener::remove() noexcept {
  struct stat file{};
  if (!path_.empty() && pid_ == ::getpid() && ::lstat(path_.c_str(), &file) == 0 && file.st_dev == device_ &&
      file.st_ino == inode_)
    ::unlink(path_.c_str());
  path_.clear();
}

Result<std::optional<FdChannel>> FdListener::accept(FdChannelOptions options) {
  auto prepared = prepare(options);  // first: what is accepted must not be lost
  if (!prepared) return fail(prepared.error().with_context("making a channel"));
  auto socket = ipc::accept_from(fd_.get());
  if (!socket) return fail(socket.error());
  if (!*socket) return std::optional<FdChannel>();
  auto made = make(std::move(*prepared), *socket, std::move(options));
  if (!made) return fail(made.error());
  return FdChannel(std::move(made->core), std::move(made->thread));
}

}  // namespace sockalarm
