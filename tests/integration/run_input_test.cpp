// SPDX-License-Identifier: Apache-2.0
#include <sys/resource.h>
#include <unistd.h>

#include "integration/cli.h"

namespace sockalarm::test {
namespace {

TEST(CliRunTest, BadInputSaysWhatAndStartsNothing) {
  const Connection connection = tcp_pair();
  const TemporaryPath witness("witness");
  const auto refused = [&](std::vector<std::string> arguments, int status, const char* word) {
    arguments.insert(arguments.begin(), "run");
    Process process(cli(arguments), connection.ours.get(), connection.ours.get());
    const Ended ended = process.wait();
    EXPECT_EQ(ended.status, status) << ended.errors;
    EXPECT_NE(ended.errors.find(word), std::string::npos) << ended.errors;
    EXPECT_FALSE(witness.exists()) << "it started something";
    std::filesystem::remove(witness.text());
  };
  const auto touch = [&](std::vector<std::string> arguments) {
    arguments.insert(arguments.end(), {"--", "touch", witness.text()});
    return arguments;
  };
  refused({"--on", "bogus", "--", "true"}, 125, "bogus");
  refused({"--signal", "99", "--", "true"}, 125, "99");
  refused({"--signal", "0", "--", "true"}, 125, "--signal");
  refused({"--signal", "32", "--", "true"}, 125, "'32' is not a signal");  // the C library's own
  refused({"--then", "sig:32", "--", "true"}, 125, "32");
  refused({"--timeout", "soon", "--", "true"}, 125, "soon");
  refused({"--then", "nonsense", "--", "true"}, 125, "nonsense");
  refused({"--then", "run:/no/such/program", "--", "true"}, 125, "/no/such/program");
  refused({"--source", "magic", "--", "true"}, 125, "magic");
  refused({"--fd", "77", "--", "true"}, 125, "77");
  refused({"--no-such-option", "--", "true"}, 125, "no-such-option");
  // What can never happen here.
  refused(touch({"--on", "none"}), 125, "at least one event");
  refused(touch({"--on", "closed"}), 125, "closed cannot happen");
  refused(touch({"--on", "fin,closed"}), 125, "closed cannot happen");
  refused(touch({"--on", "deadline"}), 125, "--timeout 60s");
  refused(touch({"--timeout", "0.0000000001"}), 125, "less than a nanosecond");
  refused(touch({"--kill-after", "0.0000000001"}), 125, "less than a nanosecond");
  refused(touch({"--then", "exec:true"}), 125, "exec: would replace sockalarm");
  for (const char* fd : {"-1", "abc", "99999999999", ""})
    refused(touch({"--fd", fd}), 125, "is not the number of a descriptor; expected 0 or more");
  refused({"touch", witness.text()}, 125, "put the command after it");
  refused({"ls", "-la"}, 125, "sockalarm run [OPTION]... -- ls");
  refused({"ls", "--json"}, 125, "put the command after it");
  refused({}, 125, "COMMAND");
  refused({"--"}, 125, "COMMAND");
  refused({"--", "/no/such/program"}, 127, "/no/such/program");
  refused({"--", "/etc/passwd"}, 126, "/etc/passwd");
}

// The same names as in actions.
TEST(CliRunTest, NamesOfSignals) {
  for (const char* name : {"RTMAX", "RTMAX-1", "RTMIN+2", "IOT", "sigusr1", "10", "POLL"})
    EXPECT_EQ(Served({"--signal", name, "--", "true"}, false).wait().status, 0) << name;
  for (const std::string name : {"RTMAX-1", "IOT"}) {
    Served served({"--json", "--then", "sig:" + name, "--", "sh", "-c", kReport + "exec sleep 600"});
    served.client_leaves();
    const Ended ended = served.wait();
    EXPECT_EQ(ended.status, 123);
    const std::string sent = name == "IOT" ? "ABRT" : "RTMIN+" + std::to_string(SIGRTMAX - 1 - SIGRTMIN);
    EXPECT_NE(ended.errors.find("\"signal\":\"" + sent + "\""), std::string::npos) << ended.errors;
  }
}

#ifndef __SANITIZE_ADDRESS__  // which needs descriptors for itself
// Whatever it is that has no descriptor left: the command was not even tried.
TEST(CliRunTest, WithoutDescriptorsItIsSockalarmThatFails) {
  bool no_pipe = false;
  int status = -1;
  for (rlim_t limit = 4; status != 0; ++limit) {
    ASSERT_LT(limit, 64U);
    Served served({"--", "true"}, false, [limit] {
      ::close_range(3, ~0U, 0);
      const rlimit both{limit, limit};
      ::setrlimit(RLIMIT_NOFILE, &both);
    });
    const Ended ended = served.wait();
    status = ended.status;
    if (status != 0) {
      EXPECT_TRUE(status == 125 || ended.errors.find("shared libraries") != std::string::npos)
          << limit << " descriptors: " << status << ", " << ended.errors;
    }
    no_pipe = no_pipe || ended.errors.find("pipe2()") != std::string::npos;
  }
  EXPECT_TRUE(no_pipe);
}
#endif

// stdin and stdout are pipes and the connection is another descriptor, as under a CGI server.
class PassedElsewhere : public ::testing::Test {
 protected:
  PassedElsewhere() {
    int ends[2];
    require(::pipe2(ends, O_CLOEXEC) == 0, "pipe");
    in_ = UniqueFd(ends[0]);
    out_ = UniqueFd(ends[1]);
  }
  // `environment`: "NAME=value"; a value of PID is the process's own id.
  void start(const std::vector<std::string>& environment, std::vector<std::string> command) {
    command.insert(command.begin(), {"run", "--"});
    process_.emplace(cli(std::move(command)), in_.get(), out_.get(), [&] {
      ::dup2(connection_.ours.get(), kNumber);  // without FD_CLOEXEC
      for (const char* name : {"LISTEN_PID", "LISTEN_FDS", "GATEWAY_INTERFACE", "REQUEST_METHOD"})
        ::unsetenv(name);
      for (const std::string& text : environment) {
        const auto equals = text.find('=');
        const std::string value = text.substr(equals + 1);
        ::setenv(text.substr(0, equals).c_str(),
                 value == "PID" ? std::to_string(::getpid()).c_str() : value.c_str(), 1);
      }
    });
    connection_.ours.reset();
  }
  void is_watched() {
    connection_.peer.reset();
    EXPECT_EQ(process_->wait().status, 123);
  }
  void is_refused() {
    const Ended ended = process_->wait();
    EXPECT_EQ(ended.status, 125);
    EXPECT_NE(ended.errors.find("--fd N"), std::string::npos) << ended.errors;
    EXPECT_NE(ended.errors.find("0: pipe"), std::string::npos) << ended.errors;
    EXPECT_NE(ended.errors.find("3: tcp ESTABLISHED"), std::string::npos) << ended.errors;
  }

