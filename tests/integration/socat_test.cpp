// SPDX-License-Identifier: Apache-2.0
#include <sys/prctl.h>

#include <iostream>
#include <nlohmann/json.hpp>

#include "integration/cli.h"

// socat between a TCP client and `sockalarm run`, as in the README.

namespace sockalarm::test {
namespace {

std::string free_port() {
  const Listener probe = listen_on(AF_INET);
  return std::to_string(ntohs(reinterpret_cast<const sockaddr_in*>(&probe.address)->sin_port));
}

UniqueFd connect_to_port(const std::string& port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<std::uint16_t>(std::stoi(port)));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  UniqueFd client;
  EXPECT_TRUE(eventually([&] {
    client = UniqueFd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    return ::connect(client.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
  }));
  return client;
}

// The object that --json writes for `event`, once it is there.
nlohmann::json told(const Process& process, const std::string& event) {
  nlohmann::json found;
  EXPECT_TRUE(eventually([&] {
    const std::string errors = process.errors();
    for (std::size_t at = 0, end = 0; (end = errors.find('\n', at)) != std::string::npos; at = end + 1) {
      const auto line = nlohmann::json::parse(errors.substr(at, end - at), nullptr, false);
      if (line.is_object() && line.value("event", "") == event) found = line;
    }
    return !found.is_null();
  })) << process.errors();
  return found;
}

class CliSocatTest : public ::testing::Test {
 protected:
  // So that what is left over comes to us.
  void SetUp() override { ::prctl(PR_SET_CHILD_SUBREAPER, 1); }
  void TearDown() override { ::prctl(PR_SET_CHILD_SUBREAPER, 0); }

  // `options` are those of socat's EXEC. `serving` is the source that is expected to serve what it gives.
  void serve(const std::string& source, const std::string& options, const std::string& serving) {
    const std::string port = free_port();
    const UniqueFd nothing = null();
    {
      Process socat({"socat", "TCP-LISTEN:" + port + ",bind=127.0.0.1,fork,reuseaddr",
                     "EXEC:" + kCli + " run --json --source " + source + " -- sleep 600" + options},
                    nothing.get(), nothing.get());
      UniqueFd client = connect_to_port(port);
      const auto start = told(socat, "start");
      ASSERT_TRUE(start.is_object());
      EXPECT_EQ(start.at("source"), serving);
      const pid_t command = start.at("pid");
      ASSERT_TRUE(alive(command));
      const auto left = std::chrono::steady_clock::now();
      client.reset();
      while (alive(command) && std::chrono::steady_clock::now() - left < kPatience) {
      }
      const auto took =
          std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now() - left);
      EXPECT_FALSE(alive(command));
      std::cout << "--source " << source << ", EXEC" << options << " (" << serving
                << " serves): the command was gone " << static_cast<double>(took.count()) / 1000
                << " ms after its client\n";
      EXPECT_EQ(told(socat, "exit").at("status"), 123);
    }
    nothing_is_left();
  }

  // In the process table: socat is collected, its children are either gone or come to us.
  static void nothing_is_left() {
    EXPECT_TRUE(eventually([&] {
      while (::waitpid(-1, nullptr, WNOHANG) > 0) {
      }
      return ::waitpid(-1, nullptr, WNOHANG) == -1 && errno == ECHILD;
    }));
  }
};

// With nofork the command's stdin and stdout are the TCP connection. Without, they are one end of a pair of
// AF_UNIX sockets, which is always epoll's, and the news comes through socat.
TEST_F(CliSocatTest, Epoll) { serve("epoll", "", "epoll"); }
TEST_F(CliSocatTest, EpollNofork) { serve("epoll", ",nofork", "epoll"); }
#if SOCKALARM_BPF
TEST_F(CliSocatTest, Kernel) {
  if (!kernel_required() && !make_watcher(SourceKind::kernel)) GTEST_SKIP() << "no kernel source";
  serve("kernel", "", "epoll");
}
TEST_F(CliSocatTest, KernelNofork) {
  if (!kernel_required() && !make_watcher(SourceKind::kernel)) GTEST_SKIP() << "no kernel source";
  serve("kernel", ",nofork", "kernel");
}
#endif

// There the connection is out of reach, and what looks like one is a socket of socat's own.
TEST_F(CliSocatTest, RefusesPipesAndPty) {
  for (const std::string options : {",pipes", ",pty"}) {
    const std::string port = free_port();
    const TemporaryPath witness("socat-witness");
    const UniqueFd nothing = null();
    {
      Process socat({"socat", "TCP-LISTEN:" + port + ",bind=127.0.0.1,fork,reuseaddr",
                     "EXEC:" + kCli + " run -- touch " + witness.text() + options},
                    nothing.get(), nothing.get());
      const UniqueFd client = connect_to_port(port);
      EXPECT_TRUE(eventually([&] { return socat.errors().find("no client") != std::string::npos; }))
          << options << ": " << socat.errors();
      char byte = 0;
      ::recv(client.get(), &byte, 1, 0);  // until socat has seen the end of it
      EXPECT_FALSE(witness.exists());
    }
    nothing_is_left();
  }
}

}  // namespace
}  // namespace sockalarm::test
