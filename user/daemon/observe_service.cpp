// SPDX-License-Identifier: Apache-2.0
#include "daemon/observe_service.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <poll.h>
#include <sockalarm/address.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <ctime>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "daemon/service.h"
#include "observe/jsonl_sink.h"
#include "observe/observation.h"
#include "observe/page.h"
#include "observe/web_server.h"
#if SOCKALARM_NATS
#include "observe/nats_sink.h"
#endif

namespace sockalarm::daemon {
namespace {

using Clock = std::chrono::steady_clock;
using observe::Observation;
using observe::Snapshot;
using observe::WebServer;

constexpr std::chrono::minutes kTidy{1};
constexpr std::chrono::seconds kStuck{10};  // a thread that reads takes milliseconds

// So that no record of this boot has the number of another, whatever became of the process before.
std::uint64_t first_sequence() {
  timespec now{};
  ::clock_gettime(CLOCK_BOOTTIME, &now);
  constexpr std::uint64_t kSecond = 1'000'000'000;
  return static_cast<std::uint64_t>(now.tv_sec) * kSecond + static_cast<std::uint64_t>(now.tv_nsec);
}

Result<observe::Filter> filter_of(const ObserveConfig& config, const observe::CgroupPaths& paths) {
  observe::Filter filter = config.filter;
  for (const std::string& path : config.cgroups) {
    const auto id = paths.id(path);
    if (!id) return fail(Error(id.error().code(), "observe.filter.cgroups: " + id.error().message()));
    filter.cgroups.push_back(*id);
  }
  return filter;
}

// Whether the thread that reads is alive, for others to ask.
class Pulse {
 public:
  void busy() noexcept { since_ = Clock::now().time_since_epoch().count(); }
  void idle() noexcept { since_ = 0; }
  bool is_well() const noexcept {
    const Clock::rep since = since_;
    return since == 0 || Clock::now().time_since_epoch() - Clock::duration(since) < kStuck;
  }

