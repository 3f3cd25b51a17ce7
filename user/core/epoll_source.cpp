// SPDX-License-Identifier: Apache-2.0
#include "core/epoll_source.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <span>

#include "core/socket.h"
#include "core/socket_identity.h"
#include "core/sources.h"

namespace sockalarm::detail {
namespace {

using Clock = std::chrono::steady_clock;

// In epoll_event.data beside cookies, which count up from 1.
constexpr std::uint64_t kWakeToken = ~std::uint64_t{0};
constexpr std::uint64_t kRingToken = kWakeToken - 1;
constexpr std::uint64_t kTendedToken = kWakeToken - 2;
constexpr std::uint32_t kSticky = EPOLLRDHUP | EPOLLET;  // ERR and HUP are always reported

std::uint32_t flags_of(Events momentary) noexcept {
  return ((momentary & events::readable) ? std::uint32_t{EPOLLIN} : 0U) |
         ((momentary & events::urgent) ? std::uint32_t{EPOLLPRI} : 0U);
}

int control(int epoll, int operation, const Socket& socket, std::uint32_t flags) noexcept
    REQUIRES(core_mutex) {
  epoll_event event{};
  event.events = flags;
  event.data.u64 = socket.cookie;
  return ::epoll_ctl(epoll, operation, socket.registered_fd, &event) == 0 ? 0 : errno;
}

// epoll_ctl acts on whatever the number means now: touch it only while it still means our socket.
bool still_ours(const Socket& socket) noexcept REQUIRES(core_mutex) {
  return file_identity(socket.registered_fd) == socket.cookie;
}

std::span<epoll_event> wait_for(int epoll, std::span<epoll_event> events,
                                std::optional<Clock::time_point> until) {
  timespec timeout{};
  if (until) {
    const auto left = std::max(*until - Clock::now(), Clock::duration::zero());
    const auto seconds = std::chrono::floor<std::chrono::seconds>(left);
    timeout.tv_sec = static_cast<time_t>(seconds.count());
    timeout.tv_nsec = static_cast<long>(std::chrono::nanoseconds(left - seconds).count());
  }
  const int room = static_cast<int>(events.size());
  int count = ::epoll_pwait2(epoll, events.data(), room, until ? &timeout : nullptr, nullptr);
  if (count < 0 && errno != EINTR) {  // before 5.11, or a seccomp filter that does not know it
    const auto ms = timeout.tv_sec * 1000LL + (timeout.tv_nsec + 999'999) / 1'000'000;
    count = ::epoll_wait(epoll, events.data(), room,
                         until ? static_cast<int>(std::min(ms, 1'000'000'000LL)) : -1);
  }
  return events.first(static_cast<std::size_t>(std::max(count, 0)));  // below 0: EINTR
}

}  // namespace

Result<std::unique_ptr<EpollSource>> EpollSource::open() {
  UniqueFd epoll(::epoll_create1(EPOLL_CLOEXEC));
  if (!epoll) return fail(Error::from_errno(errno, "epoll_create1()"));
  UniqueFd wake(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake) return fail(Error::from_errno(errno, "eventfd()"));
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = kWakeToken;
  if (::epoll_ctl(epoll.get(), EPOLL_CTL_ADD, wake.get(), &event) != 0)
    return fail(Error::from_errno(errno, "epoll_ctl() for wake-ups"));
  return std::unique_ptr<EpollSource>(new EpollSource(std::move(epoll), std::move(wake)));
}

Result<std::unique_ptr<Source>> make_epoll_source() {
  auto source = EpollSource::open();
  if (!source) return fail(source.error());
  return std::unique_ptr<Source>(std::move(*source));
}

Result<void> EpollSource::add_other(int fd, std::uint64_t token) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = token;
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0)
    return fail(Error::from_errno(errno, "epoll_ctl() for the kernel side"));
  return {};
}

Result<void> EpollSource::add_ring(int fd) { return add_other(fd, kRingToken); }
Result<void> EpollSource::add_tended(int fd) { return add_other(fd, kTendedToken); }

Result<void> EpollSource::add(Socket& socket, int fd) {
  socket.registered_fd = fd;
  int failed = control(epoll_.get(), EPOLL_CTL_ADD, socket, kSticky);
  // Left from an earlier registration of the same open file under the same number.
  if (failed == EEXIST) failed = control(epoll_.get(), EPOLL_CTL_MOD, socket, kSticky);
  if (failed != 0) {
    return fail(Error::from_errno(
        failed, "epoll_ctl() for descriptor " + std::to_string(socket.registered_fd) +
                    (failed == ENOSPC ? " (limit: /proc/sys/fs/epoll/max_user_watches)" : "")));
  }
  socket.make_own_state();
  socket.served_by = SourceKind::epoll;
  return {};
}

void EpollSource::remove(Socket& socket) noexcept {
  if (still_ours(socket)) control(epoll_.get(), EPOLL_CTL_DEL, socket, 0);
}

void EpollSource::want(Socket& socket, Events momentary) {
  if (still_ours(socket)) control(epoll_.get(), EPOLL_CTL_MOD, socket, kSticky | flags_of(momentary));
}

// The registration under the former number stays until the file is closed, and reports under the same cookie.
void EpollSource::move(Socket& socket, int fd) {
  socket.registered_fd = fd;
  if (socket.slot != 0) return want_only(socket, socket.momentary);
  const std::uint32_t flags = kSticky | flags_of(socket.momentary);
  if (control(epoll_.get(), EPOLL_CTL_ADD, socket, flags) == EEXIST)
    control(epoll_.get(), EPOLL_CTL_MOD, socket, flags);
}

void EpollSource::want_only(Socket& socket, Events momentary) noexcept {
  if (!still_ours(socket)) return;
  const std::uint32_t flags = flags_of(momentary);
  if (flags == 0)
    control(epoll_.get(), EPOLL_CTL_DEL, socket, 0);
  else if (control(epoll_.get(), EPOLL_CTL_ADD, socket, flags | EPOLLET) == EEXIST)
    control(epoll_.get(), EPOLL_CTL_MOD, socket, flags | EPOLLET);
}

bool EpollSource::wait(std::optional<Clock::time_point> until, std::vector<News>& news) {
  std::array<epoll_event, 256> events;
  for (const epoll_event& event : wait_for(epoll_.get(), events, until)) {
    if (event.data.u64 == kRingToken) continue;
    if (event.data.u64 == kTendedToken) {
      tended_ = true;
      continue;
    }
    if (event.data.u64 == kWakeToken) {
      std::uint64_t value = 0;
      [[maybe_unused]] const ssize_t n = ::read(wake_.get(), &value, sizeof value);
      awake_.store(false);  // after the read: a wake() in between writes again
      continue;
    }
    Events ready;
    if ((event.events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0) ready |= events::readable;
    if ((event.events & EPOLLPRI) != 0) ready |= events::urgent;
    if (ready) news.push_back({event.data.u64, ready, 0, 0, News::Certainty::exact});
    // EPOLLRDHUP and the others have the values of their POLL namesakes (eventpoll.h).
    if (const Events hint = events_of_flags(static_cast<short>(event.events & 0x7fff)))
      news.push_back({event.data.u64, hint, 0, 0, News::Certainty::hint});
  }
  return false;
}

void EpollSource::wake() noexcept {
  if (awake_.exchange(true)) return;
  const std::uint64_t one = 1;
  while (::write(wake_.get(), &one, sizeof one) < 0 && errno == EINTR) {
  }
}

void EpollSource::after_fork() noexcept {
  epoll_.reset();
  wake_.reset();
}

}  // namespace sockalarm::detail
