// SPDX-License-Identifier: Apache-2.0
#include <linux/bpf.h>
#include <poll.h>
#include <sockalarm/diagnostics.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/un.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <chrono>
#include <utility>

#include "base/mutex.h"
#include "core/bpf_session.h"
#include "core/session_memory.h"
#include "core/socket_identity.h"
#include "ipc/frame_socket.h"
#include "ipc/protocol.h"

namespace sockalarm::detail {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

// The daemon answers within microseconds. One that does not is taken for gone.
constexpr std::chrono::seconds kPatience{5};
constexpr milliseconds kFirstRetry{10}, kLongestRetry{1000};
constexpr milliseconds kGlance{10};
constexpr int kManyRefusals = 100;  // one after the other: then the rest would be refused as well

Error gone(const std::string& what) {
  return Error(std::make_error_code(std::errc::connection_reset), what + ": the daemon has gone");
}

// True: readable (or writable) or hung up.
bool await(int fd, short what, Clock::time_point until) noexcept {
  for (;;) {
    const auto left = std::chrono::ceil<milliseconds>(until - Clock::now()).count();
    pollfd entry{fd, what, 0};
    const int n = ::poll(&entry, 1, static_cast<int>(std::max<decltype(left)>(left, 0)));
    if (n >= 0 || errno != EINTR) return n > 0;
  }
}

// Nothing is sent unasked, so news of an idle connection can only be its end.
bool has_hung_up(int fd) noexcept {
  pollfd entry{fd, POLLRDHUP, 0};
  return ::poll(&entry, 1, 0) != 0;
}

// Waits that long where many others are just connecting; 0: not at all.
Result<UniqueFd> connect_to(const std::string& path, std::chrono::seconds patience) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path)
    return fail(Error(Errc::invalid_options, "Options::daemon_socket has " + std::to_string(path.size()) +
                                                 " bytes; it must be a path of 1 to 107"));
  path.copy(address.sun_path, path.size());
  UniqueFd fd(
      ::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | (patience.count() > 0 ? 0 : SOCK_NONBLOCK), 0));
  const timeval limit{patience.count(), 0};  // of connect(); what is sent and received later never blocks
  if (!fd || ::setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit) != 0)
    return fail(Error::from_errno(errno, "socket()"));
  int failed = EINTR;
  while (failed == EINTR)
    failed =
        ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0 ? 0 : errno;
  if (failed == 0) return fd;
  return fail(Error::from_errno(failed, path + (failed == ENOENT         ? ": no daemon listens there"
                                                : failed == ECONNREFUSED ? ": its daemon has ended"
                                                                         : "")));
}

// One frame of that kind, waited for. What a refusal says is the error.
template <class T>
Result<T> receive(int socket, ipc::Kind kind, std::uint32_t id, Clock::time_point until,
                  UniqueFd* descriptor = nullptr) {
  alignas(8) std::array<std::byte, sizeof(ipc::Text)> buffer;
  ipc::Frame frame;
  auto received = ipc::Arrival::nothing;
  while ((received = ipc::receive_frame(socket, buffer, frame)) == ipc::Arrival::nothing)
    if (!await(socket, POLLIN, until))
      return fail(Error(std::make_error_code(std::errc::timed_out), "the daemon does not answer"));
  if (received == ipc::Arrival::closed && frame.error != 0 && frame.error != ECONNRESET)
    return fail(Error::from_errno(frame.error, "receiving from the daemon"));
  if (received != ipc::Arrival::frame)
    return fail(
        Error(std::make_error_code(std::errc::connection_reset),
              "the daemon has hung up without an answer: it has ended, or has too many connections of "
              "this user (its limits.user.connections)"));
  if (const auto refusal = frame.as<ipc::Reply>();
      refusal && refusal->header.kind == ipc::Kind::reply && kind != ipc::Kind::reply) {
    const std::string text(refusal->message.data(),
                           std::min<std::size_t>(refusal->length, refusal->message.size()));
    return fail(Error(std::error_code(static_cast<int>(refusal->error), std::system_category()),
                      "the daemon refuses: " + text));
  }
  const auto answer = frame.as<T>();
  if (!answer || answer->header.kind != kind || answer->header.id != id ||
      (descriptor != nullptr) != static_cast<bool>(frame.descriptor))
    return fail(Error(std::make_error_code(std::errc::protocol_error), "the daemon answers something else"));
  if (descriptor != nullptr) *descriptor = std::move(frame.descriptor);
  return *answer;
}