 private:
  std::atomic<Clock::rep> since_{0};  // written by the thread that reads, alone
};

// The sinks of a configuration, none of which has a thread yet, and what is to be asked of one of them.
struct Sinks {
  std::vector<std::unique_ptr<observe::Sink>> all;
  std::function<Result<void>()> start = [] { return Result<void>(); };  // once; makes threads
  std::function<std::optional<Snapshot::Shipping>()> shipping;
};

Result<std::unique_ptr<observe::Sink>> jsonl_sink(const std::string& to, const ObserveConfig& config) {
  if (to == "journal") return std::make_unique<observe::JournalSink>();
  if (to == "-") {
    UniqueFd fd(::fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3));
    if (!fd) return fail(Error::from_errno(errno, "standard output, for observe.jsonl"));
    return std::make_unique<observe::DescriptorSink>(std::move(fd));
  }
  auto sink =
      observe::RotatingFileSink::open({to, config.jsonl_bytes, config.jsonl_keep, [](const Error& error) {
                                         spdlog::error("observe.jsonl: {}", error.message());
                                       }});
  if (!sink) return fail(sink.error());
  return std::move(*sink);
}

Result<void> add_nats(const ObserveConfig& config, const observe::Host& host, observe::Losses& losses,
                      Sinks& sinks) {
  if (config.nats.servers.empty()) return {};
#if SOCKALARM_NATS
  const ObserveConfig::Nats& nats = config.nats;
  observe::NatsOptions options;
  options.servers = nats.servers;
  options.stream = nats.stream;
  options.credentials = nats.credentials;
  options.authorities = nats.authorities;
  options.window = nats.window;
  auto sink =
      observe::NatsSink::open(host, std::move(options), {nats.spool, nats.spool_bytes, nats.spool_age},
                              losses, [](const Error& error) { spdlog::error("NATS: {}", error.message()); });
  if (!sink) return fail(sink.error().with_context("observe.nats.spool"));
  sinks.start = [sink = sink->get()] {
    auto started = sink->start();
    return started ? started : fail(started.error().with_context("observe.nats"));
  };
  sinks.shipping = [sink = sink->get()] {
    const observe::NatsFigures& figures = sink->figures();
    return Snapshot::Shipping{sink->spool(), figures.connected, figures.sent, figures.acknowledged,
                              figures.retried};
  };
  sinks.all.push_back(std::move(*sink));
  return {};
#else
  (void)host, (void)losses, (void)sinks;
  return fail(
      Error(Errc::unsupported,
            "observe.nats: this sockalarmd was built without NATS (libnats-dev, -DSOCKALARM_NATS=ON)"));
#endif
}

Result<Sinks> sinks_of(const ObserveConfig& config, const observe::Host& host, observe::Losses& losses) {
  Sinks sinks;
  for (const std::string& to : config.jsonl) {
    auto sink = jsonl_sink(to, config);
    if (!sink) return fail(sink.error());
    sinks.all.push_back(std::move(*sink));
  }
  if (auto added = add_nats(config, host, losses, sinks); !added) return fail(added.error());
  return sinks;
}

WebServer::Answer answer(Observation& observation, std::string (*shown)(const Snapshot&), const char* type) {
  const auto snapshot = observation.snapshot();
  if (!snapshot) return {500, "text/plain; charset=utf-8", snapshot.error().message() + "\n"};
  return {200, type, shown(*snapshot)};
}

WebServer::Answer answer(bool good) {
  return {good ? 200 : 503, "text/plain; charset=utf-8", good ? "ok\n" : "not ok\n"};
}

// What the server's routes need of the server itself.
struct Web {
  std::unique_ptr<WebServer> server;
  void wake() const noexcept { server->wake(); }
};

WebServer::Routes routes_of(Observation& observation, const Pulse& pulse, const Web& web) {
  WebServer::Routes routes;
  routes.answers["/"] = [] {
    return WebServer::Answer{200, "text/html; charset=utf-8", std::string(observe::page()),
                             std::string(observe::page_policy())};
  };
  routes.answers["/metrics"] = [&] {
    return answer(observation, observe::to_prometheus, "text/plain; version=0.0.4; charset=utf-8");
  };
  routes.answers["/v1/totals"] = [&] { return answer(observation, observe::to_json, "application/json"); };
  routes.answers["/healthz"] = [&] { return answer(pulse.is_well()); };
  routes.answers["/readyz"] = [&] { return answer(pulse.is_well() && observation.snapshot().has_value()); };
  routes.streams["/v1/events"] = [&] { return observation.follow([&web] { web.wake(); }); };
  return routes;
}

// What the server listens on, and where.
struct Listeners {
  std::vector<WebServer::Address> addresses;
  service::SocketFile file;
  std::string text;
};

// The port may have been left to the kernel.
std::string name_of(const UniqueFd& listener) {
  sockaddr_storage name{};
  socklen_t length = sizeof name;
  if (::getsockname(listener.get(), reinterpret_cast<sockaddr*>(&name), &length) != 0)
    return "an unknown port";
  return to_string(SocketAddress(reinterpret_cast<const sockaddr*>(&name), length));
}

Result<Listeners> listen(const ObserveConfig& config) {
  Listeners listeners;
  auto unix_socket = service::listen_at(config.socket, config.socket_mode, SOCK_STREAM);
  if (!unix_socket) return fail(unix_socket.error());
  listeners.text = config.socket;
  listeners.file = std::move(unix_socket->file);
  listeners.addresses.push_back({std::move(unix_socket->fd), true});
  if (config.listen.empty()) return listeners;
  auto tcp = observe::listen_at_tcp(config.listen);
  if (!tcp) return fail(Error(tcp.error().code(), "observe.listen: " + tcp.error().message()));
  listeners.text += " and http://" + name_of(*tcp) + "/";
  listeners.addresses.push_back({std::move(*tcp), false});
  return listeners;
}

Result<std::unique_ptr<observe::Observer>> observer_of(const ObserveConfig& config,
                                                       const observe::CgroupPaths& paths) {
  auto filter = filter_of(config, paths);
  if (!filter) return fail(filter.error());
  observe::ObserverOptions options;
  options.filter = std::move(*filter);
  options.ring_bytes = config.ring_bytes;
  options.services = config.kernel_services;
  options.exact_progress = config.exact_progress;
  options.first_sequence = first_sequence();
  auto observer = observe::Observer::open(options);
  if (observer)
    for (const std::string& limit : (*observer)->limits()) spdlog::warn("{}", limit);
  return observer;
}

void reload(const Config& before, const std::function<Result<Config>()>& read_again, Observation& observation,
            const observe::CgroupPaths& paths) {
  const service::Reloading reloading;
  const auto config = read_again();
  const auto filter = config ? filter_of(config->observe, paths) : fail(config.error());
  const auto done = filter ? observation.set_filter(*filter) : fail(filter.error());
  if (!done) return spdlog::error("the configuration stays as it was: {}", done.error().message());
  std::string names;
  for (const std::string& key : changed_keys(before.observe, config->observe))
    names += (names.empty() ? "" : ", ") + key;
  if (!names.empty()) spdlog::warn("these change with a new start only: {}", names);
  spdlog::set_level(spdlog::level::from_str(config->log_level));
  spdlog::info("configuration read again");
}

Result<void> run(const Config& config, const std::function<Result<Config>()>& read_again,
                 Observation& observation, const observe::CgroupPaths& paths, Pulse& pulse,
                 const std::string& addresses) {
  const auto signals = service::signals();
  if (!signals) return fail(signals.error());
  const auto watchdog = service::watchdog_interval();
  service::ready("observing");
  spdlog::info("ready: observing all TCP connections that the filter lets through; to ask: {}", addresses);
  auto tidied = Clock::now();
  for (;;) {
    std::array<pollfd, 2> entries{{{observation.fd(), POLLIN, 0}, {signals->get(), POLLIN, 0}}};
    const auto wait = watchdog ? std::min<std::chrono::milliseconds>(*watchdog, kTidy) : kTidy;
    pulse.idle();
    const int count = ::poll(entries.data(), entries.size(), static_cast<int>(wait.count()));
    pulse.busy();
    if (count < 0 && errno != EINTR) return fail(Error::from_errno(errno, "poll()"));
    if (watchdog) service::alive();
    if (auto done = observation.read(); !done) return done;
    if (Clock::now() - tidied >= kTidy) {
      tidied = Clock::now();
      if (auto done = observation.tidy(); !done) spdlog::error("{}", done.error().message());
    }
    if (count <= 0 || entries[1].revents == 0) continue;
    const int number = service::next_signal(*signals);
    if (number == SIGHUP) {
      reload(config, read_again, observation, paths);
    } else if (number != 0) {
      spdlog::info("signal {}: leaving", number);
      service::stopping();
      return observation.read();
    }
  }
}

}  // namespace

