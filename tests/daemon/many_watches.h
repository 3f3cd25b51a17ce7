// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/resource.h>

#include <chrono>
#include <fstream>
#include <memory>
#include <numeric>
#include <sstream>
#include <string>
#include <vector>

#include "daemon/crowd.h"

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

inline Worker::Body many_watches(const DaemonHome& home, std::size_t number, std::size_t size) {
  rlimit limit{2 * size + 100, 2 * size + 100};
  require(::setrlimit(RLIMIT_NOFILE, &limit) == 0, "setrlimit");
  Options room;
  room.max_watches = size;
  auto crowd = std::make_shared<Crowd>(daemon_watcher(home, std::move(room)), size,
                                       ("127.0.9." + std::to_string(number + 1)).c_str());
  return [crowd](char letter) {
    switch (letter) {
      case 'c':
        return crowd->connect();
      case 'm':
        return memory_of(::getpid(), "RssAnon");
      case 'w':
        return crowd->watch();
      case 'a':
        return crowd->arm();
      case 'l':
        return crowd->leave();
      default:
        return crowd->drop();
    }
  };
}

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
    workers.emplace_back([&, i] { return many_watches(home, i, each); }, 0);
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
