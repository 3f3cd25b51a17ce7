// SPDX-License-Identifier: Apache-2.0
// What asking and arming cost the thread that does it, with Google Benchmark, against the system calls that
// people use for the same. Its repetitions are interleaved at random, so a slow minute slows all of them.
#include <benchmark/benchmark.h>
#include <liburing.h>
#include <poll.h>
#include <sockalarm/request.h>
#include <sys/epoll.h>

#include <map>
#include <optional>

#include "bench/support/contender.h"
#include "bench/support/program.h"
#include "harness/sockets.h"

namespace sockalarm::bench {
namespace {

using test::require;

// Collects what one repetition of each benchmark gave.
class Collector final : public benchmark::BenchmarkReporter {
 public:
  bool ReportContext(const Context&) override { return true; }
  void ReportRuns(const std::vector<Run>& runs) override {
    for (const Run& run : runs) {
      if (run.run_type != Run::RT_Iteration) continue;
      const std::string name = run.run_name.function_name;
      if (run.error_occurred)
        errors[name] = run.error_message;
      else
        ns[name].push_back(run.GetAdjustedRealTime());
    }
  }
  std::map<std::string, std::vector<double>> ns;
  std::map<std::string, std::string> errors;
};

// A connection that stays, with its Watch under one source and delivery.
class Subject {
 public:
  Subject(SourceKind source, Delivery delivery) {
    Options options;
    options.source = source;
    options.delivery = delivery;
    auto made = make_watcher(std::move(options));
    if (!made) {
      why_not_ = made.error().message();
      return;
    }
    watcher_.emplace(std::move(*made));
    auto watched = watcher_->watch(connection_.ours.get());
    if (!watched)
      why_not_ = watched.error().message();
    else
      watch_.emplace(std::move(*watched));
  }
  const Watch* watch(benchmark::State& state) const {
    if (!watch_) state.SkipWithError(why_not_.c_str());
    return watch_ ? &*watch_ : nullptr;
  }
  std::optional<Requests> requests(benchmark::State& state) const {
    if (watch(state) == nullptr) return std::nullopt;
    auto made = Requests::create(*watcher_);
    if (!made) {
      state.SkipWithError(made.error().message().c_str());
      return std::nullopt;
    }
    return std::move(*made);
  }

