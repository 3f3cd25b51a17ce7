// SPDX-License-Identifier: Apache-2.0
// Thousands of peers leave at once: how long after the first close the last alarm ran, against the time that
// the closes themselves took.
#include <poll.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <functional>
#include <map>

#include "bench/support/contender.h"
#include "bench/support/peer.h"
#include "bench/support/program.h"
#include "bench/support/threads.h"

namespace sockalarm::bench {
namespace {

// Counts the calls and keeps the time of the last.
class Counter {
 public:
  explicit Counter(std::size_t expected) : expected_(expected), all_(::eventfd(0, EFD_CLOEXEC)) {
    require(bool(all_), "eventfd");
  }
  void called() {
    last_at_.store(now_ns(), std::memory_order_relaxed);
    if (count_.fetch_add(1) + 1 == expected_) ::eventfd_write(all_.get(), 1);
  }
  // 0: not all came.
  std::int64_t wait() {
    pollfd entry{all_.get(), POLLIN, 0};
    return ::poll(&entry, 1, 20'000) == 1 ? last_at_.load() : 0;
  }

 private:
  std::size_t expected_;
  UniqueFd all_;
  std::atomic<std::size_t> count_{0};
  std::atomic<std::int64_t> last_at_{0};
};

struct Kind {
  std::string name;
  std::function<std::unique_ptr<Contender>(Counter&)> make;
};

Kind sockalarm_kind(const std::string& name, SourceKind source, Waking waking) {
  return {name, [source, waking](Counter& counter) {
            Options options;
            options.source = source;
            options.waking = waking;
            auto watcher = make_watcher(std::move(options));
            if (!watcher) throw std::runtime_error(watcher.error().message());
            return std::make_unique<SockalarmContender>(std::move(*watcher),
                                                        call([&counter] { counter.called(); }));
          }};
}

std::vector<Kind> kinds() {
  return {sockalarm_kind("sockalarm_sleep", SourceKind::kernel, Waking::sleep),
          sockalarm_kind("sockalarm_adaptive", SourceKind::kernel, Waking::adaptive),
          sockalarm_kind("sockalarm_spin", SourceKind::kernel, Waking::spin),
          sockalarm_kind("sockalarm_on_epoll", SourceKind::epoll, Waking::sleep),
          {"epoll_thread", [](Counter& counter) {
             return std::make_unique<ThreadContender>(epoll_thread([&counter](int) { counter.called(); }));
           }}};
}

struct Series {
  std::vector<double> closes_ms, ratio, lag_ms, wakeups, records_lost;
  std::uint64_t incomplete = 0;
  std::string why_not;
};

void run_storm(Peer& peer, const Kind& kind, std::size_t sockets, Series& series) {
  Counter counter(sockets);
  std::unique_ptr<Contender> contender;
  try {
    contender = kind.make(counter);
  } catch (const std::exception& error) {
    series.why_not = error.what();
    return;
  }
  auto connections = peer.connect(0, sockets);
  contender->prepare(numbers(connections));
  contender->arm(0, sockets);
  sleep_us(20'000);  // whatever making the connections left to do
  const Stats before = contender->watcher() != nullptr ? contender->watcher()->stats() : Stats{};
  peer.close_all(0, 1000);
  const std::int64_t last = counter.wait();
  const std::int64_t took = peer.await_all_closed();
  if (last == 0) {
    ++series.incomplete;
  } else {
    const std::int64_t since_first = last - peer.closed_at();
    series.closes_ms.push_back(microseconds(took) / 1000);
    series.ratio.push_back(static_cast<double>(since_first) / static_cast<double>(took));
    series.lag_ms.push_back(microseconds(since_first - took) / 1000);
  }
  if (const Watcher* watcher = contender->watcher()) {
    const Stats now = watcher->stats();
    series.wakeups.push_back(static_cast<double>(now.wakeups - before.wakeups));
    series.records_lost.push_back(static_cast<double>(now.records_lost - before.records_lost));
  }
  contender->forget();
  contender.reset();
  peer.drop(0, connections);
}

Json row_of(const Series& series) {
  if (!series.why_not.empty()) return not_available(series.why_not);
  Json row{{"closes_ms", median(series.closes_ms)},
           {"last_alarm_to_closes", spread(series.ratio)},
           {"lag_ms", spread(series.lag_ms)},
           {"incomplete", series.incomplete}};
  if (!series.wakeups.empty()) {
    row["wakeups"] = median(series.wakeups);
    row["records_lost"] = median(series.records_lost);
  }
  return row;
}

Json measure(const Settings& settings) {
  const std::size_t room = raise_descriptor_limit() - 1000;
  const std::size_t sockets = std::min(settings.pick(9000UL, 300UL), room);
  const std::size_t rounds = settings.pick(7UL, 2UL);
  Peer peer;
  const std::vector<Kind> all = kinds();
  std::map<std::string, Series> table;
  for (std::size_t round = 0; round < rounds; ++round) {
    for (const Kind& kind : all) run_storm(peer, kind, sockets, table[kind.name]);
    progress("round " + std::to_string(round + 1) + " of " + std::to_string(rounds));
  }
  Json rows = Json::object();
  for (const Kind& kind : all) rows[kind.name] = row_of(table[kind.name]);
  return {{"settings", {{"sockets", sockets}, {"rounds", rounds}}}, {"rows", rows}};
}

}  // namespace
}  // namespace sockalarm::bench

int main(int argc, char** argv) {
  return sockalarm::bench::bench_main(argc, argv, "Thousands of peers leave at once",
                                      sockalarm::bench::measure);
}