 private:
  static constexpr int kNumber = 3;
  Connection connection_ = tcp_pair();
  UniqueFd in_, out_;
  std::optional<Process> process_;
};

TEST_F(PassedElsewhere, ByACgiServer) {
  start({"GATEWAY_INTERFACE=CGI/1.1"}, {"sleep", "600"});
  is_watched();
}

TEST_F(PassedElsewhere, ByACgiServerThatNamesTheMethod) {
  start({"REQUEST_METHOD=GET"}, {"sleep", "600"});
  is_watched();
}

TEST_F(PassedElsewhere, BySystemd) {
  start({"LISTEN_PID=PID", "LISTEN_FDS=1"}, {"sleep", "600"});
  is_watched();
}

TEST_F(PassedElsewhere, BySystemdToAnotherProcess) {
  start({"LISTEN_PID=1", "LISTEN_FDS=1"}, {"true"});
  is_refused();
}

TEST_F(PassedElsewhere, BySystemdNone) {
  start({"LISTEN_PID=PID", "LISTEN_FDS=0", "REQUEST_METHOD=GET"}, {"true"});
  is_refused();
}

TEST_F(PassedElsewhere, ByAccident) {
  start({}, {"true"});
  is_refused();
}

}  // namespace
}  // namespace sockalarm::test
