// SPDX-License-Identifier: Apache-2.0
#include <pwd.h>
#include <unistd.h>

#include <climits>
#include <csignal>
#include <ctime>
#include <memory>

#include "base/text.h"
#include "cli/commands.h"
#include "cli/fleet.h"
#include "cli/times.h"
#include "cli/usage.h"

namespace sockalarm::cli {
namespace {

std::string user_at_host() {
  const passwd* const user = ::getpwuid(::geteuid());
  char host[HOST_NAME_MAX + 1] = "";
  ::gethostname(host, sizeof host - 1);
  return (user != nullptr ? std::string(user->pw_name) : std::to_string(::geteuid())) + "@" + host;
}

void add_stream_options(CLI::App& sub, FleetOptions& options) {
  sub.add_option("--server", options.stream.servers,
                 "NATS servers, separated by commas (default: nats://127.0.0.1:4222)")
      ->type_name("URL")
      ->envname("NATS_URL");
  sub.add_option("--creds", options.stream.credentials, "a file of credentials, as nsc makes it")
      ->type_name("FILE")
      ->envname("NATS_CREDS");
  sub.add_option("--ca", options.stream.authorities,
                 "certificates in PEM of whom to trust (default: those of the system)")
      ->type_name("FILE")
      ->envname("NATS_CA");
  sub.add_option("--stream", options.stream.stream, "the stream (default: SOCKALARM)")->type_name("NAME");
  sub.add_option("--since", options.since, "begin with what came so long ago: 10m, 1h")->type_name("TIME");
  sub.add_flag("--all", options.all, "begin with the oldest that the stream has");
  sub.add_option("--region", options.stream.region, "only hosts of this region")->type_name("REGION");
  sub.add_option("--host", options.stream.host, "only this host")->type_name("HOST");
  sub.add_option("--filter", options.filters, "only these: KEY=VALUE[,VALUE...]; of several all must hold")
      ->type_name("FILTER")
      ->allow_extra_args(false);
  sub.add_flag("--json", options.json, "print JSON");
}

void add_fleet_events(CLI::App& fleet, Task& chosen) {
  CLI::App* sub = fleet.add_subcommand("events", "Print each connection of all hosts that ends");
  auto options = std::make_shared<FleetOptions>();
  auto count = std::make_shared<std::string>();
  add_stream_options(*sub, *options);
  sub->add_option(
         "--durable", options->stream.durable,
         "who asks: the stream remembers how far this name has come (default: sockalarm-events-USER@HOST)")
      ->type_name("NAME");
  sub->add_flag("--delete", options->remove, "make the stream forget the durable, and end");
  sub->add_option("--count", *count, "end after so many")->type_name("N");
  sub->footer(std::string(kEventFilterHelp) +
              "\n\nThe first time from the moment of asking, or as --since and --all say; later where the "
              "durable stopped, "
              "also after a crash. Each record is shown once, though it may come twice. Exit status: 0; 2 if "
              "there is no "
              "server or no stream, or it is gone for good.\n\n"
              "Examples:\n"
              "  sockalarm fleet events --since 10m --filter verdict=abandoned\n"
              "  sockalarm fleet events --durable audit --all --json >> ends.jsonl\n"
              "  sockalarm fleet events --server tls://nats-1:4222,tls://nats-2:4222 --creds ops.creds "
              "--region eu-1\n"
              "  sockalarm fleet events --durable audit --delete");
  sub->callback(
      [&chosen, options, count] { chosen = [options, count] { return fleet_events(*options, *count); }; });
}

void add_fleet_top(CLI::App& fleet, Task& chosen) {
  CLI::App* sub = fleet.add_subcommand("top", "Show whose clients leave amid the work, on all hosts, live");
  auto options = std::make_shared<FleetOptions>();
  auto top = std::make_shared<FleetTopOptions>();
  add_stream_options(*sub, *options);
  sub->add_option("--by", top->by, "what a row is (default: service)")->type_name("service|host|both");
  sub->add_option("--interval", top->interval, "between two looks (default: 2s)")->type_name("TIME");
  sub->add_flag("--once", top->once, "print what the stream has since then, and end");
  sub->add_flag("--idle", top->idle_too, "rows without aborts, too");
  sub->add_option("--sort", top->sort, "what comes first (default: orphaned)")
      ->type_name("orphaned|aborts|ends");
  sub->footer(std::string(kEventFilterHelp) +
              "\n\nIt begins with the last 10 minutes, or as --since and --all say, and goes on with what "
              "comes; q quits. Exit "
              "status as that of fleet events.\n\n"
              "Examples:\n"
              "  sockalarm fleet top --by both\n"
              "  sockalarm fleet top --region eu-1 --sort aborts --interval 5s\n"
              "  sockalarm fleet top --once --since 1h --json | jq '.rows[] | {service, aborts}'");
  sub->callback([&chosen, options, top] { chosen = [options, top] { return fleet_top(*options, *top); }; });
}

}  // namespace

Result<void> complete(FleetOptions& options, const std::string& purpose) {
  using From = observe::StreamOptions::From;
  if (options.all && !options.since.empty()) return fail(usage("--all and --since: give one of them"));
  if (options.all) options.stream.from = From::all;
  if (!options.since.empty()) {
    const auto since = parse_time("--since", options.since);
    if (!since) return fail(since.error());
    options.stream.from = From::since;
    options.stream.since = *since;
  }
  if (!options.stream.durable.empty()) return {};
  std::string name = "sockalarm-" + purpose + "-" + user_at_host();
  if (!options.stream.region.empty()) name += "-" + options.stream.region;
  if (!options.stream.host.empty()) name += "-" + options.stream.host;
  options.stream.durable = observe::durable_name(name);
  return {};
}

EndSignals::EndSignals() {
  ::sigemptyset(&signals_);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) ::sigaddset(&signals_, signal);
  ::pthread_sigmask(SIG_BLOCK, &signals_, &before_);
}

EndSignals::~EndSignals() {
  if (came_ != 0) ::raise(came_);
  ::pthread_sigmask(SIG_SETMASK, &before_, nullptr);
}

bool EndSignals::has_come() {
  const timespec now{};
  if (const int signal = ::sigtimedwait(&signals_, nullptr, &now); signal > 0) came_ = signal;
  return came_ != 0;
}

std::optional<std::string> ConnectionNews::look(bool connected) {
  if (std::exchange(connected_, connected) == connected) return std::nullopt;
  return who_ + (connected ? ": the servers are back" : ": the servers have gone and are waited for");
}

int refuse_fleet(const std::string& command, const Error& error) {
  say("sockalarm fleet " + command + ": " + error.message());
  return error.code().category() == error_category() ? kExitFailed : kExitNoAnswer;
}

void add_fleet(CLI::App& app, Task& chosen) {
  CLI::App* fleet = app.add_subcommand("fleet", "What ends on all hosts, from their stream in NATS");
  fleet->require_subcommand(1);
  fleet->footer("sockalarm fleet events --help, sockalarm fleet top --help tell more.");
  add_fleet_events(*fleet, chosen);
  add_fleet_top(*fleet, chosen);
}

}  // namespace sockalarm::cli
