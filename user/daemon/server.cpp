// SPDX-License-Identifier: Apache-2.0
#include "daemon/server.h"

#include <poll.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <thread>
#include <utility>

#include "daemon/service.h"

namespace sockalarm::daemon {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t kManyLanes = 16;            // then those that have nothing to do end
constexpr std::chrono::seconds kLeaving{2};       // for what its lanes are just doing
constexpr std::chrono::milliseconds kPause{100};  // without accepting, when descriptors have run out

}  // namespace

Server::Server(const Config& config, KernelSide& kernel, service::Listener listener)
    : config_(config),
      shared_{kernel,           std::make_shared<Accounts>(config.user), roll_, Clock::now(), config.slots,
              config.ring_bytes},
      listener_(std::move(listener)) {}

Result<std::unique_ptr<Server>> Server::create(const Config& config, KernelSide& kernel,
                                               service::Listener listener) {
  std::unique_ptr<Server> server(new Server(config, kernel, std::move(listener)));
  if (!server->close_promptly_.works())
    return fail(Error::from_errno(errno, "timer_create() for refused connections"));
  if (auto ok = server->adopt(); !ok) return fail(ok.error());
  return server;
}

Server::~Server() {
  for (const auto& [uid, lane] : lanes_) lane->leave();
}

Result<void> Server::adopt() {
  auto survivors = shared_.kernel.survivors();
  if (!survivors) return fail(survivors.error());
  const auto until = Clock::now() + config_.grace;
  std::size_t alive = 0, watches = 0;
  for (const KernelSide::Survivor& survivor : *survivors) {
    auto client = Client::adopt(shared_, survivor);
    if (!client) return fail(client.error());
    UniqueFd process = find_process(static_cast<pid_t>(survivor.facts.tgid), survivor.facts.started);
    if (!process) continue;  // the client's destructor clears up after it
    const auto lane = lane_of(survivor.facts.uid);
    if (!lane) {
      Client::abandon(std::move(*client));
      return fail(lane.error());
    }
    ++alive;
    watches += survivor.cookies.size();
    (*lane)->take(std::move(*client), std::move(process), until);
  }
  if (shared_.kernel.adopted())
    spdlog::info("took over {} clients with {} watches; {} had ended meanwhile", alive, watches,
                 survivors->size() - alive);
  return {};
}

Result<Lane*> Server::lane_of(uid_t uid) {
  const auto known = lanes_.find(uid);
  if (known != lanes_.end()) return known->second.get();
  if (lanes_.size() >= kManyLanes)
    std::erase_if(lanes_, [](const auto& lane) { return lane.second->idle(); });
  auto lane = Lane::start(shared_, uid);
  if (!lane) return fail(lane.error());
  return lanes_.emplace(uid, std::move(*lane)).first->second.get();
}

void Server::accept_one(UniqueFd socket) {
  auto peer = peer_of(socket.get());
  if (!peer) return close_promptly_(std::move(socket));
  ++roll_.accepted;
  auto charge = shared_.accounts->charge(peer->uid, Resource::connections, 1);
  if (!charge) {
    ++roll_.refused;
    spdlog::debug("process {} is refused: {}", peer->pid, charge.error().message());
    return close_promptly_(std::move(socket));
  }
  spdlog::debug("process {} of user {} connects", peer->pid, peer->uid);
  const auto lane = lane_of(peer->uid);
  if (!lane) {
    spdlog::error("{}", lane.error().message());
    return close_promptly_(std::move(socket));
  }
  (*lane)->take(std::move(socket), std::move(*peer), std::move(*charge));
}

// A bounded number, so that signals and the watchdog get their turn.
void Server::accept_all() {
  for (int i = 0; i < 64; ++i) {
    UniqueFd socket(::accept4(listener_.fd.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (socket) {
      accept_one(std::move(socket));
    } else if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
      spdlog::error("accepting a connection: {}", Error::from_errno(errno, "accept4()").message());
      std::this_thread::sleep_for(kPause);
      return;
    } else if (errno != ECONNABORTED && errno != EINTR) {
      return;
    }
  }
}

void Server::reload(const std::function<Result<Config>()>& read_again) {
  const service::Reloading reloading;
  const auto config = read_again();
  if (!config) return spdlog::error("the configuration stays as it was: {}", config.error().message());
  if (config->socket != config_.socket || config->bpffs != config_.bpffs ||
      config->clients != config_.clients || config->watches != config_.watches)
    spdlog::warn("socket, bpffs, limits.clients and limits.watches change with a new start only");
  config_ = *config;
  shared_.accounts->limit(config->user);
  shared_.slots = config->slots;
  shared_.ring_bytes = config->ring_bytes;
  spdlog::set_level(spdlog::level::from_str(config->log_level));
  spdlog::info("configuration read again");
}

void Server::leave() {
  service::stopping();
  listener_.file = {};
  for (const auto& [uid, lane] : lanes_) lane->leave();
  const auto until = Clock::now() + kLeaving;
  for (const auto& [uid, lane] : lanes_) {
    while (!lane->left() && Clock::now() < until) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    if (lane->left()) continue;
    spdlog::warn("a descriptor that user {} passed is still being closed; ending without waiting for it",
                 uid);
    spdlog::shutdown();
    ::_exit(0);
  }
  lanes_.clear();
}

Result<void> Server::run(const std::function<Result<Config>()>& read_again) {
  const auto signal_fd = service::signals();
  if (!signal_fd) return fail(signal_fd.error());
  const auto watchdog = service::watchdog_interval();
  service::ready(std::to_string(roll_.all().size()) + " clients taken over");
  spdlog::info("ready: {} tells of up to {} sockets of {} clients", config_.socket,
               shared_.kernel.sizes().sockets, shared_.kernel.sizes().clients);
  for (;;) {
    std::array<pollfd, 3> entries{
        {{listener_.fd.get(), POLLIN, 0}, {signal_fd->get(), POLLIN, 0}, {shared_.kernel.idle(), POLLIN, 0}}};
    const int count =
        ::poll(entries.data(), entries.size(), watchdog ? static_cast<int>(watchdog->count()) : -1);
    if (count < 0 && errno != EINTR) return fail(Error::from_errno(errno, "poll()"));
    if (watchdog) service::alive();
    if (count > 0 && entries[0].revents != 0) accept_all();
    if (count > 0 && entries[2].revents != 0) shared_.kernel.detach_idle();
    if (count > 0 && entries[1].revents != 0) {
      const int number = service::next_signal(*signal_fd);
      if (number == SIGHUP) {
        reload(read_again);
      } else if (number != 0) {
        spdlog::info("signal {}: leaving; the kernel goes on, and clients wait for the next daemon", number);
        leave();
        return {};
      }
    }
  }
}

}  // namespace sockalarm::daemon
