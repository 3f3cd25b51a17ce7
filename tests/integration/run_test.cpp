// SPDX-License-Identifier: Apache-2.0
#include <sys/stat.h>

#include <set>
#include <sstream>

#include "integration/cli.h"

namespace sockalarm::test {
namespace {

TEST(CliRunTest, TheCommandsOwnStatusWhenItEndsByItself) {
  EXPECT_EQ(Served({"--", "sh", "-c", "exit 7"}, false).wait().status, 7);
  EXPECT_EQ(Served({"--", "sh", "-c", "kill -USR1 $$"}, false).wait().status, 128 + SIGUSR1);
  EXPECT_EQ(Served({"--", "true"}, false).wait().status, 0);
}

TEST(CliRunTest, EndsTheCommandWhenTheClientLeaves) {
  for (const char* source : {"epoll", "poll"}) {
    Served served({"--source", source, "--", "sh", "-c", kReport + "exec sleep 600"});
    const pid_t command = reported_pid(served.heard());
    served.client_leaves();
    EXPECT_EQ(served.wait().status, 123);
    EXPECT_FALSE(alive(command));
  }
}

TEST(CliRunTest, Timeout) {
  Served served({"--timeout", "50ms", "--", "sleep", "600"}, false);
  EXPECT_EQ(served.wait().status, 124);
}

TEST(CliRunTest, KillsWhatDoesNotListen) {
  Served served({"--kill-after", "50ms", "--", "sh", "-c",
                 "trap '' TERM; " + kReport + "while :; do sleep 0.05; done"});
  served.client_leaves();
  EXPECT_EQ(served.wait().status, 137);
}

TEST(CliRunTest, PreserveStatus) {
  Served served({"--preserve-status", "--signal", "INT", "--", "sh", "-c",
                 "trap 'exit 5' INT; " + kReport + "while :; do sleep 0.05; done"});
  served.client_leaves();
  EXPECT_EQ(served.wait().status, 5);
}

TEST(CliRunTest, LeavesNoOrphan) {
  // A grandchild in a session of its own, that ignores TERM.
  Served served({"--kill-after", "100ms", "--", "sh", "-c",
                 "setsid sh -c 'trap \"\" TERM; echo pid $$ ready; while :; do sleep 0.05; done' & wait"});
  const pid_t grandchild = reported_pid(served.heard());
  served.client_leaves();
  EXPECT_EQ(served.wait().status, 123);
  EXPECT_FALSE(alive(grandchild));
}

TEST(CliRunTest, TheCommandDiesWithSockalarm) {
  Served served({"--", "sh", "-c", kReport + "exec sleep 600"});
  const pid_t command = reported_pid(served.heard());
  ::kill(served.process().pid(), SIGKILL);
  served.wait();
  EXPECT_TRUE(eventually([&] { return !alive(command); }));
}

TEST(CliRunTest, ForwardsSignals) {
  Served served({"--", "sh", "-c", "trap 'exit 3' HUP; " + kReport + "while :; do sleep 0.05; done"});
  ::kill(served.process().pid(), SIGHUP);
  EXPECT_EQ(served.wait().status, 3);
}

TEST(CliRunTest, LenientToAHalfClose) {
  Served served({"--on", "reset,timeout,error", "--", "sh", "-c", kReport + "cat >/dev/null; echo answer"});
  ::shutdown(served.connection().peer.get(), SHUT_WR);
  served.await("answer");
  EXPECT_EQ(served.wait().status, 0);
}

TEST(CliRunTest, ClientThatLeftBeforeTheStart) {
  Connection connection = tcp_pair();
  connection.peer.reset();
  await_readable(connection.ours.get());
  const TemporaryPath witness("witness");
  Process process(cli({"run", "--", "touch", witness.text()}), connection.ours.get(), connection.ours.get());
  const Ended ended = process.wait();
  EXPECT_EQ(ended.status, 123);
  EXPECT_NE(ended.errors.find("had left before the start"), std::string::npos) << ended.errors;
  EXPECT_FALSE(witness.exists());
}

TEST(CliRunTest, ThenActionsComeBeforeTheSignal) {
  const TemporaryPath witness("then");
  Served served({"--then", "run:touch " + witness.text(), "--then", "sig:USR1", "--", "sh", "-c",
                 "trap 'exit 9' USR1; " + kReport + "while :; do sleep 0.05; done"});
  served.client_leaves();
  EXPECT_EQ(served.wait().status, 123);
  EXPECT_TRUE(eventually([&] { return witness.exists(); }));
}

TEST(CliRunTest, ProgramsOfActionsOutliveTheCommand) {
  const TemporaryPath witness("outlived"), gate("gate");
  ASSERT_EQ(::mkfifo(gate.text().c_str(), 0600), 0);
  const UniqueFd key(::open(gate.text().c_str(), O_RDWR | O_CLOEXEC));
  Served served({"--then", "run:sh -c 'read go <" + gate.text() + "; touch " + witness.text() + "'", "--",
                 "sh", "-c", kReport + "exec sleep 600"});
  served.client_leaves();
  EXPECT_EQ(served.wait().status, 123);
  ASSERT_EQ(::write(key.get(), "go\n", 3), 3);  // now that sockalarm has ended all that is the command's
  EXPECT_TRUE(eventually([&] { return witness.exists(); }));
}

TEST(CliRunTest, ProgramsOfActionsHearSignals) {
  const TemporaryPath status("status");
  Served served({"--then", "run:sh -c 'cat /proc/self/status >" + status.text() + "'", "--", "sh", "-c",
                 kReport + "exec sleep 600"});
  served.client_leaves();
  EXPECT_EQ(served.wait().status, 123);
  EXPECT_TRUE(eventually([&] {
    return status.content().find("SigBlk:\t0000000000000000") != std::string::npos;
  })) << status.content();
}

TEST(CliRunTest, ParentThatIgnoresItsChildren) {
  const auto ignore = [] { ::signal(SIGCHLD, SIG_IGN); };
  EXPECT_EQ(Served({"--", "sh", "-c", "exit 7"}, false, ignore).wait().status, 7);
  Served served({"--", "sh", "-c", kReport + "exec sleep 600"}, true, ignore);
  served.client_leaves();
  EXPECT_EQ(served.wait().status, 123);
  // The command starts with what sockalarm was started with.
  Served asked({"--", "grep", "SigIgn:", "/proc/self/status"}, false, ignore);
  asked.await("\n");
  const std::string mask = asked.heard().substr(7);
  EXPECT_EQ(std::stoull(mask, nullptr, 16) >> (SIGCHLD - 1) & 1, 1U) << mask;
  EXPECT_EQ(asked.wait().status, 0);
}

TEST(CliRunTest, NobodyReadsTheLog) {
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  ::close(ends[0]);
  const UniqueFd broken(ends[1]);
  for (const char* option : {"--json", "--verbose"}) {
    Served served({option, "--", "sh", "-c", "echo ready; read line; exit 6"}, true,
                  [&] { ::dup2(broken.get(), 2); });
    send_text(served.connection().peer.get(), "go\n");
    EXPECT_EQ(served.wait().status, 6) << option;
    Served left({option, "--", "sh", "-c", kReport + "exec sleep 600"}, true,
                [&] { ::dup2(broken.get(), 2); });
    left.client_leaves();
    EXPECT_EQ(left.wait().status, 123) << option;
  }
}

// What others write to the same stderr must not come between two parts of a line: a write is a datagram here.
TEST(CliRunTest, WritesEachLineOfTheLogWhole) {
  for (const char* option : {"--json", "--verbose"}) {
    int ends[2];
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, ends), 0);
    UniqueFd ours(ends[0]), theirs(ends[1]);
    Served served({option, "--", "sh", "-c", kReport + "exec sleep 600"}, true,
                  [&] { ::dup2(theirs.get(), 2); });
    served.client_leaves();
    EXPECT_EQ(served.wait().status, 123);
    int lines = 0;
    char line[1024];
    for (ssize_t n = 0; (n = ::recv(ours.get(), line, sizeof line, MSG_DONTWAIT)) > 0; ++lines)
      EXPECT_EQ(line[n - 1], '\n') << option << ": " << std::string_view(line, static_cast<std::size_t>(n));
    EXPECT_GE(lines, 2) << option;
  }
}

