// SPDX-License-Identifier: Apache-2.0
#include <sys/resource.h>

#include <fstream>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>

#include "daemon/crowd.h"
#include "integration/cli.h"

// The daemon dies, its clients do not notice; it comes back, and they go on.

namespace sockalarm::test {
namespace {

std::size_t from_environment(const char* name, std::size_t otherwise) {
  const char* const text = std::getenv(name);
  return text != nullptr ? std::stoul(text) : otherwise;
}

class Clients : public Crowd {
 public:
  Clients(const DaemonHome& home, std::size_t size) : Crowd(daemon_watcher(home), size) {
    rlimit limit{};
    ::getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    ::setrlimit(RLIMIT_NOFILE, &limit);
  }

  std::uint64_t operator()(char letter) {
    switch (letter) {
      case 'a':
        return begin();
      case 'l':
        return leave_seen();
      case 's':
        return leave_slowly();
      case 'L':
        return leave();
      case 'd':
        return drop();
      default:
        return one_more();
    }
  }

 private:
  // How many are served by the daemon.
  std::uint64_t begin() {
    connect();
    const std::uint64_t served = watch();
    arm();
    return served;
  }
  // How many alarms fire, and that each was told by the kernel: a client without a daemon looks by itself
  // after a while.
  std::uint64_t leave_seen() {
    const std::uint64_t before = watcher_.stats().records;
    const std::uint64_t fired = leave();
    return eventually([&] { return watcher_.stats().records - before >= size_; }) ? fired : 0;
  }
  // One after the other, for three seconds.
  std::uint64_t leave_slowly() {
    for (std::size_t i = 0; i < size_; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(3000) / size_);
      connections_[i].peer.reset();
      eventually([&] { return fired_ > i; });
    }
    return fired_;
  }
  // A single one, by a signal; in the thread itself, if the kernel can.
  std::uint64_t one_more() {
    Connection connection = tcp_pair();
    const auto watch = watcher_.watch(connection.ours.get()).value();
    const auto before = watcher_.stats().fired_directly;
    const auto alarm = watch.arm(send_signal(SIGURG)).value();
    connection.peer.reset();
    eventually([&] { return alarm.triggered(); });
    const std::uint64_t directly = watcher_.describe().delivery == Delivery::task_work ? 1 : 0;
    return watch.source() == SourceKind::daemon && watcher_.stats().fired_directly == before + directly ? 1
                                                                                                        : 0;
  }
};

std::vector<Worker> crowds(const DaemonHome& home, std::size_t count, std::size_t size) {
  std::vector<Worker> workers;
  for (std::size_t i = 0; i < count; ++i)
    workers.emplace_back([&] {
      auto crowd = std::make_shared<Clients>(home, size);
      return [crowd](char letter) { return (*crowd)(letter); };
    });
  return workers;
}

// SOCKALARM_ADOPTION_ROUNDS and _WATCHES make it longer: 50 and 9000 are what is promised.
TEST(AdoptionTest, WhoeverLeavesWhileTheDaemonIsDeadIsSeen) {
  const std::size_t rounds = from_environment("SOCKALARM_ADOPTION_ROUNDS", 3), kClients = 4;
  const std::size_t each = from_environment("SOCKALARM_ADOPTION_WATCHES", 2000) / kClients;
  const DaemonHome home;
  auto daemon = std::make_unique<DaemonProcess>(home);
  const std::vector<Worker> workers = crowds(home, kClients, each);
  const std::vector<std::uint64_t> all(kClients, each), ones(kClients, 1);
  for (std::size_t round = 0; round < rounds; ++round) {
    ASSERT_EQ(ask_all(workers, 'a'), all) << "round " << round;
    EXPECT_EQ(entries_of(home, "registry"), kClients * each);
    daemon->kill();
    ASSERT_EQ(ask_all(workers, 'l'), all) << "round " << round;
    daemon = std::make_unique<DaemonProcess>(home);
    ASSERT_TRUE(eventually([&] { return all_connected(home, kClients); })) << status_of(home);
    EXPECT_TRUE(status_of(home)["adopted"]);
    EXPECT_EQ(status_of(home)["connections"]["resumed"], kClients);
    // The daemon has let them in; a moment later they know.
    ASSERT_TRUE(eventually([&] { return ask_all(workers, '1') == ones; })) << "round " << round;
    ASSERT_EQ(ask_all(workers, 'd'), std::vector<std::uint64_t>(kClients, 0));
    ASSERT_TRUE(eventually([&] { return entries_of(home, "registry") == 0; }));
  }
}

// Once each, however often it tries meanwhile.
TEST(AdoptionTest, TheLogHearsThatTheDaemonIsLostAndBack) {
  const DaemonHome home;
  auto daemon = std::make_unique<DaemonProcess>(home);
  std::mutex mutex;
  std::vector<std::pair<LogLevel, std::string>> lines;
  Options options;
  options.log = [&](LogLevel level, std::string_view text) {
    const std::lock_guard lock(mutex);
    if (text.find("sockalarmd at ") == 0) lines.emplace_back(level, text);
  };
  const auto count = [&] {
    const std::lock_guard lock(mutex);
    return lines.size();
  };
  const Watcher watcher = daemon_watcher(home, options);
  for (std::size_t round = 1; round <= 2; ++round) {
    daemon->kill();
    EXPECT_TRUE(eventually([&] { return count() == 2 * round - 1; })) << count();
    const Connection connection = tcp_pair();
    const Watch watch = watcher.watch(connection.ours.get()).value();
    EXPECT_EQ(watch.source(), SourceKind::epoll);
    daemon = std::make_unique<DaemonProcess>(home);
    EXPECT_TRUE(eventually([&] { return count() == 2 * round; })) << count();
  }
  const std::lock_guard lock(mutex);
  ASSERT_EQ(lines.size(), 4U);
  for (std::size_t i = 0; i < lines.size(); ++i) {
    const auto& [level, text] = lines[i];
    EXPECT_EQ(level, i % 2 == 0 ? LogLevel::warning : LogLevel::info);
    EXPECT_NE(text.find(home.socket() + (i % 2 == 0 ? " has gone" : " is back")), std::string::npos) << text;
  }
}

// One that is stopped, or stuck, is not on the path of an event either.
TEST(AdoptionTest, ADaemonThatHangsHoldsUpNoAlarm) {
  const DaemonHome home;
  const DaemonProcess daemon(home);
  const std::vector<Worker> workers = crowds(home, 1, 30);
  ASSERT_EQ(ask_all(workers, 'a'), std::vector<std::uint64_t>{30});
  daemon.signal(SIGSTOP);
  const auto begin = std::chrono::steady_clock::now();
  ASSERT_EQ(ask_all(workers, 's'), std::vector<std::uint64_t>{30});
  EXPECT_LT(std::chrono::steady_clock::now() - begin, 5s);
  daemon.signal(SIGCONT);
  EXPECT_TRUE(eventually([&] { return ask_all(workers, '1') == std::vector<std::uint64_t>{1}; }));
}

TEST(AdoptionTest, WhatWasArmedBeforeFiresAfterTheNewStart) {
  const DaemonHome home;
  auto daemon = std::make_unique<DaemonProcess>(home);
  const std::vector<Worker> workers = crowds(home, 2, 50);
  ASSERT_EQ(ask_all(workers, 'a'), std::vector<std::uint64_t>(2, 50));
  for (const bool hard : {true, false}) {
    hard ? daemon->kill() : void(daemon->stop());
    daemon = std::make_unique<DaemonProcess>(home);
    ASSERT_TRUE(eventually([&] { return all_connected(home, 2); }));
  }
  ASSERT_EQ(ask_all(workers, 'l'), std::vector<std::uint64_t>(2, 50));
}

// What is said while nobody listens is said again.
TEST(AdoptionTest, WhoWasDismissedMeanwhileIsForgotten) {
  const DaemonHome home;
  auto daemon = std::make_unique<DaemonProcess>(home);
  const Worker worker([&] {
    struct Held {
      explicit Held(const DaemonHome& where) : watcher(daemon_watcher(where)) {}
      Watcher watcher;
      Connection connection = tcp_pair();
      std::optional<Watch> watch;
    };
    auto held = std::make_shared<Held>(home);
    return [held](char letter) -> std::uint64_t {
      if (letter == 'w') held->watch.emplace(held->watcher.watch(held->connection.ours.get()).value());
      if (letter == 'u') held->watch.reset();
      return held->watch && held->watch->source() == SourceKind::daemon ? 1 : 0;
    };
  });
  ASSERT_EQ(worker.ask('w'), 1U);
  daemon->kill();
  ASSERT_EQ(worker.ask('u'), 0U);
  EXPECT_EQ(entries_of(home, "registry"), 1U);
  daemon = std::make_unique<DaemonProcess>(home);
  EXPECT_TRUE(eventually([&] { return entries_of(home, "registry") == 0; }));
  EXPECT_TRUE(eventually([&] { return all_connected(home, 1); }));
}

TEST(AdoptionTest, WhoDiedMeanwhileLeavesNothing) {
  const DaemonHome home;
  auto daemon = std::make_unique<DaemonProcess>(home);
  std::vector<Worker> workers = crowds(home, 3, 100);
  ask_all(workers, 'a');
  daemon->kill();
  workers.pop_back();
  workers.pop_back();
  daemon = std::make_unique<DaemonProcess>(home);
  ASSERT_TRUE(eventually([&] { return all_connected(home, 1); }));
  EXPECT_EQ(entries_of(home, "registry"), 100U);
  EXPECT_EQ(clients_in_kernel(home), 3U);  // the client, its table, its ring
  workers.clear();
  EXPECT_TRUE(eventually([&] { return clients_in_kernel(home) == 0; }));
  EXPECT_EQ(entries_of(home, "registry"), 0U);
}

// A process that was stopped, or that gave its Watcher up meanwhile.
TEST(AdoptionTest, WhoDoesNotComeBackIsGivenUpAndMayComeAnew) {
  const DaemonHome home;
  const auto config = home.file("config.toml");
  std::ofstream(config) << "grace = 1\n";
  auto daemon = std::make_unique<DaemonProcess>(home, std::vector<std::string>{"--config", config});
  const std::vector<Worker> workers = crowds(home, 1, 20);
  ask_all(workers, 'a');
  workers[0].pause();
  daemon->kill();
  daemon = std::make_unique<DaemonProcess>(home, std::vector<std::string>{"--config", config});
  ASSERT_TRUE(eventually([&] { return clients_in_kernel(home) == 0; }));
  ::kill(workers[0].pid(), SIGCONT);
  ASSERT_TRUE(eventually([&] { return all_connected(home, 1); }));
  ASSERT_TRUE(eventually([&] { return entries_of(home, "registry") == 20; }));
  ASSERT_EQ(ask_all(workers, 'l'), std::vector<std::uint64_t>(1, 20));
}

// A server that began as root: the daemon awaits it as the user that it was. It comes as another, whose
// registrations are refused until the daemon gives up waiting.
TEST(AdoptionTest, WhoBecameAnotherUserIsServedInTheEnd) {
  const DaemonHome home;
  const auto config = home.file("config.toml");
  std::ofstream(config) << "grace = 1\n";
  auto daemon = std::make_unique<DaemonProcess>(home, std::vector<std::string>{"--config", config});
  const Worker worker(
      [&] {
        auto crowd = std::make_shared<Clients>(home, 20);
        return [crowd](char letter) -> std::uint64_t {
          if (letter == 'u') return become(kNobody) ? 1 : 0;
          return (*crowd)(letter);
        };
      },
      0);
  ASSERT_EQ(worker.ask('a'), 20U);
  ASSERT_EQ(worker.ask('u'), 1U);
  daemon->kill();
  daemon = std::make_unique<DaemonProcess>(home, std::vector<std::string>{"--config", config});
  ASSERT_TRUE(eventually([&] { return all_connected(home, 1); }));
  ASSERT_TRUE(eventually([&] { return clients_in_kernel(home) == 3; }));  // it was given up
  EXPECT_TRUE(eventually([&] { return entries_of(home, "registry") == 20; })) << entries_of(home, "registry");
  EXPECT_EQ(worker.ask('l'), 20U);
}

std::string content_of(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::string run_cli_for_output(std::vector<std::string> arguments) {
  const TemporaryPath output("status");
  const UniqueFd nothing = null();
  const UniqueFd file(::open(output.text().c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
  EXPECT_EQ(Process(cli(std::move(arguments)), nothing.get(), file.get()).wait().status, 0);
  return output.content();
}

void remove_all_that_is_pinned(const DaemonHome& home) {
  ASSERT_EQ(std::system((std::string(SOCKALARMD_PATH) + " --remove --bpffs " + home.bpffs()).c_str()), 0);
}

// All that was pinned is gone, and with it what the clients had: they register everything again and look for
// themselves what happened meanwhile.
TEST(AdoptionTest, ClientsComeAnewToADaemonThatKnowsNothing) {
  const DaemonHome home;
  auto daemon = std::make_unique<DaemonProcess>(home);
  const std::vector<Worker> workers = crowds(home, 2, 50);
  ask_all(workers, 'a');
  daemon->kill();
  for (const Worker& worker : workers) worker.pause();
  remove_all_that_is_pinned(home);
  for (const Worker& worker : workers) worker.tell('L');  // the peers leave unseen
  for (const Worker& worker : workers) ::kill(worker.pid(), SIGCONT);
  daemon = std::make_unique<DaemonProcess>(home);
  EXPECT_FALSE(status_of(home)["adopted"]);
  for (const Worker& worker : workers) EXPECT_EQ(worker.answer(), 50U);
}

// Nothing is left of what told them, and the next daemon does not take all of it again, or there is none:
// they look by themselves.
TEST(AdoptionTest, ClientsThatAreNotServedAnyMoreLookByThemselves) {
  const DaemonHome home;
  const auto config = home.file("config.toml");
  for (const char* const next : {"", "[limits.user]\nwatches = 5\n", "[limits]\nslots = 10\n"}) {
    auto daemon = std::make_unique<DaemonProcess>(home);
    const std::vector<Worker> workers = crowds(home, 1, 20);
    ASSERT_EQ(ask_all(workers, 'a'), std::vector<std::uint64_t>(1, 20));
    daemon->kill();
    remove_all_that_is_pinned(home);
    std::ofstream(config) << next;
    if (*next != 0)
      daemon = std::make_unique<DaemonProcess>(home, std::vector<std::string>{"--config", config});
    EXPECT_EQ(ask_all(workers, 'L'), std::vector<std::uint64_t>(1, 20)) << next;
    daemon->kill();
    remove_all_that_is_pinned(home);
  }
}

// As after an upgrade: they go on, and whoever looks is told.
TEST(AdoptionTest, ProgramsOfAnotherVersionAreWarnedOf) {
  const DaemonHome home;
  const std::string id = home.bpffs() + "/v1/programs_id", log = home.file("log");
  const auto says = [&] { return run_cli_for_output({"status", "--socket", home.socket()}); };
  const auto start = [&] {
    const UniqueFd errors(::open(log.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
    return std::make_unique<DaemonProcess>(home, std::vector<std::string>(), std::string(),
                                           ServiceSettings{{}, -1, errors.get(), "warning"});
  };
  for (const char* const other : {"0.0.1-0", ""}) {  // the last: of before there was such a link
    start();
    auto daemon = start();
    EXPECT_EQ(status_of(home)["programs"]["current"], true);
    EXPECT_EQ(content_of(log).find("of another version"), std::string::npos);
    EXPECT_EQ(says().find("of another version"), std::string::npos);
    daemon.reset();
    ASSERT_EQ(::unlink(id.c_str()), 0);
    if (*other != 0) {
      ASSERT_EQ(::symlink(other, id.c_str()), 0);
    }
    const std::string expected = std::string("of another version (") + (*other != 0 ? other : "unknown");
    daemon = start();
    EXPECT_EQ(status_of(home)["programs"]["current"], false);
    EXPECT_NE(content_of(log).find(expected), std::string::npos) << content_of(log);
    EXPECT_NE(says().find(expected), std::string::npos) << says();
    daemon.reset();
    remove_all_that_is_pinned(home);
  }
}

TEST(AdoptionTest, TwoDaemonsDoNotShare) {
  const DaemonHome home;
  DaemonProcess daemon(home);
  EXPECT_THROW(DaemonProcess(home, {}, home.file("other")), std::runtime_error);
  EXPECT_TRUE(daemon.running());
  EXPECT_TRUE(status_of(home)["clients"].empty());
}

// Who made the directory could exchange what the daemon pins there.
TEST(AdoptionTest, ADirectoryThatOthersMayWriteToIsRefused) {
  const DaemonHome home;
  const std::string directory = home.bpffs();
  const char* const path = directory.c_str();
  ASSERT_EQ(::mkdir(path, 0755), 0);
  ASSERT_EQ(::chown(path, kNobody, kNobody), 0);
  EXPECT_THROW(DaemonProcess{home}, std::runtime_error);
  ASSERT_EQ(::chown(path, 0, 0), 0);
  ASSERT_EQ(::chmod(path, 01777), 0);
  EXPECT_THROW(DaemonProcess{home}, std::runtime_error);
  ASSERT_EQ(::chmod(path, 0700), 0);
  const DaemonProcess daemon(home);
  EXPECT_FALSE(status_of(home)["adopted"]);
}

}  // namespace
}  // namespace sockalarm::test
