// SPDX-License-Identifier: Apache-2.0
#include <poll.h>

#include <algorithm>
#include <cerrno>
#include <map>

#include "base/mutex.h"
#include "base/wake_pipe.h"
#include "core/socket.h"
#include "core/socket_identity.h"
#include "core/sources.h"

// Plain POSIX: no header that only Linux has. A test compiles this file to that rule.

namespace sockalarm::detail {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kFirstPause{1}, kLongestPause{50};

// One poll() over all sockets: O(n) for each wake-up, which is why this source is the last resort. poll()
// tells levels, and most of what it tells stays true, so what was reported once is not asked for again; what
// cannot be masked (ERR, HUP) or must be asked again (unread data before the end) is looked at after a pause.
class PollSource final : public Source {
 public:
  PollSource(PollStyle style, WakePipe wake_pipe) : style_(style), wake_pipe_(std::move(wake_pipe)) {}

  SourceKind kind() const noexcept override { return SourceKind::poll; }
  PollStyle poll_style() const noexcept override { return style_; }

  Result<void> add(Socket& socket, int fd) override REQUIRES(core_mutex) {
    socket.make_own_state();
    socket.registered_fd = fd;
    socket.served_by = SourceKind::poll;
    const MutexLock lock(mutex_);
    Entry& entry = entries_[socket.cookie] = Entry{};
    entry.fd = socket.registered_fd;
    entry.state = socket.state;
    wake();
    return {};
  }

  void remove(Socket& socket) noexcept override REQUIRES(core_mutex) {
    const MutexLock lock(mutex_);
    entries_.erase(socket.cookie);
    wake();  // so that a descriptor that is closed next is not in poll()'s hands
  }

  void want(Socket& socket, Events momentary) override REQUIRES(core_mutex) {
    const MutexLock lock(mutex_);
    const auto entry = entries_.find(socket.cookie);
    if (entry == entries_.end()) return;
    entry->second.momentary = momentary;
    wake();
  }

  void move(Socket& socket, int fd) override REQUIRES(core_mutex) {
    socket.registered_fd = fd;
    const MutexLock lock(mutex_);
    const auto entry = entries_.find(socket.cookie);
    if (entry == entries_.end()) return;
    entry->second.fd = fd;
    entry->second.ended = false;
    wake();
  }

  bool wait(std::optional<Clock::time_point> until, std::vector<News>& news) override {
    prepare(until);
    // POSIX poll() counts in ms: round up, else the last part of one would be spent polling in circles.
    int timeout = -1;
    if (until) {
      const auto left = std::chrono::ceil<std::chrono::milliseconds>(*until - Clock::now());
      timeout = static_cast<int>(std::clamp<long long>(left.count(), 0, 1'000'000'000));
    }
    if (::poll(polled_.data(), static_cast<nfds_t>(polled_.size()), timeout) <= 0) return false;
    if ((polled_.front().revents & POLLIN) != 0) wake_pipe_.clear();
    const MutexLock lock(mutex_);
    for (std::size_t i = 1; i < polled_.size(); ++i)
      if (polled_[i].revents != 0) report(cookies_[i], polled_[i], news);
    return false;
  }

  void wake() noexcept override { wake_pipe_.wake(); }

  void after_fork() noexcept override { wake_pipe_.close(); }

 private:
  struct Entry {
    int fd = -1;
    WatchState* state = nullptr;
    bool ended = false;
    Events momentary;
    Clock::time_point muted_until{};
    std::chrono::milliseconds pause = kFirstPause;
  };

  short wanted_flags(const Entry& entry) const noexcept {
    int flags = 0;
    if (!(seen(*entry.state) & events::fin)) flags |= style_ == PollStyle::rdhup ? kPollRdhup : POLLIN;
    if (entry.momentary & events::readable) flags |= POLLIN;
    if (entry.momentary & events::urgent) flags |= POLLPRI;
    return static_cast<short>(flags);
  }

  void prepare(std::optional<Clock::time_point>& until) {
    polled_.assign(1, pollfd{wake_pipe_.fd(), POLLIN, 0});
    cookies_.assign(1, 0);
    const auto now = Clock::now();
    const MutexLock lock(mutex_);
    for (const auto& [cookie, entry] : entries_) {
      if (entry.ended || (seen(*entry.state) & (events::reset | events::timeout)))
        continue;  // nothing more can come
      if (entry.muted_until > now) {
        if (!until || entry.muted_until < *until) until = entry.muted_until;
        continue;
      }
      polled_.push_back({entry.fd, wanted_flags(entry), 0});
      cookies_.push_back(cookie);
    }
  }

  void report(std::uint64_t cookie, const pollfd& polled, std::vector<News>& news) REQUIRES(mutex_) {
    const auto found = entries_.find(cookie);
    if (found == entries_.end() || found->second.fd != polled.fd) return;
    Entry& entry = found->second;
    const short flags = polled.revents;
    // Closed behind our back, and perhaps another file by now. The Core may know another descriptor of it.
    if ((flags & POLLNVAL) != 0 || file_identity(entry.fd) != cookie) {
      entry.ended = true;
      news.push_back({cookie, events::none, 0, 0, News::Certainty::hint});
      return;
    }
    const auto ready = momentary_events(flags) & entry.momentary;
    if (ready) news.push_back({cookie, ready, 0, 0, News::Certainty::exact});

    Events hint = events_of_flags(flags);
    if (!hint && style_ == PollStyle::read_only && (flags & POLLIN) != 0) hint = end_of_stream(entry.fd);
    if (hint) news.push_back({cookie, hint, 0, 0, News::Certainty::hint});
    // What cannot be masked, and what has to be asked again (an error that poll() shows a moment before
    // TCP_INFO does, unread data; RDHUP by our own shutdown(SHUT_RD), under which the peer's FIN is yet to
    // come): after a pause that doubles.
    const bool stays = (flags & (kPollRdhup | POLLHUP | POLLERR)) != 0 ||
                       (style_ == PollStyle::read_only && (flags & POLLIN) != 0);
    if (stays) {
      entry.muted_until = Clock::now() + entry.pause;
      entry.pause = std::min(entry.pause * 2, kLongestPause);
    }
  }

  static Events momentary_events(short flags) noexcept {
    Events ready;
    if ((flags & (POLLIN | POLLHUP | POLLERR)) != 0) ready |= events::readable;
    if ((flags & POLLPRI) != 0) ready |= events::urgent;
    return ready;
  }

  const PollStyle style_;
  WakePipe wake_pipe_;
  Mutex mutex_;
  std::map<std::uint64_t, Entry> entries_ GUARDED_BY(mutex_);
  std::vector<pollfd> polled_;          // the dispatcher's; index 0 is the wake pipe
  std::vector<std::uint64_t> cookies_;  // of polled_
};

}  // namespace

Result<std::unique_ptr<Source>> make_poll_source(PollStyle style) {
  auto wake_pipe = WakePipe::make();
  if (!wake_pipe) return fail(wake_pipe.error().with_context("the poll source"));
  if (kPollRdhup == 0) style = PollStyle::read_only;
  return std::make_unique<PollSource>(style, std::move(*wake_pipe));
}

}  // namespace sockalarm::detail
