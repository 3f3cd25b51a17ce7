// SPDX-License-Identifier: Apache-2.0
#include <linux/capability.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <CLI/CLI.hpp>
#include <exception>
#include <iostream>

#include "daemon/config.h"
#include "daemon/kernel_side.h"
#include "daemon/observe_service.h"
#include "daemon/server.h"
#include "daemon/service.h"

namespace sockalarm::daemon {
namespace {

struct Arguments {
  std::string config;
  std::optional<std::string> socket, bpffs, log_level;
  std::vector<std::string> jsonl;
  std::optional<std::string> listen, host;
  bool remove = false, observe = false;
};

Result<Config> config_of(const Arguments& arguments) {
  auto config = read_config(arguments.config);
  if (!config) return config;
  if (arguments.socket) (arguments.observe ? config->observe.socket : config->socket) = *arguments.socket;
  if (arguments.bpffs) config->bpffs = *arguments.bpffs;
  if (arguments.log_level) config->log_level = *arguments.log_level;
  if (arguments.listen) config->observe.listen = *arguments.listen;
  if (arguments.host) config->observe.host = *arguments.host;
  if (!arguments.jsonl.empty()) config->observe.jsonl = arguments.jsonl;
  return config;
}

// Two for every client, and one for each descriptor on its way.
void raise_descriptor_limit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
}

Result<void> serve(const Arguments& arguments, const Config& config) {
  service::block_signals();
  auto passed = service::passed_listener();
  if (!passed) return fail(passed.error());
  service::Listener listener{std::move(*passed), {}};
  raise_descriptor_limit();
  auto kernel = KernelSide::open(config.bpffs, {config.watches, config.clients});
  if (!kernel) return fail(kernel.error());
  if (!(*kernel)->current())
    spdlog::warn(
        "the programs in the kernel are of another version ({}); to load those of {}: sockalarmd --remove "
        "while no daemon runs (docs/daemon.md)",
        (*kernel)->programs(), SOCKALARM_VERSION);
  if (!(*kernel)->task_work())
    spdlog::warn("this kernel has no task work: clients' dispatchers send signals");
  if ((*kernel)->adopted() &&
      ((*kernel)->sizes().sockets != config.watches || (*kernel)->sizes().clients != config.clients))
    spdlog::warn("limits.clients and limits.watches stay as they were when the programs were loaded");
  if (!listener.fd) {
    auto own = service::listen_at(config.socket, config.socket_mode, SOCK_SEQPACKET);
    if (!own) return fail(own.error());
    listener = std::move(*own);
  }
  // To make tables and rings, and to attach the program on the receive path. The others were for loading. The
  // server has threads.
  if (auto ok = service::drop_privileges({CAP_BPF, CAP_PERFMON}); !ok) return ok;
  auto server = Server::create(config, **kernel, std::move(listener));
  if (!server) return fail(server.error());
  return (*server)->run([&arguments] { return config_of(arguments); });
}

Result<void> observe_or_say_why(const Arguments& arguments, const Config& config) {
#if SOCKALARM_OBSERVE
  return observe(config, [&arguments] { return config_of(arguments); });
#else
  (void)arguments, (void)config;
  return fail(Error(Errc::unsupported,
                    "this sockalarmd was built without --observe (libmicrohttpd-dev, prometheus-cpp-dev, "
                    "-DSOCKALARM_OBSERVE=ON)"));
#endif
}

int run(const Arguments& arguments) {
  spdlog::set_default_logger(spdlog::stderr_color_mt("sockalarmd"));
  spdlog::set_pattern("%^%l%$: %v");
  const auto config = config_of(arguments);
  if (config) spdlog::set_level(spdlog::level::from_str(config->log_level));
  Result<void> done = config ? Result<void>{} : fail(config.error());
  if (done && arguments.remove)
    done = KernelSide::remove(config->bpffs);
  else if (done && arguments.observe)
    done = observe_or_say_why(arguments, *config);
  else if (done)
    done = serve(arguments, *config);
  if (done) return 0;
  spdlog::critical("{}", done.error().message());
  return 1;
}

}  // namespace
}  // namespace sockalarm::daemon

int main(int argc, char** argv) {
  try {
    sockalarm::daemon::Arguments arguments;
    CLI::App app("Tells unprivileged programs at once when their TCP peers go away.", "sockalarmd");
    app.set_version_flag("--version", "sockalarmd " SOCKALARM_VERSION);
    app.add_option("--config", arguments.config, "TOML file (docs/daemon.md)")->check(CLI::ExistingFile);
    app.add_option("--socket", arguments.socket, "path to listen at");
    app.add_option("--bpffs", arguments.bpffs,
                   "directory on a BPF file system, for what outlives this process");
    app.add_option("--log-level", arguments.log_level, "what to say")
        ->check(CLI::IsMember(sockalarm::daemon::log_levels()));
    CLI::Option* remove =
        app.add_flag("--remove", arguments.remove, "take everything out of the kernel, and end");
    CLI::Option* observe =
        app.add_flag("--observe", arguments.observe,
                     "instead of alarming, see every TCP connection of the host end (docs/observing.md)")
            ->excludes(remove);
    app.add_option("--jsonl", arguments.jsonl, "where to write records: - (standard output), journal, a file")
        ->needs(observe);
    app.add_option("--listen", arguments.listen,
                   "numeric address and port for the page and /metrics; '' for none")
        ->needs(observe);
    app.add_option("--host", arguments.host, "the name of this host in records, as a node's in a container")
        ->needs(observe);
    app.footer(
        "Examples:\n"
        "  sockalarmd --socket /tmp/s.sock --bpffs /sys/fs/bpf/sockalarm --log-level debug\n"
        "  sockalarmd --observe --jsonl -\n"
        "  sockalarmd --observe --config /etc/sockalarmd.toml --listen 127.0.0.1:9465");
    CLI11_PARSE(app, argc, argv);
    return sockalarm::daemon::run(arguments);
  } catch (const std::exception& error) {
    std::cerr << "sockalarmd: " << error.what() << "\n";
    return 1;
  }
}
