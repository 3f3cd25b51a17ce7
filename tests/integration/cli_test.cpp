// SPDX-License-Identifier: Apache-2.0
#include "integration/cli.h"

#include <fstream>

namespace sockalarm::test {
namespace {

TEST(CliTest, EverySubcommandHelpsWithExamplesAndTheManPageKnowsItsOptions) {
  std::ifstream file(SOCKALARM_MAN_PAGE);
  std::string man((std::istreambuf_iterator<char>(file)), {});
  std::erase(man, '\\');
  for (const std::string sub : {"run", "doctor", "fds", "completion"}) {
    const std::string help = output_of(kCli + " " + sub + " --help");
    EXPECT_NE(help.find("Examples:"), std::string::npos) << sub;
    for (std::size_t at = help.find("--"); at != std::string::npos; at = help.find("--", at + 2)) {
      const std::string name =
          help.substr(at, help.find_first_not_of("abcdefghijklmnopqrstuvwxyz-", at) - at);
      if (name.size() <= 3) continue;
      EXPECT_NE(man.find(name), std::string::npos) << "the man page lacks " << name;
    }
  }
}

TEST(CliTest, FdsShowsSocketsOfAnotherProcess) {
  const Connection connection = tcp_pair();
  const std::string table = output_of(kCli + " fds --sockets " + std::to_string(::getpid()));
  EXPECT_NE(table.find(std::to_string(connection.ours.get()) + ": tcp ESTABLISHED 127.0.0.1:"),
            std::string::npos)
      << table;
  EXPECT_NE(table.find("cookie"), std::string::npos);
  EXPECT_NE(output_of(kCli + " fds --json").find("\"fd\": 0"), std::string::npos);
  EXPECT_EQ(run_cli({"fds", "999999999"}).status, 125);
}

TEST(CliTest, SaysWhatWasExpected) {
  const auto says = [](const std::vector<std::string>& arguments, const char* words) {
    const Ended ended = run_cli(arguments);
    EXPECT_EQ(ended.status, 125);
    EXPECT_NE(ended.errors.find(words), std::string::npos) << ended.errors;
  };
  says({"bogus"}, "unknown subcommand 'bogus'; expected run, doctor, fds or completion");
  says({"fds", "abc"}, "'abc' is not a process id; expected a number above 0");
  says({"fds", "-3"}, "-3");
  says({"fds", "99999999999"}, "expected a number above 0");
  says({}, "subcommand");
  EXPECT_EQ(run_cli({"--version"}).status, 0);
}

}  // namespace
}  // namespace sockalarm::test