Error refused(int error, const char* what) { return Error::from_errno(error, what); }

// The table, the ring and the program that the daemon made for this process.
class DaemonSession final : public BpfSession {
 public:
  DaemonSession(std::string path, LogHook log) : path_(std::move(path)), log_(std::move(log)) {}

  // Nobody else has it yet.
  Result<void> begin(std::uint32_t slots, std::size_t ring_bytes) NO_THREAD_SAFETY_ANALYSIS {
    auto connection = connect_to(path_, kPatience);
    if (!connection) return fail(connection.error());
    connection_ = std::move(*connection);
    const auto until = Clock::now() + kPatience;
    const ipc::Hello hello = hello_of(slots, static_cast<std::uint32_t>(ring_bytes), false);
    if (const int failed = ipc::send_frame(connection_.get(), hello); failed != 0)
      return fail(refused(failed, "sending to the daemon"));
    const auto welcome = receive<ipc::Welcome>(connection_.get(), ipc::Kind::welcome, hello.header.id, until);
    if (!welcome) return fail(welcome.error());
    if (auto ok = check(*welcome); !ok) return ok;
    UniqueFd ring;
    for (auto& [kind, into] : {std::pair{ipc::Kind::give_table, &table_fd_},
                               {ipc::Kind::give_ring, &ring},
                               {ipc::Kind::give_introduction, &introduction_}}) {
      if (kind == ipc::Kind::give_introduction && welcome->task_work == 0) continue;
      struct Given {
        ipc::Header header;
      };
      const auto given = receive<Given>(connection_.get(), kind, hello.header.id, until, into);
      if (!given) return fail(given.error());
    }
    slots_ = welcome->slots;
    ring_bytes_ = welcome->ring_bytes;
    auto memory = SessionMemory::map(table_fd_.get(), slots_, std::move(ring), ring_bytes_);
    if (!memory) return fail(memory.error());
    memory_ = std::move(*memory);
    return prepare_tending();
  }

  std::span<WatchState> table() noexcept override { return memory_->table(); }
  Result<void> delivers() const override {
    if (introduction_) return {};
    return fail(Error(Errc::unsupported, "the daemon's kernel has none, or it runs in a container"));
  }

  // The one bpf(2) command that is needed here is not worth libbpf.
  Result<sockalarm_thread> introduce_thread() noexcept override {
    sockalarm_thread self{};
    bpf_attr request{};
    request.test.prog_fd = static_cast<std::uint32_t>(introduction_.get());
    request.test.ctx_in = reinterpret_cast<std::uint64_t>(&self);
    request.test.ctx_size_in = sizeof self;
    if (::syscall(SYS_bpf, BPF_PROG_TEST_RUN, &request, sizeof request) != 0)
      return fail(Error::from_errno(errno, "running the program that tells a thread its id"));
    return self;
  }

  int ring_fd() const noexcept override { return memory_->ring_fd(); }
  void drain(std::vector<sockalarm_record>& out) override { memory_->reader().drain(out); }
  bool pending() const noexcept override { return memory_->reader().pending(); }
  std::uint64_t bad_records() const noexcept override { return memory_->reader().bad(); }

