// SPDX-License-Identifier: Apache-2.0
#include "bench/support/waiting_thread.h"

#include <liburing.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include <atomic>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "bench/support/threads.h"

namespace sockalarm::bench {
namespace {

using test::require;

UniqueFd make_eventfd() {
  UniqueFd fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  require(bool(fd), "eventfd");
  return fd;
}

class EpollThread final : public WaitingThread {
 public:
  explicit EpollThread(OnGone on_gone)
      : epoll_(::epoll_create1(EPOLL_CLOEXEC)), on_gone_(std::move(on_gone)) {
    require(bool(epoll_), "epoll_create1");
    change(EPOLL_CTL_ADD, stop_.get(), EPOLLIN);
    thread_ = quiet_thread([this] { loop(); });
  }
  ~EpollThread() override {
    ::eventfd_write(stop_.get(), 1);
    thread_.join();
  }
  void add(std::span<const int> fds) override {
    for (const int fd : fds) change(EPOLL_CTL_ADD, fd, EPOLLRDHUP | EPOLLONESHOT);
  }
  void remove(std::span<const int> fds) override {
    for (const int fd : fds) change(EPOLL_CTL_DEL, fd, 0);
  }
  std::optional<std::string> run_realtime(int priority) override {
    return make_realtime(thread_.native_handle(), priority);
  }

 private:
  void change(int operation, int fd, std::uint32_t events) {
    epoll_event event{};
    event.events = events;
    event.data.fd = fd;
    require(::epoll_ctl(epoll_.get(), operation, fd, &event) == 0, "epoll_ctl");
  }
  void loop() {
    epoll_event events[64];
    for (;;) {
      const int n = ::epoll_wait(epoll_.get(), events, 64, -1);
      for (int i = 0; i < n; ++i) {
        if (events[i].data.fd == stop_.get()) return;
        on_gone_(events[i].data.fd);
      }
    }
  }
  UniqueFd epoll_, stop_ = make_eventfd();
  OnGone on_gone_;
  std::thread thread_;
};

class PollThread final : public WaitingThread {
 public:
  explicit PollThread(OnGone on_gone) : on_gone_(std::move(on_gone)) {
    thread_ = quiet_thread([this] { loop(); });
  }
  ~PollThread() override {
    stopping_.store(true);
    ::eventfd_write(wake_.get(), 1);
    thread_.join();
  }
  void add(std::span<const int> fds) override { post(fds, true); }
  void remove(std::span<const int> fds) override { post(fds, false); }
  std::optional<std::string> run_realtime(int priority) override {
    return make_realtime(thread_.native_handle(), priority);
  }

 private:
  struct Change {
    int fd;
    bool add;
  };
  void post(std::span<const int> fds, bool add) {
    {
      const std::lock_guard lock(mutex_);
      for (const int fd : fds) changes_.push_back({fd, add});
    }
    ::eventfd_write(wake_.get(), 1);
  }
  void take_changes() {
    eventfd_t count = 0;
    ::eventfd_read(wake_.get(), &count);
    const std::lock_guard lock(mutex_);
    for (const Change& change : changes_) {
      if (change.add) {
        places_[change.fd] = entries_.size();
        entries_.push_back({change.fd, POLLRDHUP, 0});
      } else if (places_.count(change.fd) != 0) {
        erase(places_[change.fd]);
      }
    }
    changes_.clear();
  }
  void erase(std::size_t place) {
    places_.erase(entries_[place].fd);
    if (place + 1 != entries_.size()) {
      entries_[place] = entries_.back();
      places_[entries_[place].fd] = place;
    }
    entries_.pop_back();
  }
  void loop() {
    entries_.push_back({wake_.get(), POLLIN, 0});
    while (!stopping_.load()) {
      int left = ::poll(entries_.data(), entries_.size(), -1);
      const bool changed = entries_[0].revents != 0;
      if (changed) --left;
      for (std::size_t i = entries_.size(); i-- > 1 && left > 0;) {
        if (entries_[i].revents == 0) continue;
        --left;
        const int fd = entries_[i].fd;
        if ((entries_[i].revents & POLLNVAL) == 0) on_gone_(fd);
        erase(i);
      }
      if (changed) take_changes();
    }
  }
  UniqueFd wake_ = make_eventfd();
  OnGone on_gone_;
  std::mutex mutex_;
  std::vector<Change> changes_;
  std::vector<pollfd> entries_;
  std::unordered_map<int, std::size_t> places_;  // where in entries_
  std::atomic<bool> stopping_{false};
  std::thread thread_;
};

class UringThread final : public WaitingThread {
 public:
  explicit UringThread(OnGone on_gone) : on_gone_(std::move(on_gone)) {
    const int failed = -io_uring_queue_init(256, &ring_, 0);
    if (failed != 0) {
      errno = failed;
      require(false, "io_uring_queue_init");
    }
    thread_ = quiet_thread([this] { loop(); });
  }
  ~UringThread() override {
    io_uring_sqe* sqe = entry();
    io_uring_prep_nop(sqe);
    tag(sqe, kStop);
    io_uring_submit(&ring_);
    thread_.join();
    io_uring_queue_exit(&ring_);
  }
  // Submission is one thread's affair, ours; completion the helper's.
  void add(std::span<const int> fds) override {
    for (const int fd : fds) {
      io_uring_sqe* sqe = entry();
      io_uring_prep_poll_add(sqe, fd, POLLRDHUP);
      tag(sqe, fd);
    }
    io_uring_submit(&ring_);
  }
  void remove(std::span<const int> fds) override {
    for (const int fd : fds) {
      io_uring_sqe* sqe = entry();
      io_uring_prep_poll_remove(sqe, static_cast<std::uint64_t>(fd));
      tag(sqe, kIgnored);
    }
    io_uring_submit(&ring_);
  }
  std::optional<std::string> run_realtime(int priority) override {
    return make_realtime(thread_.native_handle(), priority);
  }

 private:
  static constexpr int kStop = -1, kIgnored = -2;

  io_uring_sqe* entry() {
    io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
    if (sqe == nullptr) {
      io_uring_submit(&ring_);
      sqe = io_uring_get_sqe(&ring_);
    }
    require(sqe != nullptr, "io_uring_get_sqe");
    return sqe;
  }
  // After io_uring_prep_*(), which clears it.
  static void tag(io_uring_sqe* sqe, int value) {
    io_uring_sqe_set_data64(sqe, static_cast<std::uint64_t>(std::int64_t{value}));
  }

  void loop() {
    for (;;) {
      io_uring_cqe* cqe = nullptr;
      if (io_uring_wait_cqe(&ring_, &cqe) != 0) continue;
      const auto tag = static_cast<int>(static_cast<std::int64_t>(cqe->user_data));
      const int result = cqe->res;
      io_uring_cqe_seen(&ring_, cqe);
      if (tag == kStop) return;
      if (tag >= 0 && result > 0) on_gone_(tag);
    }
  }
  io_uring ring_{};
  OnGone on_gone_;
  std::thread thread_;
};

}  // namespace

std::unique_ptr<WaitingThread> epoll_thread(WaitingThread::OnGone on_gone) {
  return std::make_unique<EpollThread>(std::move(on_gone));
}
std::unique_ptr<WaitingThread> poll_thread(WaitingThread::OnGone on_gone) {
  return std::make_unique<PollThread>(std::move(on_gone));
}
std::unique_ptr<WaitingThread> uring_thread(WaitingThread::OnGone on_gone) {
  return std::make_unique<UringThread>(std::move(on_gone));
}

}  // namespace sockalarm::bench