 private:
  test::Connection connection_ = test::tcp_pair();
  std::optional<Watcher> watcher_;
  std::optional<Watch> watch_;
  std::string why_not_;
};

template <class Body>
void add(const std::string& name, const Settings& settings, Body body) {
  benchmark::RegisterBenchmark(name.c_str(), body)
      ->Repetitions(settings.pick(15, 3))
      ->MinTime(settings.pick(0.05, 0.002))
      ->UseRealTime();
}

// A request that does nothing, with the limits that one has by default, and one call in it.
void add_requests(const std::string& name, const Settings& settings,
                  const std::shared_ptr<Subject>& subject) {
  add("request/" + name, settings, [subject](benchmark::State& state) {
    const auto requests = subject->requests(state);
    if (!requests) return;
    for (auto _ : state) {
      auto request = requests->begin(*subject->watch(state), "/");
      benchmark::DoNotOptimize(request);
    }
  });
  add("request_call/" + name, settings, [subject](benchmark::State& state) {
    const auto requests = subject->requests(state);
    if (!requests) return;
    for (auto _ : state) {
      auto request = requests->begin(*subject->watch(state), "/");
      auto result = request->call("nothing", std::chrono::seconds(2), [](std::stop_token) { return 7; });
      benchmark::DoNotOptimize(result);
    }
  });
  add("call/" + name, settings, [subject](benchmark::State& state) {
    const auto requests = subject->requests(state);
    if (!requests) return;
    auto request = requests->begin(*subject->watch(state), "/");
    for (auto _ : state) {
      auto result = request->call("nothing", std::chrono::seconds(2), [](std::stop_token) { return 7; });
      benchmark::DoNotOptimize(result);
    }
  });
  add("shield/" + name, settings, [subject](benchmark::State& state) {
    const auto requests = subject->requests(state);
    if (!requests) return;
    auto request = requests->begin(*subject->watch(state), "/");
    for (auto _ : state) {
      const Shield shield = request->shield();
      benchmark::ClobberMemory();
    }
  });
}

void add_subject(const std::string& name, const Settings& settings, SourceKind source, Delivery delivery) {
  const auto subject = std::make_shared<Subject>(source, delivery);
  const ActionChain chain(send_signal(SIGUSR1));
  // As a request does it: armed, and disarmed by the end of the scope.
  add("arm_cancel/" + name, settings, [subject, chain](benchmark::State& state) {
    const Watch* watch = subject->watch(state);
    if (watch == nullptr) return;
    for (auto _ : state) {
      auto alarm = watch->arm(chain);
      benchmark::DoNotOptimize(alarm);
    }
  });
  // One Alarm, again and again.
  add("start_cancel/" + name, settings, [subject, chain](benchmark::State& state) {
    const Watch* watch = subject->watch(state);
    if (watch == nullptr) return;
    auto alarm = watch->arm(chain).value();
    alarm.cancel();
    for (auto _ : state) {
      benchmark::DoNotOptimize(alarm.start());
      benchmark::DoNotOptimize(alarm.cancel());
    }
  });
  if (delivery != Delivery::automatic) return;
  add_requests(name, settings, subject);
  if (source != SourceKind::kernel) return;
  add("peer_gone", settings, [subject](benchmark::State& state) {
    const Watch* watch = subject->watch(state);
    if (watch == nullptr) return;
    for (auto _ : state) benchmark::DoNotOptimize(watch->peer_gone());
  });
  add("seen", settings, [subject](benchmark::State& state) {
    const Watch* watch = subject->watch(state);
    if (watch == nullptr) return;
    for (auto _ : state) benchmark::DoNotOptimize(watch->seen());
  });
}

// Asking the kernel, in the three ways that there are.
void add_questions(const Settings& settings) {
  const auto connection = std::make_shared<test::Connection>(test::tcp_pair());
  add("empty_loop", settings, [](benchmark::State& state) {
    for (auto _ : state) benchmark::ClobberMemory();
  });
  add("poll_rdhup", settings, [connection](benchmark::State& state) {
    for (auto _ : state) {
      pollfd entry{connection->ours.get(), POLLRDHUP, 0};
      benchmark::DoNotOptimize(::poll(&entry, 1, 0));
    }
  });
  add("recv_peek", settings, [connection](benchmark::State& state) {
    char byte = 0;
    for (auto _ : state)
      benchmark::DoNotOptimize(::recv(connection->ours.get(), &byte, 1, MSG_PEEK | MSG_DONTWAIT));
  });
  add("tcp_info", settings, [connection](benchmark::State& state) {
    tcp_info info{};
    for (auto _ : state) {
      socklen_t length = sizeof info;
      benchmark::DoNotOptimize(::getsockopt(connection->ours.get(), IPPROTO_TCP, TCP_INFO, &info, &length));
    }
  });
}

// Arming by hand: registering with the kernel for each request, and taking it back.
void add_registrations(const Settings& settings) {
  const auto connection = std::make_shared<test::Connection>(test::tcp_pair());
  add("epoll_add_del", settings, [connection](benchmark::State& state) {
    const UniqueFd epoll(::epoll_create1(EPOLL_CLOEXEC));
    for (auto _ : state) {
      epoll_event event{};
      event.events = EPOLLRDHUP | EPOLLONESHOT;
      benchmark::DoNotOptimize(::epoll_ctl(epoll.get(), EPOLL_CTL_ADD, connection->ours.get(), &event));
      benchmark::DoNotOptimize(::epoll_ctl(epoll.get(), EPOLL_CTL_DEL, connection->ours.get(), &event));
    }
  });
  // Both requests in one system call, the best that io_uring can do.
  add("io_uring_add_remove", settings, [connection](benchmark::State& state) {
    io_uring ring{};
    if (const int failed = -io_uring_queue_init(8, &ring, 0); failed != 0) {
      state.SkipWithError((std::string("io_uring_queue_init: ") + std::strerror(failed)).c_str());
      return;
    }
    for (auto _ : state) {
      io_uring_sqe* sqe = io_uring_get_sqe(&ring);
      io_uring_prep_poll_add(sqe, connection->ours.get(), POLLRDHUP);
      io_uring_sqe_set_data64(sqe, 1);
      sqe = io_uring_get_sqe(&ring);
      io_uring_prep_poll_remove(sqe, 1);
      io_uring_sqe_set_data64(sqe, 2);
      io_uring_submit_and_wait(&ring, 2);
      unsigned head = 0, seen = 0;
      io_uring_cqe* cqe = nullptr;
      io_uring_for_each_cqe(&ring, head, cqe)++ seen;
      io_uring_cq_advance(&ring, seen);
    }
    io_uring_queue_exit(&ring);
  });
}

Json rows_of(const Collector& collector) {
  Json rows = Json::object();
  for (const auto& [name, error] : collector.errors) rows[name] = not_available(error);
  for (const auto& [name, ns] : collector.ns) rows[name] = {{"ns", spread(ns)}};
  const auto compare = [&](const std::string& name, const std::string& baseline, const std::string& key) {
    if (collector.ns.count(name) != 0 && collector.ns.count(baseline) != 0)
      rows[name][key] = median(collector.ns.at(baseline)) / median(collector.ns.at(name));
  };
  for (const char* question : {"peer_gone", "seen"})
    for (const char* baseline : {"poll_rdhup", "recv_peek", "tcp_info"})
      compare(question, baseline, std::string("times_cheaper_than_") + baseline);
  for (const auto& [name, ns] : collector.ns)
    if (name.find("_cancel/") != std::string::npos)
      for (const char* baseline : {"epoll_add_del", "io_uring_add_remove"})
        compare(name, baseline, std::string("times_cheaper_than_") + baseline);
  return rows;
}

Json measure(const Settings& settings) {
  std::string program = "nanoseconds", interleave = "--benchmark_enable_random_interleaving=true";
  char* arguments[] = {program.data(), interleave.data(), nullptr};
  int count = 2;
  benchmark::Initialize(&count, arguments);
  add_questions(settings);
  add_registrations(settings);
  add_subject("kernel", settings, SourceKind::kernel, Delivery::automatic);
  add_subject("kernel_dispatcher", settings, SourceKind::kernel, Delivery::dispatcher);
  add_subject("kernel_sigio", settings, SourceKind::kernel, Delivery::sigio);
  add_subject("epoll", settings, SourceKind::epoll, Delivery::automatic);
  add_subject("epoll_sigio", settings, SourceKind::epoll, Delivery::sigio);
  add_subject("poll", settings, SourceKind::poll, Delivery::automatic);
  Collector collector;
  benchmark::RunSpecifiedBenchmarks(&collector);
  return {{"settings", {{"repetitions", settings.pick(15, 3)}}}, {"rows", rows_of(collector)}};
}

}  // namespace
}  // namespace sockalarm::bench

int main(int argc, char** argv) {
  return sockalarm::bench::bench_main(argc, argv, "Nanoseconds of asking and arming",
                                      sockalarm::bench::measure);
}
