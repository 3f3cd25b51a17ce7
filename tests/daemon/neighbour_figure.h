// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <chrono>
#include <fstream>
#include <vector>

#include "daemon/hostilities.h"

// What a client notices of another one that does its worst: its alarms, from the peer's close() to the signal
// handler, while nobody else is there, while a process only uses the processor or two wake each other, and
// while a process of another user does one kind of harm to the daemon over and over, all in turns.
namespace sockalarm::test {

inline constexpr uid_t kHammer = 65532;

// One alarm after the other; 'f' answers nanoseconds.
inline Worker alarm_timer(const DaemonHome& home) {
  return Worker([&home] {
    auto watcher = std::make_shared<Watcher>(daemon_watcher(home));
    static std::atomic<std::int64_t> fired_at{0};
    const auto now = [] { return std::chrono::steady_clock::now().time_since_epoch().count(); };
    struct sigaction action{};
    action.sa_handler = [](int) { fired_at = std::chrono::steady_clock::now().time_since_epoch().count(); };
    ::sigaction(SIGURG, &action, nullptr);
    return [watcher, now](char) -> std::uint64_t {
      Connection connection = tcp_pair();
      const auto watch = watcher->watch(connection.ours.get()).value();
      fired_at = 0;
      const auto alarm = watch.arm(send_signal(SIGURG)).value();
      const auto begin = now();
      connection.peer.reset();
      const bool fired = eventually([] { return fired_at != 0; });
      return fired && watch.source() == SourceKind::daemon ? static_cast<std::uint64_t>(fired_at - begin) : 0;
    };
  });
}

// Begins when it is told to, and goes on until it is killed. How often it has done its deed: `done`.
inline Worker hostile_worker(const DaemonHome& home, const Hostile& hostile, const SharedCount& done) {
  return Worker(
      [&] {
        return [&, deed = hostile(home)](char) -> std::uint64_t {
          for (;; done.add()) deed();
        };
      },
      kHammer);
}

struct Company {
  const char* name;
  Hostile hostile;  // empty: alone
};

inline std::vector<Company> all_company(const DaemonHome& home) {
  return {{"alone", {}},
          {"beside_a_burner", burning},
          {"beside_a_chatter", chattering},
          {"beside_a_hammer", hammering},
          {"fuzzed_frames", fuzzed_frames},
          {"wrong_versions", wrong_versions},
          {"no_descriptor", no_descriptor},
          {"many_descriptors", many_descriptors},
          {"wrong_descriptors", wrong_descriptors},
          {"anothers_socket", anothers_socket(home)},
          {"garbage", garbage},
          {"coming_and_going", coming_and_going},
          {"never_reading", never_reading},
          {"exhausting", exhausting}};
}

inline std::uint64_t quantile(std::vector<std::uint64_t> of, double part) {
  std::sort(of.begin(), of.end());
  return of[static_cast<std::size_t>(part * static_cast<double>(of.size() - 1))];
}

// For each company {"p50_us", "p90_us"}; of the hostile ones also the ratios to the first three, and how
// often per second they did it.
inline nlohmann::json measure_neighbour(std::size_t rounds, std::size_t alarms) {
  using Clock = std::chrono::steady_clock;
  const DaemonHome home;
  const std::string config = home.file("config.toml");
  std::ofstream(config) << "[limits.user]\nconnections = 64\nwatches = 200\n";  // soon exhausted
  const DaemonProcess daemon(home, {"--config", config});
  const Worker timer = alarm_timer(home);
  const std::vector<Company> company = all_company(home);
  struct Sample {
    std::vector<std::uint64_t> alarms;
    std::uint64_t deeds = 0;
    std::chrono::duration<double> time{0};
  };
  std::vector<Sample> samples(company.size());
  for (std::size_t turn = 0; turn < rounds * company.size(); ++turn) {
    const auto& [name, hostile] = company[turn % company.size()];
    Sample& sample = samples[turn % company.size()];
    const SharedCount done;
    std::optional<Worker> other;
    if (hostile) {
      other.emplace(hostile_worker(home, hostile, done));
      other->tell('g');
      if (!eventually([&] { return done.value() > 0; }))  // until it is in the midst of it
        throw std::runtime_error(std::string(name) + ": does not get through");
    }
    const auto begin = Clock::now();
    const std::uint64_t before = done.value();
    for (std::size_t i = 0; i < alarms; ++i) {
      sample.alarms.push_back(timer.ask('f').value_or(0));
      if (sample.alarms.back() == 0) throw std::runtime_error(std::string(name) + ": an alarm did not fire");
    }
    if (other && !other->alive()) throw std::runtime_error(std::string(name) + ": has ended");
    sample.deeds += done.value() - before;
    sample.time += Clock::now() - begin;
  }
  nlohmann::json result;
  for (std::size_t kind = 0; kind < company.size(); ++kind) {
    auto& row = result[company[kind].name];
    for (const auto& [name, part] : {std::pair{"p50", 0.5}, {"p90", 0.9}}) {
      const std::string key = std::string(name) + "_us";
      row[key] = static_cast<double>(quantile(samples[kind].alarms, part)) / 1000;
      for (const std::size_t other : {0U, 1U, 2U}) {
        const std::string to = company[other].name;
        if (kind > std::max<std::size_t>(other, 1))
          row[name + ("_to_" + to.substr(to.rfind('_') + 1))] =
              row[key].get<double>() / result[to][key].get<double>();
      }
    }
    if (kind > 1) row["per_second"] = static_cast<double>(samples[kind].deeds) / samples[kind].time.count();
  }
  return result;
}

}  // namespace sockalarm::test
