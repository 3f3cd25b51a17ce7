// SPDX-License-Identifier: Apache-2.0
#include "integration/cli.h"

#include <cstdlib>
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

// What bash offers when the cursor is behind the last of `words`.
std::string offered(const std::string& words) {
  return output_of("bash -c 'source <(" + kCli + " completion bash); COMP_WORDS=(sockalarm " + words +
                   "); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _sockalarm; echo \" ${COMPREPLY[*]} \"'");
}

TEST(CliCompletionTest, BashOffersSubcommandsOptionsAndValues) {
  const auto contains = [](const std::string& words, const std::string& expected) {
    const std::string all = offered(words);
    EXPECT_NE(all.find(" " + expected + " "), std::string::npos) << words << ": " << all;
  };
  EXPECT_NE(
      output_of("bash -c 'source <(" + kCli + " completion bash); complete -p sockalarm'").find("_sockalarm"),
      std::string::npos);
  contains("\"\"", "doctor");
  contains("run --pre", "--preserve-status");
  contains("run --json --", "--source");
  for (const char* value : {"auto", "kernel", "epoll", "poll"}) contains("run --source \"\"", value);
  for (const char* value : {"fin", "reset", "timeout", "error", "shut", "eof", "deadline"})
    contains("run --on \"\"", value);
  contains("run --on fin,re", "fin,reset");
  contains("run --signal SIGT", "SIGTERM");
  for (const char* shell : {"bash", "zsh", "fish"}) contains("completion \"\"", shell);
  contains("run --json -- tou", "touch");
  EXPECT_EQ(offered("run -- touch --j"), "  \n");  // the command's, not ours
}

TEST(CliCompletionTest, ZshAndFishScriptsHaveOptionsAndValues) {
  const std::string zsh = output_of(kCli + " completion zsh"), fish = output_of(kCli + " completion fish");
  EXPECT_TRUE(zsh.starts_with("#compdef sockalarm\n"));
  for (const char* words : {"--preserve-status[", "(auto kernel epoll poll)", "_signals", "_normal"})
    EXPECT_NE(zsh.find(words), std::string::npos) << words;
  for (const char* words : {"preserve-status", "'auto kernel epoll poll'", "'bash zsh fish'"})
    EXPECT_NE(fish.find(words), std::string::npos) << words;
  EXPECT_EQ(run_cli({"completion", "tcsh"}).status, 125);
  if (std::system("command -v zsh >/dev/null") != 0) return;
  EXPECT_EQ(output_of("zsh -fc 'autoload -Uz compinit; compinit -D; source <(" + kCli +
                      " completion zsh); echo $_comps[sockalarm]'"),
            "_sockalarm\n");
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
  says({"completion", "tcsh"}, "'tcsh'");
  says({}, "subcommand");
  EXPECT_EQ(run_cli({"--version"}).status, 0);
}

}  // namespace
}  // namespace sockalarm::test
