// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "observe/sink.h"
#include "observe/web_server.h"

namespace sockalarm::observe {

// Gives records to those who follow them right now, a line each. Who reads too slowly loses the newest, and
// is told how many where they would stand. Any thread.
class EventFeed {
 public:
  struct Options {
    std::size_t readers = 16;
    std::size_t bytes = std::size_t{1} << 20;  // that wait for each reader
  };

  EventFeed() : EventFeed(Options()) {}
  explicit EventFeed(Options options) : options_(options) {}
  EventFeed(const EventFeed&) = delete;
  EventFeed& operator=(const EventFeed&) = delete;

  // `news` is called when there is something to read, by the thread that publishes. Null: no more readers.
  // The stream may outlive the feed.
  std::unique_ptr<WebStream> follow(std::function<void()> news);
  // Whether anybody reads: else a record need not even be encoded.
  bool is_followed() const noexcept { return followed_.load(std::memory_order_relaxed) > 0; }
  void publish(const std::string& json);
  std::uint64_t lost() const noexcept { return lost_.load(std::memory_order_relaxed); }  // by all readers

 private:
  class Reader;

  const Options options_;
  mutable Mutex mutex_;
  std::vector<std::weak_ptr<Reader>> readers_ GUARDED_BY(mutex_);
  // Hints that others read without the lock; written under it.
  std::atomic<std::size_t> followed_{0};
  std::atomic<std::uint64_t> lost_{0};
};

// The feed as one of the sinks.
class EventFeedSink final : public Sink {
 public:
  explicit EventFeedSink(EventFeed& feed) : feed_(feed) {}
  bool wants() const noexcept override { return feed_.is_followed(); }
  Result<void> write(const Record& record) override {
    feed_.publish(record.json);
    return {};
  }
  Result<void> flush() override { return {}; }

 private:
  EventFeed& feed_;
};

}  // namespace sockalarm::observe
