// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>

// What clang's thread safety analysis (-Wthread-safety) has to be told, by the names of its documentation:
// https://clang.llvm.org/docs/ThreadSafetyAnalysis.html. Nothing for other compilers. Constructors and
// destructors are not analysed.
#if defined(__clang__)
#define SOCKALARM_THREAD_ANNOTATION(x) __attribute__((x))
#else
#define SOCKALARM_THREAD_ANNOTATION(x)
#endif
#define CAPABILITY(name) SOCKALARM_THREAD_ANNOTATION(capability(name))
#define SCOPED_CAPABILITY SOCKALARM_THREAD_ANNOTATION(scoped_lockable)
#define GUARDED_BY(x) SOCKALARM_THREAD_ANNOTATION(guarded_by(x))
#define REQUIRES(...) SOCKALARM_THREAD_ANNOTATION(requires_capability(__VA_ARGS__))
#define EXCLUDES(...) SOCKALARM_THREAD_ANNOTATION(locks_excluded(__VA_ARGS__))
#define ACQUIRE(...) SOCKALARM_THREAD_ANNOTATION(acquire_capability(__VA_ARGS__))
#define RELEASE(...) SOCKALARM_THREAD_ANNOTATION(release_capability(__VA_ARGS__))
#define TRY_ACQUIRE(...) SOCKALARM_THREAD_ANNOTATION(try_acquire_capability(__VA_ARGS__))
// With the reason beside it.
#define NO_THREAD_SAFETY_ANALYSIS SOCKALARM_THREAD_ANNOTATION(no_thread_safety_analysis)

namespace sockalarm {

// std::mutex, which libstdc++ does not annotate.
class CAPABILITY("mutex") Mutex {
 public:
  Mutex() = default;
  Mutex(const Mutex&) = delete;
  Mutex& operator=(const Mutex&) = delete;

  void lock() ACQUIRE() { native_.lock(); }
  void unlock() RELEASE() { native_.unlock(); }

 private:
  friend class ConditionVariable;
  std::mutex native_;
};

// Holds a mutex until the end of the scope, but for what is between unlock() and lock().
class SCOPED_CAPABILITY MutexLock {
 public:
  explicit MutexLock(Mutex& mutex) ACQUIRE(mutex) : mutex_(mutex) { mutex_.lock(); }
  ~MutexLock() RELEASE() {
    if (held_) mutex_.unlock();
  }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

  void unlock() RELEASE() {
    mutex_.unlock();
    held_ = false;
  }
  void lock() ACQUIRE() {
    mutex_.lock();
    held_ = true;
  }

 private:
  Mutex& mutex_;
  bool held_ = true;
};

// For a function that is called with the mutex held: lets go of it until the end of the scope.
class SCOPED_CAPABILITY MutexUnlock {
 public:
  explicit MutexUnlock(Mutex& mutex) RELEASE(mutex) : mutex_(mutex) { mutex_.unlock(); }
  ~MutexUnlock() RELEASE() { mutex_.lock(); }  // of the scope: the mutex is held again
  MutexUnlock(const MutexUnlock&) = delete;
  MutexUnlock& operator=(const MutexUnlock&) = delete;

 private:
  Mutex& mutex_;
};

// std::condition_variable. It takes no predicate, since the analysis does not see who calls that one: wait in
// a loop.
class ConditionVariable {
 public:
  void wait(Mutex& mutex) REQUIRES(mutex) {
    Held held(mutex);
    native_.wait(held.lock);
  }
  // False: that time has come.
  template <class Clock, class Duration>
  bool wait_until(Mutex& mutex, std::chrono::time_point<Clock, Duration> until) REQUIRES(mutex) {
    Held held(mutex);
    return native_.wait_until(held.lock, until) == std::cv_status::no_timeout;
  }
  void notify_one() noexcept { native_.notify_one(); }
  void notify_all() noexcept { native_.notify_all(); }

 private:
  // The caller's scope unlocks, also if the thread is cancelled meanwhile, which unwinds it.
  struct Held {
    explicit Held(Mutex& mutex) : lock(mutex.native_, std::adopt_lock) {}
    Held(const Held&) = delete;
    Held& operator=(const Held&) = delete;
    ~Held() { lock.release(); }
    std::unique_lock<std::mutex> lock;
  };
  std::condition_variable native_;
};

}  // namespace sockalarm
