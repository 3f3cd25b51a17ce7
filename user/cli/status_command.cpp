// SPDX-License-Identifier: Apache-2.0
#include <sockalarm/diagnostics.h>

#include <iomanip>
#include <iostream>
#include <nlohmann/json.hpp>

#include "cli/commands.h"

namespace sockalarm::cli {
namespace {

using Json = nlohmann::json;

void print(const Json& status) {
  const Json &limits = status.at("limits"), &lost = status.at("lost"),
             &connections = status.at("connections");
  std::cout << "sockalarmd " << status.at("version").get<std::string>() << ", process " << status.at("pid")
            << ", up for " << status.at("uptime_seconds") << " s; programs "
            << (status.at("adopted").get<bool>() ? "taken over" : "loaded") << "; signals by "
            << (status.at("task_work").get<bool>() ? "task work" : "the clients' dispatchers") << "\n";
  if (const Json programs = status.value("programs", Json::object()); !programs.value("current", true))
    std::cout << "the programs in the kernel are of another version (" << programs.value("id", "unknown")
              << "); to load the daemon's own: sockalarmd --remove while no daemon runs\n";
  std::cout << "limits: " << limits.at("clients") << " clients, " << limits.at("watches")
            << " watches; for each user " << limits.at("user").at("connections") << " connections, "
            << limits.at("user").at("watches") << " watches, " << limits.at("user").at("memory")
            << " bytes\n";
  std::cout << "records lost: " << lost.at("ring_full") << " because a ring was full (swept for), "
            << lost.at("stale") << " stale, " << lost.at("no_client") << " without a client\n";
  std::cout << "connections: " << connections.at("accepted") << " accepted, " << connections.at("resumed")
            << " resumed, " << connections.at("refused") << " refused, " << connections.at("violations")
            << " broken off\n\n";
  std::cout << std::right << std::setw(10) << "PID" << std::setw(8) << "UID" << std::setw(10) << "WATCHES"
            << std::setw(10) << "SLOTS" << std::setw(10) << "RING" << "  STATE\n";
  for (const Json& client : status.at("clients"))
    std::cout << std::setw(10) << client.at("pid").get<long>() << std::setw(8) << client.at("uid").get<long>()
              << std::setw(10) << client.at("watches").get<long>() << std::setw(10)
              << client.at("slots").get<long>() << std::setw(10) << client.at("ring_bytes").get<long>()
              << (client.at("connected").get<bool>() ? "  connected\n" : "  awaited\n");
  std::cout << "\n"
            << std::setw(8) << "UID" << std::setw(12) << "CONNECTIONS" << std::setw(10) << "WATCHES"
            << std::setw(14) << "MEMORY" << "\n";
  for (const Json& user : status.at("users"))
    std::cout << std::setw(8) << user.at("uid").get<long>() << std::setw(12)
              << user.at("connections").get<long>() << std::setw(10) << user.at("watches").get<long>()
              << std::setw(14) << user.at("memory").get<long>() << "\n";
}

}  // namespace

void add_status(CLI::App& app, Task& chosen) {
  CLI::App* sub = app.add_subcommand("status", "Ask sockalarmd for its clients, watches, losses and quotas");
  auto json = std::make_shared<bool>(false);
  auto socket = std::make_shared<std::string>("/run/sockalarm/sockalarmd.sock");
  sub->add_flag("--json", *json, "print JSON");
  sub->add_option("--socket", *socket, "where the daemon listens (default: /run/sockalarm/sockalarmd.sock)");
  sub->footer(
      "Root and the daemon's own user see all clients, others their own. Exit status: 0, or 2 if no daemon "
      "answers.\n\n"
      "Examples:\n"
      "  sockalarm status\n"
      "  sockalarm status --json | jq '.clients[].watches'");
  sub->callback([&chosen, json, socket] {
    chosen = [json, socket] {
      const auto text = daemon_status(*socket);
      if (!text) {
        say("sockalarm: " + text.error().message());
        return kExitNoAnswer;
      }
      const Json status = Json::parse(*text);
      if (*json)
        std::cout << status.dump(2) << "\n";
      else
        print(status);
      return 0;
    };
  });
}

}  // namespace sockalarm::cli
