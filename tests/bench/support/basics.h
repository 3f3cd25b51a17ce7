// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <time.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace sockalarm::bench {

// Keeps the order in which rows were written, so that two runs differ in figures alone.
using Json = nlohmann::ordered_json;

// CLOCK_MONOTONIC is one clock for all processes of a host, and what the kernel side stamps its events with.
inline std::int64_t now_ns() noexcept {
  timespec at{};
  ::clock_gettime(CLOCK_MONOTONIC, &at);
  return std::int64_t{at.tv_sec} * 1'000'000'000 + at.tv_nsec;
}

inline void sleep_us(std::int64_t us) noexcept {
  const timespec time{us / 1'000'000, us % 1'000'000 * 1000};
  ::clock_nanosleep(CLOCK_MONOTONIC, 0, &time, nullptr);
}

inline double microseconds(std::int64_t ns) noexcept { return static_cast<double>(ns) / 1000; }

// Between the two nearest samples. NaN (null in JSON) of nothing.
inline double quantile(std::vector<double> samples, double q) {
  if (samples.empty()) return std::nan("");
  std::sort(samples.begin(), samples.end());
  const double position = q * static_cast<double>(samples.size() - 1);
  const auto below = static_cast<std::size_t>(position);
  const auto above = std::min(below + 1, samples.size() - 1);
  return samples[below] + (samples[above] - samples[below]) * (position - static_cast<double>(below));
}
inline double median(const std::vector<double>& samples) { return quantile(samples, 0.5); }

// Median and quartiles of what single rounds gave.
inline Json spread(const std::vector<double>& rounds) {
  return {{"median", median(rounds)}, {"q1", quantile(rounds, 0.25)}, {"q3", quantile(rounds, 0.75)}};
}

// Half the width of the interval that holds the median with 95 %: how far to trust it.
inline double uncertainty(std::vector<double> rounds) {
  if (rounds.size() < 6) return std::nan("");
  std::sort(rounds.begin(), rounds.end());
  const double n = static_cast<double>(rounds.size());
  const double half = 0.98 * std::sqrt(n);
  const auto low = static_cast<std::size_t>(std::max(0.0, n / 2 - half));
  const auto high = std::min(rounds.size() - 1, static_cast<std::size_t>(n / 2 + half));
  return (rounds[high] - rounds[low]) / 2;
}

inline Json latencies(const std::vector<double>& us) {
  return {{"samples", us.size()},
          {"p50_us", median(us)},
          {"p90_us", quantile(us, 0.9)},
          {"p99_us", quantile(us, 0.99)},
          {"max_us", quantile(us, 1)}};
}

// What is said where a figure should stand.
inline Json not_available(const std::string& why) { return {{"not_available", why}}; }

}  // namespace sockalarm::bench
