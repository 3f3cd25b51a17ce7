// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/sockalarm.h>
#include <sockalarm/unique_fd.h>

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "bench/support/basics.h"
#include "bench/support/waiting_thread.h"

namespace sockalarm::bench {

// One way of being told that a peer has gone. A batch of connections is prepared at once, as a server does
// when it accepts them; then single ones are armed and disarmed.
class Contender {
 public:
  virtual ~Contender() = default;
  virtual void prepare(std::span<const int> fds) = 0;
  virtual void arm(std::size_t first, std::size_t count = 1) = 0;
  virtual void disarm(std::size_t index) = 0;
  virtual void forget() = 0;  // the batch
  virtual const Watcher* watcher() const noexcept { return nullptr; }
};

class SockalarmContender final : public Contender {
 public:
  SockalarmContender(Watcher watcher, ActionChain chain)
      : watcher_(std::move(watcher)), chain_(std::move(chain)) {}
  ~SockalarmContender() override { forget(); }

  void prepare(std::span<const int> fds) override {
    forget();
    watches_.reserve(fds.size());
    for (const int fd : fds) {
      auto watch = watcher_.watch(fd);
      if (!watch) throw std::runtime_error(watch.error().message());
      watches_.push_back(std::move(*watch));
    }
    alarms_.resize(fds.size());
  }
  void arm(std::size_t first, std::size_t count) override {
    for (std::size_t i = first; i < first + count; ++i) {
      auto alarm = watches_[i].arm(chain_);
      if (!alarm) throw std::runtime_error(alarm.error().message());
      alarms_[i].emplace(std::move(*alarm));
    }
  }
  void disarm(std::size_t index) override { alarms_[index].reset(); }
  void forget() override {
    alarms_.clear();
    watches_.clear();
  }
  const Watcher* watcher() const noexcept override { return &watcher_; }

 private:
  Watcher watcher_;
  ActionChain chain_;
  std::vector<Watch> watches_;
  std::vector<std::optional<Alarm>> alarms_;
};

class ThreadContender final : public Contender {
 public:
  explicit ThreadContender(std::unique_ptr<WaitingThread> thread) : thread_(std::move(thread)) {}
  ~ThreadContender() override { forget(); }
  void prepare(std::span<const int> fds) override {
    forget();
    fds_.assign(fds.begin(), fds.end());
    armed_.assign(fds.size(), false);
  }
  void arm(std::size_t first, std::size_t count) override {
    thread_->add(std::span(fds_).subspan(first, count));
    for (std::size_t i = first; i < first + count; ++i) armed_[i] = true;
  }
  void disarm(std::size_t index) override {
    if (armed_[index]) thread_->remove(std::span(fds_).subspan(index, 1));
    armed_[index] = false;
  }
  void forget() override {
    std::vector<int> left;
    for (std::size_t i = 0; i < fds_.size(); ++i)
      if (armed_[i]) left.push_back(fds_[i]);
    thread_->remove(left);
    fds_.clear();
  }

 private:
  std::unique_ptr<WaitingThread> thread_;
  std::vector<int> fds_;
  std::vector<bool> armed_;
};

// A Watcher that really does what was asked for, or the reason why there is none.
inline Result<Watcher> make_watcher(Options options) {
  const SourceKind source = options.source;
  const Delivery delivery = options.delivery;
  auto watcher = Watcher::create(std::move(options));
  if (!watcher) return watcher;
  const Description found = watcher->describe();
  if (source != SourceKind::automatic && found.source != source)
    return tl::unexpected(Error(Errc::unsupported, "got the source " + std::string(to_string(found.source))));
  if (delivery != Delivery::automatic && found.delivery != delivery)
    return tl::unexpected(
        Error(Errc::unsupported, "got the delivery " + std::string(to_string(found.delivery))));
  return watcher;
}

inline std::vector<int> numbers(const std::vector<UniqueFd>& fds) {
  std::vector<int> result;
  result.reserve(fds.size());
  for (const UniqueFd& fd : fds) result.push_back(fd.get());
  return result;
}

}  // namespace sockalarm::bench