  Result<void> enroll(std::uint64_t cookie, std::uint32_t slot, std::uint32_t generation, int fd) override {
    const MutexLock lock(mutex_);
    memory_->remember(slot, generation);
    if (slot >= enrolled_.size()) enrolled_.resize(std::max<std::size_t>(slot + 1, enrolled_.size() * 2));
    auto done = send_watch({cookie, generation, fd}, slot);
    if (done) enrolled_[slot] = {cookie, generation, fd};
    return done;
  }

  void dismiss(std::uint64_t cookie, std::uint32_t slot) noexcept override {
    const MutexLock lock(mutex_);
    enrolled_[slot] = {};
    send_unwatch(cookie);
  }

  bool watch_reads(bool on) override {
    const MutexLock lock(mutex_);
    reads_ = on;
    const ipc::Reads frame{{ipc::Kind::reads, ++last_id_}, on ? 1U : 0U, 0};
    return request(frame).has_value() || !on;
  }

  // The daemon's are always attached.
  bool watch_closing() override { return true; }
  // As far as is known: the count goes on while there is no daemon, or one that does not answer at once, so
  // nothing is missed for good. The dispatcher must not wait for it.
  std::uint64_t missed_runs() noexcept override {
    const MutexLock lock(mutex_);
    if (!serving()) return missed_;
    const ipc::Header frame{ipc::Kind::missed, last_id_ + 1};
    if (count_id_ == 0 && ipc::send_frame(connection_.get(), frame) == 0) {
      count_id_ = ++last_id_;
      count_until_ = Clock::now() + kPatience;
    }
    hear_count(Clock::now() + kGlance);
    return missed_;
  }

  // Closes what the parent goes on with; the mutex may be in the hands of a thread that is not here.
  void after_fork() noexcept override {
    for (UniqueFd* fd : {&connection_, &tended_, &timer_, &table_fd_, &introduction_}) fd->reset();
    memory_->after_fork();
  }

  int tended_fd() const noexcept override { return tended_.get(); }
  void tend(std::vector<std::uint64_t>& unseen) override {
    std::array<epoll_event, 4> events;
    const int count = ::epoll_wait(tended_.get(), events.data(), static_cast<int>(events.size()), 0);
    bool expired = false, heard = false;
    for (int i = 0; i < count; ++i)
      (events[static_cast<std::size_t>(i)].data.fd == timer_.get() ? expired : heard) = true;
    std::uint64_t expirations = 0;
    if (expired) expired = ::read(timer_.get(), &expirations, sizeof expirations) > 0;
    MutexLock lock(mutex_);
    // Another thread may have lost the connection meanwhile, or found out first: then there is a timer again.
    if (heard && resuming_)
      resume(unseen);
    else if (heard && connection_ && has_hung_up(connection_.get()))
      lose();
    else if (expired)
      try_again(unseen);
    const bool lost = !serving();
    if (lost == std::exchange(told_lost_, lost)) return;
    lock.unlock();
    tell_hook(lost);
  }

 private:
  struct Enrolled {
    std::uint64_t cookie = 0;  // 0: the slot is free
    std::uint32_t generation = 0;
    int fd = -1;
  };

  ipc::Hello hello_of(std::uint32_t slots, std::uint32_t ring_bytes, bool resume) REQUIRES(mutex_) {
    return {{ipc::Kind::hello, ++last_id_},
            ipc::kMagic,
            ipc::kLeastVersion,
            ipc::kVersion,
            slots,
            ring_bytes,
            resume ? 1U : 0U,
            0};
  }

  static Result<void> check(const ipc::Welcome& welcome) {
    const auto wrong = [](const std::string& what) {
      return fail(Error(std::make_error_code(std::errc::protocol_error), "the daemon " + what));
    };
    if (welcome.version < ipc::kLeastVersion || welcome.version > ipc::kVersion)
      return wrong("speaks version " + std::to_string(welcome.version) + " of the protocol, this library " +
                   std::to_string(ipc::kVersion));
    if (welcome.abi != ipc::kAbi) return wrong("shares memory of another layout; let both be of one release");
    if (welcome.slots < 2 || !std::has_single_bit(welcome.ring_bytes) || welcome.ring_bytes < page_size())
      return wrong("gives a table or a ring of an impossible length");
    return {};
  }

