// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/sockalarm_c.h>
#include <sockalarm/sockalarm_request_c.h>

#include <memory>
#include <string>

#include "suite/suite.h"

namespace sockalarm::test {

// A C handle, freed at the end of the test.
template <class T, void (*Free)(T*)>
struct Freed {
  void operator()(T* handle) const { Free(handle); }
};
template <class T, void (*Free)(T*)>
using Owned = std::unique_ptr<T, Freed<T, Free>>;
using CContext = Owned<sockalarm_context, sockalarm_context_free>;
using CWatch = Owned<sockalarm_watch, sockalarm_watch_free>;
using CActions = Owned<sockalarm_actions, sockalarm_actions_free>;
using CAlarm = Owned<sockalarm_alarm, sockalarm_alarm_free>;
using CRequests = Owned<sockalarm_requests, sockalarm_requests_free>;
using CRequest = Owned<sockalarm_request, sockalarm_request_free>;
using CShield = Owned<sockalarm_shield, sockalarm_shield_free>;

inline int source_of(const Way& way) { return static_cast<int>(way.source); }

inline CContext make_context(const Way& way, int* code = nullptr) {
  sockalarm_options options{};
  options.size = sizeof options;
  options.source = source_of(way);
  sockalarm_context* made = nullptr;
  const int result = sockalarm_context_new(&options, &made);
  if (code != nullptr) *code = result;
  return CContext(made);
}
inline CWatch watch_of(const CContext& context, int fd) {
  sockalarm_watch* made = nullptr;
  EXPECT_EQ(sockalarm_watch_new(context.get(), fd, &made), 0) << sockalarm_error_text();
  return CWatch(made);
}
inline CActions no_actions() {
  sockalarm_actions* made = nullptr;
  EXPECT_EQ(sockalarm_actions_new(&made), 0);
  return CActions(made);
}
inline CAlarm armed(const CWatch& watch, const CActions& actions, std::uint32_t on = SOCKALARM_EVENT_SHUT,
                    std::int64_t deadline = 0) {
  sockalarm_alarm* made = nullptr;
  EXPECT_EQ(sockalarm_alarm_new(watch.get(), actions.get(), on, deadline, &made), 0)
      << sockalarm_error_text();
  return CAlarm(made);
}
// What a function writes that is called as write(buffer, size).
template <class Write>
std::string text_of(Write write) {
  const int length = write(nullptr, 0);
  if (length < 0) return sockalarm_error_text();
  std::string text(static_cast<std::size_t>(length) + 1, '?');
  EXPECT_EQ(write(text.data(), text.size()), length);
  EXPECT_EQ(text.back(), '\0');
  text.pop_back();
  return text;
}

// In a test body: a context over that source, or the end of the test.
#define SOCKALARM_C_CONTEXT(name, way)                                                                    \
  CContext name = make_context(way);                                                                      \
  if (!name) {                                                                                            \
    if (kernel_required() || source_of(way) != SOCKALARM_SOURCE_KERNEL) FAIL() << sockalarm_error_text(); \
    GTEST_SKIP() << sockalarm_error_text();                                                               \
  }

}  // namespace sockalarm::test
