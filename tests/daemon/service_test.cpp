// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <gmock/gmock.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <fstream>

#include "daemon/raw_client.h"
#include "harness/tasks.h"

// Between sockalarmd and a service manager.

namespace sockalarm::test {
namespace {

class ServiceTest : public testing::Test {
 protected:
  std::string configure(const std::string& text) const {
    const std::string path = home_.file("config.toml");
    std::ofstream(path) << text;
    return path;
  }
  std::size_t connections_granted(std::size_t wanted) const {
    std::vector<RawClient> clients;
    std::size_t granted = 0;
    for (std::size_t i = 0; i < wanted; ++i) {
      clients.emplace_back(home_.socket());
      granted += clients.back().greet(2) ? 1 : 0;
    }
    return granted;
  }
  nlohmann::json user_limits() const { return status_of(home_)["limits"]["user"]; }

  DaemonHome home_;
};

// RELOADING with the time, then READY: Type=notify-reload of systemd.service(5) asks for that.
TEST_F(ServiceTest, ReloadsItsConfiguration) {
  const auto config = configure("[limits.user]\nconnections = 3\n");
  DaemonProcess daemon(home_, {"--config", config});
  ASSERT_TRUE(daemon.tells("READY=1"));
  RawClient kept(home_.socket());  // from before
  ASSERT_TRUE(kept.greet());
  const Connection tcp = tcp_pair();
  ASSERT_EQ(kept.watch(tcp.ours.get(), 1), 0);
  EXPECT_EQ(user_limits()["connections"], 3);
  EXPECT_TRUE(eventually([&] { return connections_granted(5) == 2; }));

  configure("[limits.user]\nconnections = 5\nwatches = 1\n");
  daemon.signal(SIGHUP);
  ASSERT_TRUE(daemon.tells("RELOADING=1\nMONOTONIC_USEC="));
  ASSERT_TRUE(daemon.tells("READY=1"));
  EXPECT_EQ(user_limits()["connections"], 5);
  const Connection more = tcp_pair();
  EXPECT_EQ(kept.watch(more.ours.get(), 2), EDQUOT);
  EXPECT_EQ(entries_of(home_, "registry"), 1U);  // what it has it keeps
  EXPECT_TRUE(eventually([&] { return connections_granted(6) == 4; }));
}

// Whoever breaks the protocol over and over does not fill the disk: one line per second, and how many there
// were beside.
TEST_F(ServiceTest, ViolationsAreLoggedOncePerSecondAndUser) {
  const std::string log = home_.file("log");
  const UniqueFd errors(::open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
  ASSERT_TRUE(errors);
  const auto begin = std::chrono::steady_clock::now();
  const DaemonProcess daemon(home_, {}, {}, ServiceSettings{{}, -1, errors.get(), "warning"});
  constexpr int kViolations = 500;
  for (int i = 0; i < kViolations; ++i) {
    const RawClient client(home_.socket());
    client.send(ipc::Unwatch{{ipc::Kind::unwatch, 1}, 1});  // before HELLO
    ASSERT_TRUE(client.hung_up());
  }
  const auto told = [&](int& lines) {
    std::ifstream file(log);
    lines = 0;
    int sum = 0;
    for (std::string line; std::getline(file, line); ++lines)
      if (const auto more = line.find(" more connections"); more != std::string::npos)
        sum += std::stoi(line.substr(line.rfind(' ', more - 1)));
      else
        sum += line.find("is disconnected: no HELLO") != std::string::npos ? 1 : 0;
    return sum;
  };
  int lines = 0;
  EXPECT_TRUE(eventually([&] { return told(lines) == kViolations; })) << told(lines);
  EXPECT_GE(lines, 2);
  EXPECT_LE(lines - 1, (std::chrono::steady_clock::now() - begin) / 1s + 1);
  EXPECT_EQ(status_of(home_)["connections"]["violations"], kViolations);
}

TEST_F(ServiceTest, KeepsItsConfigurationIfTheNewOneIsWrong) {
  const auto config = configure("[limits.user]\nconnections = 3\n");
  DaemonProcess daemon(home_, {"--config", config});
  ASSERT_TRUE(daemon.tells("READY=1"));
  for (const char* wrong : {"[limits.user]\nconnections = 0\n", "[limits\n", "connections = 7\n",
                            "log_level = \"loud\"\n[limits.user]\nconnections = 7\n"}) {
    configure(wrong);
    daemon.signal(SIGHUP);
    ASSERT_TRUE(daemon.tells("RELOADING=1"));
    ASSERT_TRUE(daemon.tells("READY=1"));
    EXPECT_EQ(user_limits()["connections"], 3) << wrong;
  }
  EXPECT_TRUE(daemon.running());
}

// More than a socket holds.
TEST_F(ServiceTest, TellsTheWholeStatusOfManyClients) {
  const DaemonProcess daemon(home_, {"--config", configure("[limits]\nclients = 1500\n")});
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
  std::vector<RawClient> clients;
  for (uid_t user = 20'000; user < 20'020; ++user) {
    ASSERT_EQ(::seteuid(user), 0);
    for (int i = 0; i < 64; ++i) clients.emplace_back(home_.socket());
    ASSERT_EQ(::seteuid(0), 0);
  }
  for (const RawClient& client : clients) client.send(RawClient::hello(2));
  for (const RawClient& client : clients) ASSERT_TRUE(client.receive<ipc::Welcome>());
  for (int i = 0; i < 10; ++i) ASSERT_EQ(status_of(home_)["clients"].size(), clients.size());
}

// The level, the socket and the place of the pins were given there; nothing is said of them, or at all.
TEST_F(ServiceTest, WhatTheCommandLineSaysHoldsAfterAReload) {
  const auto config = configure("log_level = \"info\"\n");
  testing::internal::CaptureStderr();
  {
    DaemonProcess daemon(home_, {"--config", config});
    EXPECT_TRUE(daemon.tells("READY=1"));
    daemon.signal(SIGHUP);
    EXPECT_TRUE(daemon.tells("RELOADING=1"));
    EXPECT_TRUE(daemon.tells("READY=1"));
    EXPECT_EQ(daemon.stop(), 0);
  }
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
}

TEST_F(ServiceTest, RefusesALevelThatIsNone) {
  const auto config = configure("log_level = \"loud\"\n");
  testing::internal::CaptureStderr();
  EXPECT_THROW(DaemonProcess(home_, {"--config", config}), std::runtime_error);
  EXPECT_THAT(testing::internal::GetCapturedStderr(),
              testing::HasSubstr("line 1: log_level must be one of trace"));
}

// Where no BPF file system is mounted.
TEST_F(ServiceTest, RefusesADirectoryThatIsOnAnotherFileSystem) {
  ASSERT_EQ(::umount2(std::filesystem::path(home_.bpffs()).parent_path().c_str(), MNT_DETACH), 0);
  testing::internal::CaptureStderr();
  EXPECT_THROW(DaemonProcess{home_}, std::runtime_error);
  EXPECT_THAT(testing::internal::GetCapturedStderr(), testing::HasSubstr("is not on a BPF file system"));
}

// What it loaded with is dropped, in every thread: CAP_PERFMON and CAP_BPF stay (linux/capability.h: 38 and
// 39).
TEST_F(ServiceTest, KeepsOnlyTheCapabilitiesThatItNeeds) {
  const DaemonProcess daemon(home_);
  RawClient client(home_.socket());  // which has a lane
  ASSERT_TRUE(client.greet());
  const auto tasks = tasks_of(daemon.pid());
  EXPECT_GE(tasks.size(), 2U);
  for (const TaskStatus& says : tasks) {
    EXPECT_EQ(says.at("CapPrm:"), "000000c000000000");
    EXPECT_EQ(says.at("CapEff:"), "000000c000000000");
    for (const char* const none : {"CapInh:", "CapBnd:", "CapAmb:"})
      EXPECT_EQ(says.at(none), "0000000000000000") << none;
    EXPECT_EQ(says.at("NoNewPrivs:"), "1");
  }
}

TEST_F(ServiceTest, TakesTheFileOfItsSocketAwayUnlessItIsOfAnother) {
  DaemonProcess daemon(home_);
  EXPECT_TRUE(std::filesystem::exists(home_.socket()));
  EXPECT_EQ(daemon.stop(), 0);
  EXPECT_FALSE(std::filesystem::exists(home_.socket()));
  DaemonProcess next(home_);
  std::filesystem::remove(home_.socket());
  std::ofstream(home_.socket()) << "of somebody else";
  EXPECT_EQ(next.stop(), 0);
  EXPECT_TRUE(std::filesystem::exists(home_.socket()));
}

// As /run/sockalarm after a boot.
TEST_F(ServiceTest, MakesTheDirectoryOfItsSocket) {
  const DaemonProcess daemon(home_, {}, home_.file("run/sock"));
  RawClient client(home_.file("run/sock"));
  EXPECT_TRUE(client.greet());
}

// Who connects before there is a daemon, or while there is none, waits in the queue of the socket; which is
// passed as systemd does, blocking.
TEST_F(ServiceTest, IsActivatedByItsSocket) {
  UniqueFd listener(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  sockaddr_un name{};
  name.sun_family = AF_UNIX;
  home_.socket().copy(name.sun_path, sizeof name.sun_path - 1);
  ASSERT_EQ(::bind(listener.get(), reinterpret_cast<const sockaddr*>(&name), sizeof name), 0);
  ASSERT_EQ(::listen(listener.get(), 16), 0);
  RawClient early(home_.socket());
  early.send(RawClient::hello());
  // Not what it would listen at by itself.
  auto daemon = std::make_unique<DaemonProcess>(home_, std::vector<std::string>{}, home_.file("other"),
                                                ServiceSettings{{}, listener.get()});
  EXPECT_TRUE(early.receive<ipc::Welcome>());
  EXPECT_NE(::access(home_.file("other").c_str(), F_OK), 0);
  EXPECT_EQ(daemon->stop(), 0);
  RawClient between(home_.socket());
  between.send(RawClient::hello());
  daemon = std::make_unique<DaemonProcess>(home_, std::vector<std::string>{}, home_.file("other"),
                                           ServiceSettings{{}, listener.get()});
  EXPECT_TRUE(between.receive<ipc::Welcome>());
  EXPECT_TRUE(status_of(home_)["adopted"]);
  EXPECT_EQ(daemon->stop(), 0);
  EXPECT_TRUE(std::filesystem::exists(home_.socket()));  // the service manager's
}

TEST_F(ServiceTest, RefusesToBeActivatedByAnythingElse) {
  const UniqueFd stream(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  EXPECT_THROW(DaemonProcess(home_, {}, {}, ServiceSettings{{}, stream.get()}), std::runtime_error);
}

TEST_F(ServiceTest, FeedsTheWatchdogUntilItEnds) {
  const ServiceSettings settings{{{"WATCHDOG_USEC", "40000"}}, -1};
  DaemonProcess daemon(home_, {}, {}, settings);
  ASSERT_TRUE(daemon.tells("READY=1"));
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(daemon.tells("WATCHDOG=1"));
  daemon.signal(SIGTERM);
  EXPECT_TRUE(daemon.tells("STOPPING=1"));
  EXPECT_EQ(daemon.stop(), 0);
}

}  // namespace
}  // namespace sockalarm::test
