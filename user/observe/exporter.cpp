// SPDX-License-Identifier: Apache-2.0
#include "observe/exporter.h"

#include <algorithm>

#include "base/blocked_signals.h"

namespace sockalarm::observe {

bool RateLimit::admits(Clock::time_point now) noexcept {
  if (per_second_ == 0) return true;
  left_ = std::min(per_second_, left_ + per_second_ * std::chrono::duration<double>(now - last_).count());
  last_ = now;
  if (left_ < 1) return false;
  left_ -= 1;
  return true;
}

Exporter::Exporter(Host host, Options options, std::vector<std::unique_ptr<Sink>> sinks, Losses& losses,
                   ErrorHook on_error)
    : host_(std::move(host)),
      options_(options),
      losses_(losses),
      on_error_(std::move(on_error)),
      rate_limit_(options.per_second) {
  const BlockedSignals blocked;  // for the threads, too; SIGPIPE becomes an error of write()
  for (auto& sink : sinks) {
    lanes_.push_back(std::make_unique<Lane>(std::move(sink)));
    lanes_.back()->thread = std::thread([this, &lane = *lanes_.back()] { serve(lane); });
  }
}

Exporter::~Exporter() {
  for (const auto& lane : lanes_) {
    const std::lock_guard lock(lane->mutex);
    lane->ending = true;
    lane->news.notify_one();
  }
  for (const auto& lane : lanes_) lane->thread.join();
}

void Exporter::offer(const ConnectionEnd& end) {
  if (!rate_limit_.admits(RateLimit::Clock::now())) {
    ++losses_.rate_limit;
    return;
  }
  const auto shared = std::make_shared<const ConnectionEnd>(end);
  for (const auto& lane : lanes_) {
    if (!lane->sink->wants()) continue;
    const std::lock_guard lock(lane->mutex);
    if (lane->queue.size() >= options_.queue) {
      ++losses_.queue;
      continue;
    }
    lane->queue.push_back(shared);
    if (lane->queue.size() == 1) lane->news.notify_one();
  }
}

void Exporter::report(Lane& lane, const Result<void>& result) {
  if (!result && !lane.failing && on_error_) on_error_(result.error());
  lane.failing = !result;
}

// One at a time from the queue, so that its bound is the bound of what waits.
void Exporter::serve(Lane& lane) {
  bool unflushed = false;
  std::unique_lock lock(lane.mutex);
  for (;;) {
    if (lane.queue.empty()) {
      if (unflushed) {
        lock.unlock();
        if (const auto flushed = lane.sink->flush(); !flushed) report(lane, flushed);
        unflushed = false;
        lock.lock();
        continue;
      }
      if (lane.ending) return;
      lane.news.wait(lock);
      continue;
    }
    const auto end = std::move(lane.queue.front());
    lane.queue.pop_front();
    lock.unlock();
    const auto written = lane.sink->write(Record{event_id(host_, *end), end->cause, to_json(host_, *end)});
    if (!written) ++losses_.sink;
    report(lane, written);
    unflushed = true;
    lock.lock();
  }
}

}  // namespace sockalarm::observe
