// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstddef>
#include <deque>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "base/mutex.h"
#include "observe/losses.h"
#include "observe/record.h"
#include "observe/sink.h"

namespace sockalarm::observe {

// Admits a number of ends per second, and after a rest a second's worth at once. One thread.
class RateLimit {
 public:
  using Clock = std::chrono::steady_clock;

  explicit RateLimit(std::uint32_t per_second) noexcept
      : per_second_(per_second), left_(per_second) {}  // 0: no limit
  bool admits(Clock::time_point now) noexcept;

 private:
  double per_second_, left_;
  Clock::time_point last_{};
};

// Between the one who reads from the kernel and the sinks: a bounded queue and a thread for each. A sink that
// does not keep up loses the newest, counted, and holds up neither the reader nor another sink.
class Exporter {
 public:
  struct Options {
    std::uint32_t per_second = 0;  // of ends; 0: no limit
    std::size_t queue = 65536;     // ends that wait for each sink
  };
  using ErrorHook = std::function<void(const Error&)>;  // of a sink's thread; once per row of failures
  static constexpr std::chrono::milliseconds kPatience{2000};

  // `losses` outlives the exporter.
  Exporter(Host host, Options options, std::vector<std::unique_ptr<Sink>> sinks, Losses& losses,
           ErrorHook on_error);
  Exporter(const Exporter&) = delete;
  Exporter& operator=(const Exporter&) = delete;
  ~Exporter();  // stop()

  // Never waits for a sink. One thread.
  void offer(const ConnectionEnd& end) noexcept;

  // Writes what is queued, for as long as all sinks together may still take, then gives up: what is left is
  // counted at `queue`. Ends the threads. The thread of offer(), which is not called any more.
  void stop(std::chrono::milliseconds patience = kPatience) noexcept;

 private:
  struct Lane {
    explicit Lane(std::unique_ptr<Sink> its_sink) : sink(std::move(its_sink)) {}
    const std::unique_ptr<Sink> sink;
    Mutex mutex;
    ConditionVariable news, ended;
    std::deque<std::shared_ptr<const ConnectionEnd>> queue GUARDED_BY(mutex);
    bool ending GUARDED_BY(mutex) = false;     // nothing more comes
    bool given_up GUARDED_BY(mutex) = false;   // what is left is not written
    bool has_ended GUARDED_BY(mutex) = false;  // its thread has
    bool failing = false;                      // of its thread
    std::thread thread;
  };
  void serve(Lane& lane) noexcept;
  void put(Lane& lane, const std::shared_ptr<const ConnectionEnd>& end);
  void write(Lane& lane, const ConnectionEnd& end);
  void report(Lane& lane, const Result<void>& result);

  const Host host_;
  const Options options_;
  Losses& losses_;
  const ErrorHook on_error_;
  RateLimit rate_limit_;
  std::vector<std::unique_ptr<Lane>> lanes_;
};

}  // namespace sockalarm::observe