TEST(CliRunTest, KillsWhatDoesNotListenToAForwardedSignal) {
  for (const int signal : {SIGTERM, SIGINT, SIGHUP, SIGQUIT}) {
    Served served({"--kill-after", "50ms", "--", "sh", "-c",
                   "trap '' TERM INT HUP QUIT; " + kReport + "while :; do sleep 0.05; done"});
    ::kill(served.process().pid(), signal);
    EXPECT_EQ(served.wait().status, 137) << signal;
  }
}

TEST(CliRunTest, LeavesNoOrphanAfterAForwardedSignal) {
  // A grandchild that does not listen, in the command's group or in a session of its own.
  for (const std::string deaf : {"sh -c ", "setsid sh -c "})
    for (const int signal : {SIGTERM, SIGINT, SIGHUP, SIGQUIT}) {
      Served served({"--kill-after", "50ms", "--", "sh", "-c",
                     "ulimit -c 0; " + deaf +
                         "'trap \"\" TERM INT HUP QUIT; echo pid $$ ready; exec sleep 600' & wait"});
      const pid_t grandchild = reported_pid(served.heard());
      ::kill(served.process().pid(), signal);
      EXPECT_EQ(served.wait().status, 128 + signal);  // how the command itself ended
      EXPECT_FALSE(alive(grandchild)) << deaf << signal;
      ::kill(grandchild, SIGKILL);
    }
}

