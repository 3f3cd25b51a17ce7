// SPDX-License-Identifier: Apache-2.0
#include "base/mutex.h"

#include <gtest/gtest.h>
#include <pthread.h>

#include <atomic>

#include "harness/alarms.h"

namespace sockalarm {
namespace {

using Clock = std::chrono::steady_clock;

TEST(ConditionVariable, WaitsNoLongerThanUntilThatTime) {
  Mutex mutex;
  ConditionVariable changed;
  const MutexLock lock(mutex);
  const auto until = Clock::now() + std::chrono::milliseconds(20);
  while (changed.wait_until(mutex, until)) {
  }
  EXPECT_GE(Clock::now(), until);
}

TEST(ConditionVariable, IsWokenBeforeThatTime) {
  Mutex mutex;
  ConditionVariable changed;
  bool told = false;
  std::thread teller([&] {
    const MutexLock lock(mutex);
    told = true;
    changed.notify_one();
  });
  {
    const MutexLock lock(mutex);
    const auto until = Clock::now() + test::kPatience;
    while (!told && changed.wait_until(mutex, until)) {
    }
    EXPECT_TRUE(told);
  }
  teller.join();
}

#if !defined(__SANITIZE_THREAD__)  // which does not see that a cancelled wait has the mutex again
struct Wait {
  Mutex mutex;
  ConditionVariable changed;
  bool waits GUARDED_BY(mutex) = false;
  bool for_ever = false;
};

void* wait_for_nothing(void* closure) {
  auto& wait = *static_cast<Wait*>(closure);
  const MutexLock lock(wait.mutex);
  wait.waits = true;
  for (;;)
    if (wait.for_ever)
      wait.changed.wait(wait.mutex);
    else
      wait.changed.wait_until(wait.mutex, Clock::now() + test::kPatience);
}

TEST(ConditionVariable, AThreadThatIsCancelledAmidAWaitLeavesTheMutexFree) {
  for (const bool for_ever : {true, false}) {
    Wait wait;
    wait.for_ever = for_ever;
    pthread_t thread{};
    ASSERT_EQ(::pthread_create(&thread, nullptr, wait_for_nothing, &wait), 0);
    ASSERT_TRUE(test::eventually([&] {
      const MutexLock lock(wait.mutex);
      return wait.waits;
    }));
    ASSERT_EQ(::pthread_cancel(thread), 0);
    void* result = nullptr;
    ASSERT_EQ(::pthread_join(thread, &result), 0);
    EXPECT_EQ(result, PTHREAD_CANCELED);
    const MutexLock lock(wait.mutex);  // of a mutex that is held, this would not come back
  }
}
#endif

}  // namespace
}  // namespace sockalarm
