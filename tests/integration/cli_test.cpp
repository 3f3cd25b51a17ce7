// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <optional>
#include <set>
#include <sstream>

#include "harness/alarms.h"
#include "harness/sockets.h"

// The command line tool as users run it. SOCKALARM_CLI_PATH is the executable.

namespace sockalarm::test {
namespace {

struct Ended {
  int status = -1;
  std::string errors;
};

// A program with a socket, or what else, as its stdin and stdout and its stderr in a file.
class Process {
 public:
  Process(std::vector<std::string> argv, int in, int out) : errors_(::memfd_create("stderr", MFD_CLOEXEC)) {
    std::vector<char*> words;
    for (std::string& word : argv) words.push_back(word.data());
    words.push_back(nullptr);
    pid_ = ::fork();
    if (pid_ == 0) {
      ::dup2(in, 0);
      ::dup2(out, 1);
      ::dup2(errors_.get(), 2);
      ::execvp(words[0], words.data());
      ::_exit(99);
    }
  }
  ~Process() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  pid_t pid() const { return pid_; }
  Ended wait() {
    int status = 0;
    ::waitpid(std::exchange(pid_, -1), &status, 0);
    return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), errors()};
  }
  std::string errors() const {
    std::string text(static_cast<std::size_t>(::lseek(errors_.get(), 0, SEEK_END)), ' ');
    EXPECT_EQ(::pread(errors_.get(), text.data(), text.size(), 0), static_cast<ssize_t>(text.size()));
    return text;
  }

 private:
  UniqueFd errors_;
  pid_t pid_ = -1;
};

UniqueFd null() { return UniqueFd(::open("/dev/null", O_RDWR | O_CLOEXEC)); }

std::vector<std::string> cli(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), SOCKALARM_CLI_PATH);
  return arguments;
}

Ended run_cli(std::vector<std::string> arguments) {
  const UniqueFd nothing = null();
  return Process(cli(std::move(arguments)), nothing.get(), nothing.get()).wait();
}

// `sockalarm run` with a client at its stdin and stdout, as inetd starts it. The command must write "ready"
// first.
class Served {
 public:
  explicit Served(std::vector<std::string> arguments, bool wait_until_ready = true)
      : connection_(tcp_pair()) {
    arguments.insert(arguments.begin(), "run");
    process_.emplace(cli(std::move(arguments)), connection_.ours.get(), connection_.ours.get());
    connection_.ours.reset();
    if (wait_until_ready) await("ready");
  }
  void await(const std::string& word) {
    std::string text;
    char byte = 0;
    while (text.find(word) == std::string::npos && ::recv(connection_.peer.get(), &byte, 1, 0) == 1)
      text += byte;
    EXPECT_NE(text.find(word), std::string::npos)
        << "the command wrote '" << text << "'; " << process_->errors();
    rest_ = text;
  }
  const std::string& heard() const { return rest_; }
  void client_leaves() { connection_.peer.reset(); }
  Connection& connection() { return connection_; }
  Process& process() { return *process_; }
  Ended wait() { return process_->wait(); }

 private:
  Connection connection_;
  std::string rest_;
  std::optional<Process> process_;
};

// Writes its process id, and the program can then be asked for.
const std::string kReport = "echo pid $$ ready; ";
pid_t reported_pid(const std::string& text) { return std::stoi(text.substr(text.find("pid ") + 4)); }
bool alive(pid_t pid) { return ::kill(pid, 0) == 0; }

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
  const std::string witness =
      std::filesystem::temp_directory_path() / ("sockalarm-witness-" + std::to_string(::getpid()));
  Process process(cli({"run", "--verbose", "--", "touch", witness}), connection.ours.get(),
                  connection.ours.get());
  const Ended ended = process.wait();
  EXPECT_EQ(ended.status, 123);
  EXPECT_FALSE(std::filesystem::exists(witness));
}

