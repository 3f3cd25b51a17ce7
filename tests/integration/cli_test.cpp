// SPDX-License-Identifier: Apache-2.0
#include "integration/cli.h"

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

namespace sockalarm::test {
namespace {

TEST(CliTest, EverySubcommandHelpsWithExamplesAndTheManPageKnowsItsOptions) {
  std::ifstream file(SOCKALARM_MAN_PAGE);
  std::string man((std::istreambuf_iterator<char>(file)), {});
  std::erase(man, '\\');
  for (const std::string sub : {"run", "doctor", "fds", "status", "watch", "top", "events", "fleet events",
                                "fleet top", "completion"}) {
    if (sub.starts_with("fleet ") && !SOCKALARM_HAS_NATS) continue;
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
  for (const char* value : {"orphaned", "aborts", "ends"}) contains("top --sort \"\"", value);
  contains("events --fo", "--follow");
  contains("run --json -- tou", "touch");
#if SOCKALARM_HAS_NATS
  for (const char* word : {"events", "top", "--durable", "--by"}) contains("fleet \"\"", word);
  contains("fleet top --by \"\"", "both");
#endif
  EXPECT_EQ(offered("run -- touch --j"), "  \n");  // the command's, not ours
}

TEST(CliCompletionTest, ZshAndFishScriptsHaveOptionsAndValues) {
  const std::string zsh = output_of(kCli + " completion zsh"), fish = output_of(kCli + " completion fish");
  EXPECT_TRUE(zsh.starts_with("#compdef sockalarm\n"));
  for (const char* words :
       {"--preserve-status[", "(auto kernel epoll poll)", "_signals", "_normal", "*--filter["})
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
  says({"bogus"},
       "unknown subcommand 'bogus'; expected run, doctor, fds, status, watch, top, events, fleet or "
       "completion");
  says({"fds", "abc"}, "'abc' is not a process id; expected a number above 0");
  says({"fds", "-3"}, "-3");
  says({"fds", "99999999999"}, "expected a number above 0");
  says({"completion", "tcsh"}, "'tcsh'");
  says({}, "subcommand");
  EXPECT_EQ(run_cli({"--version"}).status, 0);
}

// What a program writes to stdout; its exit status is in `status`.
std::string captured(std::vector<std::string> argv, int& status) {
  const UniqueFd nothing = null();
  const Output output;
  status = Process(std::move(argv), nothing.get(), output.fd(),
                   [] {
                     ::close_range(3, ~0U, 0);  // what the test was given, such as the log of its runner
                   })
               .wait()
               .status;
  return output.text();
}

// Of all files in a directory whose names are an attacker's, one is open.
TEST(CliFdsTest, NamesCannotForgeRowsOrReachTheTerminal) {
  const TemporaryPath folder("names");
  std::filesystem::create_directory(folder.text());
  const std::string name = folder.text() + "/x\n7: tcp ESTABLISHED\x1b[2J\xff";
  const UniqueFd file(::open(name.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0600));
  ASSERT_TRUE(file);
  const std::string shown = folder.text() + "/x\\x0a7: tcp ESTABLISHED\\x1b[2J\\xff",
                    pid = std::to_string(::getpid());

  int status = -1;
  const std::string table = captured(cli({"fds", pid}), status);
  EXPECT_EQ(status, 0);
  EXPECT_NE(table.find("\n" + std::to_string(file.get()) + ": file " + shown + "\n"), std::string::npos)
      << table;
  EXPECT_EQ(table.find('\x1b'), std::string::npos);

  const auto rows = nlohmann::json::parse(captured(cli({"fds", "--json", pid}), status));
  EXPECT_EQ(status, 0);
  const auto row =
      std::find_if(rows.begin(), rows.end(), [&](const auto& r) { return r.at("fd") == file.get(); });
  ASSERT_NE(row, rows.end());
  EXPECT_EQ(row->at("target"), shown);

  // What run says when it finds no client.
  const UniqueFd nothing = null();
  const Ended refused = Process(cli({"run", "--", "true"}), file.get(), nothing.get()).wait();
  EXPECT_EQ(refused.status, 125);
  EXPECT_NE(refused.errors.find(shown), std::string::npos) << refused.errors;
  EXPECT_EQ(refused.errors.find('\x1b'), std::string::npos);
}

TEST(CliTest, OutputThatGoesNowhereIsAnError) {
  const UniqueFd nothing = null(), full(::open("/dev/full", O_WRONLY | O_CLOEXEC));
  ASSERT_TRUE(full);
  for (const std::vector<std::string>& arguments :
       std::initializer_list<std::vector<std::string>>{{"fds"},
                                                       {"fds", "--json"},
                                                       {"doctor"},
                                                       {"doctor", "--json"},
                                                       {"completion", "bash"},
                                                       {"completion", "zsh"},
                                                       {"completion", "fish"},
                                                       {"--help"},
                                                       {"--version"}}) {
    const Ended ended = Process(cli(arguments), nothing.get(), full.get()).wait();
    EXPECT_EQ(ended.status, 125) << arguments.front();
    EXPECT_NE(ended.errors.find("writing to stdout: No space left on device"), std::string::npos)
        << ended.errors;
  }
}

int expected_status(const nlohmann::json& report) {
  if (report.contains("error")) return 2;
  return report.at("source") == "kernel" ? 0 : 1;
}

void check_doctor(const std::vector<std::string>& prefix) {
  std::vector<std::string> text_words = prefix, json_words = prefix;
  text_words.insert(text_words.end(), {kCli, "doctor"});
  json_words.insert(json_words.end(), {kCli, "doctor", "--json"});
  int text_status = -1, json_status = -1;
  const std::string text = captured(text_words, text_status);
  const auto report = nlohmann::json::parse(captured(json_words, json_status));
  EXPECT_EQ(json_status, expected_status(report)) << report;
  EXPECT_EQ(text_status, json_status);

  std::set<std::string> names;
  for (const auto& row : report.at("features")) {
    const std::string name = row.at("name");
    names.insert(name);
    const bool available = row.at("available");
    EXPECT_NE(("\n" + text).find((available ? "\nyes  " : "\nNO   ") + name + " "), std::string::npos)
        << name;
    EXPECT_EQ(row.at("remedy") == "", available) << name;
    EXPECT_NE(row.at("detail"), "") << name;
  }
  for (const char* name : {"system", "kernel source", "epoll source", "poll source", "epoll_pwait2",
                           "pidfd_open", "pidfd_getfd", "close_range", "MPTCP", "descriptors"})
    EXPECT_TRUE(names.contains(name)) << name;
#if SOCKALARM_BPF
  for (const char* name : {"kernel type information", "capabilities", "tracepoint inet_sock_set_state",
                           "tracepoint inet_sk_error_report", "tracepoint tcp_destroy_sock",
                           "tracepoint tcp_rcv_space_adjust", "task work", "cgroup v2 for the release hook"})
    EXPECT_TRUE(names.contains(name)) << name;
#endif
  const std::string delivery = report.at("delivery");
  EXPECT_NE(text.find("armed: " + delivery + "\n"), std::string::npos) << text;
  for (const auto& why : report.at("why_not"))
    EXPECT_NE(text.find(why.get<std::string>()), std::string::npos) << why;
  EXPECT_TRUE(delivery == "task_work" || text.find("task work: ") != std::string::npos) << text;
}

TEST(CliDoctorTest, TextAndJsonTellTheSame) { check_doctor({}); }

TEST(CliDoctorTest, WithoutPrivilegesItSaysWhatIsMissing) {
  const std::vector<std::string> unprivileged{"setpriv", "--inh-caps=-all", "--bounding-set=-all"};
  if (::geteuid() != 0) GTEST_SKIP() << "root";
  check_doctor(unprivileged);
  std::vector<std::string> words = unprivileged;
  words.insert(words.end(), {kCli, "doctor", "--json"});
  int status = -1;
  const auto report = nlohmann::json::parse(captured(words, status));
  EXPECT_EQ(status, 1);
  EXPECT_EQ(report.at("delivery"), "dispatcher");
  EXPECT_FALSE(report.at("why_not").empty());
}

#ifndef __SANITIZE_ADDRESS__  // which needs more descriptors than that for itself
TEST(CliDoctorTest, WithoutDescriptorsNothingWorks) {
  int status = -1;
  const auto report =
      nlohmann::json::parse(captured({"bash", "-c", "ulimit -n 4; exec " + kCli + " doctor --json"}, status));
  EXPECT_EQ(status, 2);
  EXPECT_NE(report.at("error"), "");
}
#endif

}  // namespace
}  // namespace sockalarm::test
