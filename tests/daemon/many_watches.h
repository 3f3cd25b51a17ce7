// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <fstream>
#include <memory>
#include <numeric>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "daemon/raw_client.h"

// Very many watches over several clients of one daemon: registered, fired, cleaned up, and what that takes.
namespace sockalarm::test {

// "VmRSS" and the like of proc_pid_status(5), in bytes.
inline std::uint64_t memory_of(pid_t pid, const std::string& what) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/status");
  for (std::string line; std::getline(file, line);)
    if (line.starts_with(what + ":")) return std::stoull(line.substr(what.size() + 1)) * 1024;
  return 0;
}

// utime and stime of proc_pid_stat(5).
inline std::chrono::duration<double> cpu_time_of(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string text;
  std::getline(file, text, '\0');
  std::istringstream fields(text.substr(text.rfind(") ") + 2));
  std::string skipped;
  for (int number = 3; number < 14; ++number) fields >> skipped;
  double user = 0, system = 0;
  fields >> user >> system;
  return std::chrono::duration<double>((user + system) / static_cast<double>(::sysconf(_SC_CLK_TCK)));
}

// What the kernel has allocated for a pinned map: fdinfo says.
inline std::uint64_t map_bytes(const DaemonHome& home, const char* map) {
  const UniqueFd fd(::bpf_obj_get((home.bpffs() + "/v1/" + map).c_str()));
  std::ifstream file("/proc/self/fdinfo/" + std::to_string(fd.get()));
  for (std::string line; std::getline(file, line);)
    if (line.starts_with("memlock:")) return std::stoull(line.substr(8));
  return 0;
}

// A client with both ends of its connections, on a loopback address of its own: ports are counted for each.
class Many {
 public:
  Many(const DaemonHome& home, std::size_t number, std::size_t size)
      : watcher_(daemon_watcher(home, room_for(size))),
        listener_(listen_on(AF_INET, 64, 0, ("127.0.9." + std::to_string(number + 1)).c_str())),
        size_(size) {}

  std::uint64_t operator()(char letter) {
    switch (letter) {
      case 'c':
        return connect();
      case 'm':
        return memory_of(::getpid(), "RssAnon");
      case 'w':
        return watch();
      case 'a':
        return arm();
      case 'l':
        return leave();
      default:
        return drop();
    }
  }

 private:
  static Options room_for(std::size_t size) {
    Options options;
    options.max_watches = size;
    return options;
  }
  std::uint64_t connect() {
    connections_.reserve(size_);
    watches_.reserve(size_);
    alarms_.reserve(size_);
    for (std::size_t i = 0; i < size_; ++i) {
      UniqueFd peer = connect_to(listener_);
      connections_.emplace_back(accept_from(listener_), std::move(peer));
    }
    return connections_.size();
  }
  // How many are served by the daemon.
  std::uint64_t watch() {
    for (const Connection& one : connections_) watches_.push_back(watcher_.watch(one.ours.get()).value());
    return static_cast<std::uint64_t>(std::count_if(watches_.begin(), watches_.end(), [](const Watch& one) {
      return one.source() == SourceKind::daemon;
    }));
  }
  std::uint64_t arm() {
    const ActionChain chain(call([this] { ++fired_; }));
    for (const Watch& one : watches_) alarms_.push_back(one.arm(chain).value());
    return alarms_.size();
  }
  // How many fire.
  std::uint64_t leave() {
    for (Connection& one : connections_) one.peer.reset();
    eventually([this] { return fired_ >= size_; });
    return fired_;
  }
  std::uint64_t drop() {
    alarms_.clear();
    watches_.clear();
    connections_.clear();
    return 0;
  }

  Watcher watcher_;
  Listener listener_;
  const std::size_t size_;
  std::atomic<std::uint64_t> fired_{0};
  std::vector<Connection> connections_;
  std::vector<Watch> watches_;
  std::vector<Alarm> alarms_;
};

// Throws if anything is not as it must be; else {"watches", ...}, what each took.
inline nlohmann::json measure_many_watches(std::size_t clients, std::size_t each) {
  using Clock = std::chrono::steady_clock;
  const auto check = [](bool ok, const char* what) {
    if (!ok) throw std::runtime_error(what);
  };
  const DaemonHome home;
  const DaemonProcess daemon(home);
  check(status_of(home)["clients"].empty(), "there are clients already");
  std::vector<Worker> workers;
  for (std::size_t i = 0; i < clients; ++i)
    workers.emplace_back(
        [&, i] {
          rlimit limit{2 * each + 100, 2 * each + 100};
          require(::setrlimit(RLIMIT_NOFILE, &limit) == 0, "setrlimit");
          auto many = std::make_shared<Many>(home, i, each);
          return [many](char letter) { return (*many)(letter); };
        },
        0);
  const auto sum = [](const std::vector<std::uint64_t>& of) {
    return static_cast<double>(std::accumulate(of.begin(), of.end(), std::uint64_t{0}));
  };
  const std::vector<std::uint64_t> all(clients, each);
  const auto total = static_cast<double>(clients * each);
  nlohmann::json row{{"clients", clients}, {"watches", clients * each}};
  const auto timed = [&](char letter, const char* name, const std::vector<std::uint64_t>& expected) {
    const auto cpu = cpu_time_of(daemon.pid());
    const auto begin = Clock::now();
    check(ask_all(workers, letter) == expected, name);
    row[std::string(name) + "_us_per_watch"] =
        std::chrono::duration<double, std::micro>(Clock::now() - begin).count() / total;
    row[std::string(name) + "_daemon_cpu_us_per_watch"] =
        std::chrono::duration<double, std::micro>(cpu_time_of(daemon.pid()) - cpu).count() / total;
  };
  timed('c', "connect", all);
  const auto daemon_before = memory_of(daemon.pid(), "RssAnon");
  const auto clients_before = sum(ask_all(workers, 'm'));
  timed('w', "watch", all);
  check(entries_of(home, "registry") == clients * each, "not everything is registered");
  row["daemon_bytes_per_watch"] =
      static_cast<double>(memory_of(daemon.pid(), "RssAnon") - daemon_before) / total;
  row["client_bytes_per_watch"] = (sum(ask_all(workers, 'm')) - clients_before) / total;
  timed('a', "arm", all);
  row["client_bytes_per_armed_watch"] = (sum(ask_all(workers, 'm')) - clients_before) / total;
  row["table_bytes_per_watch"] = sizeof(sockalarm_watch_state);
  row["registry_bytes_per_place"] =
      static_cast<double>(map_bytes(home, "registry")) / status_of(home)["limits"]["watches"].get<double>();
  timed('l', "fire", all);
  timed('d', "drop", std::vector<std::uint64_t>(clients, 0));
  check(eventually([&] { return entries_of(home, "registry") == 0; }),
        "the registry is not empty at the end");
  row["lost"] = status_of(home)["lost"];
  workers.clear();
  check(eventually([&] { return clients_in_kernel(home) == 0; }), "clients are left in the kernel");
  return row;
}

}  // namespace sockalarm::test
