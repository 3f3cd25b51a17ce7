// SPDX-License-Identifier: Apache-2.0
#include "observe/event_feed.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace sockalarm::observe {

class EventFeed::Reader {
 public:
  Reader(std::size_t bound, std::function<void()> news) : bound_(bound), news_(std::move(news)) {}

  // False: no room.
  bool put(const std::string& json) EXCLUDES(mutex_) {
    const MutexLock lock(mutex_);
    if (!news_) return true;
    const std::string told = gap();
    if (waiting_.size() - read_ + told.size() + json.size() + 1 > bound_) {
      ++left_out_;
      return false;
    }
    left_out_ = 0;
    waiting_ += told + json + "\n";
    news_();  // with the lock, so that none comes after leave()
    return true;
  }
  void leave() EXCLUDES(mutex_) {
    const MutexLock lock(mutex_);
    news_ = nullptr;
  }
  std::size_t take(char* to, std::size_t size) EXCLUDES(mutex_) {
    const MutexLock lock(mutex_);
    if (read_ == waiting_.size()) {  // no record may come for long that would bring it
      waiting_ += gap();
      left_out_ = 0;
    }
    const std::size_t count = std::min(size, waiting_.size() - read_);
    std::memcpy(to, waiting_.data() + read_, count);
    read_ += count;
    if (read_ * 2 >= waiting_.size()) {  // what was read is moved over at most once
      waiting_.erase(0, read_);
      read_ = 0;
    }
    return count;
  }
  bool has_more() const EXCLUDES(mutex_) {
    const MutexLock lock(mutex_);
    return read_ < waiting_.size() || left_out_ > 0;
  }

 private:
  std::string gap() const REQUIRES(mutex_) {
    return left_out_ == 0 ? ""
                          : R"({"schema":"sockalarm.lost.v1","lost":)" + std::to_string(left_out_) + "}\n";
  }

  const std::size_t bound_;
  mutable Mutex mutex_;
  std::function<void()> news_ GUARDED_BY(mutex_);
  std::string waiting_ GUARDED_BY(mutex_);
  std::size_t read_ GUARDED_BY(mutex_) = 0;
  std::uint64_t left_out_ GUARDED_BY(mutex_) = 0;
};

std::unique_ptr<WebStream> EventFeed::follow(std::function<void()> news) {
  class Stream final : public WebStream {
   public:
    explicit Stream(std::shared_ptr<Reader> reader) : reader_(std::move(reader)) {}
    ~Stream() override { reader_->leave(); }
    std::size_t read(char* to, std::size_t size) override { return reader_->take(to, size); }
    bool has_more() const override { return reader_->has_more(); }

   private:
    const std::shared_ptr<Reader> reader_;
  };

  const MutexLock lock(mutex_);
  std::erase_if(readers_, [](const auto& reader) { return reader.expired(); });
  if (readers_.size() >= options_.readers) return nullptr;
  auto reader = std::make_shared<Reader>(options_.bytes, std::move(news));
  readers_.push_back(reader);
  followed_.store(readers_.size(), std::memory_order_relaxed);
  return std::make_unique<Stream>(std::move(reader));
}

void EventFeed::publish(const std::string& json) {
  const MutexLock lock(mutex_);
  bool somebody_left = false;
  for (const auto& known : readers_) {
    const auto reader = known.lock();
    if (!reader)
      somebody_left = true;
    else if (!reader->put(json))
      lost_.fetch_add(1, std::memory_order_relaxed);
  }
  if (!somebody_left) return;
  std::erase_if(readers_, [](const auto& reader) { return reader.expired(); });
  followed_.store(readers_.size(), std::memory_order_relaxed);
}

}  // namespace sockalarm::observe
