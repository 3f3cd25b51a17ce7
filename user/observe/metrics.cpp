// SPDX-License-Identifier: Apache-2.0
#include "observe/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <algorithm>
#include <mutex>
#include <unordered_set>

#include "base/text.h"
#include "observe/record.h"

namespace sockalarm::observe {
namespace {

using Boundaries = prometheus::Histogram::BucketBoundaries;

// Seconds: of a connection and of work, and of news.
Boundaries lives() { return {0.001, 0.01, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200}; }
Boundaries latencies() { return {1e-6, 5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 1e-3, 5e-3, 2.5e-2, 0.1, 1}; }

double in_seconds(std::chrono::nanoseconds duration) {
  return std::chrono::duration<double>(duration).count();
}

// A figure that is counted elsewhere.
prometheus::MetricFamily family(const char* name, const char* help, prometheus::MetricType type) {
  return {name, help, type, {}};
}
void add(prometheus::MetricFamily& to, std::uint64_t value,
         std::vector<prometheus::ClientMetric::Label> labels = {}) {
  prometheus::ClientMetric metric;
  metric.label = std::move(labels);
  metric.counter.value = metric.gauge.value = static_cast<double>(value);
  to.metric.push_back(std::move(metric));
}

}  // namespace

struct Metrics::Families {
  Families(const Losses& counted, Sources asked, std::size_t services)
      : losses(counted), sources(std::move(asked)), most_services(services) {
    prometheus::BuildGauge()
        .Name("sockalarm_build_info")
        .Help("1, with what was built")
        .Register(registry)
        .Add({{"version", SOCKALARM_VERSION}})
        .Set(1);
  }

  // The name of a service as a label: UTF-8, and one of a bounded number.
  std::string label(const std::string& service) {
    if (service.empty()) return "unknown";
    std::string name = escaped(service);
    const std::lock_guard lock(mutex);
    if (known.contains(name)) return name;
    if (known.size() >= most_services) return "other";
    known.insert(name);
    return name;
  }
  std::vector<prometheus::MetricFamily> counted_elsewhere() const;

  const Losses& losses;
  const Sources sources;
  const std::size_t most_services;
  std::mutex mutex;
  std::unordered_set<std::string> known;

  prometheus::Registry registry;
  prometheus::Family<prometheus::Counter>& ended = prometheus::BuildCounter()
                                                       .Name("sockalarm_connections_ended_total")
                                                       .Help("TCP connections that ended")
                                                       .Register(registry);
  prometheus::Family<prometheus::Counter>& orphaned = prometheus::BuildCounter()
                                                          .Name("sockalarm_orphaned_seconds_total")
                                                          .Help("Work that went on after the client had left")
                                                          .Register(registry);
  prometheus::Family<prometheus::Counter>& actions = prometheus::BuildCounter()
                                                         .Name("sockalarm_actions_total")
                                                         .Help("Actions by their result")
                                                         .Register(registry);
  prometheus::Histogram& age_at_abort = prometheus::BuildHistogram()
                                            .Name("sockalarm_age_at_abort_seconds")
                                            .Help("Age of a connection when its client left amid the work")
                                            .Register(registry)
                                            .Add({}, lives());
  prometheus::Histogram& orphaned_time = prometheus::BuildHistogram()
                                             .Name("sockalarm_orphaned_seconds")
                                             .Help("How long work went on for nobody, by connection")
                                             .Register(registry)
                                             .Add({}, lives());
  prometheus::Histogram& latency = prometheus::BuildHistogram()
                                       .Name("sockalarm_detection_latency_seconds")
                                       .Help("From the event in the kernel to the one who reads of it")
                                       .Register(registry)
                                       .Add({}, latencies());
};

std::vector<prometheus::MetricFamily> Metrics::Families::counted_elsewhere() const {
  using prometheus::MetricType;
  std::vector<prometheus::MetricFamily> families;
  auto& lost = families.emplace_back(family(
      "sockalarm_lost_total", "Ends that did not get where they should, by stage", MetricType::Counter));
  const auto stage = [&](const char* name, std::uint64_t count) { add(lost, count, {{"stage", name}}); };
  if (sources.lost_by_kernel) stage("kernel", sources.lost_by_kernel());
  stage("rate_limit", losses.rate_limit);
  stage("queue", losses.queue);
  stage("sink", losses.sink);
  stage("spool_size", losses.spool_size);
  stage("spool_age", losses.spool_age);
  stage("spool_write", losses.spool_write);
  add(families.emplace_back(family("sockalarm_spool_corrupt_segments_total",
                                   "Segments of the spool that were damaged", MetricType::Counter)),
      losses.spool_corrupt);
  if (sources.ring) {
    const Ring ring = sources.ring();
    add(families.emplace_back(family("sockalarm_ring_writes_total",
                                     "Records that the kernel wrote to the ring", MetricType::Counter)),
        ring.written);
    add(families.emplace_back(family("sockalarm_ring_write_failures_total",
                                     "Records for which the ring had no room", MetricType::Counter)),
        ring.failed);
  }
  if (sources.spool) {
    const Spool::State spool = sources.spool();
    add(families.emplace_back(family("sockalarm_spool_bytes", "Size of the spool", MetricType::Gauge)),
        spool.bytes);
    add(families.emplace_back(
            family("sockalarm_spool_pending", "Ends in the spool, not acknowledged", MetricType::Gauge)),
        spool.pending);
    auto& oldest = families.emplace_back(family("sockalarm_spool_oldest_seconds",
                                                "Age of the oldest part of the spool with such an end",
                                                MetricType::Gauge));
    add(oldest, 0);
    oldest.metric[0].gauge.value = in_seconds(spool.oldest);
  }
  return families;
}

Metrics::Metrics(const Losses& losses, Sources sources, std::size_t services)
    : families_(std::make_unique<Families>(losses, std::move(sources), services)) {}

Metrics::~Metrics() = default;

void Metrics::ended(const ConnectionEnd& end) {
  const std::string service = families_->label(end.service);
  families_->ended
      .Add({{"cause", std::string(observe::text(end.cause))},
            {"verdict", std::string(observe::text(end.verdict))},
            {"service", service}})
      .Increment();
  if (end.verdict != Verdict::abandoned) return;
  families_->orphaned.Add({{"service", service}})
      .Increment(in_seconds(std::max(end.orphaned, std::chrono::nanoseconds(0))));
  families_->orphaned_time.Observe(in_seconds(end.orphaned));
  if (end.age_at_departure) families_->age_at_abort.Observe(in_seconds(*end.age_at_departure));
}

void Metrics::detected(std::chrono::nanoseconds latency) { families_->latency.Observe(in_seconds(latency)); }

void Metrics::acted(std::string_view action, std::string_view result) {
  families_->actions.Add({{"action", std::string(action)}, {"result", std::string(result)}}).Increment();
}

std::string Metrics::text() const {
  auto all = families_->registry.Collect();
  auto others = families_->counted_elsewhere();
  all.insert(all.end(), std::make_move_iterator(others.begin()), std::make_move_iterator(others.end()));
  return prometheus::TextSerializer().Serialize(all);
}

}  // namespace sockalarm::observe
