// SPDX-License-Identifier: Apache-2.0
#include <sockalarm/diagnostics.h>

#include <iostream>
#include <nlohmann/json.hpp>

#include "base/text.h"
#include "cli/commands.h"

namespace sockalarm::cli {
namespace {

struct FdsOptions {
  std::optional<std::string> pid;
  bool sockets = false, json = false;
};

nlohmann::json as_json(const DescriptorInfo& info) {
  nlohmann::json out{{"fd", info.fd}, {"kind", info.kind}, {"target", sockalarm::escaped(info.target)}};
  if (info.local) out["local"] = to_string(*info.local);
  if (info.peer) out["peer"] = to_string(*info.peer);
  if (!info.state.empty()) out["state"] = info.state;
  if (info.cookie != 0) out["cookie"] = info.cookie;
  if (info.local) out["listening"] = info.listening;
  return out;
}

int print_descriptors(const FdsOptions& options) {
  std::optional<pid_t> pid;
  if (options.pid) {
    pid = parse_number<pid_t>(*options.pid);
    if (!pid || *pid <= 0) {
      say("sockalarm fds: " + sockalarm::quoted(*options.pid) +
          " is not a process id; expected a number above 0, such as pidof(1) prints");
      return kExitFailed;
    }
  }
  const auto table = descriptor_table(pid);
  if (!table) {
    say("sockalarm fds: " + table.error().message() + "; is there such a process, and is it yours?");
    return kExitFailed;
  }
  nlohmann::json all = nlohmann::json::array();
  for (const DescriptorInfo& info : *table) {
    if (options.sockets && info.target.rfind("socket:", 0) != 0) continue;
    if (options.json)
      all.push_back(as_json(info));
    else
      std::cout << to_string(info) << "\n";
  }
  if (options.json) std::cout << all.dump(2) << "\n";
  return 0;
}

}  // namespace

void add_fds(CLI::App& app, Task& chosen) {
  CLI::App* sub = app.add_subcommand(
      "fds", "Show the descriptors of a process, sockets with addresses, state and cookie");
  auto options = std::make_shared<FdsOptions>();
  sub->add_option("PID", options->pid, "the process (default: what sockalarm itself was given)")
      ->type_name("");
  sub->add_flag("--sockets", options->sockets, "sockets only");
  sub->add_flag("--json", options->json, "print JSON");
  sub->footer(
      "Examples:\n"
      "  sockalarm fds $(pidof nginx | cut -d' ' -f1) --sockets\n"
      "  sockalarm fds --json < /dev/tcp/example.org/80");
  sub->callback([&chosen, options] { chosen = [options] { return print_descriptors(*options); }; });
}

}  // namespace sockalarm::cli
