// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/result.h>

#include <chrono>

namespace sockalarm {

// Asks the scheduler to cut the calling thread's share of the CPU into turns of this length, `100us` to
// `100ms`; 0: as long as everybody's. The share stays the same. But a thread of short turns that is woken
// need not wait until one of longer turns has used its own up, so on a busy machine a signal reaches it in
// microseconds instead of milliseconds: worth it for threads that wait for a client and are to be stopped
// when it leaves. No privilege is needed. docs/delivery.md has figures.
//
// Per thread; threads and programs that it starts from then on inherit it. The Watcher's own thread has short
// turns already.
//
// Errors: `unsupported` before Linux 6.12, off Linux, and where a seccomp filter refuses it;
// `invalid_options` for other lengths and for a thread with a scheduling policy other than SCHED_OTHER and
// SCHED_BATCH. Source: sched(7), sched_setattr(2); kernel/sched/syscalls.c, kernel/sched/fair.c
// (PREEMPT_SHORT).
[[nodiscard]] Result<void> set_time_slice(std::chrono::nanoseconds slice);

}  // namespace sockalarm
