// SPDX-License-Identifier: Apache-2.0
#include <sys/prctl.h>

#include <algorithm>
#include <chrono>
#include <iostream>
#include <nlohmann/json.hpp>

#include "harness/ports.h"
#include "integration/cli.h"

// socat between a TCP client and `sockalarm run`, as in the README.

namespace sockalarm::test {
namespace {

// The object that --json wrote as the `count`th for `event`, once it is there.
nlohmann::json told(const Process& process, const std::string& event, int count) {
  nlohmann::json found;
  EXPECT_TRUE(eventually([&] {
    const std::string errors = process.errors();
    int seen = 0;
    for (std::size_t at = 0, end = 0; (end = errors.find('\n', at)) != std::string::npos; at = end + 1) {
      const auto line = nlohmann::json::parse(errors.substr(at, end - at), nullptr, false);
      if (line.is_object() && line.value("event", "") == event && ++seen == count) found = line;
    }
    return !found.is_null();
  })) << process.errors();
  return found;
}

using Milliseconds = std::chrono::duration<double, std::milli>;

// A command must be gone so soon after its client. The rule for the median alone: one visit may meet with
// whatever else this machine does.
[[maybe_unused]] constexpr Milliseconds kLimit{50};
constexpr int kVisits = 7;

class CliSocatTest : public ::testing::Test {
 protected:
  // So that what is left over comes to us.
  void SetUp() override { ::prctl(PR_SET_CHILD_SUBREAPER, 1); }
  void TearDown() override { ::prctl(PR_SET_CHILD_SUBREAPER, 0); }

  // `options` are those of socat's EXEC. `serving` is the source that is expected to serve what it gives.
  void serve(const std::string& source, const std::string& options, const std::string& serving) {
    const std::string port = free_port();
    const UniqueFd nothing = null();
    std::vector<Milliseconds> times;
    {
      Process socat({"socat", "TCP-LISTEN:" + port + ",bind=127.0.0.1,fork,reuseaddr",
                     "EXEC:" + kCli + " run --json --source " + source + " -- sleep 600" + options},
                    nothing.get(), nothing.get());
      for (int visit = 1; visit <= kVisits; ++visit) times.push_back(visited(socat, port, visit, serving));
    }
    nothing_is_left();
    std::sort(times.begin(), times.end());
    const Milliseconds median = times[times.size() / 2];
    std::cout << "--source " << source << ", EXEC" << options << " (" << serving << " serves), " << kVisits
              << " clients: the command was gone " << times.front().count() << " to " << times.back().count()
              << " ms after its client, median " << median.count() << " ms\n";
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // which take their time
    EXPECT_LE(median, kLimit);
#endif
  }

  // How long after its client the command of the `visit`th one was gone.
  static Milliseconds visited(const Process& socat, const std::string& port, int visit,
                              const std::string& serving) {
    UniqueFd client = connect_to_port(port);
    const auto start = told(socat, "start", visit);
    if (!start.is_object()) return kPatience;
    EXPECT_EQ(start.at("source"), serving);
    const pid_t command = start.at("pid");
    EXPECT_TRUE(alive(command));
    const auto left = std::chrono::steady_clock::now();
    client.reset();
    while (alive(command) && std::chrono::steady_clock::now() - left < kPatience) {
    }
    const Milliseconds took = std::chrono::steady_clock::now() - left;
    EXPECT_FALSE(alive(command));
    EXPECT_EQ(told(socat, "exit", visit).value("status", -1), 123);
    return took;
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
