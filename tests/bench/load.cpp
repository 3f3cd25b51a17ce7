// SPDX-License-Identifier: Apache-2.0
// From nothing to the first watch, each time in a process of its own.
#include <array>
#include <cstring>
#include <map>
#include <regex>

#include "bench/support/contender.h"
#include "bench/support/processes.h"
#include "bench/support/program.h"

namespace sockalarm::bench {
namespace {

struct Report {
  double create_ms, watch_ms, destroy_ms;
  std::array<char, 4096> log;
  std::array<char, 512> why_not;
};

template <std::size_t N>
void put(std::array<char, N>& text, const std::string& what) {
  std::strncpy(text.data(), what.c_str(), N - 1);
}

void load_once(SourceKind source, Report& report) {
  const test::Connection connection = test::tcp_pair();
  std::string log;
  Options options;
  options.source = source;
  options.log = [&log](LogLevel, std::string_view text) { log.append(text).append("\n"); };
  const std::int64_t begin = now_ns();
  auto watcher = make_watcher(std::move(options));
  const std::int64_t created = now_ns();
  if (!watcher) return put(report.why_not, watcher.error().message());
  auto watch = watcher->watch(connection.ours.get());
  const std::int64_t watched = now_ns();
  if (!watch) return put(report.why_not, watch.error().message());
  put(report.log, log);
  {
    const Watch gone = std::move(*watch);
  }
  const std::int64_t ended = now_ns();
  *watcher = Watcher(std::move(*watcher));
  {
    const Watcher gone = std::move(*watcher);
  }
  report.create_ms = microseconds(created - begin) / 1000;
  report.watch_ms = microseconds(watched - created) / 1000;
  report.destroy_ms = microseconds(now_ns() - ended) / 1000;
}

// The library says at LogLevel::debug: "kernel source: opened N us, loaded N us, maps N us, attached N us".
void read_steps(const std::string& log, std::map<std::string, std::vector<double>>& steps) {
  static const std::regex line(R"(kernel source: (.*))"), step(R"(([a-z][a-z ]*) (\d+) us)");
  for (std::sregex_iterator at(log.begin(), log.end(), line), end; at != end; ++at) {
    const std::string text = (*at)[1];
    for (std::sregex_iterator one(text.begin(), text.end(), step); one != end; ++one)
      steps[(*one)[1]].push_back(std::stod((*one)[2]) / 1000);
  }
}

Json measure_source(SourceKind source, std::size_t rounds) {
  std::vector<double> create, watch, destroy, total;
  std::map<std::string, std::vector<double>> steps;
  for (std::size_t i = 0; i < rounds; ++i) {
    SharedMemory<Report> report;
    Child child([&] { load_once(source, *report); });
    if (!child.wait()) return not_available("the process that loads ended badly");
    if (report->why_not[0] != '\0') return not_available(report->why_not.data());
    create.push_back(report->create_ms);
    watch.push_back(report->watch_ms);
    destroy.push_back(report->destroy_ms);
    total.push_back(report->create_ms + report->watch_ms);
    read_steps(report->log.data(), steps);
  }
  Json row{{"to_first_watch_ms", spread(total)},
           {"create_ms", median(create)},
           {"first_watch_ms", median(watch)},
           {"destroy_ms", median(destroy)},
           {"steps_ms", Json::object()}};
  for (const auto& [name, values] : steps) row["steps_ms"][name] = median(values);
  return row;
}

Json measure(const Settings& settings) {
  const std::size_t rounds = settings.pick(20UL, 3UL);
  Json rows = Json::object();
  for (const SourceKind source : {SourceKind::kernel, SourceKind::epoll, SourceKind::poll})
    rows[std::string(to_string(source))] = measure_source(source, rounds);
  return {{"settings", {{"rounds", rounds}}}, {"rows", rows}};
}

}  // namespace
}  // namespace sockalarm::bench

int main(int argc, char** argv) {
  return sockalarm::bench::bench_main(argc, argv, "From nothing to the first watch",
                                      sockalarm::bench::measure);
}
