// SPDX-License-Identifier: Apache-2.0
// What an Observer costs a host on which connections come and go: servers and clients in processes of their
// own, which together leave no processor idle, in short slices with no observer, with one whose filters match
// nothing, and with one that records every end, whose records are read in a third process, this one. No
// observer is measured twice per round: the difference of the two is what this machine cannot tell apart.
#include <arpa/inet.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <map>
#include <random>

#include "bench/support/own_network.h"
#include "bench/support/processes.h"
#include "bench/support/program.h"
#include "observe/observer.h"

namespace sockalarm::bench {
namespace {

constexpr std::size_t kMostPairs = 64;
constexpr std::size_t kRequest = 200, kAnswer = 1000;  // bytes
constexpr double kEndsPerSecond = 20'000;

struct Shared {
  std::atomic<std::uint64_t> work{0};  // turns of a loop that a server makes for each request
  struct alignas(64) Count {
    std::atomic<std::uint64_t> connections{0};
  };
  std::array<Count, kMostPairs> of_client;
};

void compute(std::uint64_t turns) {
  for (std::uint64_t i = 0; i < turns; ++i) asm volatile("");
}

void serve(const test::Listener& listener, const Shared& shared) {
  ::prctl(PR_SET_NAME, "bench_server");  // for who looks at a trace
  std::array<char, kAnswer> buffer{};
  for (;;) {
    const UniqueFd fd = test::accept_from(listener);
    if (::recv(fd.get(), buffer.data(), kRequest, MSG_WAITALL) != static_cast<ssize_t>(kRequest)) continue;
    compute(shared.work.load(std::memory_order_relaxed));
    if (::send(fd.get(), buffer.data(), buffer.size(), MSG_NOSIGNAL) < 0) continue;
    (void)!::recv(fd.get(), buffer.data(), 1, 0);  // until the client leaves
  }
}

// From an address of its own, which has ports of its own.
void ask(const test::Listener& listener, std::size_t number, std::atomic<std::uint64_t>& connections) {
  ::prctl(PR_SET_NAME, "bench_client");
  std::array<char, kAnswer> buffer{};
  sockaddr_in source{};
  source.sin_family = AF_INET;
  source.sin_addr.s_addr = htonl(0x7f000101U + static_cast<std::uint32_t>(number));
  for (;;) {
    const UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const int on = 1;
    ::setsockopt(fd.get(), IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    require(::bind(fd.get(), reinterpret_cast<const sockaddr*>(&source), sizeof source) == 0, "bind");
    require(::connect(fd.get(), reinterpret_cast<const sockaddr*>(&listener.address), listener.length) == 0,
            "connect");
    if (::send(fd.get(), buffer.data(), kRequest, MSG_NOSIGNAL) < 0) return;
    // Less is what a server leaves behind that was ended before this process.
    if (::recv(fd.get(), buffer.data(), kAnswer, MSG_WAITALL) != static_cast<ssize_t>(kAnswer)) return;
    connections.fetch_add(1, std::memory_order_relaxed);
  }
}

// What the processor spent on a process, exact to the nanosecond (clock_getcpuclockid(3)).
double cpu_ns(pid_t pid) {
  clockid_t clock{};
  timespec at{};
  require(::clock_getcpuclockid(pid, &clock) == 0 && ::clock_gettime(clock, &at) == 0, "a process' clock");
  return static_cast<double>(at.tv_sec) * 1e9 + static_cast<double>(at.tv_nsec);
}

// Runs until it is destroyed. Make it before any thread.
class Load {
 public:
  explicit Load(std::size_t pairs) : listener_(test::listen_on(AF_INET, 4096)), pairs_(pairs) {
    for (std::size_t i = 0; i < pairs; ++i) {
      children_.emplace_back([this] { serve(listener_, *shared_); });
      children_.emplace_back([this, i] { ask(listener_, i, shared_->of_client[i].connections); });
    }
  }
  void work(std::uint64_t turns) { shared_->work = turns; }

  struct Sum {
    double connections = 0, cpu_ns = 0;
  };
  // So far, with what this process took.
  Sum sum() const {
    Sum all{.cpu_ns = cpu_ns(::getpid())};
    for (std::size_t i = 0; i < pairs_; ++i)
      all.connections += static_cast<double>(shared_->of_client[i].connections.load());
    for (const Child& child : children_) all.cpu_ns += cpu_ns(child.pid());
    return all;
  }

 private:
  SharedMemory<Shared> shared_;
  test::Listener listener_;
  std::size_t pairs_;
  std::vector<Child> children_;
};

enum class State { nothing, nothing_again, matching_nothing, everything };
constexpr std::array<State, 4> kStates{State::nothing, State::nothing_again, State::matching_nothing,
                                       State::everything};

struct Slice {
  double per_second = 0, cpu_us = 0, records = 0, lost = 0;
};

std::unique_ptr<observe::Observer> observer_for(State state) {
  if (state == State::nothing || state == State::nothing_again) return nullptr;
  observe::ObserverOptions options;
  if (state == State::matching_nothing) options.filter.ports = {{1, 1}};
  auto opened = observe::Observer::open(options);
  if (!opened) throw std::runtime_error(opened.error().message());
  return std::move(*opened);
}

// Reads what comes, as an exporter would.
std::size_t read_for(observe::Observer* observer, std::int64_t ms) {
  std::size_t records = 0;
  const std::int64_t until = now_ns() + ms * 1'000'000;
  for (std::int64_t left = ms; left > 0; left = (until - now_ns()) / 1'000'000) {
    pollfd entry{observer != nullptr ? observer->fd() : -1, POLLIN, 0};
    ::poll(&entry, 1, static_cast<int>(left));
    if (observer != nullptr) records += observer->read([](const observe::ConnectionEnd&) {}).value();
  }
  return records;
}

Slice measure_state(const Load& load, State state, std::int64_t ms) {
  const auto observer = observer_for(state);
  read_for(observer.get(), std::max<std::int64_t>(ms / 5, 20));  // loading leaves work behind in the kernel
  const Load::Sum before = load.sum();
  const std::int64_t begin = now_ns();
  const std::size_t records = read_for(observer.get(), ms);
  const Load::Sum after = load.sum();
  const double connections = after.connections - before.connections;
  return {.per_second = connections * 1e9 / static_cast<double>(now_ns() - begin),
          .cpu_us = (after.cpu_ns - before.cpu_ns) / connections / 1000,
          .records = static_cast<double>(records),
          .lost = observer ? static_cast<double>(observer->losses().value().records) : 0};
}

// How many turns take a request's share of all processors at that rate, beyond what it takes without.
std::uint64_t turns_for(const Load& load, double connections_per_second, std::int64_t ms) {
  constexpr std::uint64_t kTurns = 100'000'000;
  const double begin = cpu_ns(::getpid());
  compute(kTurns);
  const double ns_per_turn = (cpu_ns(::getpid()) - begin) / kTurns;
  const double processors = static_cast<double>(::sysconf(_SC_NPROCESSORS_ONLN));
  const double wanted = processors * 1e9 / connections_per_second;
  const double there = measure_state(load, State::nothing, ms).cpu_us * 1000;
  return static_cast<std::uint64_t>(std::max(0.0, wanted - there) / ns_per_turn);
}

Json run_variant(const Load& load, std::size_t rounds, std::int64_t ms) {
  std::map<State, std::vector<double>> ends, cpu, less, more_cpu;
  double records = 0, lost = 0;
  std::mt19937 random(1);
  for (std::size_t round = 0; round < rounds; ++round) {
    auto order = kStates;
    std::shuffle(order.begin(), order.end(), random);
    std::map<State, Slice> of_round;
    for (const State state : order) of_round[state] = measure_state(load, state, ms);
    const auto mean = [&](double Slice::* figure) {
      return (of_round[State::nothing].*figure + of_round[State::nothing_again].*figure) / 2;
    };
    for (const State state : kStates) {
      const Slice& slice = of_round[state];
      const bool again = state == State::nothing_again;
      const Slice& first = of_round[State::nothing];
      ends[state].push_back(2 * slice.per_second);
      cpu[state].push_back(slice.cpu_us);
      less[state].push_back(100 *
                            (1 - slice.per_second / (again ? first.per_second : mean(&Slice::per_second))));
      more_cpu[state].push_back(100 * (1 - (again ? first.cpu_us : mean(&Slice::cpu_us)) / slice.cpu_us));
      records += slice.records;
      lost += slice.lost;
    }
    if (round % 10 == 9) progress("round " + std::to_string(round + 1) + " of " + std::to_string(rounds));
  }
  Json rows{{"nothing",
             {{"ends_per_second", median(ends[State::nothing])}, {"cpu_us", median(cpu[State::nothing])}}}};
  for (const auto& [state, name] :
       {std::pair{State::nothing_again, "nothing_again"},
        std::pair{State::matching_nothing, "matching_nothing"}, std::pair{State::everything, "everything"}}) {
    rows[name] = {{"ends_per_second", median(ends[state])},
                  {"cpu_us", median(cpu[state])},
                  {"throughput_lost_percent", spread(less[state])},
                  {"by_cpu_time_percent", spread(more_cpu[state])},
                  {"uncertainty_percent", uncertainty(less[state])},
                  {"uncertainty_by_cpu_time_percent", uncertainty(more_cpu[state])}};
  }
  rows["everything"]["records"] = records;
  rows["everything"]["lost"] = lost;
  return rows;
}

Json measure(const Settings& settings) {
  const std::size_t rounds = settings.pick(40UL, 2UL);
  const std::int64_t ms = settings.pick<std::int64_t>(200, 40);
  const bool own_network = enter_own_network();
  const auto pairs = std::min(kMostPairs, static_cast<std::size_t>(::sysconf(_SC_NPROCESSORS_ONLN)));
  Load load(pairs);
  Json rows = Json::object();
  std::uint64_t turns = 0;
  try {
    rows["without_work"] = run_variant(load, rounds, ms);
    turns = turns_for(load, kEndsPerSecond / 2, 5 * ms);
    load.work(turns);
    rows["with_work"] = run_variant(load, rounds, ms);
  } catch (const std::exception& error) {
    for (const char* variant : {"without_work", "with_work"}) rows[variant] = not_available(error.what());
  }
  return {{"settings",
           {{"rounds", rounds},
            {"slice_ms", ms},
            {"pairs", pairs},
            {"turns_per_request", turns},
            {"ends_per_second", kEndsPerSecond},
            {"without_time_wait", own_network}}},
          {"rows", rows}};
}

}  // namespace
}  // namespace sockalarm::bench

int main(int argc, char** argv) {
  return sockalarm::bench::bench_main(argc, argv, "Cost of observing every connection",
                                      sockalarm::bench::measure);
}
