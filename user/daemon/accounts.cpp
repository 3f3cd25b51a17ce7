// SPDX-License-Identifier: Apache-2.0
#include "daemon/accounts.h"

#include <string>
#include <utility>

namespace sockalarm::daemon {
namespace {

std::uint64_t limit_of(const UserLimits& limits, Resource resource) noexcept {
  switch (resource) {
    case Resource::connections:
      return limits.connections;
    case Resource::watches:
      return limits.watches;
    default:
      return limits.memory;
  }
}

constexpr std::array<const char*, kResources> kNames = {"connections", "watches", "bytes of memory"};

}  // namespace

void Accounts::limit(const UserLimits& limits) {
  const MutexLock lock(mutex_);
  limits_ = limits;
}

UserLimits Accounts::limits() const {
  const MutexLock lock(mutex_);
  return limits_;
}

Result<void> Accounts::take(uid_t uid, Resource resource, std::uint64_t amount) {
  const auto index = static_cast<std::size_t>(resource);
  const MutexLock lock(mutex_);
  const auto account = used_.find(uid);
  const std::uint64_t used = account != used_.end() ? account->second[index] : 0;
  const std::uint64_t limit = limit_of(limits_, resource);
  if (used > limit || amount > limit - used)
    return fail(Error(std::error_code(EDQUOT, std::system_category()),
                      "user " + std::to_string(uid) + " has " + std::to_string(used) + " of " +
                          std::to_string(limit) + " " + kNames[index]));
  if (amount != 0) used_[uid][index] += amount;
  return {};
}

void Accounts::give_back(uid_t uid, Resource resource, std::uint64_t amount) noexcept {
  const MutexLock lock(mutex_);
  const auto account = used_.find(uid);
  if (account == used_.end()) return;
  account->second[static_cast<std::size_t>(resource)] -= amount;
  if (account->second == Amounts{}) used_.erase(account);
}

Result<Charge> Accounts::charge(uid_t uid, Resource resource, std::uint64_t amount) {
  if (auto ok = take(uid, resource, amount); !ok) return fail(ok.error());
  return Charge(shared_from_this(), uid, resource, amount);
}

Charge Accounts::charge_anyway(uid_t uid, Resource resource, std::uint64_t amount) {
  const MutexLock lock(mutex_);
  used_[uid][static_cast<std::size_t>(resource)] += amount;
  return Charge(shared_from_this(), uid, resource, amount);
}

std::map<uid_t, Accounts::Amounts> Accounts::used() const {
  const MutexLock lock(mutex_);
  return used_;
}

Charge& Charge::operator=(Charge&& other) noexcept {
  if (this == &other) return *this;
  reset();
  accounts_ = std::move(other.accounts_);
  uid_ = other.uid_;
  resource_ = other.resource_;
  amount_ = std::exchange(other.amount_, 0);
  return *this;
}

Result<void> Charge::add(std::uint64_t more) {
  if (auto ok = accounts_->take(uid_, resource_, more); !ok) return ok;
  amount_ += more;
  return {};
}

void Charge::reduce(std::uint64_t less) noexcept {
  accounts_->give_back(uid_, resource_, less);
  amount_ -= less;
}

void Charge::reset() noexcept {
  if (accounts_ && amount_ != 0) accounts_->give_back(uid_, resource_, amount_);
  accounts_.reset();
  amount_ = 0;
}

}  // namespace sockalarm::daemon
