// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstddef>

#include "c_abi/entry.h"
#include "c_abi/handles.h"

namespace sockalarm::c_abi {
namespace {

static_assert(static_cast<int>(SourceKind::automatic) == SOCKALARM_SOURCE_AUTOMATIC &&
              static_cast<int>(SourceKind::kernel) == SOCKALARM_SOURCE_KERNEL &&
              static_cast<int>(SourceKind::epoll) == SOCKALARM_SOURCE_EPOLL &&
              static_cast<int>(SourceKind::poll) == SOCKALARM_SOURCE_POLL &&
              static_cast<int>(SourceKind::daemon) == SOCKALARM_SOURCE_DAEMON);
static_assert(static_cast<int>(Delivery::automatic) == SOCKALARM_DELIVERY_AUTOMATIC &&
              static_cast<int>(Delivery::task_work) == SOCKALARM_DELIVERY_TASK_WORK &&
              static_cast<int>(Delivery::sigio) == SOCKALARM_DELIVERY_SIGIO &&
              static_cast<int>(Delivery::dispatcher) == SOCKALARM_DELIVERY_DISPATCHER);
static_assert(static_cast<int>(Waking::sleep) == SOCKALARM_WAKING_SLEEP &&
              static_cast<int>(Waking::adaptive) == SOCKALARM_WAKING_ADAPTIVE &&
              static_cast<int>(Waking::spin) == SOCKALARM_WAKING_SPIN);
static_assert(static_cast<int>(LogLevel::debug) == SOCKALARM_LOG_DEBUG &&
              static_cast<int>(LogLevel::info) == SOCKALARM_LOG_INFO &&
              static_cast<int>(LogLevel::warning) == SOCKALARM_LOG_WARNING &&
              static_cast<int>(LogLevel::error) == SOCKALARM_LOG_ERROR);

constexpr std::size_t kFirstSize = sizeof(size_t);  // of a struct that has no more than its size

// A struct of the caller's version as one of ours: what it has not is zero, and what it has beyond ours must
// be zero, as clone3(2) and openat2(2) do it.
Result<sockalarm_options> read_options(const sockalarm_options& given) {
  if (given.size < kFirstSize || given.size > 4096)
    return fail(Error(std::make_error_code(std::errc::invalid_argument),
                      "sockalarm_options: `size` is " + std::to_string(given.size) +
                          "; set it to sizeof(sockalarm_options)"));
  sockalarm_options known{};
  std::memcpy(&known, &given, std::min(given.size, sizeof known));
  const auto* const bytes = reinterpret_cast<const unsigned char*>(&given);
  for (std::size_t i = sizeof known; i < given.size; ++i)
    if (bytes[i] != 0)
      return fail(Error::from_errno(E2BIG, "sockalarm_options: byte " + std::to_string(i) +
                                               " is set, which this version of the library does not know"));
  return known;
}

template <class Enum>
Result<Enum> read_enum(int32_t value, int32_t last, const char* name) {
  if (value >= 0 && value <= last) return static_cast<Enum>(value);
  return fail(Error(Errc::invalid_options, std::string(name) + " is " + std::to_string(value) +
                                               "; it must be 0 to " + std::to_string(last)));
}

Result<Options> to_options(const sockalarm_options& given) {
  Options options;
  const auto source = read_enum<SourceKind>(given.source, SOCKALARM_SOURCE_DAEMON, "source");
  if (!source) return fail(source.error());
  const auto delivery = read_enum<Delivery>(given.delivery, SOCKALARM_DELIVERY_DISPATCHER, "delivery");
  if (!delivery) return fail(delivery.error());
  const auto waking = read_enum<Waking>(given.waking, SOCKALARM_WAKING_SPIN, "waking");
  if (!waking) return fail(waking.error());
  options.source = *source;
  options.delivery = *delivery;
  options.waking = *waking;
  options.realtime_priority = given.realtime_priority;
  options.max_watches = given.max_watches;
  if (given.helper_threads != 0) options.helper_threads = given.helper_threads;
  if (given.closed_check_ms != 0) options.closed_check = std::chrono::milliseconds(given.closed_check_ms);
  if (given.ring_bytes != 0) options.ring_bytes = given.ring_bytes;
  if (given.spin_for != 0)
    options.spin_for =
        std::chrono::floor<std::chrono::microseconds>(std::chrono::nanoseconds(given.spin_for));
  if (given.daemon_socket != nullptr) options.daemon_socket = given.daemon_socket;
  if (given.log != nullptr)
    options.log = [log = given.log, data = given.log_data](LogLevel level, std::string_view text) {
      log(data, static_cast<int>(level), std::string(text).c_str());
    };
  return options;
}

Result<sockalarm_context> make_context(Options options) {
  auto watcher = Watcher::create(options);
  if (!watcher) return fail(watcher.error());
  auto pipe = WakePipe::make();
  if (!pipe) return fail(pipe.error());
  return sockalarm_context{std::move(options), std::move(*watcher),
                           std::make_shared<NewsQueue>(std::move(*pipe))};
}

}  // namespace
}  // namespace sockalarm::c_abi

