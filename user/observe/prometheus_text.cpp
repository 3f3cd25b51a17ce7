// SPDX-License-Identifier: Apache-2.0
#include <prometheus/metric_family.h>
#include <prometheus/text_serializer.h>

#include <cmath>
#include <limits>

#include "observe/snapshot.h"

namespace sockalarm::observe {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;
using Labels = std::vector<ClientMetric::Label>;

class Families {
 public:
  MetricFamily& add(const char* name, const char* help, MetricType type) {
    return all_.emplace_back(MetricFamily{name, help, type, {}});
  }
  void add(const char* name, const char* help, MetricType type, double value, Labels labels = {}) {
    put(add(name, help, type), value, std::move(labels));
  }
  static void put(MetricFamily& family, double value, Labels labels) {
    ClientMetric metric;
    metric.label = std::move(labels);
    metric.counter.value = metric.gauge.value = value;
    family.metric.push_back(std::move(metric));
  }
  std::string text() const { return prometheus::TextSerializer().Serialize(all_); }

 private:
  std::vector<MetricFamily> all_;
};

// Of the kernel's buckets, each the end of one is a bound here, from 2^first microseconds on, and each fourth
// of that.
ClientMetric histogram(const Histogram& counted, std::chrono::nanoseconds sum, std::size_t first,
                       std::size_t last) {
  ClientMetric metric;
  std::uint64_t so_far = 0;
  for (std::size_t bucket = 0; bucket < counted.size(); ++bucket) {
    so_far += counted[bucket];
    if (bucket < first || bucket > last || (bucket - first) % 2 != 0) continue;
    metric.histogram.bucket.push_back({so_far, std::ldexp(1e-6, static_cast<int>(bucket))});
  }
  metric.histogram.bucket.push_back({so_far, std::numeric_limits<double>::infinity()});
  metric.histogram.sample_count = so_far;
  metric.histogram.sample_sum = in_seconds(sum);
  return metric;
}

void add_ends(Families& families, const Totals::All& ends, const Totals::All& evicted) {
  std::map<std::tuple<std::string_view, std::string_view, std::string_view>, std::uint64_t> counts;
  std::map<std::string_view, std::chrono::nanoseconds> orphaned;
  Total abandoned;
  for (const auto& [key, total] : ends) {
    counts[{text(key.cause), key.service, text(key.verdict)}] += total.ends;
    orphaned[key.service] += total.orphaned;
    if (key.verdict == Verdict::abandoned) abandoned += total;
  }
  for (const auto& [key, total] : evicted)  // what has no label of them goes on
    if (key.verdict == Verdict::abandoned) abandoned += total;
  auto& ended =
      families.add("sockalarm_connections_ended_total", "TCP connections that ended", MetricType::Counter);
  for (const auto& [labels, count] : counts) {
    const auto& [cause, service, verdict] = labels;
    Families::put(ended, static_cast<double>(count),
                  {{"cause", std::string(cause)},
                   {"service", std::string(service)},
                   {"verdict", std::string(verdict)}});
  }
  auto& seconds = families.add("sockalarm_orphaned_seconds_total",
                               "Work that went on after the client had left", MetricType::Counter);
  for (const auto& [service, time] : orphaned)
    Families::put(seconds, in_seconds(time), {{"service", std::string(service)}});
  constexpr std::size_t kMillisecond = 10, kHours = 34;  // 2^10 us, 2^34 us: 4.8 h
  families
      .add("sockalarm_age_at_abort_seconds", "Age of a connection when its client left amid the work",
           MetricType::Histogram)
      .metric.push_back(histogram(abandoned.ages, abandoned.age, kMillisecond, kHours));
  families
      .add("sockalarm_orphaned_seconds", "How long work went on for nobody, by connection",
           MetricType::Histogram)
      .metric.push_back(histogram(abandoned.orphaned_times, abandoned.orphaned, kMillisecond, kHours));
}

void add_shipping(Families& families, const Snapshot::Shipping& shipping) {
  const auto number = [](std::uint64_t value) { return static_cast<double>(value); };
  families.add("sockalarm_spool_bytes", "Size of the spool", MetricType::Gauge, number(shipping.spool.bytes));
  families.add("sockalarm_spool_pending", "Ends in the spool, not acknowledged", MetricType::Gauge,
               number(shipping.spool.pending));
  families.add("sockalarm_spool_oldest_seconds", "Age of the oldest part of the spool with such an end",
               MetricType::Gauge, in_seconds(shipping.spool.oldest));
  families.add("sockalarm_broker_connected", "1 while there is a connection to a broker", MetricType::Gauge,
               shipping.connected ? 1 : 0);
  families.add("sockalarm_broker_sent_total", "Messages sent to a broker, also again", MetricType::Counter,
               number(shipping.sent));
  families.add("sockalarm_broker_acknowledged_total", "Messages that the stream has", MetricType::Counter,
               number(shipping.acknowledged));
  families.add("sockalarm_broker_retried_total", "Messages refused, or not acknowledged in time",
               MetricType::Counter, number(shipping.retried));
}

}  // namespace

std::string to_prometheus(const Snapshot& snapshot) {
  Families families;
  families.add("sockalarm_build_info", "1, with what was built", MetricType::Gauge, 1,
               {{"version", SOCKALARM_VERSION}});
  add_ends(families, snapshot.ends, snapshot.evicted);
  constexpr std::size_t kMicrosecond = 0, kSeconds = 24;  // 2^24 us: 17 s
  families
      .add("sockalarm_detection_latency_seconds", "From the record in the kernel to the one who reads it",
           MetricType::Histogram)
      .metric.push_back(histogram(snapshot.latency.times, snapshot.latency.sum, kMicrosecond, kSeconds));
  std::uint64_t no_room = 0;
  auto& lost = families.add("sockalarm_lost_total", "Ends that did not get where they should, by stage",
                            MetricType::Counter);
  for (const auto& [stage, count] : snapshot.lost) {
    Families::put(lost, static_cast<double>(count), {{"stage", stage}});
    if (stage == "ring") no_room = count;
  }
  families.add("sockalarm_ring_writes_total", "Records that were read from the kernel's ring",
               MetricType::Counter, static_cast<double>(snapshot.read));
  families.add("sockalarm_ring_write_failures_total", "Records for which the ring had no room",
               MetricType::Counter, static_cast<double>(no_room));
  families.add("sockalarm_spool_corrupt_segments_total", "Segments of the spool that were damaged",
               MetricType::Counter, static_cast<double>(snapshot.corrupt_segments));
  if (snapshot.shipping) add_shipping(families, *snapshot.shipping);
  return families.text();
}

}  // namespace sockalarm::observe
