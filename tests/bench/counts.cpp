// SPDX-License-Identifier: Apache-2.0
// System calls and allocations of arming, cancelling and asking, counted and not assumed. System calls by a
// seccomp filter on the measuring thread that hands every one to a supervisor, which counts it and lets it
// pass; allocations by standing in for malloc and its relatives.
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <csignal>
#include <functional>
#include <stdexcept>
#include <thread>

#include "bench/support/contender.h"
#include "bench/support/program.h"
#include "harness/counted_malloc.h"
#include "harness/sockets.h"
#include "harness/syscall_supervisor.h"

namespace sockalarm::bench {
namespace {

// Counts the system calls of one thread, by number.
class SyscallCounter {
 public:
  // On the thread that is to be counted.
  bool begin() { return supervisor_.begin(); }
  std::uint64_t total() const noexcept { return total_.load(); }
  std::uint64_t of(std::size_t number) const noexcept { return counts_[number].load(); }
  static constexpr std::size_t kNumbers = 512;

 private:
  int count(const seccomp_notif& call) {
    total_.fetch_add(1);
    const auto number = static_cast<std::size_t>(call.data.nr);
    if (number < kNumbers) counts_[number].fetch_add(1);
    return 0;
  }
  std::atomic<std::uint64_t> total_{0};
  std::array<std::atomic<std::uint64_t>, kNumbers> counts_{};
  test::SyscallSupervisor supervisor_{[this](const seccomp_notif& call) { return count(call); }};
};

struct Counted {
  std::uint64_t syscalls = 0, allocations = 0;
  Json by_number = Json::object();
  bool counted = false;
};

Counted count(const std::function<void()>& once, std::size_t repeats) {
  Counted result;
  SyscallCounter counter;
  std::thread([&] {
    for (int i = 0; i < 100; ++i) once();  // what is made at the first time is not the matter here
    if (!counter.begin()) return;
    ::syscall(SYS_getppid);  // shows that the counter counts
    std::array<std::uint64_t, SyscallCounter::kNumbers> before{};
    for (std::size_t n = 0; n < before.size(); ++n) before[n] = counter.of(n);
    const std::uint64_t calls = counter.total(), blocks = test::allocations();
    for (std::size_t i = 0; i < repeats; ++i) once();
    result.syscalls = counter.total() - calls;
    result.allocations = test::allocations() - blocks;
    result.counted = before[SYS_getppid] == 1;
    for (std::size_t n = 0; n < before.size(); ++n)
      if (const std::uint64_t more = counter.of(n) - before[n]) result.by_number[std::to_string(n)] = more;
  }).join();
  return result;
}

Json row_of(const Counted& counted, std::size_t repeats) {
  if (!counted.counted) return not_available("seccomp user notification (Linux 5.5) is refused here");
  const auto n = static_cast<double>(repeats);
  return {{"repeats", repeats},
          {"syscalls", counted.syscalls},
          {"syscalls_each", static_cast<double>(counted.syscalls) / n},
          {"syscall_numbers", counted.by_number.dump()},
          {"allocations", counted.allocations},
          {"allocations_each", static_cast<double>(counted.allocations) / n}};
}

struct Kind {
  const char* name;
  SourceKind source;
  Delivery delivery;
};

Json measure_kind(const Kind& kind, std::size_t repeats) {
  Options options;
  options.source = kind.source;
  options.delivery = kind.delivery;
  auto watcher = make_watcher(std::move(options));
  if (!watcher) return not_available(watcher.error().message());
  const test::Connection connection = test::tcp_pair();
  const Watch watch = watcher->watch(connection.ours.get()).value();
  const ActionChain chain(send_signal(SIGUSR1));
  Json row;
  row["arm_cancel"] = row_of(count([&] { const auto alarm = watch.arm(chain); }, repeats), repeats);
  row["peer_gone"] = row_of(count(
                                [&] {
                                  if (watch.peer_gone()) throw std::logic_error("gone");
                                },
                                repeats),
                            repeats);
  return row;
}

Json measure(const Settings& settings) {
  // Each counted call costs two turns of the supervisor, so where calls are expected fewer rounds must do.
  const std::size_t free_of_calls = 100'000, with_calls = settings.pick(5000UL, 200UL);
  Json rows = Json::object();
  for (const Kind& kind : {Kind{"kernel", SourceKind::kernel, Delivery::automatic},
                           Kind{"kernel_dispatcher", SourceKind::kernel, Delivery::dispatcher},
                           Kind{"kernel_sigio", SourceKind::kernel, Delivery::sigio},
                           Kind{"epoll", SourceKind::epoll, Delivery::automatic},
                           Kind{"epoll_sigio", SourceKind::epoll, Delivery::sigio},
                           Kind{"poll", SourceKind::poll, Delivery::automatic}}) {
    const bool expects_none = kind.source == SourceKind::kernel && kind.delivery != Delivery::sigio;
    rows[kind.name] = measure_kind(kind, expects_none ? free_of_calls : with_calls);
    progress(std::string(kind.name) + " counted");
  }
  return {{"settings", {{"repeats", free_of_calls}}}, {"rows", rows}};
}

}  // namespace
}  // namespace sockalarm::bench

int main(int argc, char** argv) {
  return sockalarm::bench::bench_main(argc, argv, "System calls and allocations of the fast path",
                                      sockalarm::bench::measure);
}
