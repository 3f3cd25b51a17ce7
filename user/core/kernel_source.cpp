// SPDX-License-Identifier: Apache-2.0
#include <sys/resource.h>

#include <algorithm>
#include <deque>
#include <utility>

#include "core/bpf_session.h"
#include "core/epoll_source.h"
#include "core/fork.h"
#include "core/socket.h"
#include "core/sources.h"

namespace sockalarm::detail {
namespace {

// Plain TCP sockets by the BPF programs, of this process or of the daemon; all others, those beyond the
// table's length, and what the kernel side does not report (readable, urgent) by the epoll source that it is
// built on.
class KernelSource final : public Source {
  static constexpr unsigned kRecordsOnly = 16;  // at most so often in a row, less one

 public:
  KernelSource(SourceKind kind, std::unique_ptr<BpfSession> session, std::unique_ptr<EpollSource> epoll)
      : kind_(kind), session_(std::move(session)), epoll_(std::move(epoll)) {
    for (std::uint32_t slot = 1; slot < session_->table().size(); ++slot) free_slots_.push_back(slot);
  }

  SourceKind kind() const noexcept override { return kind_; }
  std::string times() const override { return session_->times(); }

  Result<void> add(Socket& socket, int fd) override REQUIRES(core_mutex) {
    if (!socket.kind.tcp || free_slots_.empty()) return epoll_->add(socket, fd);
    const std::uint32_t slot = free_slots_.front();
    WatchState& state = session_->table()[slot];
    // The state first, then the registry: from there on the kernel finds it. The slot's alarm generation goes
    // on counting; nothing else of the slot's former socket remains.
    const auto generation = static_cast<std::uint32_t>(shared(state.seen).load() >> 32) + 1;
    // First the generation, so that a program that still runs for the former socket writes nothing more.
    shared(state.seen).store(std::uint64_t{generation} << 32);
    shared(state.fin_at).store(0);
    shared(state.end_at).store(0);
    shared(state.error).store(0);
    shared(state.extra).store(0);
    shared(state.tid).store(0);
    shared(state.cookie).store(socket.cookie);
    Control control = Control::unpack(shared(state.control).load());
    control.state = Control::State::idle;
    shared(state.control).store(control.pack());
    // Out of memory for it, say: the socket is watched all the same.
    if (!session_->enroll(socket.cookie, slot, generation, fd)) return epoll_->add(socket, fd);
    free_slots_.pop_front();
    socket.state = &state;
    socket.slot = slot;
    socket.registered_fd = fd;
    socket.served_by = kind_;
    return {};
  }

  void remove(Socket& socket) noexcept override REQUIRES(core_mutex) {
    if (socket.slot == 0) return epoll_->remove(socket);
    if (socket.momentary) epoll_->want_only(socket, events::none);
    session_->dismiss(socket.cookie, socket.slot);
    // First in, first out: the longest possible time before a slot means another socket.
    free_slots_.push_back(socket.slot);
  }

  void want(Socket& socket, Events momentary) override REQUIRES(core_mutex) {
    if (socket.slot == 0)
      epoll_->want(socket, momentary);
    else
      epoll_->want_only(socket, momentary);
  }

  void move(Socket& socket, int fd) override REQUIRES(core_mutex) { epoll_->move(socket, fd); }

  // Attached while at least one socket needs it.
  bool watch_reads(Socket& socket, bool on) override REQUIRES(core_mutex) {
    if (socket.slot == 0) return false;
    const int users = reads_users_ + (on ? 1 : -1);
    if ((users == 0 || (on && reads_users_ == 0)) && !session_->watch_reads(on)) return false;
    reads_users_ = users;
    return true;
  }

  void watch_closing() override REQUIRES(core_mutex) { session_->watch_closing(); }
  bool missed_some() noexcept override REQUIRES(core_mutex) {
    const std::uint64_t now = session_->missed_runs();
    return std::exchange(missed_, now) != now;
  }

  bool wait(std::optional<std::chrono::steady_clock::time_point> until, std::vector<News>& news) override {
    // A record that came while the dispatcher looked by itself has woken nobody; one that is not whole yet,
    // of which the kernel side may have decided so, is waited for without sleeping (sockalarm_abi.h).
    const bool pending = session_->pending();
    if (pending) until = std::chrono::steady_clock::time_point{};
    // While it looks, a system call would only keep it from the records that it has found; seldom enough that
    // what epoll serves does not wait for a storm to end.
    const bool records_only = pending && looking_ && !epoll_->woken() && ++records_only_ % kRecordsOnly != 0;
    if (!records_only) epoll_->wait(until, news);
    records_.clear();
    session_->drain(records_);
    for (const sockalarm_record& record : records_) {
      ++stats_.records;
      news.push_back({record.cookie, Events(record.events) & events::all, static_cast<int>(record.error),
                      record.at, News::Certainty::recorded, direct_of(record)});
    }
    if (epoll_->take_tended()) {
      unseen_.clear();
      session_->tend(unseen_);
      for (const std::uint64_t cookie : unseen_)
        news.push_back({cookie, events::none, 0, 0, News::Certainty::unseen});
    }
    stats_.bad = session_->bad_records();
    // After the records were freed (see push() on the kernel side).
    const std::uint64_t lost = shared(session_->header().lost).load();
    const bool some_lost = lost != stats_.lost;
    stats_.lost = lost;
    return some_lost;
  }

