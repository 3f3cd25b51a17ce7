// SPDX-License-Identifier: Apache-2.0
#include "daemon/lane.h"

#include <spdlog/spdlog.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

namespace sockalarm::daemon {
namespace {

constexpr std::uint64_t kBell = 0;
constexpr std::chrono::seconds kGreeting{10};  // how long a connection may stay silent at the beginning

}  // namespace

Result<std::unique_ptr<Lane>> Lane::start(Shared& shared, uid_t uid) {
  UniqueFd epoll(::epoll_create1(EPOLL_CLOEXEC));
  UniqueFd bell(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!epoll || !bell) return fail(Error::from_errno(errno, "epoll_create1() or eventfd()"));
  std::unique_ptr<Lane> lane(new Lane(shared, uid, std::move(epoll), std::move(bell)));
  if (!lane->listen(lane->bell_.get(), kBell)) return fail(Error::from_errno(errno, "epoll_ctl()"));
  try {
    lane->thread_ = std::thread([self = lane.get()] { self->run(); });
  } catch (const std::system_error& error) {
    return fail(Error(error.code(), "starting a thread for user " + std::to_string(uid)));
  }
  return lane;
}

Lane::Lane(Shared& shared, uid_t uid, UniqueFd epoll, UniqueFd bell)
    : shared_(shared), uid_(uid), epoll_(std::move(epoll)), bell_(std::move(bell)) {}

Lane::~Lane() {
  ending_ = true;
  ring_bell();
  if (thread_.joinable()) thread_.join();
}

void Lane::leave() noexcept {
  leaving_ = true;
  ending_ = true;
  ring_bell();
}

void Lane::ring_bell() noexcept {
  const std::uint64_t one = 1;
  [[maybe_unused]] const ssize_t n = ::write(bell_.get(), &one, sizeof one);
}

void Lane::post(Arrival arrival) {
  {
    const MutexLock lock(mutex_);
    ++load_;
    mailbox_.push_back(std::move(arrival));
  }
  ring_bell();
}

void Lane::take(UniqueFd socket, Peer peer, Charge charge) {
  post({std::move(socket), std::move(peer), std::move(charge), {}});
}

void Lane::take(std::unique_ptr<Client> survivor, UniqueFd process, Clock::time_point until) {
  post({{}, {}, {}, {std::move(survivor), std::move(process), until}});
}

bool Lane::listen(int fd, Id id) noexcept {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = id;
  return ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) == 0;
}

void Lane::run() {
  std::array<epoll_event, 64> events;
  while (!ending_) {
    int timeout = -1;
    if (const auto next = next_deadline()) {
      const auto left = std::chrono::ceil<std::chrono::milliseconds>(*next - Clock::now()).count();
      timeout = static_cast<int>(std::clamp<decltype(left)>(left, 0, 1'000'000));
    }
    const int count = ::epoll_wait(epoll_.get(), events.data(), static_cast<int>(events.size()), timeout);
    for (int i = 0; i < count && !ending_; ++i) {
      const Id id = events[static_cast<std::size_t>(i)].data.u64;
      id == kBell ? collect() : on_event(id);
    }
    give_up_late_ones();
    tell_left_out(violations_.take(Clock::now()));
  }
  tell_left_out(violations_.take_all());
  if (leaving_) {  // their destructors would take out of the kernel what the next daemon is to find there
    for (auto& [id, connection] : connections_) connection->abandon_client();
    for (auto& [id, survivor] : survivors_) Client::abandon(std::move(survivor.client));
    const MutexLock lock(mutex_);  // and what has not been collected yet
    for (Arrival& arrival : mailbox_) Client::abandon(std::move(arrival.survivor.client));
    mailbox_.clear();
  }
  connections_.clear();
  survivors_.clear();
  left_ = true;
}

