// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/result.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <unordered_set>

#include "daemon/accounts.h"
#include "daemon/kernel_side.h"
#include "daemon/peer.h"
#include "daemon/roll.h"

namespace sockalarm::daemon {

// What all lanes share. Every member may be used by any thread.
struct Shared {
  KernelSide& kernel;
  std::shared_ptr<Accounts> accounts;
  Roll& roll;
  const std::chrono::steady_clock::time_point since;
  std::atomic<std::uint32_t> slots, ring_bytes;  // the most that one client gets
};

// A client's table, ring and watches in the kernel; its destructor removes them. One thread.
class Client {
 public:
  // What a table and a ring of that length count for: before they are made, so that who has all that it may
  // have makes the kernel allocate nothing.
  static Result<Charge> reserve(Shared& shared, uid_t uid, std::uint32_t slots, std::uint32_t ring_bytes);
  // Table and ring are lent, and have been checked; `facts` says how long they are.
  static Result<std::unique_ptr<Client>> add(Shared& shared, const sockalarm_client& facts, int table,
                                             int ring, Charge memory);
  // One that an earlier daemon served. Quotas do not count against what it has already.
  static Result<std::unique_ptr<Client>> adopt(Shared& shared, const KernelSide::Survivor& survivor);
  ~Client();
  // Forgets it without touching the kernel: the next daemon will find it there.
  static void abandon(std::unique_ptr<Client> client) noexcept;
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  const sockalarm_client& facts() const noexcept { return facts_; }
  std::uint32_t index() const noexcept { return entry_->index; }
  std::size_t watches() const noexcept { return cookies_.size(); }

  Result<void> watch(std::uint64_t cookie, std::uint32_t slot, std::uint32_t generation);
  void unwatch(std::uint64_t cookie);
  Result<void> wait_for_reads(bool on) { return shared_.kernel.wait_for_reads(index(), on); }
  void set_connected(bool on) noexcept { entry_->connected = on; }

 private:
  Client(Shared& shared, const sockalarm_client& facts, std::uint32_t index, Charge memory, Charge watches);
  void tell() noexcept { entry_->watches = cookies_.size(); }

  Shared& shared_;
  const sockalarm_client facts_;
  const std::shared_ptr<Entry> entry_ = std::make_shared<Entry>();
  std::unordered_set<std::uint64_t> cookies_;
  Charge memory_, watches_;
  bool abandoned_ = false;
};

}  // namespace sockalarm::daemon