  Result<void> prepare_tending() REQUIRES(mutex_) {
    tended_ = UniqueFd(::epoll_create1(EPOLL_CLOEXEC));
    timer_ = UniqueFd(::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK));
    if (!tended_ || !timer_) return fail(Error::from_errno(errno, "epoll_create1() or timerfd_create()"));
    if (!tend(EPOLL_CTL_ADD, timer_.get(), EPOLLIN) || !tend(EPOLL_CTL_ADD, connection_.get(), EPOLLRDHUP))
      return fail(Error::from_errno(errno, "epoll_ctl() for the daemon"));
    return {};
  }
  bool tend(int operation, int fd, std::uint32_t events) noexcept {
    epoll_event event{};
    event.events = events;
    event.data.fd = fd;
    return ::epoll_ctl(tended_.get(), operation, fd, &event) == 0;
  }
  void set_timer(milliseconds after) noexcept {  // 0: never
    itimerspec when{};
    when.it_value.tv_sec = after.count() / 1000;
    when.it_value.tv_nsec = after.count() % 1000 * 1'000'000;
    ::timerfd_settime(timer_.get(), 0, &when, nullptr);
  }

  // By the dispatcher, without the mutex.
  void tell_hook(bool lost) const {
    if (lost)
      detail::tell(
          log_, LogLevel::warning,
          "sockalarmd at " + path_ +
              " has gone: its programs in the kernel go on telling of the sockets that are watched, new "
              "ones are served by epoll until it is back");
    else
      detail::tell(log_, LogLevel::info, "sockalarmd at " + path_ + " is back");
  }

  bool serving() const noexcept REQUIRES(mutex_) { return connection_ && !resuming_; }

  // Of a count that was asked for. What is asked for later is answered after it.
  void hear_count(Clock::time_point until) noexcept REQUIRES(mutex_) {
    if (count_id_ == 0) return;
    const auto answer = receive<ipc::Count>(connection_.get(), ipc::Kind::count, count_id_, until);
    if (!answer && answer.error().code() == std::errc::timed_out && Clock::now() < count_until_) return;
    count_id_ = 0;
    if (answer)
      missed_ = answer->value;
    else
      lose();
  }

  void lose() noexcept REQUIRES(mutex_) {
    connection_.reset();
    count_id_ = 0;
    resuming_ = false;
    set_timer(retry_);
    retry_ = std::min(retry_ * 2, kLongestRetry);
  }

  template <class T>
  Result<void> send(const T& frame, int fd = -1) noexcept REQUIRES(mutex_) {
    if (!serving()) return fail(gone("registering a socket"));
    const auto until = Clock::now() + kPatience;
    int failed = 0;
    while ((failed = ipc::send_frame(connection_.get(), frame, fd)) == EAGAIN)
      if (!await(connection_.get(), POLLOUT, until)) break;
    if (failed == 0) return {};
    // Too many descriptors of this user are under way, or this one was closed: no fault of the connection.
    if (failed != ETOOMANYREFS && failed != EBADF) lose();
    return fail(refused(failed, "sending to the daemon"));
  }

  template <class T>
  Result<void> request(const T& frame, int fd = -1) REQUIRES(mutex_) {
    if (auto sent = send(frame, fd); !sent) return sent;
    const auto until = Clock::now() + kPatience;
    hear_count(until);
    if (!serving()) return fail(gone("waiting for its answer"));
    const auto answer = receive<ipc::Reply>(connection_.get(), ipc::Kind::reply, frame.header.id, until);
    if (!answer) {
      lose();
      return fail(answer.error());
    }
    if (answer->error == 0) return {};
    const std::string text(answer->message.data(),
                           std::min<std::size_t>(answer->length, answer->message.size()));
    return fail(Error(std::error_code(static_cast<int>(answer->error), std::system_category()),
                      "the daemon refuses: " + text));
  }

  Result<void> send_watch(const Enrolled& what, std::uint32_t slot) REQUIRES(mutex_) {
    const bool was_serving = serving();
    auto done =
        request(ipc::Watch{{ipc::Kind::watch, ++last_id_}, what.cookie, slot, what.generation}, what.fd);
    // Whether it was done before the daemon went is not known.
    if (!done && was_serving && !serving()) undone_.push_back(what.cookie);
    return done;
  }

  void send_unwatch(std::uint64_t cookie) noexcept REQUIRES(mutex_) {
    if (!send(ipc::Unwatch{{ipc::Kind::unwatch, 0}, cookie})) undone_.push_back(cookie);
  }

  void reconnect() REQUIRES(mutex_) {
    auto connection = connect_to(path_, std::chrono::seconds(0));
    if (!connection) return lose();
    connection_ = std::move(*connection);
    resuming_ = true;
    set_timer(kPatience);
    const ipc::Hello hello = hello_of(slots_, static_cast<std::uint32_t>(ring_bytes_), true);
    hello_id_ = hello.header.id;
    if (!tend(EPOLL_CTL_ADD, connection_.get(), EPOLLIN | EPOLLRDHUP) ||
        ipc::send_frame(connection_.get(), hello) != 0 ||
        ipc::send_frame(connection_.get(), ipc::Header{ipc::Kind::table, hello.header.id}, table_fd_.get()) !=
            0 ||
        ipc::send_frame(connection_.get(), ipc::Header{ipc::Kind::ring, hello.header.id},
                        memory_->ring_fd()) != 0)
      lose();
  }

  // The answer to that has come.
  void resume(std::vector<std::uint64_t>& unseen) REQUIRES(mutex_) {
    const auto now = Clock::now();
    auto welcome = receive<ipc::Welcome>(connection_.get(), ipc::Kind::welcome, hello_id_, now);
    if (!welcome || !check(*welcome)) {
      look_at_all(unseen);
      return lose();
    }
    tend(EPOLL_CTL_MOD, connection_.get(), EPOLLRDHUP);
    resuming_ = false;
    retry_ = kFirstRetry;
    set_timer(milliseconds(0));
    if (welcome->resumed == 0)
      forget_registrations();
    else
      for (const std::uint64_t cookie : std::exchange(undone_, {})) send_unwatch(cookie);
    enroll_again(unseen);
    if (serving()) [[maybe_unused]]
      auto done = request(ipc::Reads{{ipc::Kind::reads, ++last_id_}, reads_ ? 1U : 0U, 0});
  }

  // The timer has expired.
  void try_again(std::vector<std::uint64_t>& unseen) REQUIRES(mutex_) {
    if (serving()) return enroll_again(unseen);
    connection_ ? lose() : reconnect();
    // The programs may be gone with it (sockalarmd --remove): nobody would tell.
    if (!connection_ && retry_ == kLongestRetry) look_at_all(unseen);
  }

  // The daemon has: everything again.
  void forget_registrations() REQUIRES(mutex_) {
    undone_.clear();
    unenrolled_.clear();
    for (std::uint32_t slot = 1; slot < enrolled_.size(); ++slot)
      if (enrolled_[slot].cookie != 0) unenrolled_.push_back(slot);
  }

  // Whatever came meanwhile was not seen. What is refused (a quota; a registration of ours under another
  // user, as long as the daemon keeps it; a number that was closed while a dup lives on) is asked for again
  // and again, and the socket is looked at as often.
  void enroll_again(std::vector<std::uint64_t>& unseen) REQUIRES(mutex_) {
    int refusals = 0;
    for (const std::uint32_t slot : std::exchange(unenrolled_, {})) {
      const Enrolled& one = enrolled_[slot];
      if (one.cookie == 0) continue;  // dismissed meanwhile
      unseen.push_back(one.cookie);
      if (refusals < kManyRefusals && send_watch(one, slot)) continue;
      unenrolled_.push_back(slot);
      ++refusals;
    }
    if (serving() && !unenrolled_.empty()) set_timer(kLongestRetry);
  }

  void look_at_all(std::vector<std::uint64_t>& unseen) const REQUIRES(mutex_) {
    for (const Enrolled& one : enrolled_)
      if (one.cookie != 0) unseen.push_back(one.cookie);
  }

  const std::string path_;
  const LogHook log_;
  // Set for good by begin().
  UniqueFd tended_, timer_, table_fd_, introduction_;
  std::uint32_t slots_ = 0;
  std::size_t ring_bytes_ = 0;
  std::unique_ptr<SessionMemory> memory_;

  Mutex mutex_;  // taken after the Core's
  UniqueFd connection_ GUARDED_BY(mutex_);
  std::uint32_t last_id_ GUARDED_BY(mutex_) = 0, hello_id_ GUARDED_BY(mutex_) = 0;
  std::uint64_t missed_ GUARDED_BY(mutex_) = 0;
  // Of the question for it that is not answered yet; 0: none.
  std::uint32_t count_id_ GUARDED_BY(mutex_) = 0;
  Clock::time_point count_until_ GUARDED_BY(mutex_);  // then the daemon is taken for gone
  bool resuming_ GUARDED_BY(mutex_) = false;          // connected, and waiting for the welcome
  bool reads_ GUARDED_BY(mutex_) = false;
  bool told_lost_ GUARDED_BY(mutex_) = false;  // the hook, last
  milliseconds retry_ GUARDED_BY(mutex_) = kFirstRetry;
  std::vector<Enrolled> enrolled_ GUARDED_BY(mutex_);         // by slot
  std::vector<std::uint32_t> unenrolled_ GUARDED_BY(mutex_);  // slots of it that are to be registered again
  // To be unregistered as soon as there is a daemon.
  std::vector<std::uint64_t> undone_ GUARDED_BY(mutex_);
};

}  // namespace

