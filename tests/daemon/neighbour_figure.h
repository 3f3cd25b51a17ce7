// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <chrono>
#include <random>
#include <thread>
#include <vector>

#include "daemon/raw_client.h"

// What a client notices of another one that does its worst: its alarms, from the peer's close() to the signal
// handler, while nobody else is there, while a process only uses the processor, and while a process of
// another user hammers at the daemon, in turns.
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

// Never answers: it goes on until it is killed.
inline Worker hammer(const DaemonHome& home) {
  return Worker(
      [&home] {
        return [&home](char) -> std::uint64_t {
          std::mt19937 random(3);  // NOLINT(cert-msc51-cpp,cert-msc32-c): the same every time
          const Connection tcp = tcp_pair();
          const Connection local = unix_pair();
          for (;;) {
            RawClient client(home.socket());
            const bool greeted = client.greet().has_value();
            for (int i = 0; greeted && i < 50; ++i) {
              client.watch(i % 2 == 0 ? tcp.ours.get() : local.ours.get(),
                           static_cast<std::uint32_t>(random() % 80));
              client.send(ipc::Header{ipc::Kind::status, 7});
              client.receive<ipc::Text>();
              client.send(ipc::Reads{{ipc::Kind::reads, 7}, i % 4 == 0 ? 1U : 0U, 0});
              client.answer();
            }
            std::vector<std::byte> frame(random() % 300);
            for (std::byte& one : frame) one = static_cast<std::byte>(random());
            ipc::send_frame(client.fd(), frame);
          }
        };
      },
      kHammer);
}

inline Worker burner() {
  return Worker(
      [] {
        return [](char) -> std::uint64_t {
          for (volatile std::uint64_t i = 0;;) i = i + 1;
        };
      },
      kHammer);
}

inline std::uint64_t quantile(std::vector<std::uint64_t> of, double part) {
  std::sort(of.begin(), of.end());
  return of[static_cast<std::size_t>(part * static_cast<double>(of.size() - 1))];
}

// {"alone": {"p50_us", "p90_us"}, "beside_a_burner", "beside_a_hammer"}; the last also as a ratio to the
// others.
inline nlohmann::json measure_neighbour(std::size_t rounds, std::size_t alarms) {
  const DaemonHome home;
  const DaemonProcess daemon(home);
  const Worker timer = alarm_timer(home);
  std::array<std::vector<std::uint64_t>, 3> samples;
  for (std::size_t round = 0; round < rounds * samples.size(); ++round) {
    const std::size_t kind = round % samples.size();
    std::optional<Worker> other;
    if (kind == 1) other.emplace(burner());
    if (kind == 2) other.emplace(hammer(home));
    if (other) other->tell('g');
    if (kind == 2) {
      // Until it is in the midst of it.
      const auto before = status_of(home)["connections"]["violations"].get<std::uint64_t>();
      if (!eventually(
              [&] { return status_of(home)["connections"]["violations"].get<std::uint64_t>() > before; }))
        throw std::runtime_error("the hammer does not get through");
    }
    for (std::size_t i = 0; i < alarms; ++i) {
      samples[kind].push_back(timer.ask('f').value_or(0));
      if (samples[kind].back() == 0) throw std::runtime_error("an alarm did not fire");
    }
  }
  nlohmann::json result;
  const std::array names = {"alone", "beside_a_burner", "beside_a_hammer"};
  for (std::size_t kind = 0; kind < names.size(); ++kind)
    for (const auto& [name, part] : {std::pair{"p50_us", 0.5}, {"p90_us", 0.9}})
      result[names[kind]][name] = static_cast<double>(quantile(samples[kind], part)) / 1000;
  auto& with = result["beside_a_hammer"];
  for (const char* name : {"p50", "p90"}) {
    const std::string key = std::string(name) + "_us";
    with[std::string(name) + "_to_alone"] = with[key].get<double>() / result["alone"][key].get<double>();
    with[std::string(name) + "_to_burner"] =
        with[key].get<double>() / result["beside_a_burner"][key].get<double>();
  }
  return result;
}

}  // namespace sockalarm::test
