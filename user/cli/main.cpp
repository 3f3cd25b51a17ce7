// SPDX-License-Identifier: Apache-2.0
#include <exception>
#include <iostream>

#include "cli/commands.h"

int main(int argc, char** argv) {
  using namespace sockalarm::cli;
  try {
    CLI::App app("Know at once when a TCP peer goes away.", "sockalarm");
    app.set_version_flag("--version", "sockalarm " SOCKALARM_VERSION);
    app.require_subcommand(1);
    app.footer(
        "Examples:\n"
        "  socat TCP-LISTEN:8080,fork EXEC:'sockalarm run -- ./report.sh'\n"
        "  sockalarm doctor\n"
        "  sockalarm fds 1234\n\n"
        "sockalarm SUBCOMMAND --help tells more.");
    Task chosen;
    add_run(app, chosen);
    add_doctor(app, chosen);
    add_fds(app, chosen);
    add_completion(app, chosen);
    try {
      app.parse(argc, argv);
    } catch (const CLI::ParseError& error) {
      return app.exit(error) == 0 ? 0 : kExitFailed;
    }
    return chosen();
  } catch (const std::exception& error) {
    std::cerr << "sockalarm: " << error.what() << "\n";
    return kExitFailed;
  }
}