Result<std::unique_ptr<BpfSession>> BpfSession::join(const std::string& socket, std::uint32_t slots,
                                                     std::size_t ring_bytes, LogHook log) {
  auto session = std::make_unique<DaemonSession>(socket, std::move(log));
  constexpr std::size_t kLargestRing = 1U << 30;
  ring_bytes = std::bit_ceil(std::clamp(ring_bytes, page_size(), kLargestRing));
  if (auto ok = session->begin(slots, ring_bytes); !ok) return fail(ok.error());
  return std::unique_ptr<BpfSession>(std::move(session));
}

}  // namespace sockalarm::detail

namespace sockalarm {

Result<std::string> daemon_status(const std::string& socket) {
  const auto connection = detail::connect_to(socket, detail::kPatience);
  if (!connection) return fail(connection.error());
  const auto until = detail::Clock::now() + detail::kPatience;
  const ipc::Hello hello{
      {ipc::Kind::hello, 1}, ipc::kMagic, ipc::kLeastVersion, ipc::kVersion, 0, 0, 0, 0};  // without a table
  if (const int failed = ipc::send_frame(connection->get(), hello); failed != 0)
    return fail(detail::refused(failed, "sending to the daemon"));
  const auto welcome = detail::receive<ipc::Welcome>(connection->get(), ipc::Kind::welcome, 1, until);
  if (!welcome) return fail(welcome.error());
  if (const int failed = ipc::send_frame(connection->get(), ipc::Header{ipc::Kind::status, 2}); failed != 0)
    return fail(detail::refused(failed, "sending to the daemon"));
  for (std::string text;;) {
    const auto part = detail::receive<ipc::Text>(connection->get(), ipc::Kind::text, 2, until);
    if (!part) return fail(part.error());
    text.append(part->part.data(), std::min<std::size_t>(part->length, part->part.size()));
    if (part->more == 0) return text;
  }
}

}  // namespace sockalarm
