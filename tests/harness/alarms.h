// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>
#include <sockalarm/sockalarm.h>

#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <string>
#include <vector>

namespace sockalarm::test {

using namespace std::chrono_literals;

// Far beyond any honest delay, also in an emulated machine under a sanitizer; only a failing test waits so
// long.
inline constexpr auto kPatience = 30s;

// Collects what call() actions tell, and waits for it.
class Journal {
 public:
  void write(std::string line) {
    {
      const std::lock_guard lock(mutex_);
      lines_.push_back(std::move(line));
    }
    changed_.notify_all();
  }
  Action entry(std::string line) {
    return call([this, line = std::move(line)] { write(line); });
  }
  // Writes the events that set the alarm off.
  Action cause() {
    return call([this](const Event& event) {
      {
        const std::lock_guard lock(mutex_);
        last_ = event;
      }
      write(to_string(event.what));
      return Verdict::proceed;
    });
  }
  bool wait_for(std::size_t count, std::chrono::nanoseconds patience = kPatience) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, patience, [&] { return lines_.size() >= count; });
  }
  std::vector<std::string> lines() const {
    const std::lock_guard lock(mutex_);
    return lines_;
  }
  Event last() const {
    const std::lock_guard lock(mutex_);
    return last_;
  }

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::string> lines_;
  Event last_;
};

// The journal must outlive the Watcher.
inline Options logging_to(Journal& journal, LogLevel at_least) {
  Options options;
  options.log = [&journal, at_least](LogLevel level, std::string_view text) {
    if (level >= at_least) journal.write(std::string(text));
  };
  return options;
}

// A condition that another thread makes true without telling; looked at until it is, or patience ends.
template <class Condition>
bool eventually(Condition condition, std::chrono::nanoseconds patience = kPatience) {
  const auto end = std::chrono::steady_clock::now() + patience;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(1ms);
  }
  return true;
}

// A child that was forked while other threads ran cannot have threads of its own under the sanitizers: TSan
// does not follow them, and of ASan's allocator such a thread may have held a lock (gcc 12).
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define SOCKALARM_CHILD_THREADS 0
#else
#define SOCKALARM_CHILD_THREADS 1
#endif

// Kernel tests may be skipped on a developer's machine without privileges, never in CI.
inline bool kernel_required() { return std::getenv("SOCKALARM_REQUIRE_KERNEL") != nullptr; }

// What a parameterised test runs over: a source, and who delivers signals.
struct Way {
  Way(SourceKind kind, Delivery who = Delivery::automatic) : source(kind), delivery(who) {}  // NOLINT
  operator SourceKind() const { return source; }                                             // NOLINT
  SourceKind source;
  Delivery delivery;
};

// Served by BPF programs: a table of limited length, and a ring that may be full.
constexpr bool has_ring(SourceKind kind) { return kind == SourceKind::kernel || kind == SourceKind::daemon; }

inline Result<Watcher> make_watcher(Way way, Options options = {}) {
  options.source = way.source;
  options.delivery = way.delivery;
  if (const char* const socket = std::getenv("SOCKALARM_TEST_DAEMON_SOCKET")) options.daemon_socket = socket;
  return Watcher::create(std::move(options));
}

// In a test body: a Watcher of that kind, or the end of the test.
#define SOCKALARM_WATCHER(name, kind, ...)                                                 \
  auto name##_result = ::sockalarm::test::make_watcher(kind __VA_OPT__(, ) __VA_ARGS__);   \
  if (!name##_result) {                                                                    \
    if (::sockalarm::test::kernel_required() || (kind) != ::sockalarm::SourceKind::kernel) \
      FAIL() << name##_result.error().message();                                           \
    GTEST_SKIP() << name##_result.error().message();                                       \
  }                                                                                        \
  ::sockalarm::Watcher& name = *name##_result

}  // namespace sockalarm::test
