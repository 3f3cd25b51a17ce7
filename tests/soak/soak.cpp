// SPDX-License-Identifier: Apache-2.0
// Random load over every source that is to be had here, for as long as wanted: clients come, are watched,
// leave in every way, one by one and in storms, while alarms are armed, cancelled and armed again. Checked
// all the time: what is armed fires once, and what is cancelled never does; at the end, that neither this
// process nor what the kernel has registered for it has grown. See scripts/soak.
#include <sys/resource.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <thread>

#include "harness/alarms.h"
#include "harness/daemon.h"
#include "harness/descriptors.h"
#include "soak/registry.h"
#include "soak/visitors.h"

namespace sockalarm::soak {
namespace {

using nlohmann::json;
using std::chrono::steady_clock;

// Kilobytes, and the numbers of descriptors and threads, of this process.
struct Size {
  long rss = 0, fds = 0, threads = 0;

  static Size now() {
    Size size;
    std::ifstream status("/proc/self/status");
    for (std::string word; status >> word;) {
      if (word == "VmRSS:") status >> size.rss;
      if (word == "Threads:") status >> size.threads;
    }
    size.fds = static_cast<long>(test::open_fds());
    return size;
  }
};

// The daemon, which is killed now and then, as by the out-of-memory killer, and started anew.
class Daemon {
 public:
  void start() {
    process_.emplace(home_);
    ++starts_;
  }
  void kill() { process_.reset(); }
  std::string socket() const { return home_.socket(); }
  int starts() const noexcept { return starts_; }
  // -1: cannot be told.
  long registry() const {
    const UniqueFd map(::bpf_obj_get((home_.bpffs() + "/v1/registry").c_str()));
    return map ? registry_entries(map.get()) : -1;
  }

 private:
  test::DaemonHome home_;
  std::optional<test::DaemonProcess> process_;
  int starts_ = 0;
};

struct Settings {
  double minutes = 1;
  unsigned seed = std::random_device{}();
  std::vector<std::string> sources;
  std::string out;
};

// One source under load, on a thread of its own.
class Lane {
 public:
  Lane(SourceKind source, const Options& options, unsigned seed)
      : source_(source), options_(options), seed_(seed) {}

  void start(steady_clock::time_point until) {
    thread_ = std::thread([this, until] { run(until); });
  }
  void join() { thread_.join(); }
  json told() const {
    return {{"source", to_string(source_)},      {"visitors", counts_.visitors.load()},
            {"fired", counts_.fired.load()},     {"cancelled", counts_.cancelled.load()},
            {"signals", counts_.signals.load()}, {"storms", counts_.storms.load()},
            {"records_lost", records_lost_},     {"wrong", counts_.wrong.load()}};
  }
  std::uint64_t visitors() const noexcept { return counts_.visitors; }
  std::uint64_t wrong() const noexcept { return counts_.wrong; }

 private:
  void run(steady_clock::time_point until) {
    Options options = options_;
    options.source = source_;
    options.ring_bytes = 4096;  // small, so that it is full now and then
    auto watcher = Watcher::create(std::move(options));
    if (!watcher) {
      std::cerr << "soak: " << watcher.error().message() << "\n";
      ++counts_.wrong;
      return;
    }
    try {
      Visitors visitors(*watcher, seed_, counts_);
      while (steady_clock::now() < until && counts_.wrong == 0) visitors.turn();
      visitors.all_leave();
    } catch (const std::exception& error) {  // no socket was to be had
      std::cerr << "soak: " << to_string(source_) << ": " << error.what() << "\n";
      ++counts_.wrong;
    }
    const Stats stats = watcher->stats();
    records_lost_ = stats.records_lost;
    if (stats.watches != 0 || stats.records_bad != 0) {
      std::cerr << "soak: " << to_string(source_) << ": " << stats.watches << " watches and "
                << stats.records_bad << " bad records are left\n";
      ++counts_.wrong;
    }
    if (source_ == SourceKind::kernel && !test::eventually([] { return own_registry_entries() == 0; })) {
      std::cerr << "soak: the kernel has " << own_registry_entries()
                << " sockets registered that nobody watches\n";
      ++counts_.wrong;
    }
  }