  void wake() noexcept override { epoll_->wake(); }
  bool looks_cheaply() const noexcept override { return true; }
  bool has_news() noexcept override { return session_->pending() || epoll_->woken(); }
  void looking(bool on) noexcept override {
    looking_ = on;
    shared(session_->header().looking).store(on ? 1 : 0);
  }
  SourceStats stats() const noexcept override {
    return {stats_.records, stats_.lost, stats_.bad, shared(session_->header().delivered).load()};
  }

  Result<void> delivers() const override { return session_->delivers(); }
  std::uint32_t direct_thread() noexcept override {
    // The same for every source of this process, so remembered per thread.
    struct Known {
      std::uint64_t generation = ~std::uint64_t{0};
      std::uint32_t tid = 0;
    };
    static thread_local Known known;
    if (known.generation != fork_generation()) {
      const auto self = session_->introduce_thread();
      known = {fork_generation(), self ? self->tid : 0};
    }
    return known.tid;
  }

  void after_fork() noexcept override {
    session_->after_fork();
    epoll_->after_fork();
  }

 private:
  static News::Direct direct_of(const sockalarm_record& record) noexcept {
    switch (record.direct) {
      case SOCKALARM_DIRECT_SCHEDULED:
        return News::Direct::scheduled;
      case SOCKALARM_DIRECT_DONE:
        return News::Direct::done;
      case SOCKALARM_DIRECT_FAILED:
        return News::Direct::failed;
      default:
        return News::Direct::none;
    }
  }

  struct Counters {  // written by the dispatcher, read by any thread
    std::atomic<std::uint64_t> records{0}, lost{0}, bad{0};
  };

  const SourceKind kind_;
  std::unique_ptr<BpfSession> session_;
  std::unique_ptr<EpollSource> epoll_;
  std::deque<std::uint32_t> free_slots_ GUARDED_BY(core_mutex);
  int reads_users_ GUARDED_BY(core_mutex) = 0;
  bool looking_ = false;  // the dispatcher's, and the next
  unsigned records_only_ = 0;
  std::uint64_t missed_ GUARDED_BY(core_mutex) = 0;
  std::vector<sockalarm_record> records_;
  std::vector<std::uint64_t> unseen_;
  Counters stats_;
};

std::uint32_t table_length(std::size_t wanted) {
  if (wanted == 0) {
    rlimit limit{};
    wanted = ::getrlimit(RLIMIT_NOFILE, &limit) == 0 ? limit.rlim_cur : 0;
    wanted = std::clamp<std::size_t>(wanted, 1024, 65536);
  }
  return static_cast<std::uint32_t>(std::min<std::size_t>(wanted, 1U << 24)) + 1;  // and slot 0
}

Result<std::unique_ptr<Source>> source_over(SourceKind kind, Result<std::unique_ptr<BpfSession>> session) {
  if (!session) return fail(session.error());
  auto epoll = EpollSource::open();
  if (!epoll) return fail(epoll.error());
  if (auto ok = (*epoll)->add_ring((*session)->ring_fd()); !ok) return fail(ok.error());
  if (const int fd = (*session)->tended_fd(); fd >= 0)
    if (auto ok = (*epoll)->add_tended(fd); !ok) return fail(ok.error());
  return std::make_unique<KernelSource>(kind, std::move(*session), std::move(*epoll));
}

}  // namespace

#if SOCKALARM_BPF
Result<std::unique_ptr<Source>> make_kernel_source(const Options& options) {
  const bool direct = options.delivery == Delivery::automatic || options.delivery == Delivery::task_work;
  return source_over(SourceKind::kernel,
                     BpfSession::open(table_length(options.max_watches), options.ring_bytes, direct));
}
#endif

Result<std::unique_ptr<Source>> make_kernel_source(std::unique_ptr<BpfSession> session) {
  return source_over(SourceKind::kernel, std::move(session));
}

Result<std::unique_ptr<Source>> make_daemon_source(const Options& options) {
  return source_over(SourceKind::daemon,
                     BpfSession::join(options.daemon_socket, table_length(options.max_watches),
                                      options.ring_bytes, options.log));
}

}  // namespace sockalarm::detail
