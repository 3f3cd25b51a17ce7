// SPDX-License-Identifier: Apache-2.0
// From the close() of a peer in another process to a function on the background thread, beside few and many
// connections that stay idle. Each contender exists only while it is measured: a thread that spins would
// take a core from the others.
#include <poll.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <functional>
#include <map>
#include <random>

#include "bench/support/contender.h"
#include "bench/support/peer.h"
#include "bench/support/program.h"
#include "bench/support/threads.h"

namespace sockalarm::bench {
namespace {

constexpr std::uint32_t kIdle = 0, kSamples = 1;  // the peer's groups
constexpr std::size_t kWarmUp = 3;                // the first of each block pays for cold caches
constexpr std::uint32_t kGapUs = 30;
constexpr const char* kBaseline = "epoll_thread";

// Where the callback leaves its time.
class Mailbox {
 public:
  Mailbox() : ready_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) { require(bool(ready_), "eventfd"); }
  // happened: when the kernel saw the peer leave; 0: not known.
  void called(std::int64_t happened = 0) {
    const std::int64_t now = now_ns();
    happened_.store(happened);
    at_.store(now);
    ::eventfd_write(ready_.get(), 1);
  }
  // The time of the last of `count` calls; 0: they did not come.
  std::int64_t wait_for(eventfd_t count) {
    while (count > 0) {
      pollfd entry{ready_.get(), POLLIN, 0};
      if (::poll(&entry, 1, 10'000) != 1) return 0;
      eventfd_t some = 0;
      ::eventfd_read(ready_.get(), &some);
      count -= std::min(count, some);
    }
    return at_.load();
  }
  std::int64_t happened() const { return happened_.load(); }

 private:
  UniqueFd ready_;
  std::atomic<std::int64_t> at_{0}, happened_{0};
};

struct Kind {
  std::string name;
  bool sleeps;  // its threads, when there is no news
  std::function<std::unique_ptr<Contender>(Mailbox&)> make;
};

Kind sockalarm_kind(const std::string& name, SourceKind source, Waking waking) {
  return {name, waking != Waking::spin, [source, waking](Mailbox& mailbox) {
            Options options;
            options.source = source;
            options.waking = waking;
            auto watcher = make_watcher(std::move(options));
            if (!watcher) throw std::runtime_error(watcher.error().message());
            const bool recorded = source == SourceKind::kernel;
            return std::make_unique<SockalarmContender>(
                std::move(*watcher), call([&mailbox, recorded](const Event& event) {
                  mailbox.called(recorded ? event.at.time_since_epoch() / std::chrono::nanoseconds(1) : 0);
                  return Verdict::proceed;
                }));
          }};
}

Kind thread_kind(const std::string& name, std::unique_ptr<WaitingThread> (*make)(WaitingThread::OnGone)) {
  return {name, true, [make](Mailbox& mailbox) {
            return std::make_unique<ThreadContender>(make([&mailbox](int) { mailbox.called(); }));
          }};
}

std::vector<Kind> kinds() {
  return {sockalarm_kind("sockalarm_sleep", SourceKind::kernel, Waking::sleep),
          sockalarm_kind("sockalarm_adaptive", SourceKind::kernel, Waking::adaptive),
          sockalarm_kind("sockalarm_spin", SourceKind::kernel, Waking::spin),
          sockalarm_kind("sockalarm_on_epoll", SourceKind::epoll, Waking::sleep),
          thread_kind(kBaseline, epoll_thread),
          thread_kind("poll_thread", poll_thread)};
}

// What one contender did beside one number of watches.
struct Series {
  std::vector<double> us, block_medians, until_seen_us;
  std::uint64_t missed = 0;
  std::string why_not;
};

struct Bench {
  Peer& peer;
  std::mt19937 random{1};

  // One contender, from its creation to its end. after_activity: each measured close follows another one.
  void run_block(const Kind& kind, std::span<const int> idle, std::size_t samples, bool after_activity,
                 Series& series) {
    const std::size_t step = after_activity ? 2 : 1;
    auto connections = peer.connect(kSamples, samples * step);
    Mailbox mailbox;
    std::vector<double> us;
    {
      std::unique_ptr<Contender> contender;
      try {
        contender = kind.make(mailbox);
      } catch (const std::exception& error) {
        series.why_not = error.what();
        return peer.drop(kSamples, connections);
      }
      std::vector<int> fds(idle.begin(), idle.end());
      const std::vector<int> measured = numbers(connections);
      fds.insert(fds.end(), measured.begin(), measured.end());
      contender->prepare(fds);
      contender->arm(0, idle.size());
      const OtherThreads threads;
      std::optional<OwnCpu> given_away;  // what the mode is for; else the scheduler wakes the peer there, too
      if (!kind.sleeps) given_away.emplace(threads.ids(), peer.pid());
      for (std::size_t i = 0; i < samples; ++i) {
        contender->arm(idle.size() + i * step, step);
        if (kind.sleeps) threads.await_asleep();
        const auto delay_us = static_cast<std::uint32_t>(150 + random() % 200);
        if (after_activity)
          peer.close_two_later(kSamples, i * step, kGapUs, delay_us);
        else
          peer.close_later(kSamples, i, delay_us);
        const std::int64_t at = mailbox.wait_for(step);
        if (at == 0)
          ++series.missed;
        else if (i >= kWarmUp)
          us.push_back(microseconds(at - peer.closed_at()));
        if (at != 0 && i >= kWarmUp && mailbox.happened() != 0)
          series.until_seen_us.push_back(microseconds(mailbox.happened() - peer.closed_at()));
      }
      contender->forget();
      if (kind.sleeps) threads.await_asleep();
    }
    peer.drop(kSamples, connections);
    series.us.insert(series.us.end(), us.begin(), us.end());
    series.block_medians.push_back(median(us));
  }
};

// Block by block, as they were measured side by side.
Json ratios(const Series& of, const Series& to) {
  std::vector<double> all;
  for (std::size_t i = 0; i < std::min(of.block_medians.size(), to.block_medians.size()); ++i)
    all.push_back(of.block_medians[i] / to.block_medians[i]);
  return spread(all);
}

using Table = std::map<std::string, Series>;

Json rows_of(const std::vector<Kind>& all, Table& table, Table* single) {
  Json rows = Json::object();
  for (const Kind& kind : all) {
    const Series& series = table[kind.name];
    if (!series.why_not.empty()) {
      rows[kind.name] = not_available(series.why_not);
      continue;
    }
    Json row = latencies(series.us);
    row["missed"] = series.missed;
    if (!series.until_seen_us.empty()) row["p50_until_seen_us"] = median(series.until_seen_us);
    row["p50_to_epoll"] = ratios(series, table[kBaseline]);
    if (single != nullptr) row["p50_to_one_watch"] = ratios(series, (*single)[kind.name]);
    rows[kind.name] = row;
  }
  return rows;
}

Json measure(const Settings& settings) {
  Peer peer;
  Bench bench{peer};
  std::vector<Kind> all = kinds();
  if (!settings.only.empty()) {
    std::erase_if(all, [&](const Kind& kind) { return kind.name != settings.only; });
    if (all.empty()) throw std::runtime_error("no contender is called " + settings.only);
  }
  std::vector<std::size_t> counts =
      settings.quick ? std::vector<std::size_t>{1, 50} : std::vector<std::size_t>{1, 100, 1000, 9000};
  const std::size_t room = raise_descriptor_limit() - 1000;
  for (std::size_t& count : counts) count = std::min(count, room);
  const std::size_t rounds = settings.pick(10UL, 2UL), samples = settings.pick(60UL, 10UL);

  // All connections stay open all the time; how many of them are watched changes from block to block.
  auto idle = peer.connect(kIdle, counts.back() - 1);
  const std::vector<int> fds = numbers(idle);
  std::map<std::size_t, Table> tables;
  Table after_activity;
  for (std::size_t round = 0; round < rounds; ++round) {
    for (const std::size_t count : counts)
      for (const Kind& kind : all)
        bench.run_block(kind, std::span(fds).first(count - 1), samples, false, tables[count][kind.name]);
    for (const Kind& kind : all) bench.run_block(kind, {}, samples, true, after_activity[kind.name]);
    progress("round " + std::to_string(round + 1) + " of " + std::to_string(rounds));
  }
  peer.drop(kIdle, idle);
  Json rows = Json::object();
  for (auto& [count, table] : tables)
    rows["watches"][std::to_string(count)] = rows_of(all, table, count == 1 ? nullptr : &tables[1]);
  rows["after_activity"] = rows_of(all, after_activity, nullptr);
  return {{"settings", {{"rounds", rounds}, {"samples_per_round", samples}, {"gap_us", kGapUs}}},
          {"rows", rows}};
}

}  // namespace
}  // namespace sockalarm::bench

int main(int argc, char** argv) {
  return sockalarm::bench::bench_main(argc, argv, "Peer's close() to a function on the background thread",
                                      sockalarm::bench::measure);
}