  const SourceKind source_;
  const Options options_;
  const unsigned seed_;
  Counts counts_;
  std::uint64_t records_lost_ = 0;
  std::thread thread_;
};

// The middle of a tenth of the samples.
long middle_of_tenth(const std::vector<long>& samples, std::size_t tenth) {
  const std::size_t n = samples.size();
  std::vector<long> some(
      samples.begin() + static_cast<long>(n * tenth / 10),
      samples.begin() + static_cast<long>(std::max(n * (tenth + 1) / 10, n * tenth / 10 + 1)));
  std::sort(some.begin(), some.end());
  return some[some.size() / 2];
}

int soak(const Settings& settings) {
  std::optional<Daemon> daemon;
  Options options;
  options.closed_check = std::chrono::milliseconds(50);
  std::mt19937 random(settings.seed);
  if (std::find(settings.sources.begin(), settings.sources.end(), "daemon") != settings.sources.end()) {
    daemon.emplace();
    daemon->start();
    options.daemon_socket = daemon->socket();
  }
  take_signals();
  std::cerr << "soak: seed " << settings.seed << ", " << settings.minutes << " minutes\n";
  const Size before = Size::now();
  const auto begin = steady_clock::now();
  const auto until = begin + std::chrono::duration_cast<steady_clock::duration>(
                                 std::chrono::duration<double, std::ratio<60>>(settings.minutes));
  std::vector<std::unique_ptr<Lane>> lanes;
  for (const std::string& name : settings.sources)
    lanes.push_back(std::make_unique<Lane>(parse_source(name).value(), options, random()));
  for (const auto& lane : lanes) lane->start(until);

  std::vector<long> rss{before.rss}, threads{before.threads};  // a lane may fail before the first second
  std::vector<long> registered{0};
  auto next_kill = begin + std::chrono::seconds(5);
  const auto all_is_well = [&] {
    return std::none_of(lanes.begin(), lanes.end(), [](const auto& lane) { return lane->wrong() != 0; });
  };
  for (auto now = begin; now < until && all_is_well(); now = steady_clock::now()) {
    std::this_thread::sleep_until(std::min(now + std::chrono::seconds(1), until));
    const Size size = Size::now();
    rss.push_back(size.rss);
    threads.push_back(size.threads);
    registered.push_back(std::max(own_registry_entries(), 0L) +
                         (daemon ? std::max(daemon->registry(), 0L) : 0));
    if (daemon && now >= next_kill) {
      daemon->kill();
      daemon->start();
      next_kill = now + std::chrono::seconds(3 + random() % 10);
    }
    if (rss.size() % 10 == 0) {
      std::uint64_t visitors = 0, wrong = 0;
      for (const auto& lane : lanes) visitors += lane->visitors(), wrong += lane->wrong();
      std::cerr << "soak: " << rss.size() << " s, " << visitors << " visitors, " << size.rss / 1024
                << " MiB, " << size.fds << " descriptors, " << wrong << " wrong\n";
    }
  }
  for (const auto& lane : lanes) lane->join();
  // A thread that was joined may be counted for a moment more.
  test::eventually([&] { return Size::now().threads <= before.threads; });
  const Size after = Size::now();
  // The daemon may have been started a moment ago: it hears who has gone as soon as its clients are back.
  const bool forgotten = !daemon || test::eventually([&] { return daemon->registry() == 0; });

  json result{{"minutes", settings.minutes}, {"seed", settings.seed}, {"lanes", json::array()}};
  std::uint64_t wrong = 0;
  for (const auto& lane : lanes) {
    result["lanes"].push_back(lane->told());
    wrong += lane->wrong();
  }
  // What a population of a few hundred takes differs by this much from second to second.
  constexpr long kNoise = 8 * 1024;
  const long early = middle_of_tenth(rss, 2), late = middle_of_tenth(rss, 9);
  result["memory_kib"] = {{"early", early}, {"late", late}};
  result["descriptors"] = {{"before", before.fds}, {"after", after.fds}};
  result["threads"] = {{"before", before.threads},
                       {"most", *std::max_element(threads.begin(), threads.end())},
                       {"after", after.threads}};
  if (daemon) result["daemon_starts"] = daemon->starts();
  constexpr long kPopulations = 500;  // of both: they come and go, in storms
  const long few = middle_of_tenth(registered, 2), many = middle_of_tenth(registered, 9);
  result["registered"] = {{"early", few},
                          {"late", many},
                          {"most", *std::max_element(registered.begin(), registered.end())},
                          {"left_by_daemon", daemon ? daemon->registry() : 0}};
  const bool grown = late > early + early / 10 + kNoise || many > few + kPopulations || !forgotten ||
                     after.fds > before.fds || after.threads > before.threads;
  result["grown"] = grown;
  result["wrong"] = wrong;
  std::cout << result.dump(2) << "\n";
  if (!settings.out.empty()) std::ofstream(settings.out) << result.dump(2) << "\n";
  return wrong == 0 && !grown ? 0 : 1;
}

}  // namespace
}  // namespace sockalarm::soak

int main(int argc, char** argv) {
  sockalarm::soak::Settings settings;
  CLI::App app("Random load over all sources, with what must hold checked all the time");
  app.add_option("--minutes", settings.minutes, "how long; fractions work")->check(CLI::PositiveNumber);
  app.add_option("--seed", settings.seed, "what is random; printed at the start");
  app.add_option("--sources", settings.sources, "which; all by default, which needs root")
      ->delimiter(',')
      ->check(CLI::IsMember({"kernel", "daemon", "epoll", "poll"}))
      ->default_val(std::vector<std::string>{"kernel", "daemon", "epoll", "poll"});
  app.add_option("--out", settings.out, "a file for the result, too");
  app.footer("Examples:\n  soak --minutes 60\n  soak --minutes 0.5 --sources epoll,poll --seed 7");
  CLI11_PARSE(app, argc, argv);
  rlimit descriptors{};
  ::getrlimit(RLIMIT_NOFILE, &descriptors);
  descriptors.rlim_cur = descriptors.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &descriptors);
  try {
    return sockalarm::soak::soak(settings);
  } catch (const std::exception& error) {
    std::cerr << "soak: " << error.what() << "; kernel and daemon need root, --sources epoll,poll do not\n";
    return 1;
  }
}
