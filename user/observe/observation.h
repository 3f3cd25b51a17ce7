// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/result.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "base/mutex.h"
#include "observe/attribution.h"
#include "observe/event_feed.h"
#include "observe/exporter.h"
#include "observe/losses.h"
#include "observe/observer.h"
#include "observe/snapshot.h"
#include "observe/totals.h"

namespace sockalarm::observe {

// All of it put together: what the observer sees goes, with its service, to the sinks and to those who
// follow; what the kernel counts is there for whoever asks. One thread reads; the others of its functions may
// be called by any.
class Observation {
 public:
  struct Options {
    Host host;
    std::size_t services = 200;  // that have names in the figures
    Exporter::Options exporter;
  };
  struct Parts {
    std::unique_ptr<Observer> observer;
    CgroupPaths paths;
    std::vector<std::unique_ptr<Sink>> sinks;
    std::function<std::optional<Snapshot::Shipping>()> shipping;  // of one of the sinks; empty: there is none
  };

  // `losses` and what `parts.shipping` asks outlive this.
  Observation(Options options, Parts parts, Losses& losses, Exporter::ErrorHook on_error);
  Observation(const Observation&) = delete;
  Observation& operator=(const Observation&) = delete;

  // Of the thread that reads: fd() is readable when there is something. tidy() now and then: it makes room
  // for new cgroups in the kernel's tables, and in the names; it reads meanwhile.
  int fd() const noexcept { return observer_->fd(); }
  Result<void> read();
  Result<void> tidy();

  // The figures are at most `kFreshness` old: whoever asks often makes no work by that.
  static constexpr std::chrono::milliseconds kFreshness{100};
  Result<Snapshot> snapshot();
  Result<void> set_filter(const Filter& filter) { return observer_->set_filter(filter); }
  // Null: no more may.
  std::unique_ptr<WebStream> follow(std::function<void()> news) { return feed_.follow(std::move(news)); }

 private:
  using Clock = std::chrono::steady_clock;
  Result<void> refresh() REQUIRES(figures_);
  Result<void> forget(const std::vector<ServiceKey>& gone);
  std::vector<std::pair<std::string, std::uint64_t>> lost(const KernelLosses& kernel) const;

  const Options options_;
  const std::unique_ptr<Observer> observer_;
  const std::function<std::optional<Snapshot::Shipping>()> shipping_;
  Losses& losses_;
  const std::chrono::system_clock::time_point started_at_ = std::chrono::system_clock::now();
  const Clock::time_point started_ = Clock::now();

  // Of the figures, which may take long to be read from the kernel; before the other one, which the thread
  // that reads needs for each look.
  Mutex figures_;
  Totals totals_ GUARDED_BY(figures_);
  Clock::time_point refreshed_ GUARDED_BY(figures_);
  std::chrono::system_clock::time_point refreshed_at_ GUARDED_BY(figures_);

  Mutex mutex_;
  CgroupPaths paths_ GUARDED_BY(mutex_);
  Attribution attribution_ GUARDED_BY(mutex_);
  Snapshot::Latency latency_ GUARDED_BY(mutex_);
  std::uint64_t read_ GUARDED_BY(mutex_) = 0;

  EventFeed feed_;
  Exporter exporter_;  // ends first
};

}  // namespace sockalarm::observe
