// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/result.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/bpf_programs.h"
#include "observe/filters.h"

struct observe_bpf;

namespace sockalarm::observe {

// What of bpf/observe.bpf.c is loaded and attached. What is destroyed detaches.
class ObserverPrograms {
 public:
  struct Options {
    std::uint32_t ring_bytes;  // a power of two, not less than a page
    std::uint32_t services;    // room for metrics
    std::chrono::nanoseconds latency;
    bool reads;
    std::uint64_t first_sequence;
    std::vector<std::string> without;  // names of programs that are not to be attached; for tests
  };
  // Loads and attaches, with the filter in force before the first event. Goes on without the hooks that are
  // only good for exactness.
  static Result<ObserverPrograms> load(const Options& options, const Filter& filter);

  // What could not be had, a sentence each.
  const std::vector<std::string>& limits() const noexcept { return limits_; }

  // All or nothing: after an error the filter before is in force.
  Result<void> set_filter(const Filter& filter);

  int ring() const noexcept;
  int metrics() const noexcept;
  int losses() const noexcept;
  // Runs that the kernel left out, of all programs.
  std::uint64_t missed() const noexcept;

 private:
  struct Deleter {
    void operator()(observe_bpf* skeleton) const noexcept;
  };
  Result<void> try_load(const Options& options, const Filter& filter, bool with_release);
  Result<void> attach(const Options& options, bool with_release);

  std::unique_ptr<observe_bpf, Deleter> skeleton_;
  UniqueFd active_cgroups_;  // the set of the filter that is in force
  std::vector<detail::Link> links_;
  std::vector<std::string> limits_;
};

}  // namespace sockalarm::observe
