// SPDX-License-Identifier: Apache-2.0
#include "observe/totals.h"

#include <algorithm>
#include <functional>
#include <utility>

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
void subtract(Histogram& from, const Histogram& what) {
  std::transform(from.begin(), from.end(), what.begin(), from.begin(), std::minus());
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

Total& Total::operator-=(const Total& other) {
  ends -= other.ends;
  bytes_received -= other.bytes_received;
  bytes_sent -= other.bytes_sent;
  orphaned -= other.orphaned;
  age -= other.age;
  subtract(ages, other.ages);
  subtract(orphaned_times, other.orphaned_times);
  return *this;
}

bool Totals::make_room() {
  auto longest = in_use_.end();
  for (auto name = in_use_.begin(); name != in_use_.end(); ++name)
    if (name->second.cgroups == 0 &&
        (longest == in_use_.end() || name->second.unused_since < longest->second.unused_since))
      longest = name;
  if (longest == in_use_.end()) return false;
  std::erase_if(past_, [&](const auto& past) {
    TotalKey key = past.first;
    if (key.service != longest->first) return false;
    key.service.clear();
    evicted_[key] += past.second;
    return true;
  });
  in_use_.erase(longest);
  return true;
}

// Once for each cgroup, so that its figures stay under one name; those of the last update were shown already.
void Totals::name(std::uint64_t cgroup, const OfKernel& before) {
  if (names_.contains(cgroup)) return;
  const auto service = service_of_(cgroup);
  if (!service) return;
  std::string label = service->empty() ? kUnknown : *service;
  if (label != kUnknown && label != kOther && !in_use_.contains(label) && in_use_.size() >= most_services_ &&
      !make_room())
    label = kOther;
  if (label != kUnknown && label != kOther) ++in_use_[label].cgroups;
  names_.emplace(cgroup, std::move(label));
  for (auto of = before.lower_bound(first_of(cgroup)); of != before.end() && std::get<0>(of->first) == cgroup;
       ++of) {
    const auto& [same, cause, verdict, direction] = of->first;
    past_[{kUnknown, direction, cause, verdict}] += of->second;
    unknown_[of->first] = of->second;
  }
}

std::string Totals::name_of(std::uint64_t cgroup) const {
  const auto known = names_.find(cgroup);
  return known != names_.end() ? known->second : kUnknown;
}

// What is to be under the name of its cgroup.
Total Totals::shown(const CgroupKey& key, const Total& total) const {
  Total shown = total;
  if (const auto unknown = unknown_.find(key); unknown != unknown_.end()) shown -= unknown->second;
  return shown;
}

void Totals::update(const std::vector<ServiceMetrics>& kernel) {
  const OfKernel before = std::exchange(kernel_, {});
  for (const ServiceMetrics& of : kernel) kernel_[key_of(of.key)] = total_of(of);
  for (const auto& [key, total] : kernel_) name(std::get<0>(key), before);  // may take from what is past
  all_ = past_;
  for (const auto& [key, total] : kernel_) {
    const auto& [cgroup, cause, verdict, direction] = key;
    all_[{name_of(cgroup), direction, cause, verdict}] += shown(key, total);
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
  past_[{name_of(key.cgroup), key.direction, key.cause, key.verdict}] += shown(found->first, found->second);
  kernel_.erase(found);
  unknown_.erase(key_of(key));
  ends_before_.erase(key_of(key));
  const auto of_cgroup = kernel_.lower_bound(first_of(key.cgroup));
  if (of_cgroup != kernel_.end() && std::get<0>(of_cgroup->first) == key.cgroup) return;
  const auto named = names_.find(key.cgroup);
  if (named == names_.end()) return;
  if (const auto name = in_use_.find(named->second); name != in_use_.end() && --name->second.cgroups == 0)
    name->second.unused_since = ++forgotten_;
  names_.erase(named);
}

}  // namespace sockalarm::observe