Result<void> observe(const Config& config, const std::function<Result<Config>()>& read_again) {
  service::block_signals();
  const ObserveConfig& own = config.observe;
  auto host = observe::Host::this_one(own.region);
  if (!host) return fail(host.error());
  if (!own.host.empty()) host->name = own.host;
  const auto open_paths = [] {
    auto paths = observe::CgroupPaths::open();
    if (!paths) spdlog::warn("services will be unknown: {}", paths.error().message());
    return paths ? std::move(*paths) : observe::CgroupPaths();
  };
  observe::CgroupPaths paths = open_paths();
  const observe::CgroupPaths paths_of_filter = open_paths();
  auto observer = observer_of(own, paths);
  if (!observer) return fail(observer.error());
  auto listeners = listen(own);
  if (!listeners) return fail(listeners.error());
  // To read the kernel's tables and to make those of another filter; the other one, where it was given, to
  // find the path of a cgroup without looking at all of them. All that follows may have threads; and what is
  // written from now on, as when files rotate, is written with what is left, so it is opened with that.
  if (auto done = service::drop_privileges({CAP_BPF, CAP_DAC_READ_SEARCH}); !done) return done;
  observe::Losses losses;
  auto sinks = sinks_of(own, *host, losses);
  if (!sinks && sinks.error().code() == std::errc::permission_denied && ::geteuid() == 0)
    return fail(
        sinks.error().with_context("root's right to write to what is another user's was given up; give a "
                                   "folder of root's, or run as that "
                                   "user"));
  if (!sinks) return fail(sinks.error());
  if (auto done = sinks->start(); !done) return done;
  Observation observation(
      {*host, own.services, {own.rate_limit, own.queue}},
      {std::move(*observer), std::move(paths), std::move(sinks->all), std::move(sinks->shipping)}, losses,
      [](const Error& error) { spdlog::error("a record was lost: {}", error.message()); });
  Pulse pulse;
  Web web;  // ends before what it asks
  auto server = WebServer::start(std::move(listeners->addresses), routes_of(observation, pulse, web));
  if (!server) return fail(server.error());
  web.server = std::move(*server);
  const service::SocketFile file = std::move(listeners->file);  // ends before the socket is closed
  return run(config, read_again, observation, paths_of_filter, pulse, listeners->text);
}

}  // namespace sockalarm::daemon
