// SPDX-License-Identifier: Apache-2.0
#include "daemon/client.h"

#include <utility>

namespace sockalarm::daemon {
namespace {

std::uint64_t memory_of(std::uint32_t slots, std::uint32_t ring_bytes) noexcept {
  return std::uint64_t{slots} * sizeof(sockalarm_watch_state) + ring_bytes;
}

}  // namespace

Client::Client(Shared& shared, const sockalarm_client& facts, std::uint32_t index, Charge memory,
               Charge watches)
    : shared_(shared), facts_(facts), memory_(std::move(memory)), watches_(std::move(watches)) {
  entry_->uid = facts.uid;
  entry_->pid = static_cast<pid_t>(facts.tgid);
  entry_->index = index;
  entry_->slots = facts.slots;
  entry_->ring_bytes = facts.ring_bytes;
  shared_.roll.add(entry_);
}

Result<Charge> Client::reserve(Shared& shared, uid_t uid, std::uint32_t slots, std::uint32_t ring_bytes) {
  return shared.accounts->charge(uid, Resource::memory, memory_of(slots, ring_bytes));
}

Result<std::unique_ptr<Client>> Client::add(Shared& shared, const sockalarm_client& facts, int table,
                                            int ring, Charge memory) {
  auto watches = shared.accounts->charge(facts.uid, Resource::watches, 0);
  if (!watches) return fail(watches.error());
  const auto index = shared.kernel.add(facts, table, ring);
  if (!index) return fail(index.error());
  return std::unique_ptr<Client>(new Client(shared, facts, *index, std::move(memory), std::move(*watches)));
}

Result<std::unique_ptr<Client>> Client::adopt(Shared& shared, const KernelSide::Survivor& survivor) {
  const uid_t uid = survivor.facts.uid;
  Charge memory = shared.accounts->charge_anyway(uid, Resource::memory,
                                                 memory_of(survivor.facts.slots, survivor.facts.ring_bytes));
  Charge watches = shared.accounts->charge_anyway(uid, Resource::watches, survivor.cookies.size());
  std::unique_ptr<Client> client(
      new Client(shared, survivor.facts, survivor.index, std::move(memory), std::move(watches)));
  client->cookies_.insert(survivor.cookies.begin(), survivor.cookies.end());
  client->set_connected(false);
  client->tell();
  return client;
}

void Client::abandon(std::unique_ptr<Client> client) noexcept {
  if (client) client->abandoned_ = true;
}

Client::~Client() {
  if (!abandoned_) {
    for (const std::uint64_t cookie : cookies_) shared_.kernel.unwatch(cookie);
    shared_.kernel.remove(index());
  }
  shared_.roll.remove(entry_);
}

Result<void> Client::watch(std::uint64_t cookie, std::uint32_t slot, std::uint32_t generation) {
  if (slot == 0 || slot >= facts_.slots)
    return fail(Error::from_errno(
        ERANGE, "slot " + std::to_string(slot) + " of a table of " + std::to_string(facts_.slots)));
  const bool known = cookies_.contains(cookie);
  if (!known)
    if (auto ok = watches_.add(1); !ok) return ok;
  auto done = shared_.kernel.watch(cookie, {index(), slot, generation, facts_.tgid, 0});
  if (done && !known) cookies_.insert(cookie);
  if (!done && !known) watches_.reduce(1);
  tell();
  return done;
}

// Only its own: a cookie is no secret.
void Client::unwatch(std::uint64_t cookie) {
  if (cookies_.erase(cookie) == 0) return;
  shared_.kernel.unwatch(cookie);
  watches_.reduce(1);
  tell();
}

}  // namespace sockalarm::daemon
