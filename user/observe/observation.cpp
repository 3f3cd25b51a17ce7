// SPDX-License-Identifier: Apache-2.0
#include "observe/observation.h"

#include <algorithm>
#include <bit>
#include <string>
#include <unordered_map>
#include <utility>

namespace sockalarm::observe {
namespace {

constexpr std::size_t kAtOnce = 256;  // cgroups or entries, some 2 us each, until records are read

// With the sink that feeds those who follow.
std::vector<std::unique_ptr<Sink>> with_feed(std::vector<std::unique_ptr<Sink>> sinks, EventFeed& feed) {
  sinks.push_back(std::make_unique<EventFeedSink>(feed));
  return sinks;
}

void add(Snapshot::Latency& latency, std::chrono::nanoseconds time) {
  const auto us = static_cast<std::uint64_t>(std::max<std::int64_t>(time.count(), 0) / 1000);
  ++latency.times[std::min<std::size_t>(std::bit_width(us), latency.times.size() - 1)];
  latency.sum += time;
}

}  // namespace

Observation::Observation(Options options, Parts parts, Losses& losses, Exporter::ErrorHook on_error)
    : options_(std::move(options)),
      observer_(std::move(parts.observer)),
      shipping_(std::move(parts.shipping)),
      losses_(losses),
      totals_(
          [this](std::uint64_t cgroup) -> std::optional<std::string> {
            const MutexLock lock(mutex_);
            const Workload* const workload = attribution_.find(cgroup);
            return workload != nullptr ? std::optional(workload->service) : std::nullopt;
          },
          options_.services),
      paths_(std::move(parts.paths)),
      attribution_([this](std::uint64_t cgroup)
                       NO_THREAD_SAFETY_ANALYSIS {  // with the lock, like attribution_
                         return paths_.path(cgroup);
                       }),
      exporter_(options_.host, options_.exporter, with_feed(std::move(parts.sinks), feed_), losses,
                std::move(on_error)) {}

Result<void> Observation::read() {
  const MutexLock lock(mutex_);
  const auto take = [this](const ConnectionEnd& seen) NO_THREAD_SAFETY_ANALYSIS {  // within read()
    ConnectionEnd end = seen;
    const Workload& workload = attribution_.of(end.cgroup);
    end.service = workload.service;
    end.container = workload.container;
    end.pod = workload.pod;
    add(latency_, end.latency);
    exporter_.offer(end);
  };
  const auto count = observer_->read(take);
  if (!count) return fail(count.error());
  read_ += *count;
  return {};
}

Result<void> Observation::refresh() {
  const auto now = Clock::now();
  if (refreshed_ != Clock::time_point() && now - refreshed_ < kFreshness) return {};
  const auto now_at = std::chrono::system_clock::now();
  auto kernel = observer_->metrics();
  if (!kernel) return fail(kernel.error());
  totals_.update(*kernel);
  refreshed_ = now;
  refreshed_at_ = now_at;
  return {};
}

// A cgroup that is gone may still have sockets: its figures are only taken out when nothing has changed for
// as long as between two calls.
Result<void> Observation::tidy() {
  std::vector<ServiceKey> unchanged;
  {
    const MutexLock lock(figures_);
    refreshed_ = {};
    if (auto done = refresh(); !done) return done;
    unchanged = totals_.unchanged();
  }
  std::unordered_map<std::uint64_t, bool> here;
  std::vector<ServiceKey> gone;
  for (const ServiceKey& key : unchanged) {
    const auto [of, first] = here.try_emplace(key.cgroup);
    if (first) {
      {
        const MutexLock lock(mutex_);
        of->second = paths_.exists(key.cgroup);
      }
      if (here.size() % kAtOnce == 0)
        if (auto done = read(); !done) return done;
    }
    if (!of->second) gone.push_back(key);
  }
  return gone.empty() ? Result<void>() : forget(gone);
}

Result<void> Observation::forget(const std::vector<ServiceKey>& gone) {
  for (std::size_t begin = 0; begin < gone.size(); begin += kAtOnce) {
    {
      const MutexLock lock(figures_);
      refreshed_ = {};
      if (auto done = refresh(); !done) return done;  // what they have counted meanwhile
      for (std::size_t i = begin; i < std::min(gone.size(), begin + kAtOnce); ++i) {
        if (auto done = observer_->forget(gone[i]); !done) return done;
        totals_.forgotten(gone[i]);
      }
    }
    if (auto done = read(); !done) return done;
  }
  return {};
}

std::vector<std::pair<std::string, std::uint64_t>> Observation::lost(const KernelLosses& kernel) const {
  return {{"ring", kernel.records},
          {"states", kernel.states},
          {"metrics", kernel.metrics},
          {"late", kernel.late},
          {"missed", kernel.missed},
          {"rate_limit", losses_.rate_limit},
          {"queue", losses_.queue},
          {"sink", losses_.sink},
          {"spool_size", losses_.spool_size},
          {"spool_age", losses_.spool_age},
          {"spool_write", losses_.spool_write},
          {"readers", feed_.lost()}};
}

Result<Snapshot> Observation::snapshot() {
  const auto kernel = observer_->losses();
  if (!kernel) return fail(kernel.error());
  Snapshot snapshot;
  {
    const MutexLock lock(figures_);
    if (auto done = refresh(); !done) return fail(done.error());
    snapshot.ends = totals_.all();
    snapshot.evicted = totals_.evicted();
    snapshot.now = refreshed_at_;
    snapshot.uptime = refreshed_ - started_;
  }
  {
    const MutexLock lock(mutex_);
    snapshot.latency = latency_;
    snapshot.read = read_;
  }
  snapshot.host = options_.host;
  snapshot.started_at = started_at_;
  snapshot.lost = lost(*kernel);
  snapshot.corrupt_segments = losses_.spool_corrupt;
  snapshot.limits = observer_->limits();
  if (shipping_) snapshot.shipping = shipping_();
  return snapshot;
}

}  // namespace sockalarm::observe
