// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/result.h>
#include <sys/types.h>

#include <array>
#include <cstdint>
#include <map>
#include <memory>

#include "base/mutex.h"
#include "daemon/config.h"

namespace sockalarm::daemon {

enum class Resource : std::uint8_t { connections, watches, memory };
inline constexpr std::size_t kResources = 3;

class Charge;

// Who has how much. Any thread.
class Accounts : public std::enable_shared_from_this<Accounts> {
 public:
  using Amounts = std::array<std::uint64_t, kResources>;

  explicit Accounts(const UserLimits& limits) : limits_(limits) {}
  void limit(const UserLimits& limits);
  // EDQUOT, in words, if that is more than the user may have.
  Result<Charge> charge(uid_t uid, Resource resource, std::uint64_t amount);
  UserLimits limits() const;
  // Of what somebody has already: may go beyond the limit.
  Charge charge_anyway(uid_t uid, Resource resource, std::uint64_t amount);
  std::map<uid_t, Amounts> used() const;

 private:
  friend class Charge;
  Result<void> take(uid_t uid, Resource resource, std::uint64_t amount);
  void give_back(uid_t uid, Resource resource, std::uint64_t amount) noexcept;

  mutable Mutex mutex_;
  UserLimits limits_ GUARDED_BY(mutex_);
  std::map<uid_t, Amounts> used_ GUARDED_BY(mutex_);  // of those who have anything
};

// A part of somebody's quota, given back by the destructor. One thread.
class Charge {
 public:
  Charge() = default;
  Charge(Charge&& other) noexcept { *this = std::move(other); }
  Charge& operator=(Charge&& other) noexcept;
  ~Charge() { reset(); }

  Result<void> add(std::uint64_t more);
  void reduce(std::uint64_t less) noexcept;
  std::uint64_t amount() const noexcept { return amount_; }

 private:
  friend class Accounts;
  Charge(std::shared_ptr<Accounts> accounts, uid_t uid, Resource resource, std::uint64_t amount) noexcept
      : accounts_(std::move(accounts)), uid_(uid), resource_(resource), amount_(amount) {}
  void reset() noexcept;

  std::shared_ptr<Accounts> accounts_;
  uid_t uid_ = 0;
  Resource resource_ = Resource::connections;
  std::uint64_t amount_ = 0;
};

}  // namespace sockalarm::daemon
