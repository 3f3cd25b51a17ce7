// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/sockalarm.h>

#include <atomic>
#include <csignal>
#include <cstdint>
#include <deque>
#include <iostream>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "harness/alarms.h"
#include "harness/sockets.h"

namespace sockalarm::soak {

struct Counts {
  std::atomic<std::uint64_t> visitors{0}, fired{0}, cancelled{0}, signals{0}, storms{0}, wrong{0};
};

// Real-time, because those queue: as many come as were sent.
inline int alarm_signal() { return SIGRTMIN + 3; }
inline thread_local volatile std::uint64_t signals_here = 0;
inline void take_signals() {
  struct sigaction action{};
  action.sa_handler = [](int) { signals_here = signals_here + 1; };
  action.sa_flags = SA_RESTART;  // the calls of this program are not what is tested
  ::sigaction(alarm_signal(), &action, nullptr);
}

// Those who are connected now to one Watcher. One thread, which is the one that arms.
class Visitors {
 public:
  Visitors(const Watcher& watcher, unsigned seed, Counts& counts)
      : watcher_(watcher), random_(seed), counts_(counts) {}

  // Something that happens to servers.
  void turn() {
    happen();
    count_signals();
  }
  void all_leave() {
    leave(here_.size());
    while (!gone_.empty()) dismiss_oldest();
    count_signals();
  }

 private:
  static constexpr std::size_t kMost = 250, kFew = 50;
  static constexpr std::size_t kRemembered = 30;  // so many who have left are still there, with their alarms

  void happen() {
    switch (below(10)) {
      case 0:
      case 1:
      case 2:
      case 3:
        return come();
      case 4:
        return cancel_one();
      case 5:
        return close_one();
      case 6:
        return half_close_one();
      case 7:
      case 8:
        return leave(1);
      default:
        if (below(60) != 0 || here_.size() < kFew) return come();
        ++counts_.storms;
        return leave(here_.size() - below(kFew));
    }
  }
  // An alarm, and how often it has run.
  struct Armed {
    std::unique_ptr<std::atomic<int>> ran = std::make_unique<std::atomic<int>>(0);
    bool signals = false;
    int expected = 0, counted = 0;  // runs; of these, in signals_expected_
    std::optional<Alarm> alarm;
  };
  struct Visitor {
    test::Connection connection;
    std::optional<Watch> watch;
    std::vector<Armed> alarms;
  };

  std::size_t below(std::size_t n) { return random_() % n; }
  Visitor take_one() {
    std::swap(here_[below(here_.size())], here_.back());
    Visitor one = std::move(here_.back());
    here_.pop_back();
    return one;
  }

  void come() {
    if (here_.size() >= kMost) return leave(1 + below(kMost));
    Visitor visitor;
    visitor.connection = below(10) == 0 ? test::unix_pair() : test::tcp_pair();
    auto watch = watcher_.watch(visitor.connection.ours.get());
    if (!watch) return wrong("watch", watch.error().message());
    visitor.watch.emplace(std::move(*watch));
    for (std::size_t count = 1 + below(3); count > 0; --count) arm(visitor);
    if (visitor.alarms.empty()) return;
    here_.push_back(std::move(visitor));
    ++counts_.visitors;
  }

  void arm(Visitor& visitor) {
    Armed armed;
    armed.signals = below(2) == 0;
    const Action tell = call([ran = armed.ran.get()] { ran->fetch_add(1); });
    auto alarm =
        visitor.watch->arm(armed.signals ? ActionChain{send_signal(alarm_signal()), tell} : ActionChain(tell),
                           {.on = events::shut | events::closed});
    if (!alarm) return wrong("arm", alarm.error().message());
    armed.alarm.emplace(std::move(*alarm));
    armed.expected = 1;
    visitor.alarms.push_back(std::move(armed));
  }

  // What was cancelled never runs; it may be armed again.
  void cancel_one() {
    if (here_.empty()) return;
    Visitor& visitor = here_[below(here_.size())];
    Armed& armed = visitor.alarms[below(visitor.alarms.size())];
    if (armed.alarm->cancel_and_wait() != Cancelled::prevented && armed.expected != 0)
      return wrong("cancel", "it was not armed: " + to_string(*armed.alarm));
    armed.expected = 0;
    ++counts_.cancelled;
    if (below(2) == 0) return;
    if (!armed.alarm->start()) return wrong("start", to_string(*armed.alarm));
    armed.expected = 1;
  }