void Lane::collect() {
  std::uint64_t rung = 0;
  [[maybe_unused]] const ssize_t n = ::read(bell_.get(), &rung, sizeof rung);
  std::vector<Arrival> arrivals;
  {
    const MutexLock lock(mutex_);
    arrivals.swap(mailbox_);
  }
  for (Arrival& arrival : arrivals)
    arrival.survivor.client ? await(std::move(arrival.survivor)) : admit(std::move(arrival));
}

void Lane::admit(Arrival arrival) {
  const Id id = last_id_ += 2;
  auto connection = std::make_unique<Connection>(
      shared_, pace_, std::move(arrival.socket), std::move(arrival.peer), std::move(arrival.charge),
      [this](const Peer& peer, std::uint32_t table, std::uint32_t ring) { return find(peer, table, ring); });
  const int process = connection->peer().process.get();
  const bool heard = listen(connection->socket(), id) && (process < 0 || listen(process, id + 1));
  connections_.emplace(id, std::move(connection));
  if (!heard) close(id, "epoll_ctl() failed");
}

void Lane::await(Survivor survivor) {
  const Id id = last_id_ += 2;
  if (!listen(survivor.process.get(), id + 1)) {  // then nobody would tell of its end
    --load_;
    return;
  }
  survivors_.emplace(id, std::move(survivor));
}

void Lane::on_event(Id id) {
  const bool process_ended = (id & 1) != 0;
  id &= ~Id{1};
  if (const auto survivor = survivors_.find(id); survivor != survivors_.end()) {
    spdlog::debug("user {}: process {} has ended while it was awaited", uid_,
                  survivor->second.client->facts().tgid);
    survivors_.erase(survivor);
    --load_;
    return;
  }
  const auto found = connections_.find(id);
  if (found == connections_.end()) return;
  if (process_ended) return close(id, "");  // whoever has the connection now is not whom we know
  if (const auto why = found->second->serve()) close(id, *why);
}

void Lane::close(Id id, const std::string& why) {
  const auto found = connections_.find(id);
  if (why.empty()) {
    spdlog::debug("{} has left", found->second->name());
  } else {
    ++shared_.roll.violations;
    if (violations_.admits(Clock::now()))
      spdlog::warn("{} is disconnected: {}", found->second->name(), why);
    else
      spdlog::debug("{} is disconnected: {}", found->second->name(), why);
  }
  connections_.erase(found);
  --load_;
}

std::unique_ptr<Client> Lane::find(const Peer& peer, std::uint32_t table, std::uint32_t ring) {
  for (auto one = survivors_.begin(); one != survivors_.end(); ++one) {
    const sockalarm_client& facts = one->second.client->facts();
    if (facts.table_id != table || facts.ring_id != ring || facts.started != peer.started ||
        facts.tgid != static_cast<std::uint32_t>(peer.pid))
      continue;
    auto client = std::move(one->second.client);
    survivors_.erase(one);
    --load_;
    return client;
  }
  return nullptr;
}

void Lane::give_up_late_ones() {
  const auto now = Clock::now();
  std::vector<Id> late;
  for (const auto& [id, connection] : connections_)
    if (!connection->greeted() && connection->since() + kGreeting <= now) late.push_back(id);
  for (const Id id : late) close(id, "it has not said who it is");
  load_ -= std::erase_if(survivors_, [&](const auto& survivor) {
    if (survivor.second.until > now) return false;
    spdlog::info("user {}: process {} has not come back", uid_, survivor.second.client->facts().tgid);
    return true;
  });
}

void Lane::tell_left_out(std::uint64_t count) const {
  if (count > 0) spdlog::warn("user {}: {} more connections are disconnected", uid_, count);
}

std::optional<Lane::Clock::time_point> Lane::next_deadline() const {
  std::optional<Clock::time_point> next = violations_.due();
  const auto consider = [&](Clock::time_point at) { next = next ? std::min(*next, at) : at; };
  for (const auto& [id, connection] : connections_)
    if (!connection->greeted()) consider(connection->since() + kGreeting);
  for (const auto& [id, survivor] : survivors_) consider(survivor.until);
  return next;
}

}  // namespace sockalarm::daemon
