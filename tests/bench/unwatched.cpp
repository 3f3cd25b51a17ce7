// SPDX-License-Identifier: Apache-2.0
// What the BPF programs cost connections that nobody watches: a connect/accept/close cycle over loopback, in
// short slices with nothing loaded, with a Watcher, and with a Watcher whose registry is full of strangers.
// Nothing loaded is measured twice per round: the difference of the two is what this machine cannot tell
// apart. And with empty programs in the same places: what the kernel takes for running one, whatever it does.
#include <arpa/inet.h>
#include <bpf/libbpf.h>
#include <sched.h>

#include <algorithm>
#include <array>
#include <condition_variable>
#include <list>
#include <map>
#include <mutex>
#include <random>
#include <stop_token>
#include <thread>

#include "bench/support/contender.h"
#include "bench/support/own_maps.h"
#include "bench/support/own_network.h"
#include "bench/support/processes.h"
#include "bench/support/program.h"

namespace sockalarm::bench {
namespace {

constexpr std::size_t kEntries = 100'000;
constexpr int kCyclesPerBatch = 10;      // a fraction of a time slice: most batches are not preempted
constexpr std::uint32_t kSources = 200;  // 127.0.1.1 and further: each has its own ports

void stay_on_one_cpu() {
  cpu_set_t cpus;
  CPU_ZERO(&cpus);
  CPU_SET(static_cast<unsigned>(::sysconf(_SC_NPROCESSORS_ONLN) - 1), &cpus);
  ::sched_setaffinity(0, sizeof cpus, &cpus);
}

// Both ends in this thread: the kernel does the whole handshake within connect().
class Cycles {
 public:
  explicit Cycles(bool reset) : reset_(reset), listener_(test::listen_on(AF_INET)) {}

