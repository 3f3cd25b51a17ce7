// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "observe/observer.h"

namespace sockalarm::observe {

// What is shown together: the kernel's cgroups by their service.
struct TotalKey {
  std::string service;
  Direction direction = Direction::unknown;
  Cause cause = Cause::local;
  Verdict verdict = Verdict::none;
  friend bool operator<(const TotalKey& a, const TotalKey& b) {
    return std::tie(a.service, a.direction, a.cause, a.verdict) <
           std::tie(b.service, b.direction, b.cause, b.verdict);
  }
};

struct Total {
  std::uint64_t ends = 0, bytes_received = 0, bytes_sent = 0;
  std::chrono::nanoseconds orphaned{}, age{};
  Histogram ages{}, orphaned_times{};

  Total& operator+=(const Total& other);
  Total& operator-=(const Total& other);
};

// The kernel's figures by service. They only grow: what a cgroup has counted stays when it goes, as long as
// its service has a name of its own. There are so many names; whatever else is called "other", for as long as
// its cgroup is there, and what is not known "unknown". When names run out, of those that no cgroup has any
// more the one goes that has been so for longest: its figures are in evicted() then. One thread.
class Totals {
 public:
  using All = std::map<TotalKey, Total>;
  // An empty one: nobody knows. None: it is to be asked again; what was counted until then stays "unknown".
  using ServiceOf = std::function<std::optional<std::string>(std::uint64_t cgroup)>;

  explicit Totals(ServiceOf service_of, std::size_t most_services = 200)
      : service_of_(std::move(service_of)), most_services_(most_services) {}

  // All of the kernel's figures, as they are now.
  void update(const std::vector<ServiceMetrics>& kernel);
  const All& all() const noexcept { return all_; }
  // What services had whose names made room for others; without those names.
  const All& evicted() const noexcept { return evicted_; }

  // Services of the kernel that have not changed since this was asked last, for the caller to look whether
  // their cgroup is still there.
  std::vector<ServiceKey> unchanged();
  // The kernel has forgotten it: it is not in the next update().
  void forgotten(const ServiceKey& key);

 private:
  using CgroupKey = std::tuple<std::uint64_t, Cause, Verdict, Direction>;
  static CgroupKey key_of(const ServiceKey& key) {
    return {key.cgroup, key.cause, key.verdict, key.direction};
  }
  static CgroupKey first_of(std::uint64_t cgroup) { return {cgroup, Cause{}, Verdict{}, Direction{}}; }
  using OfKernel = std::map<CgroupKey, Total>;
  struct Name {
    std::size_t cgroups = 0;         // that have it; 0: it is only in past_
    std::uint64_t unused_since = 0;  // then: a number that grows
  };

  void name(std::uint64_t cgroup, const OfKernel& before);
  std::string name_of(std::uint64_t cgroup) const;
  Total shown(const CgroupKey& key, const Total& total) const;
  bool make_room();

  const ServiceOf service_of_;
  const std::size_t most_services_;
  OfKernel kernel_;                                       // as of the last update
  OfKernel unknown_;                                      // of it, what is in past_ as "unknown"
  std::map<CgroupKey, std::uint64_t> ends_before_;        // as of the last unchanged()
  std::unordered_map<std::uint64_t, std::string> names_;  // of cgroups in kernel_
  std::map<std::string, Name> in_use_;
  std::uint64_t forgotten_ = 0;
  All past_;  // of cgroups that were forgotten
  All evicted_;
  All all_;
};

}  // namespace sockalarm::observe