using namespace sockalarm::c_abi;

int sockalarm_context_new(const sockalarm_options* options, sockalarm_context** out) {
  return make_handle(__func__, out, [&]() -> sockalarm::Result<sockalarm_context> {
    if (options == nullptr) return make_context({});
    const auto given = read_options(*options);
    if (!given) return sockalarm::fail(given.error());
    auto converted = to_options(*given);
    if (!converted) return sockalarm::fail(converted.error());
    return make_context(std::move(*converted));
  });
}

void sockalarm_context_free(sockalarm_context* context) { delete context; }

int sockalarm_context_after_fork(sockalarm_context* context) {
  SOCKALARM_C_NEEDS(context);
  return guarded(__func__, [&] {
    if (!context->news->inherited()) return 0;
    auto watcher = sockalarm::Watcher::create(context->options);
    if (!watcher) return fail_with(watcher.error());
    auto pipe = sockalarm::WakePipe::make();
    if (!pipe) return fail_with(pipe.error());
    context->news->renew(std::move(*pipe));
    context->watcher = std::move(*watcher);
    return 1;
  });
}

int sockalarm_context_describe(const sockalarm_context* context, char* buffer, size_t size) {
  SOCKALARM_C_NEEDS(context);
  return guarded(__func__, [&] {
    const sockalarm::Description description = context->watcher.describe();
    std::string text = description.text;
    for (const std::string& why : description.why_not) text += "\n" + why;
    return copy_text(text, buffer, size);
  });
}

int sockalarm_context_source(const sockalarm_context* context) {
  SOCKALARM_C_NEEDS(context);
  return guarded(__func__, [&] { return static_cast<int>(context->watcher.describe().source); });
}

int sockalarm_context_stats(const sockalarm_context* context, sockalarm_stats* stats) {
  SOCKALARM_C_NEEDS(context);
  SOCKALARM_C_NEEDS(stats);
  if (stats->size < kFirstSize) return bad_argument(__func__, "set stats->size to sizeof(sockalarm_stats)");
  return guarded(__func__, [&] {
    const sockalarm::Stats now = context->watcher.stats();
    const sockalarm_stats known = {stats->size,      now.watches,     now.fired,          now.fired_directly,
                                   now.wakeups,      now.actions_run, now.actions_failed, now.records,
                                   now.records_lost, now.records_bad};
    const std::size_t size = stats->size;  // of a later version, maybe: what we do not know is 0
    std::memset(stats, 0, size);
    std::memcpy(stats, &known, std::min(size, sizeof known));
    return 0;
  });
}

int sockalarm_context_fd(const sockalarm_context* context) {
  SOCKALARM_C_NEEDS(context);
  return context->news->fd();
}

int sockalarm_context_next(sockalarm_context* context, sockalarm_news* news) {
  SOCKALARM_C_NEEDS(context);
  SOCKALARM_C_NEEDS(news);
  return guarded(__func__, [&] {
    if (context->news->inherited())
      return fail_with(SOCKALARM_E_INERT_AFTER_FORK,
                       "this context was inherited by fork(); call sockalarm_context_after_fork() first");
    const auto oldest = context->news->take();
    if (oldest) *news = *oldest;
    return oldest ? 1 : 0;
  });
}

int sockalarm_events_text(uint32_t events, char* buffer, size_t size) {
  return guarded(__func__, [&] { return copy_text(to_string(sockalarm::Events(events)), buffer, size); });
}

int sockalarm_events_parse(const char* text, uint32_t* events) {
  SOCKALARM_C_NEEDS(text);
  SOCKALARM_C_NEEDS(events);
  return guarded(__func__, [&] {
    const auto parsed = sockalarm::parse_events(text);
    if (!parsed) return fail_with(parsed.error());
    *events = parsed->bits();
    return 0;
  });
}

int sockalarm_source_text(int source, char* buffer, size_t size) {
  if (source < 0 || source > SOCKALARM_SOURCE_DAEMON)
    return bad_argument(__func__, "`source` is none of SOCKALARM_SOURCE_*");
  return copy_text(to_string(static_cast<sockalarm::SourceKind>(source)), buffer, size);
}

int sockalarm_source_parse(const char* text) {
  SOCKALARM_C_NEEDS(text);
  return guarded(__func__, [&] {
    const auto parsed = sockalarm::parse_source(text);
    return parsed ? static_cast<int>(*parsed) : fail_with(parsed.error());
  });
}
