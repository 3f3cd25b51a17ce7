// SPDX-License-Identifier: Apache-2.0
#include "observe/exporter.h"

#include <algorithm>
#include <new>

#include "base/blocked_signals.h"

namespace sockalarm::observe {
namespace {

// What is thrown on a sink's thread must not end the process. Texts this short need no memory.
template <class Call>
Result<void> caught(Call call) noexcept {
  try {
    return call();
  } catch (const std::bad_alloc&) {
    return fail(Error(std::make_error_code(std::errc::not_enough_memory), "out of memory"));
  } catch (const std::exception& error) {
    try {
      return fail(Error(std::make_error_code(std::errc::io_error), error.what()));
    } catch (...) {
    }
  } catch (...) {
  }
  return fail(Error(std::make_error_code(std::errc::io_error), "a sink threw"));
}

}  // namespace

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
  try {
    for (auto& sink : sinks) {
      lanes_.push_back(std::make_unique<Lane>(std::move(sink)));
      lanes_.back()->thread = std::thread([this, &lane = *lanes_.back()] { serve(lane); });
    }
  } catch (...) {
    if (!lanes_.empty() && !lanes_.back()->thread.joinable()) lanes_.pop_back();
    stop();
    throw;
  }
}

Exporter::~Exporter() { stop(); }

void Exporter::stop(std::chrono::milliseconds patience) noexcept {
  const auto until = std::chrono::steady_clock::now() + patience;
  for (const auto& lane : lanes_) {
    const MutexLock lock(lane->mutex);
    lane->ending = true;
    lane->news.notify_one();
  }
  for (const auto& lane : lanes_) {
    const MutexLock lock(lane->mutex);
    while (!lane->has_ended && lane->ended.wait_until(lane->mutex, until)) {
    }
    lane->given_up = true;
  }
  for (const auto& lane : lanes_) {
    lane->sink->stop();
    if (lane->thread.joinable()) lane->thread.join();
  }
}

void Exporter::offer(const ConnectionEnd& end) noexcept {
  if (!rate_limit_.admits(RateLimit::Clock::now())) {
    ++losses_.rate_limit;
    return;
  }
  auto lane = lanes_.begin();
  try {
    const auto shared = std::make_shared<const ConnectionEnd>(end);
    for (; lane != lanes_.end(); ++lane) put(**lane, shared);
  } catch (const std::bad_alloc&) {
    losses_.queue += static_cast<std::uint64_t>(
        std::count_if(lane, lanes_.end(), [](const auto& left) { return left->sink->wants(); }));
  }
}

void Exporter::put(Lane& lane, const std::shared_ptr<const ConnectionEnd>& end) {
  if (!lane.sink->wants()) return;
  const MutexLock lock(lane.mutex);
  if (lane.queue.size() >= options_.queue) {
    ++losses_.queue;
    return;
  }
  lane.queue.push_back(end);
  if (lane.queue.size() == 1) lane.news.notify_one();
}

void Exporter::report(Lane& lane, const Result<void>& result) {
  if (!result && !lane.failing && on_error_) on_error_(result.error());
  lane.failing = !result;
}

void Exporter::write(Lane& lane, const ConnectionEnd& end) {
  const auto written =
      caught([&] { return lane.sink->write(Record{event_id(host_, end), end.cause, to_json(host_, end)}); });
  if (!written) {
    const MutexLock lock(lane.mutex);
    ++(lane.given_up ? losses_.queue : losses_.sink);
  }
  report(lane, written);
}

// One at a time from the queue, so that its bound is the bound of what waits.
void Exporter::serve(Lane& lane) noexcept {
  bool unflushed = false;
  MutexLock lock(lane.mutex);
  for (;;) {
    if (lane.given_up) {
      losses_.queue += lane.queue.size();
      lane.queue.clear();
    }
    if (!lane.queue.empty()) {
      const auto end = std::move(lane.queue.front());
      lane.queue.pop_front();
      lock.unlock();
      caught([&]() -> Result<void> { return write(lane, *end), Result<void>(); });
      unflushed = true;
      lock.lock();
    } else if (unflushed && !lane.given_up) {
      lock.unlock();
      caught([&]() -> Result<void> {
        if (const auto flushed = caught([&] { return lane.sink->flush(); }); !flushed) report(lane, flushed);
        return {};
      });
      unflushed = false;
      lock.lock();
    } else if (lane.ending) {
      break;
    } else {
      lane.news.wait(lane.mutex);
    }
  }
  lane.has_ended = true;
  lane.ended.notify_one();
}

}  // namespace sockalarm::observe
