// SPDX-License-Identifier: Apache-2.0
#include "observe/totals.h"

#include <algorithm>
#include <functional>

#include "base/text.h"

namespace sockalarm::observe {
namespace {

constexpr const char* kUnknown = "unknown";
constexpr const char* kOther = "other";

Total total_of(const ServiceMetrics& kernel) {
  return {kernel.ends, kernel.bytes_received, kernel.bytes_sent,    kernel.orphaned,
          kernel.age,  kernel.ages,           kernel.orphaned_times};
}

void add(Histogram& to, const Histogram& what) {
  std::transform(to.begin(), to.end(), what.begin(), to.begin(), std::plus());
}

}  // namespace

Total& Total::operator+=(const Total& other) {
  ends += other.ends;
  bytes_received += other.bytes_received;
  bytes_sent += other.bytes_sent;
  orphaned += other.orphaned;
  age += other.age;
  add(ages, other.ages);
  add(orphaned_times, other.orphaned_times);
  return *this;
}

// A name whose cgroups have all gone; its figures leave with it.
bool Totals::make_room() {
  const auto unused =
      std::find_if(cgroups_of_.begin(), cgroups_of_.end(), [](const auto& name) { return name.second == 0; });
  if (unused == cgroups_of_.end()) return false;
  std::erase_if(past_, [&](const auto& total) { return total.first.service == unused->first; });
  cgroups_of_.erase(unused);
  return true;
}

// Once for each cgroup, so that its figures stay under one name.
const std::string& Totals::name_of(std::uint64_t cgroup) {
  const auto known = names_.find(cgroup);
  if (known != names_.end()) return known->second;
  std::string name = escaped(service_of_(cgroup));
  if (name.empty()) name = kUnknown;
  if (name != kUnknown && name != kOther && !cgroups_of_.contains(name) &&
      cgroups_of_.size() >= most_services_ && !make_room())
    name = kOther;
  if (name != kUnknown && name != kOther) ++cgroups_of_[name];
  return names_.emplace(cgroup, std::move(name)).first->second;
}

void Totals::update(const std::vector<ServiceMetrics>& kernel) {
  kernel_.clear();
  for (const ServiceMetrics& of : kernel) kernel_[key_of(of.key)] = total_of(of);
  for (const auto& [key, total] : kernel_) name_of(std::get<0>(key));  // may take from what is past
  all_ = past_;
  for (const auto& [key, total] : kernel_) {
    const auto& [cgroup, cause, verdict, direction] = key;
    all_[{name_of(cgroup), direction, cause, verdict}] += total;
  }
}

std::vector<ServiceKey> Totals::unchanged() {
  std::vector<ServiceKey> same;
  std::map<CgroupKey, std::uint64_t> now;
  for (const auto& [key, total] : kernel_) {
    const auto& [cgroup, cause, verdict, direction] = key;
    const auto before = ends_before_.find(key);
    if (before != ends_before_.end() && before->second == total.ends)
      same.push_back({cgroup, cause, verdict, direction});
    now[key] = total.ends;
  }
  ends_before_ = std::move(now);
  return same;
}

void Totals::forgotten(const ServiceKey& key) {
  const auto found = kernel_.find(key_of(key));
  if (found == kernel_.end()) return;
  past_[{name_of(key.cgroup), key.direction, key.cause, key.verdict}] += found->second;
  kernel_.erase(found);
  ends_before_.erase(key_of(key));
  const auto of_cgroup = kernel_.lower_bound({key.cgroup, Cause{}, Verdict{}, Direction{}});
  if (of_cgroup != kernel_.end() && std::get<0>(of_cgroup->first) == key.cgroup) return;
  const auto name = names_.find(key.cgroup);
  if (const auto used = cgroups_of_.find(name->second); used != cgroups_of_.end()) --used->second;
  names_.erase(name);
}

}  // namespace sockalarm::observe