TEST(CliRunTest, WhatTheCommandLeavesBehindHearsTheForwardedSignalToo) {
  // Out of the group's reach, and never killed: only the signal itself can end it.
  Served served(
      {"--kill-after", "0", "--", "sh", "-c",
       "setsid sh -c 'trap \"echo heard; exit\" HUP; echo pid $$ ready; while :; do sleep 0.05; done' & "
       "wait"});
  ::kill(served.process().pid(), SIGHUP);
  served.await("heard");
  EXPECT_EQ(served.wait().status, 128 + SIGHUP);
}

TEST(CliRunTest, WhatACommandLeavesBehindByItselfIsLeftAlone) {
  Served served({"--", "sh", "-c", "setsid sh -c 'echo pid $$ ready; exec sleep 600' & read line; exit 4"});
  const pid_t background = reported_pid(served.heard());
  send_text(served.connection().peer.get(), "go\n");
  EXPECT_EQ(served.wait().status, 4);
  EXPECT_TRUE(alive(background));
  ::kill(background, SIGKILL);
}

TEST(CliRunTest, TheTimeLimitHoldsWhenTheClientHasLeft) {
  Served served({"--json", "--timeout", "300ms", "--then", "sig:USR1; sleep:1h; sig:USR2", "--", "sh", "-c",
                 "trap exit USR2; trap : USR1; " + kReport + "while :; do sleep 0.05; done"});
  served.client_leaves();
  const Ended ended = served.wait();
  EXPECT_EQ(ended.status, 123);
  EXPECT_NE(ended.errors.find("\"event\":\"timeout\""), std::string::npos) << ended.errors;
  EXPECT_NE(ended.errors.find("\"signal\":\"USR2\""), std::string::npos) << ended.errors;
}

char state_of(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  const std::string text((std::istreambuf_iterator<char>(file)), {});
  return text.empty() ? '-' : text.at(text.rfind(')') + 2);
}

TEST(CliRunTest, StopsAndContinuesWithTheCommand) {
  // A group of its own, as a shell with job control makes it.
  Served served({"--", "sh", "-c", kReport + "exec sleep 600"}, true, [] { ::setpgid(0, 0); });
  const pid_t command = reported_pid(served.heard()), ours = served.process().pid();
  ::kill(ours, SIGTSTP);
  int status = 0;
  ASSERT_EQ(::waitpid(ours, &status, WUNTRACED), ours);
  ASSERT_TRUE(WIFSTOPPED(status));
  EXPECT_EQ(WSTOPSIG(status), SIGTSTP);
  EXPECT_TRUE(eventually([&] { return state_of(command) == 'T'; }));
  ::kill(ours, SIGCONT);
  EXPECT_TRUE(eventually([&] { return state_of(command) == 'S'; }));
  served.client_leaves();
  EXPECT_EQ(served.wait().status, 123);
}

TEST(CliRunTest, DoesNotStopWhereNobodyCouldContinueIt) {
  Served served({"--", "sh", "-c", kReport + "exec sleep 600"}, true, [] { ::setsid(); });
  ::kill(served.process().pid(), SIGTSTP);
  served.client_leaves();
  EXPECT_EQ(served.wait().status, 123);
}

TEST(CliRunTest, InTheForegroundTheTerminalsSignalsAreTheCommandsBusiness) {
  const UniqueFd terminal(::posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC));
  ASSERT_TRUE(terminal && ::grantpt(terminal.get()) == 0 && ::unlockpt(terminal.get()) == 0);
  const std::string name = ::ptsname(terminal.get());
  // Killed after a millisecond it could not say "int".
  Served served({"--foreground", "--kill-after", "1ms", "--", "sh", "-c",
                 "trap 'sleep 0.2; echo int' INT; " + kReport + "while :; do sleep 0.05; done"},
                true, [&] {
                  ::setsid();
                  ::open(name.c_str(), O_RDWR);  // the first becomes the controlling terminal
                });
  ASSERT_EQ(::write(terminal.get(), "\x03", 1), 1);
  served.await("int");
  served.client_leaves();
  served.wait();
}

TEST(CliRunTest, TellsInJson) {
  Served served({"--json", "--", "sh", "-c", kReport + "exec sleep 600"});
  served.client_leaves();
  const Ended ended = served.wait();
  std::set<std::string> told;
  std::istringstream lines(ended.errors);
  for (std::string line; std::getline(lines, line);) {
    ASSERT_TRUE(line.starts_with("{") && line.ends_with("}")) << line;
    const auto at = line.find("\"event\":\"") + 9;
    told.insert(line.substr(at, line.find('"', at) - at));
  }
  EXPECT_EQ(told, (std::set<std::string>{"start", "client_left", "signal", "exit"})) << ended.errors;
}

}  // namespace
}  // namespace sockalarm::test
