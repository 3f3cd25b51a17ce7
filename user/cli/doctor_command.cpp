// SPDX-License-Identifier: Apache-2.0
#include <sockalarm/diagnostics.h>
#include <sockalarm/watcher.h>

#include <iomanip>
#include <iostream>
#include <nlohmann/json.hpp>

#include "cli/commands.h"

namespace sockalarm::cli {
namespace {

// 0: BPF, here or in the daemon; 1: a fallback; 2: nothing works.
int status_of(const Result<Watcher>& watcher) {
  if (!watcher) return 2;
  const SourceKind source = watcher->describe().source;
  return source == SourceKind::kernel || source == SourceKind::daemon ? 0 : 1;
}

int print_json(const std::vector<Feature>& features, const Result<Watcher>& watcher) {
  nlohmann::json out{{"features", nlohmann::json::array()}};
  for (const Feature& feature : features)
    out["features"].push_back({{"name", feature.name},
                               {"available", feature.available},
                               {"detail", feature.detail},
                               {"remedy", feature.remedy}});
  if (watcher) {
    const Description description = watcher->describe();
    out["source"] = to_string(description.source);
    out["delivery"] = to_string(description.delivery);
    out["why_not"] = description.why_not;
  } else {
    out["error"] = watcher.error().message();
  }
  std::cout << out.dump(2) << "\n";
  return status_of(watcher);
}

int print_table(const std::vector<Feature>& features, const Result<Watcher>& watcher) {
  for (const Feature& feature : features) {
    std::cout << (feature.available ? "yes  " : "NO   ") << std::left << std::setw(34) << feature.name
              << feature.detail << "\n";
    if (!feature.available) std::cout << std::string(39, ' ') << "-> " << feature.remedy << "\n";
  }
  if (!watcher) {
    std::cout << "\nNo source works: " << watcher.error().message() << "\n";
    return status_of(watcher);
  }
  const Description description = watcher->describe();
  std::cout << "\nA Watcher here uses " << description.text << "\n";
  std::cout << "Delivery of signals to the thread that armed: " << to_string(description.delivery) << "\n";
  for (const std::string& why : description.why_not) std::cout << "  " << why << "\n";
  return status_of(watcher);
}

}  // namespace

void add_doctor(CLI::App& app, Task& chosen) {
  CLI::App* sub =
      app.add_subcommand("doctor", "Tell what this kernel, these privileges and this machine give");
  auto json = std::make_shared<bool>(false);
  sub->add_flag("--json", *json, "print JSON");
  sub->footer(
      "Exit status: 0 the daemon or the kernel source works, 1 a fallback serves, 2 nothing works.\n\n"
      "Examples:\n"
      "  sockalarm doctor\n"
      "  sockalarm doctor --json | jq '.features[] | select(.available | not)'");
  sub->callback([&chosen, json] {
    chosen = [json] {
      const auto features = probe_features();
      const auto watcher = Watcher::create();
      return *json ? print_json(features, watcher) : print_table(features, watcher);
    };
  });
}

}  // namespace sockalarm::cli
