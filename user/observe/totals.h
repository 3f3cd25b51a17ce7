// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
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
};

// The kernel's figures by service. They only grow: what a cgroup has counted stays when it goes, as long as
// its service has a name of its own. There are so many names; whatever else is called "other", and what is
// not known "unknown". When names run out, those go first that no cgroup has any more: their figures are
// then in none. One thread.
class Totals {
 public:
  using All = std::map<TotalKey, Total>;
  using ServiceOf = std::function<std::string(std::uint64_t cgroup)>;

  explicit Totals(ServiceOf service_of, std::size_t most_services = 200)
      : service_of_(std::move(service_of)), most_services_(most_services) {}

  // All of the kernel's figures, as they are now.
  void update(const std::vector<ServiceMetrics>& kernel);
  const All& all() const noexcept { return all_; }

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
  const std::string& name_of(std::uint64_t cgroup);
  bool make_room();

  const ServiceOf service_of_;
  const std::size_t most_services_;
  std::map<CgroupKey, Total> kernel_;                     // as of the last update
  std::map<CgroupKey, std::uint64_t> ends_before_;        // as of the last unchanged()
  std::unordered_map<std::uint64_t, std::string> names_;  // of cgroups in kernel_
  std::map<std::string, std::size_t> cgroups_of_;         // how many have that name; 0: only in past_
  All past_;                                              // of cgroups that were forgotten
  All all_;
};

}  // namespace sockalarm::observe
