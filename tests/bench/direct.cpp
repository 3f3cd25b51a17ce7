// SPDX-License-Identifier: Apache-2.0
// From the close() of a peer in another process to the first instruction of the signal handler of a thread
// that is blocked in a system call. All contenders take turns in one process, on an idle machine and beside
// processes that want every core.
#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <functional>
#include <numeric>
#include <random>

#include "bench/support/contender.h"
#include "bench/support/peer.h"
#include "bench/support/program.h"
#include "bench/support/threads.h"

namespace sockalarm::bench {
namespace {

constexpr int kHogs = 8;
constexpr int kPriority = 50;
constexpr std::chrono::microseconds kShortSlice{100};
constexpr std::size_t kRoundsPerBatch = 10;
constexpr const char* kBaseline = "epoll_thread";

// What the handler touches.
volatile std::int64_t handled_at = 0;
int wake_fd = -1;

void on_signal(int /*number*/) {
  const std::int64_t now = now_ns();
  if (handled_at == 0) handled_at = now;
  const int saved = errno;
  [[maybe_unused]] const ssize_t sent = ::send(wake_fd, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
  errno = saved;
}

// The thread that is to be reached: this one. It blocks in recv() on a socket that only its own handler
// writes to, so a signal that comes before it blocks is not missed.
class Target {
 public:
  Target() {
    int ends[2];
    require(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0, "socketpair");
    wait_ = UniqueFd(ends[0]);
    wake_ = UniqueFd(ends[1]);
    wake_fd = wake_.get();
    const timeval patience{10, 0};
    ::setsockopt(wait_.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    struct sigaction action{};
    action.sa_handler = on_signal;  // no SA_RESTART: the call is to end
    ::sigaction(SIGUSR1, &action, nullptr);
    ::sigaction(SIGUSR2, &action, nullptr);
  }
  static void get_ready() { handled_at = 0; }
  // When the handler began; 0: it never did.
  std::int64_t wait() {
    char byte = 0;
    while (handled_at == 0) {
      const ssize_t got = ::recv(wait_.get(), &byte, 1, 0);
      if (got < 0 && errno == EAGAIN) break;  // patience ended
    }
    while (::recv(wait_.get(), &byte, 1, MSG_DONTWAIT) > 0) {
    }
    return handled_at;
  }

 private:
  UniqueFd wait_, wake_;
};

// Signal-driven I/O by hand: the least that Linux can do.
class SigioByHand final : public Contender {
 public:
  void prepare(std::span<const int> fds) override { fds_.assign(fds.begin(), fds.end()); }
  void arm(std::size_t first, std::size_t count) override {
    for (std::size_t i = first; i < first + count; ++i) {
      const f_owner_ex owner{F_OWNER_TID, thread_id()};
      require(::fcntl(fds_[i], F_SETOWN_EX, &owner) == 0, "F_SETOWN_EX");
      require(::fcntl(fds_[i], F_SETSIG, SIGUSR2) == 0, "F_SETSIG");
      require(::fcntl(fds_[i], F_SETFL, ::fcntl(fds_[i], F_GETFL) | O_ASYNC) == 0, "O_ASYNC");
    }
  }
  void disarm(std::size_t index) override {
    ::fcntl(fds_[index], F_SETFL, ::fcntl(fds_[index], F_GETFL) & ~O_ASYNC);
  }
  void forget() override { fds_.clear(); }

 private:
  std::vector<int> fds_;
};

struct Entry {
  std::string name;
  std::unique_ptr<Contender> contender;
  std::string why_not;
  bool short_slice = false;  // of the target
  std::vector<double> us;
  std::uint64_t missed = 0;
  Stats before;
};

void add(std::vector<Entry>& all, const std::string& name,
         const std::function<std::unique_ptr<Contender>()>& make) {
  Entry entry;
  entry.name = name;
  try {
    entry.contender = make();
  } catch (const std::exception& error) {
    entry.why_not = error.what();
  }
  all.push_back(std::move(entry));
}

// The turns of this thread, which is the target; threads that it starts have them too.
void set_slice(std::chrono::nanoseconds slice) {
  if (auto set = set_time_slice(slice); !set) throw std::runtime_error(set.error().message());
}

void add_with_short_slice(std::vector<Entry>& all, const std::string& name,
                          const std::function<std::unique_ptr<Contender>()>& make) {
  add(all, name, [&] {
    set_slice(kShortSlice);
    auto made = make();
    set_slice({});
    return made;
  });
  all.back().short_slice = true;
}

std::unique_ptr<Contender> sockalarm_contender(SourceKind source, Delivery delivery, int priority = 0) {
  Options options;
  options.source = source;
  options.delivery = delivery;
  options.realtime_priority = priority;
  auto watcher = make_watcher(std::move(options));
  if (!watcher) throw std::runtime_error(watcher.error().message());
  if (priority > 0) {
    const OtherThreads threads;
    const auto realtime = [](pid_t id) {
      return (::sched_getscheduler(id) & ~SCHED_RESET_ON_FORK) == SCHED_FIFO;
    };
    if (std::none_of(threads.ids().begin(), threads.ids().end(), realtime))
      throw std::runtime_error("no thread of the Watcher runs under SCHED_FIFO");
  }
  return std::make_unique<SockalarmContender>(std::move(*watcher), send_signal(SIGUSR1));
}

std::unique_ptr<Contender> thread_contender(std::unique_ptr<WaitingThread> (*make)(WaitingThread::OnGone),
                                            int priority = 0) {
  auto thread = make(
      [process = ::getpid(), target = thread_id()](int) { ::syscall(SYS_tgkill, process, target, SIGUSR1); });
  if (priority > 0)
    if (const auto why_not = thread->run_realtime(priority)) throw std::runtime_error(*why_not);
  return std::make_unique<ThreadContender>(std::move(thread));
}

std::vector<Entry> make_contenders() {
  std::vector<Entry> all;
  // The one whose realtime thread is looked for comes before the others that have such a thread.
  add(all, "sockalarm_dispatcher_fifo",
      [] { return sockalarm_contender(SourceKind::kernel, Delivery::dispatcher, kPriority); });
  add(all, "sockalarm_dispatcher",
      [] { return sockalarm_contender(SourceKind::kernel, Delivery::dispatcher); });
  add(all, "sockalarm_task_work",
      [] { return sockalarm_contender(SourceKind::kernel, Delivery::task_work); });
  add(all, "sockalarm_sigio", [] { return sockalarm_contender(SourceKind::kernel, Delivery::sigio); });
  add(all, "sockalarm_sigio_on_epoll",
      [] { return sockalarm_contender(SourceKind::epoll, Delivery::sigio); });
  add_with_short_slice(all, "sockalarm_task_work_slice",
                       [] { return sockalarm_contender(SourceKind::kernel, Delivery::task_work); });
  add_with_short_slice(all, "sockalarm_sigio_slice",
                       [] { return sockalarm_contender(SourceKind::kernel, Delivery::sigio); });
  add_with_short_slice(all, "sockalarm_dispatcher_slice",
                       [] { return sockalarm_contender(SourceKind::kernel, Delivery::dispatcher); });
  add(all, kBaseline, [] { return thread_contender(epoll_thread); });
  add(all, "epoll_thread_fifo", [] { return thread_contender(epoll_thread, kPriority); });
  add_with_short_slice(all, "epoll_thread_slice", [] { return thread_contender(epoll_thread); });
  add(all, "poll_thread", [] { return thread_contender(poll_thread); });
  add(all, "io_uring_thread", [] { return thread_contender(uring_thread); });
  add(all, "plain_f_setsig", [] { return std::make_unique<SigioByHand>(); });
  add_with_short_slice(all, "plain_f_setsig_slice", [] { return std::make_unique<SigioByHand>(); });
  return all;
}

void take_sample(Entry& entry, std::size_t index, std::size_t connection, Peer& peer, Target& target,
                 const OtherThreads& threads, std::uint32_t delay_us, bool stay_busy) {
  target.get_ready();
  if (entry.short_slice) set_slice(kShortSlice);
  entry.contender->arm(index);
  threads.await_asleep();
  peer.close_later(0, connection, delay_us, stay_busy);
  const std::int64_t at = target.wait();
  peer.be_idle();
  entry.contender->disarm(index);
  if (entry.short_slice) set_slice({});
  if (at != 0)
    entry.us.push_back(microseconds(at - peer.closed_at()));
  else
    ++entry.missed;
}

// What else the machine does. Under load the process that closes goes on computing until the signal has come:
// a FIN from another host arrives in an interrupt, and the CPU that took it goes on with what it did. On one
// host a peer may instead go to sleep at once, and so make room for the thread that it has just woken: the
// easier case, measured as well.
struct Load {
  const char* name;
  std::size_t samples;
  bool hogs, peer_stays_busy;
};

// In every round each contender has one sample, in an order that changes.
void run_rounds(std::vector<Entry>& all, const Load& load, Peer& peer, Target& target) {
  std::mt19937 random(1);
  const OtherThreads threads;
  std::vector<std::size_t> order;
  for (std::size_t i = 0; i < all.size(); ++i)
    if (all[i].contender) order.push_back(i);
  for (std::size_t done = 0; done < load.samples; done += kRoundsPerBatch) {
    const std::size_t batch = std::min(kRoundsPerBatch, load.samples - done);
    auto connections = peer.connect(0, batch * all.size());
    const std::vector<int> fds = numbers(connections);
    for (const std::size_t i : order) all[i].contender->prepare(std::span(fds).subspan(i * batch, batch));
    for (std::size_t round = 0; round < batch; ++round) {
      std::shuffle(order.begin(), order.end(), random);
      for (const std::size_t i : order) {
        const auto delay_us = static_cast<std::uint32_t>(150 + random() % 200);
        take_sample(all[i], round, i * batch + round, peer, target, threads, delay_us, load.peer_stays_busy);
      }
    }
    for (const std::size_t i : order) all[i].contender->forget();
    threads.await_asleep();
    peer.drop(0, connections);
    if (done / kRoundsPerBatch % 20 == 0)
      progress(std::string(load.name) + ": " + std::to_string(done + batch) + " of " +
               std::to_string(load.samples));
  }
}

Json result_of(const Entry& entry, const Entry& baseline) {
  if (!entry.contender) return not_available(entry.why_not);
  Json row = latencies(entry.us);
  row["missed"] = entry.missed;
  row["p50_to_epoll"] = quantile(entry.us, 0.5) / quantile(baseline.us, 0.5);
  row["p90_to_epoll"] = quantile(entry.us, 0.9) / quantile(baseline.us, 0.9);
  if (const Watcher* watcher = entry.contender->watcher()) {
    const Stats now = watcher->stats();
    const auto fired = static_cast<double>(now.fired - entry.before.fired);
    row["direct_share"] =
        fired > 0 ? static_cast<double>(now.fired_directly - entry.before.fired_directly) / fired : 0;
  }
  return row;
}

Json measure(const Settings& settings) {
  Peer peer;
  Hogs hogs(kHogs);
  Target target;
  std::vector<Entry> all = make_contenders();
  const auto baseline =
      std::find_if(all.begin(), all.end(), [](const Entry& e) { return e.name == kBaseline; });
  const std::size_t idle = settings.pick(2000UL, 40UL), loaded = settings.pick(300UL, 10UL);
  Json rows = Json::object();
  for (const Load& load : {Load{"idle", idle, false, false}, Load{"loaded", loaded, true, true},
                           Load{"loaded_peer_sleeps", loaded, true, false}}) {
    for (Entry& entry : all) {
      entry.us.clear();
      entry.missed = 0;
      if (entry.contender && entry.contender->watcher() != nullptr)
        entry.before = entry.contender->watcher()->stats();
    }
    if (load.hogs) hogs.resume();
    run_rounds(all, load, peer, target);
    hogs.pause();
    for (const Entry& entry : all) rows[load.name][entry.name] = result_of(entry, *baseline);
  }
  return {{"settings",
           {{"hogs", kHogs},
            {"samples_idle", idle},
            {"samples_loaded", loaded},
            {"realtime_priority", kPriority},
            {"short_slice_us", kShortSlice.count()}}},
          {"rows", rows}};
}

}  // namespace
}  // namespace sockalarm::bench

int main(int argc, char** argv) {
  return sockalarm::bench::bench_main(argc, argv, "Peer's close() to the signal handler of a blocked thread",
                                      sockalarm::bench::measure);
}
