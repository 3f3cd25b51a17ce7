// SPDX-License-Identifier: Apache-2.0
#include "core/time_slice.h"

#include <sockalarm/time_slice.h>

#include <cerrno>
#include <cstdint>
#include <string>

#if SOCKALARM_LINUX
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace sockalarm {
namespace detail {
#if SOCKALARM_LINUX
namespace {

constexpr std::chrono::microseconds kShortest{100};
constexpr std::chrono::milliseconds kLongest{100};

// sched_setattr(2), the first version of the structure (SCHED_ATTR_SIZE_VER0): glibc has none before 2.41.
struct SchedulingAttributes {
  std::uint32_t size = 48;
  std::uint32_t policy = 0;
  std::uint64_t flags = 0;
  std::int32_t nice = 0;
  std::uint32_t priority = 0;
  std::uint64_t runtime = 0;  // of SCHED_OTHER: the slice, in ns; before 6.12 it is ignored and reads 0
  std::uint64_t deadline = 0;
  std::uint64_t period = 0;
};
static_assert(sizeof(SchedulingAttributes) == 48);

constexpr std::uint64_t kResetOnFork = 1;  // SCHED_FLAG_RESET_ON_FORK

Result<SchedulingAttributes> attributes() {
  SchedulingAttributes now;
  if (::syscall(SYS_sched_getattr, 0, &now, sizeof now, 0) == 0) return now;
  return fail(Error(Errc::unsupported, Error::from_errno(errno, "sched_getattr()").message()));
}

}  // namespace

Result<void> set_time_slice(std::chrono::nanoseconds slice, Heirs heirs) {
  if (slice.count() != 0 && (slice < kShortest || slice > kLongest))
    return fail(Error(Errc::invalid_options, "a time slice of " + std::to_string(slice.count()) +
                                                 " ns: the kernel knows 100 us to 100 ms, or 0"));
  auto wanted = attributes();
  if (!wanted) return fail(wanted.error());
  if (wanted->policy != SCHED_OTHER && wanted->policy != SCHED_BATCH)
    return fail(Error(Errc::invalid_options,
                      "a time slice is for threads under SCHED_OTHER or SCHED_BATCH; this one has policy " +
                          std::to_string(wanted->policy) + " (sched(7))"));
  wanted->size = sizeof *wanted;
  wanted->runtime = static_cast<std::uint64_t>(slice.count());
  if (heirs == Heirs::none) wanted->flags |= kResetOnFork;
  if (::syscall(SYS_sched_setattr, 0, &*wanted, 0) != 0)
    return fail(Error(Errc::unsupported, Error::from_errno(errno, "sched_setattr()").message()));
  const auto now = attributes();
  if (now && (slice.count() == 0 || now->runtime == wanted->runtime)) return {};
  return fail(Error(Errc::unsupported, "this kernel has no time slices of a thread's own (Linux 6.12 has)"));
}
#else
Result<void> set_time_slice(std::chrono::nanoseconds /*slice*/, Heirs /*heirs*/) {
  return fail(Error(Errc::unsupported, "time slices of a thread's own are only on Linux"));
}
#endif
}  // namespace detail

Result<void> set_time_slice(std::chrono::nanoseconds slice) {
  return detail::set_time_slice(slice, detail::Heirs::same);
}

}  // namespace sockalarm
