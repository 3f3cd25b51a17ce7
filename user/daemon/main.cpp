// SPDX-License-Identifier: Apache-2.0
#include <cap-ng.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#include <CLI/CLI.hpp>
#include <csignal>
#include <exception>
#include <iostream>

#include "daemon/config.h"
#include "daemon/kernel_side.h"
#include "daemon/server.h"
#include "daemon/service.h"

namespace sockalarm::daemon {
namespace {

struct Arguments {
  std::string config;
  std::optional<std::string> socket, bpffs, log_level;
  bool remove = false;
};

Result<Config> config_of(const Arguments& arguments) {
  auto config = read_config(arguments.config);
  if (!config) return config;
  if (arguments.socket) config->socket = *arguments.socket;
  if (arguments.bpffs) config->bpffs = *arguments.bpffs;
  if (arguments.log_level) config->log_level = *arguments.log_level;
  return config;
}

// Two for every client, and one for each descriptor on its way.
void raise_descriptor_limit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
}

// CAP_BPF makes tables and rings, CAP_PERFMON attaches the program on the receive path. The others were for
// loading.
Result<void> drop_privileges() {
  ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  capng_get_caps_process();
  const bool may_bound = capng_have_capability(CAPNG_EFFECTIVE, CAP_SETPCAP) != 0;
  const auto has = [](unsigned one) { return capng_have_capability(CAPNG_PERMITTED, one) != 0; };
  const bool bpf = has(CAP_BPF), perfmon = has(CAP_PERFMON);
  capng_clear(CAPNG_SELECT_BOTH);
  // NOLINTNEXTLINE(clang-analyzer-optin.core.EnumCastOutOfRange): they are bits
  constexpr auto kOwn = static_cast<capng_type_t>(CAPNG_EFFECTIVE | CAPNG_PERMITTED);
  if (bpf) capng_update(CAPNG_ADD, kOwn, CAP_BPF);
  if (perfmon) capng_update(CAPNG_ADD, kOwn, CAP_PERFMON);
  if (const int failed = capng_apply(may_bound ? CAPNG_SELECT_BOTH : CAPNG_SELECT_CAPS); failed != 0)
    return fail(Error(Errc::unsupported,
                      "dropping capabilities failed (capng_apply: " + std::to_string(failed) + ")"));
  return {};
}

Result<void> serve(const Arguments& arguments, const Config& config) {
  sigset_t ours;
  ::sigemptyset(&ours);
  for (const int one : {SIGTERM, SIGINT, SIGHUP}) ::sigaddset(&ours, one);
  ::pthread_sigmask(SIG_BLOCK, &ours, nullptr);  // before any thread
  auto listener = service::passed_listener();
  if (!listener) return fail(listener.error());
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
  if (!*listener) {
    auto own = listen_at(config.socket, config.socket_mode);
    if (!own) return fail(own.error());
    listener = std::move(own);
  }
  if (auto ok = drop_privileges(); !ok) return ok;
  auto server = Server::create(config, **kernel, std::move(*listener));
  if (!server) return fail(server.error());
  return (*server)->run([&arguments] { return config_of(arguments); });
}

int run(const Arguments& arguments) {
  spdlog::set_default_logger(spdlog::stderr_color_mt("sockalarmd"));
  spdlog::set_pattern("%^%l%$: %v");
  const auto config = config_of(arguments);
  if (config) spdlog::set_level(spdlog::level::from_str(config->log_level));
  Result<void> done = config ? Result<void>{} : fail(config.error());
  if (done) done = arguments.remove ? KernelSide::remove(config->bpffs) : serve(arguments, *config);
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
    app.add_flag("--remove", arguments.remove, "take everything out of the kernel, and end");
    app.footer("Example:\n  sockalarmd --socket /tmp/s.sock --bpffs /sys/fs/bpf/sockalarm --log-level debug");
    CLI11_PARSE(app, argc, argv);
    return sockalarm::daemon::run(arguments);
  } catch (const std::exception& error) {
    std::cerr << "sockalarmd: " << error.what() << "\n";
    return 1;
  }
}