  // We close first, as a server that has answered does.
  void close_one() {
    if (here_.empty()) return;
    Visitor visitor = take_one();
    if (below(2) == 0) {
      visitor.connection.ours.reset();
      settle(visitor);
    } else {
      for (Armed& armed : visitor.alarms)
        armed.expected -= armed.alarm->cancel_and_wait() == Cancelled::prevented;
      visitor.connection.ours.reset();
    }
    gone(std::move(visitor));
  }

  // It goes on reading: the FIN alone fires, and arming again fires at once.
  void half_close_one() {
    if (here_.empty()) return;
    Visitor visitor = take_one();
    ::shutdown(visitor.connection.peer.get(), SHUT_WR);
    settle(visitor);
    for (Armed& armed : visitor.alarms) {
      if (!test::eventually([&] { return !armed.alarm->active(); }))
        return wrong("end of chain", to_string(*armed.alarm));
      if (!armed.alarm->start()) return wrong("start again", to_string(*armed.alarm));
      ++armed.expected;
    }
    settle(visitor);
    gone(std::move(visitor));
  }

  void leave(std::size_t count) {
    std::vector<Visitor> leaving;
    for (; count > 0 && !here_.empty(); --count) leaving.push_back(take_one());
    for (Visitor& visitor : leaving)
      if (below(3) == 0)
        test::reset(visitor.connection.peer);
      else
        visitor.connection.peer.reset();
    for (Visitor& visitor : leaving) settle(visitor);
    for (Visitor& visitor : leaving) gone(std::move(visitor));
  }

  // Until all its alarms have run as often as they must.
  void settle(Visitor& visitor) {
    for (Armed& armed : visitor.alarms) {
      if (counts_.wrong != 0) return;  // else each of a storm would be waited for
      if (!test::eventually([&] { return armed.ran->load() >= armed.expected; }))
        wrong("fire", to_string(*armed.alarm) + " ran " + std::to_string(armed.ran->load()) + " times, not " +
                          std::to_string(armed.expected));
      if (armed.signals)
        signals_expected_ +=
            static_cast<std::uint64_t>(armed.expected - std::exchange(armed.counted, armed.expected));
    }
  }

  // Its alarms stay for a while, in case that one fires once more.
  void gone(Visitor visitor) {
    gone_.push_back(std::move(visitor));
    while (gone_.size() > kRemembered) dismiss_oldest();
  }

  // Watch and alarms end in any order, and none has run more often than it must.
  void dismiss_oldest() {
    Visitor visitor = std::move(gone_.front());
    gone_.pop_front();
    if (below(2) == 0) visitor.watch.reset();
    for (Armed& armed : visitor.alarms) {
      armed.alarm.reset();
      const int times = armed.ran->load();
      if (times != armed.expected)
        wrong("exactly once",
              "ran " + std::to_string(times) + " times, not " + std::to_string(armed.expected));
      counts_.fired += static_cast<std::uint64_t>(times);
    }
    // By a reset where we had closed first: TIME_WAIT would use up all ports.
    if (!visitor.connection.ours) test::reset(visitor.connection.peer);
  }

  // To this thread, as many as alarms that begin with one have fired.
  void count_signals() {
    if (!test::eventually([&] { return signals_here >= signals_expected_; }) ||
        signals_here != signals_expected_)
      wrong("signals", std::to_string(signals_here) + ", not " + std::to_string(signals_expected_));
    counts_.signals = signals_here;
  }

  void wrong(const std::string& what, const std::string& why) {
    std::cerr << "soak: " << what << ": " << why << "\n";
    ++counts_.wrong;
  }

  const Watcher& watcher_;
  std::mt19937 random_;
  Counts& counts_;
  std::vector<Visitor> here_;
  std::deque<Visitor> gone_;
  std::uint64_t signals_expected_ = 0;
};

}  // namespace sockalarm::soak