  void run_one() {
    UniqueFd client(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const int on = 1;
    ::setsockopt(client.get(), IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    sockaddr_in source{};
    source.sin_family = AF_INET;
    source.sin_addr.s_addr = htonl(0x7f000101U + next_source_++ % kSources);
    require(::bind(client.get(), reinterpret_cast<const sockaddr*>(&source), sizeof source) == 0, "bind");
    require(
        ::connect(client.get(), reinterpret_cast<const sockaddr*>(&listener_.address), listener_.length) == 0,
        "connect");
    UniqueFd server = test::accept_from(listener_);
    if (reset_) {
      const linger hard{1, 0};
      ::setsockopt(client.get(), SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
    }
    client.reset();
    server.reset();
  }

  // Nanoseconds per cycle; the median of many short batches, so that an interrupt or another process spoils
  // only the batch that it falls into.
  double slice(std::int64_t ms) {
    const std::int64_t warm_until = now_ns() + ms * 100'000;
    while (now_ns() < warm_until) run_one();
    std::vector<double> batches;
    const std::int64_t until = now_ns() + ms * 1'000'000;
    for (std::int64_t begin = now_ns(); begin < until; begin = now_ns()) {
      for (int i = 0; i < kCyclesPerBatch; ++i) run_one();
      batches.push_back(static_cast<double>(now_ns() - begin) / kCyclesPerBatch);
    }
    return median(batches);
  }

 private:
  bool reset_;
  test::Listener listener_;
  std::uint32_t next_source_ = 0;
};

// Cookies that no socket of this host will have for a long time.
void fill(const UniqueFd& registry, std::size_t count) {
  const bpf_map_info info = map_info(registry);
  require(info.key_size == sizeof(std::uint64_t), "the registry's key");
  const std::vector<char> value(info.value_size, 0);
  for (std::uint64_t i = 0; i < count; ++i) {
    const std::uint64_t cookie = (1ULL << 48) + i * 7919;
    require(bpf_map_update_elem(registry.get(), &cookie, value.data(), BPF_ANY) == 0, "filling the registry");
  }
}

// Attached to a tracepoint as ours are, and returns.
class EmptyProgram {
 public:
  explicit EmptyProgram(const char* tracepoint) {
    constexpr std::array<bpf_insn, 2> kReturn{
        bpf_insn{.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 0, .src_reg = 0, .off = 0, .imm = 0},
        bpf_insn{.code = BPF_JMP | BPF_EXIT, .dst_reg = 0, .src_reg = 0, .off = 0, .imm = 0}};
    LIBBPF_OPTS(bpf_prog_load_opts, options);
    options.expected_attach_type = BPF_TRACE_RAW_TP;
    const int id = libbpf_find_vmlinux_btf_id(tracepoint, BPF_TRACE_RAW_TP);
    require(id > 0, tracepoint);
    options.attach_btf_id = static_cast<std::uint32_t>(id);
    const UniqueFd program(
        ::bpf_prog_load(BPF_PROG_TYPE_TRACING, "empty", "GPL", kReturn.data(), kReturn.size(), &options));
    require(bool(program), "loading an empty program");
    attached_ = UniqueFd(::bpf_raw_tracepoint_open(nullptr, program.get()));
    require(bool(attached_), "attaching an empty program");
  }

 private:
  UniqueFd attached_;
};

enum class State { nothing, nothing_again, empty, loaded, full };
constexpr std::array<State, 5> kStates{State::nothing, State::nothing_again, State::empty, State::loaded,
                                       State::full};

double measure_state(Cycles& cycles, State state, std::int64_t ms) {
  std::optional<Watcher> watcher;
  std::list<EmptyProgram> empty;
  if (state == State::empty)
    for (const char* tracepoint : {"inet_sock_set_state", "inet_sk_error_report"})
      empty.emplace_back(tracepoint);
  if (state == State::loaded || state == State::full) {
    Options options;
    options.source = SourceKind::kernel;
    if (state == State::full) options.max_watches = kEntries + kEntries / 10;
    auto made = make_watcher(std::move(options));
    if (!made) throw std::runtime_error(made.error().message());
    watcher.emplace(std::move(*made));
    if (state == State::full) {
      const UniqueFd registry = own_map("registry");
      require(bool(registry), "finding the registry");
      fill(registry, kEntries);
    }
  }
  sleep_us(20'000);  // loading and unloading leave work behind in the kernel
  const double ns = cycles.slice(ms);
  watcher.reset();
  empty.clear();
  sleep_us(state == State::full ? 60'000 : 20'000);
  return ns;
}

Json run_variant(bool reset, std::size_t rounds, std::int64_t ms) {
  Cycles cycles(reset);
  std::map<State, std::vector<double>> ns, percent;
  std::mt19937 random(1);
  for (std::size_t round = 0; round < rounds; ++round) {
    auto order = kStates;
    std::shuffle(order.begin(), order.end(), random);
    std::map<State, double> of_round;
    for (const State state : order) of_round[state] = measure_state(cycles, state, ms);
    const double base = (of_round[State::nothing] + of_round[State::nothing_again]) / 2;
    for (const State state : kStates) {
      ns[state].push_back(of_round[state]);
      const double to = state == State::nothing_again ? of_round[State::nothing] : base;
      percent[state].push_back(100 * (of_round[state] / to - 1));
    }
    if (round % 10 == 9)
      progress(std::string(reset ? "reset" : "fin") + ": round " + std::to_string(round + 1) + " of " +
               std::to_string(rounds));
  }
  Json rows{{"nothing_loaded", {{"ns_per_cycle", median(ns[State::nothing])}}}};
  for (const auto& [state, name] :
       {std::pair{State::nothing_again, "nothing_loaded_again"}, std::pair{State::empty, "empty_programs"},
        std::pair{State::loaded, "no_entries"}, std::pair{State::full, "100000_entries"}}) {
    rows[name] = {{"ns_per_cycle", median(ns[state])},
                  {"overhead_percent", spread(percent[state])},
                  {"uncertainty_percent", uncertainty(percent[state])}};
  }
  return rows;
}

Json measure(const Settings& settings) {
  const std::size_t rounds = settings.pick(60UL, 2UL);
  const std::int64_t ms = settings.pick<std::int64_t>(200, 30);
  const bool own_network = enter_own_network();
  stay_on_one_cpu();
  // A process with one thread finds its descriptors cheaper (fdget() in the kernel's include/linux/file.h).
  // With a Watcher it has two; it is to have them throughout.
  const std::jthread second([](const std::stop_token& end) {
    std::mutex mutex;
    std::unique_lock lock(mutex);
    std::condition_variable_any().wait(lock, end, [] { return false; });
  });
  Json rows = Json::object();
  try {
    rows["fin"] = run_variant(false, rounds, ms);
    rows["reset"] = run_variant(true, rounds, ms);
  } catch (const std::exception& error) {
    for (const char* variant : {"fin", "reset"}) rows[variant] = not_available(error.what());
  }
  return {{"settings",
           {{"rounds", rounds}, {"slice_ms", ms}, {"entries", kEntries}, {"without_time_wait", own_network}}},
          {"rows", rows}};
}

}  // namespace
}  // namespace sockalarm::bench

int main(int argc, char** argv) {
  return sockalarm::bench::bench_main(argc, argv, "Cost to connections that nobody watches",
                                      sockalarm::bench::measure);
}
