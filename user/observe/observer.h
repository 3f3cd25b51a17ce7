// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/result.h>

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "observe/connection_end.h"
#include "observe/filters.h"

namespace sockalarm::observe {

struct ObserverOptions {
  Filter filter;
  std::size_t ring_bytes = std::size_t{4} << 20;  // rounded up to a power of two; a record takes 160 bytes
  std::uint32_t services = 4096;                  // room for metrics: cgroup, direction, cause and verdict
  // How long a record may wait until the reader is woken, unless the ring is a quarter full; 0: for each
  // record.
  std::chrono::nanoseconds latency = std::chrono::milliseconds(10);
  // Sees every receive of an observed connection, so that what is in progress is exact. Costs some 50 ns in
  // each receive of the host.
  bool exact_progress = true;
  std::uint64_t first_sequence = 1;
  std::vector<std::string> without;  // names of programs that are not attached; for tests
};

// What is counted together. In the kernel a service is a cgroup.
struct ServiceKey {
  std::uint64_t cgroup = 0;
  Cause cause = Cause::local;
  Verdict verdict = Verdict::none;
  Direction direction = Direction::unknown;
};

// Bucket 0: less than 1 us; bucket n: from 2^(n-1) us to less than 2^n; the last: all beyond.
using Histogram = std::array<std::uint64_t, SOCKALARM_OBSERVE_BUCKETS>;

// Since the observer was opened. A snapshot is not atomic: an end may be in one figure and not yet in the
// next.
struct ServiceMetrics {
  ServiceKey key;
  std::uint64_t ends = 0, bytes_received = 0, bytes_sent = 0;
  std::chrono::nanoseconds orphaned{};
  std::chrono::nanoseconds age{};  // the sum of what `ages` has
  Histogram ages{};                // of those whose age is known; of abandoned ones when the peer left
  Histogram orphaned_times{};      // of abandoned ones
};

// By stage.
struct KernelLosses {
  std::uint64_t records =
      0;  // the ring was full: in the metrics, but no record; a gap in the sequence numbers
  std::uint64_t states = 0;   // no memory for a connection's state: its end lacks age, verdict and holder
  std::uint64_t metrics = 0;  // no room for another service: a record, but not in the metrics
  std::uint64_t late = 0;     // a change of state went unnoticed and was made up for: its time is not known
  std::uint64_t missed = 0;   // runs of programs that the kernel left out; most of them changed nothing
};

// Observes every end of a TCP connection of the host while it lives. One thread, but metrics() and losses()
// from any.
class Observer {
 public:
  // Errors: what is missing to load BPF programs; options out of range.
  static Result<std::unique_ptr<Observer>> open(const ObserverOptions& options);
  ~Observer();
  Observer(const Observer&) = delete;
  Observer& operator=(const Observer&) = delete;

  // What could not be had on this host and what that means, a sentence each.
  const std::vector<std::string>& limits() const noexcept;

  // Readable (epoll, poll) when there are records to read. Lent.
  int fd() const noexcept;
  // Calls `sink` for all records that are there, on this thread, and gives their number: at most `most`, and
  // at most what the ring has room for, so that it returns though more come all the time. Does not wait. If
  // it left some, fd() is readable at once. Two ends that came at the same moment on two processors may come
  // in either order of their sequence numbers. An exception of the sink comes out of here; that record is
  // lost, the following ones are kept.
  Result<std::size_t> read(const std::function<void(const ConnectionEnd&)>& sink,
                           std::size_t most = SIZE_MAX);

  // All or nothing: after an error the filter before is in force. Takes effect on ends from now on; a
  // connection that was not observed when it was established lacks its age.
  Result<void> set_filter(const Filter& filter);

  Result<std::vector<ServiceMetrics>> metrics() const;
  // Takes a service's figures out, when its cgroup is gone: makes room for others.
  Result<void> forget(const ServiceKey& key);
  Result<KernelLosses> losses() const;

 private:
  struct Impl;
  explicit Observer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace sockalarm::observe