TEST(CliRunTest, ThenActionsComeBeforeTheSignal) {
  const std::string witness =
      std::filesystem::temp_directory_path() / ("sockalarm-then-" + std::to_string(::getpid()));
  Served served({"--then", "run:touch " + witness, "--then", "sig:USR1", "--", "sh", "-c",
                 "trap 'exit 9' USR1; " + kReport + "while :; do sleep 0.05; done"});
  served.client_leaves();
  EXPECT_EQ(served.wait().status, 123);
  EXPECT_TRUE(eventually([&] { return std::filesystem::exists(witness); }));
  std::filesystem::remove(witness);
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

TEST(CliRunTest, BadInputSaysWhatAndStartsNothing) {
  const Connection connection = tcp_pair();
  const auto refused = [&](std::vector<std::string> arguments, int status, const char* word) {
    arguments.insert(arguments.begin(), "run");
    Process process(cli(arguments), connection.ours.get(), connection.ours.get());
    const Ended ended = process.wait();
    EXPECT_EQ(ended.status, status) << ended.errors;
    EXPECT_NE(ended.errors.find(word), std::string::npos) << ended.errors;
  };
  refused({"--on", "bogus", "--", "true"}, 125, "bogus");
  refused({"--signal", "99", "--", "true"}, 125, "99");
  refused({"--signal", "0", "--", "true"}, 125, "--signal");
  refused({"--timeout", "soon", "--", "true"}, 125, "soon");
  refused({"--then", "nonsense", "--", "true"}, 125, "nonsense");
  refused({"--then", "run:/no/such/program", "--", "true"}, 125, "/no/such/program");
  refused({"--source", "magic", "--", "true"}, 125, "magic");
  refused({"--fd", "77", "--", "true"}, 125, "77");
  refused({"--no-such-option", "--", "true"}, 125, "no-such-option");
  refused({"--"}, 125, "COMMAND");
  refused({"--", "/no/such/program"}, 127, "/no/such/program");
  refused({"--", "/etc/passwd"}, 126, "/etc/passwd");
}

TEST(CliRunTest, WithoutAClientItSaysWhatThereIs) {
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  const UniqueFd in(ends[0]), out(ends[1]);
  Process process(cli({"run", "--", "true"}), in.get(), out.get());  // as under a CGI server
  const Ended ended = process.wait();
  EXPECT_EQ(ended.status, 125);
  EXPECT_NE(ended.errors.find("--fd"), std::string::npos);
  EXPECT_NE(ended.errors.find("0: pipe"), std::string::npos) << ended.errors;
}

TEST(CliRunTest, SocketPassedAsSystemdDoes) {
  // LISTEN_FDS: stdin is /dev/null, the connection is descriptor 3.
  Connection connection = tcp_pair();
  const UniqueFd nothing = null();
  ::dup2(connection.ours.get(), 3);  // without FD_CLOEXEC
  Process process(cli({"run", "--", "sleep", "600"}), nothing.get(), nothing.get());
  ::close(3);
  connection.ours.reset();
  connection.peer.reset();
  EXPECT_EQ(process.wait().status, 123);
}

// socat between a TCP client and `sockalarm run`, as in the README.
void serve_by_socat(const std::string& source) {
  const std::string port = [] {
    const Listener probe = listen_on(AF_INET);
    return std::to_string(ntohs(reinterpret_cast<const sockaddr_in*>(&probe.address)->sin_port));
  }();
  ::prctl(PR_SET_CHILD_SUBREAPER, 1);  // so that what is left over would be ours
  const UniqueFd nothing = null();
  {
    Process socat({"socat", "TCP-LISTEN:" + port + ",bind=127.0.0.1,fork,reuseaddr",
                   "EXEC:'" SOCKALARM_CLI_PATH " run --source " + source +
                       " -- sh -c \"echo pid $$ ready; exec sleep 600\"',nofork"},
                  nothing.get(), nothing.get());
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<std::uint16_t>(std::stoi(port)));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    UniqueFd client;
    ASSERT_TRUE(eventually([&] {
      client = UniqueFd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
      return ::connect(client.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
    }));
    std::string text;
    char byte = 0;
    while (text.find("ready") == std::string::npos && ::recv(client.get(), &byte, 1, 0) == 1) text += byte;
    ASSERT_NE(text.find("ready"), std::string::npos) << socat.errors();
    const pid_t command = reported_pid(text);
    const auto left = std::chrono::steady_clock::now();
    client.reset();
    while (alive(command) && std::chrono::steady_clock::now() - left < kPatience) {
    }
    const auto took =
        std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now() - left);
    EXPECT_FALSE(alive(command));
    std::cout << source << ": the command was gone " << static_cast<double>(took.count()) / 1000
              << " ms after its client\n";
  }
  // Nothing is left in the process table: socat is collected, its children are either gone or come to us.
  EXPECT_TRUE(eventually([&] {
    while (::waitpid(-1, nullptr, WNOHANG) > 0) {
    }
    return ::waitpid(-1, nullptr, WNOHANG) == -1 && errno == ECHILD;
  }));
}

TEST(CliSocatTest, Epoll) { serve_by_socat("epoll"); }
#if SOCKALARM_BPF
TEST(CliSocatTest, Kernel) {
  if (const auto watcher = make_watcher(SourceKind::kernel); !watcher) {
    ASSERT_FALSE(kernel_required()) << watcher.error().message();
    GTEST_SKIP() << watcher.error().message();
  }
  serve_by_socat("kernel");
}
#endif

std::string output_of(const std::string& command) {
  std::FILE* pipe = ::popen((command + " 2>&1").c_str(), "re");
  std::string output;
  for (int c = std::fgetc(pipe); c != EOF; c = std::fgetc(pipe)) output += static_cast<char>(c);
  EXPECT_EQ(::pclose(pipe), 0) << command << ": " << output;
  return output;
}
const std::string kCli = SOCKALARM_CLI_PATH;

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

TEST(CliTest, CompletionScriptsAreValidAndKnowTheOptions) {
  EXPECT_NE(
      output_of("bash -c 'source <(" + kCli + " completion bash); complete -p sockalarm'").find("_sockalarm"),
      std::string::npos);
  EXPECT_NE(output_of(kCli + " completion fish").find("preserve-status"), std::string::npos);
  EXPECT_NE(output_of(kCli + " completion zsh").find("bashcompinit"), std::string::npos);
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

TEST(CliTest, DoctorTells) {
  const UniqueFd nothing = null();
  Process process(cli({"doctor", "--json"}), nothing.get(), nothing.get());
  const int status = process.wait().status;
  EXPECT_GE(status, 0);
  EXPECT_LE(status, 1);
  EXPECT_EQ(run_cli({}).status, 125);
  EXPECT_EQ(run_cli({"--version"}).status, 0);
}

}  // namespace
}  // namespace sockalarm::test
