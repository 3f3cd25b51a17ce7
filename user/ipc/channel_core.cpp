// SPDX-License-Identifier: Apache-2.0
#include "ipc/channel_core.h"

#include <poll.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <limits>
#include <string>

#include "ipc/scm_rights.h"
#include "ipc/unix_socket.h"

namespace sockalarm::detail {
namespace {

constexpr int kMessagesPerTurn = 64;  // so that a busy peer does not hold up the event loop
constexpr int kReadsPerMessage = 64;  // likewise: one message is read over several turns
constexpr std::chrono::milliseconds kFirstDelay{1}, kLastDelay{50};

}  // namespace

Result<ChannelParts> ChannelParts::create() {
  auto readiness = ipc::Readiness::create();
  if (!readiness) return fail(readiness.error());
  auto reader = ipc::FrameReader::create();
  if (!reader) return fail(reader.error());
  return ChannelParts{std::move(*readiness), std::move(*reader)};
}

void ChannelCore::Backoff::longer(Clock::time_point now) noexcept {
  delay = std::clamp(delay * 2, kFirstDelay, kLastDelay);
  until = now + delay;
}

// The right to be in process(), given back with the wish brought up to date.
class ChannelCore::Turn {
 public:
  Turn() = default;
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;
  ~Turn() {
    if (core == nullptr) return;
    const MutexLock lock(core->mutex_);
    core->processing_ = false;
    core->update_wish();
  }
  ChannelCore* core = nullptr;
};

ChannelCore::ChannelCore(UniqueFd socket, ChannelParts parts, FdChannelOptions options)
    : pid_(::getpid()),
      options_(std::move(options)),
      socket_(std::move(socket)),
      readiness_(std::move(parts.readiness)),
      reader_(std::move(parts.reader)),
      decoder_({options_.max_message_bytes, options_.max_message_fds}) {
  readiness_.attach(socket_.get());
  update_wish();
}

bool ChannelCore::foreign() const noexcept { return ::getpid() != pid_; }

Error ChannelCore::over_error() const {
  if (foreign()) return {Errc::inert_after_fork, "this channel is the parent's; see FdChannelFork"};
  return {Errc::channel_ended, "the channel is over"};
}

Result<void> ChannelCore::send(FdMessage&& message, std::function<void()> sent) {
  if (foreign()) return fail(over_error());
  const std::size_t bytes = message.payload.size(), fds = message.fds.size();
  if (bytes > std::numeric_limits<std::uint32_t>::max())
    return fail(Error(Errc::message_too_large,
                      "a message of " + std::to_string(bytes) + " bytes, less than 4 GiB are possible"));
  const MutexLock lock(mutex_);
  if (ended() || finishing_ || error_ || send_error_) return fail(over_error());
  if (outgoing_.size() >= options_.max_queued_messages ||
      (!outgoing_.empty() &&
       (bytes > options_.max_queued_bytes - std::min(queued_bytes_, options_.max_queued_bytes) ||
        fds > options_.max_queued_fds - std::min(queued_fds_, options_.max_queued_fds))))
    return fail(Error(Errc::queue_full, "the send queue has " + std::to_string(outgoing_.size()) +
                                            " messages, " + std::to_string(queued_bytes_) + " bytes and " +
                                            std::to_string(queued_fds_) + " descriptors"));
  queued_bytes_ += bytes;
  queued_fds_ += fds;
  outgoing_.push_back({.message = std::move(message), .sent = std::move(sent), .bytes = bytes, .fds = fds});
  update_wish();
  return {};
}

Result<void> ChannelCore::receive(std::function<void(FdMessage)> handler) {
  if (foreign()) return fail(over_error());
  const MutexLock lock(mutex_);
  if (ended() || finishing_ || error_) return fail(over_error());
  receivers_.push_back(std::move(handler));
  unwanted_hangup_ = false;
  update_wish();
  return {};
}

void ChannelCore::finish() {
  if (foreign()) return;
  std::deque<std::function<void(FdMessage)>> dropped;
  const MutexLock lock(mutex_);
  if (ended()) return;
  finishing_ = true;
  dropped.swap(receivers_);
  receiving_.over();
  update_wish();
}

Result<UniqueFd> ChannelCore::release() {
  if (foreign()) return fail(over_error());
  std::deque<std::function<void(FdMessage)>> dropped;
  std::function<void(const Error*)> dropped_end;
  const MutexLock lock(mutex_);
  if (ended() || error_) return fail(over_error());
  if (!outgoing_.empty() || !decoder_.between_messages())
    return fail(Error::from_errno(EBUSY, "giving away the socket of a channel amid its messages"));
  dropped.swap(receivers_);
  dropped_end = std::move(options_.on_end);
  over_.store(true, std::memory_order_release);
  abandoned_ = true;
  readiness_.detach();
  return std::move(socket_);
}

void ChannelCore::abandon() noexcept {
  if (foreign()) return;
  std::deque<std::function<void(FdMessage)>> dropped;
  std::deque<Outgoing> unsent;
  std::function<void(const Error*)> dropped_end;
  const MutexLock lock(mutex_);
  abandoned_ = true;
  over_.store(true, std::memory_order_release);
  dropped.swap(receivers_);
  unsent.swap(outgoing_);
  dropped_end = std::move(options_.on_end);
  readiness_.detach();
  socket_.reset();
}

std::vector<FdMessage> ChannelCore::take_unsent() {
  std::vector<FdMessage> unsent;
  if (foreign() || !ended()) return unsent;
  std::deque<Outgoing> all;
  {
    const MutexLock lock(mutex_);
    all.swap(outgoing_);
    queued_bytes_ = queued_fds_ = 0;
  }
  for (Outgoing& outgoing : all)
    if (outgoing.untouched()) unsent.push_back(std::move(outgoing.message));
  return unsent;
}

int ChannelCore::poll_fd() const noexcept {
  if (foreign()) return -1;
  const MutexLock lock(mutex_);
  return readiness_.fd();
}

short ChannelCore::poll_events() const noexcept {
  if (foreign()) return 0;
  const MutexLock lock(mutex_);
  return readiness_.events();
}

std::optional<std::chrono::milliseconds> ChannelCore::poll_timeout() const noexcept {
  if (foreign()) return std::nullopt;
  const MutexLock lock(mutex_);
  const auto at = readiness_.at();
  if (!at) return std::nullopt;
  return std::max(std::chrono::milliseconds(0),
                  std::chrono::ceil<std::chrono::milliseconds>(*at - Clock::now()));
}

std::size_t ChannelCore::queued() const noexcept {
  if (foreign()) return 0;
  const MutexLock lock(mutex_);
  return outgoing_.size();
}

bool ChannelCore::waiting_for_room() const noexcept {
  if (foreign()) return false;
  const MutexLock lock(mutex_);
  return receiving_.until.has_value();
}

Result<PeerCredentials> ChannelCore::peer() const {
  if (foreign()) return fail(over_error());
  const MutexLock lock(mutex_);
  if (!socket_) return fail(over_error());
  return ipc::peer_credentials(socket_.get());
}

bool ChannelCore::take_turn(Turn& turn) {
  const MutexLock lock(mutex_);
  if (ended() || processing_) return false;
  processing_ = true;
  turn.core = this;
  return true;
}

bool ChannelCore::process() {
  if (foreign()) return false;
  {
    Turn turn;
    if (!take_turn(turn)) return !ended();
    bool progress = true;
    for (int n = 0; progress && n < kMessagesPerTurn; ++n) {
      const auto sent = send_one();
      if (sent && *sent) (*sent)();
      auto delivery = receive_one();
      if (delivery && delivery->handler) delivery->handler(std::move(delivery->message));
      progress = sent || delivery;
    }
    look_for_end();
    settle();
  }
  return !ended();
}

// Sends the first message as far as it goes. Its callback, when it has gone whole.
std::optional<std::function<void()>> ChannelCore::send_one() {
  Outgoing done;  // destroyed without the mutex
  const MutexLock lock(mutex_);
  const auto now = Clock::now();
  if (ended() || error_ || send_error_ || outgoing_.empty() || sending_.waiting(now)) return std::nullopt;
  for (Outgoing& first = outgoing_.front();;) {
    const auto left = send_some(first);
    if (!left) {
      if (ipc::would_block(left.error()))
        sending_.over();  // the socket tells when there is room
      else if (ipc::is_temporary(left.error()))
        sending_.longer(now);  // nothing tells
      else
        send_error_ = left.error().with_context("sending to the peer");
      return std::nullopt;
    }
    sending_.over();
    if (*left == 0) break;
  }
  done = std::move(outgoing_.front());
  outgoing_.pop_front();
  queued_bytes_ -= done.bytes;
  queued_fds_ -= done.fds;
  return std::move(done.sent);
}

// One sendmsg(2) of the current frame. Zero: the message has gone whole.
Result<std::size_t> ChannelCore::send_some(Outgoing& first) {
  const std::size_t fds_left = first.fds - first.fds_sent;
  const std::size_t fds = std::min(fds_left, ipc::kFdsPerFrame);
  const bool last = fds == fds_left;
  const std::size_t length = last ? first.bytes : 0;  // the payload goes with the last of the descriptors
  const std::size_t size = ipc::kHeaderSize + length;
  auto header = ipc::encode(
      {.length = static_cast<std::uint32_t>(length), .fds = static_cast<std::uint16_t>(fds), .more = !last});
  std::array<int, ipc::kMaxFdsPerFrame> numbers{};
  if (first.offset == 0)
    std::transform(first.message.fds.begin() + static_cast<std::ptrdiff_t>(first.fds_sent),
                   first.message.fds.begin() + static_cast<std::ptrdiff_t>(first.fds_sent + fds),
                   numbers.begin(), [](const UniqueFd& fd) { return fd.get(); });
  const std::size_t header_done = std::min(first.offset, ipc::kHeaderSize);
  const std::size_t payload_done = first.offset - header_done;
  const std::array parts{
      iovec{header.data() + header_done, ipc::kHeaderSize - header_done},
      iovec{length > 0 ? first.message.payload.data() + payload_done : nullptr, length - payload_done}};
  const auto sent =
      ipc::send_with_fds(socket_.get(), parts, std::span(numbers).first(first.offset == 0 ? fds : 0));
  if (!sent) return fail(sent.error());
  if (first.offset == 0)  // they are the kernel's now
    for (std::size_t i = 0; i < fds; ++i) first.message.fds[first.fds_sent + i].reset();
  first.offset += *sent;
  if (first.offset < size) return size - first.offset;
  if (last) return 0;
  first.offset = 0;
  first.fds_sent += fds;
  return fds_left - fds;
}

std::optional<ChannelCore::Delivery> ChannelCore::receive_one() {
  using Outcome = ipc::FrameReader::Outcome;
  const MutexLock lock(mutex_);
  const auto now = Clock::now();
  if (ended() || error_ || finishing_ || peer_ended_ || receivers_.empty() || receiving_.waiting(now))
    return std::nullopt;
  for (int i = 0; i < kReadsPerMessage; ++i) {
    const auto outcome = reader_.read(socket_.get(), decoder_);
    if (!outcome) {
      error_ = outcome.error();
      return std::nullopt;
    }
    if (*outcome == Outcome::no_room) {
      receiving_.longer(now);
      return std::nullopt;
    }
    if (*outcome != Outcome::nothing) receiving_.over();
    if (*outcome == Outcome::end) peer_ended_ = true;
    if (*outcome == Outcome::end || *outcome == Outcome::nothing) return std::nullopt;
    if (*outcome == Outcome::message) break;
    if (i + 1 == kReadsPerMessage) return std::nullopt;
  }
  ipc::Message message = decoder_.take();
  Delivery delivery{std::move(receivers_.front()), {std::move(message.payload), std::move(message.fds)}};
  receivers_.pop_front();
  return delivery;
}

// Without anybody who waits for messages nothing is read. That the peer has gone is seen all the same.
void ChannelCore::look_for_end() {
  const MutexLock lock(mutex_);
  if (ended() || error_ || peer_ended_ || !receivers_.empty()) return;
  pollfd socket{socket_.get(), 0, 0};
  if (::poll(&socket, 1, 0) <= 0) return;
  const auto outcome = ipc::FrameReader::look(socket_.get(), decoder_);
  if (!outcome)
    error_ = outcome.error();
  else if (*outcome == ipc::FrameReader::Outcome::end)
    peer_ended_ = true;
  else
    unwanted_hangup_ = true;
}

// Is it over? Then on_end is the last thing that is called.
void ChannelCore::settle() {
  std::function<void(const Error*)> on_end;
  std::deque<std::function<void(FdMessage)>> dropped;
  std::optional<Error> why;
  {
    const MutexLock lock(mutex_);
    if (ended()) return;
    // What the peer sent before it went is still to be had, if somebody waits for it.
    const bool cannot_send = send_error_ && (peer_ended_ || receivers_.empty());
    const bool orderly = outgoing_.empty() && (peer_ended_ || finishing_);
    if (!error_ && !cannot_send && !orderly) return;
    if (error_)
      why = std::move(error_);
    else if (!orderly)
      why = std::move(send_error_);
    over_.store(true, std::memory_order_release);
    readiness_.detach();
    socket_.reset();
    dropped.swap(receivers_);
    on_end = std::move(options_.on_end);
  }
  if (on_end) on_end(why ? &*why : nullptr);
}

void ChannelCore::update_wish() noexcept {
  if (ended()) return;
  ipc::Readiness::Wanted wanted;
  wanted.socket = !unwanted_hangup_;
  wanted.read = !receivers_.empty() && !peer_ended_ && !receiving_.until;
  wanted.write = !outgoing_.empty() && !send_error_ && !sending_.until;
  // A hang-up is reported whether wanted or not: while the peer's messages find no room, that would be all
  // the time.
  if (receiving_.until && !wanted.write) wanted.socket = false;
  const auto earlier = [&](std::optional<Clock::time_point> at) {
    if (at && (!wanted.at || *at < *wanted.at)) wanted.at = at;
  };
  if (!receivers_.empty()) earlier(receiving_.until);
  if (!outgoing_.empty()) earlier(sending_.until);
  // Something to settle, without any news of the socket.
  if (!processing_ && (error_ || (finishing_ && outgoing_.empty()))) wanted.at = Clock::time_point{};
  if (readiness_.want(wanted) && on_wish_changed) on_wish_changed();
}

}  // namespace sockalarm::detail
