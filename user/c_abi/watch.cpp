// SPDX-License-Identifier: Apache-2.0
#include "c_abi/entry.h"
#include "c_abi/handles.h"

using namespace sockalarm::c_abi;
using sockalarm::Cancelled;
using sockalarm::Events;

namespace {

int found_to_c(Cancelled found) noexcept {
  switch (found) {
    case Cancelled::prevented:
      return SOCKALARM_PREVENTED;
    case Cancelled::interrupted:
      return SOCKALARM_INTERRUPTED;
    case Cancelled::inactive:
      break;
  }
  return SOCKALARM_INACTIVE;
}

static_assert(sockalarm::events::shut.bits() == SOCKALARM_EVENT_SHUT &&
              sockalarm::events::all.bits() == 0x1ff &&
              sockalarm::events::fin.bits() == SOCKALARM_EVENT_FIN &&
              sockalarm::events::reset.bits() == SOCKALARM_EVENT_RESET &&
              sockalarm::events::timeout.bits() == SOCKALARM_EVENT_TIMEOUT &&
              sockalarm::events::error.bits() == SOCKALARM_EVENT_ERROR &&
              sockalarm::events::eof.bits() == SOCKALARM_EVENT_EOF &&
              sockalarm::events::readable.bits() == SOCKALARM_EVENT_READABLE &&
              sockalarm::events::urgent.bits() == SOCKALARM_EVENT_URGENT &&
              sockalarm::events::closed.bits() == SOCKALARM_EVENT_CLOSED &&
              sockalarm::events::deadline.bits() == SOCKALARM_EVENT_DEADLINE);
// What bindings write down.
static_assert(sizeof(sockalarm_event) == 24 && sizeof(sockalarm_news) == 24 + sizeof(std::uint64_t) &&
              sizeof(sockalarm_peer) == sizeof(void*));

}  // namespace

int sockalarm_watch_new(sockalarm_context* context, int fd, sockalarm_watch** out) {
  if (out != nullptr) *out = nullptr;
  SOCKALARM_C_NEEDS(context);
  return make_handle(__func__, out, [&] { return context->watcher.watch(fd); });
}

void sockalarm_watch_free(sockalarm_watch* watch) { delete watch; }

int sockalarm_watch_fd(const sockalarm_watch* watch) {
  SOCKALARM_C_NEEDS(watch);
  return watch->watch.fd();
}

int sockalarm_watch_source(const sockalarm_watch* watch) {
  SOCKALARM_C_NEEDS(watch);
  return static_cast<int>(watch->watch.source());
}

uint64_t sockalarm_watch_cookie(const sockalarm_watch* watch) {
  return watch != nullptr ? watch->watch.cookie() : 0;
}

int64_t sockalarm_watch_seen_at(const sockalarm_watch* watch, uint32_t events) {
  if (watch == nullptr) return 0;
  return std::chrono::nanoseconds(watch->watch.seen_at(Events(events)).time_since_epoch()).count();
}

int sockalarm_watch_error(const sockalarm_watch* watch) {
  SOCKALARM_C_NEEDS(watch);
  return watch->watch.error();
}

sockalarm_peer sockalarm_watch_peer(const sockalarm_watch* watch) {
  return {watch != nullptr ? watch->watch.peer().word() : nullptr};
}

int sockalarm_alarm_new(sockalarm_watch* watch, const sockalarm_actions* actions, uint32_t events,
                        int64_t deadline, sockalarm_alarm** out) {
  if (out != nullptr) *out = nullptr;
  SOCKALARM_C_NEEDS(watch);
  SOCKALARM_C_NEEDS(actions);
  return make_handle(__func__, out, [&] {
    return watch->watch.arm(actions->chain,
                            {.on = Events(events), .deadline = std::chrono::nanoseconds(deadline)});
  });
}

void sockalarm_alarm_free(sockalarm_alarm* alarm) { delete alarm; }

int sockalarm_alarm_start(sockalarm_alarm* alarm) {
  SOCKALARM_C_NEEDS(alarm);
  return guarded(__func__, [&] { return alarm->alarm.start() ? 1 : 0; });
}

int sockalarm_alarm_disarm(sockalarm_alarm* alarm) {
  SOCKALARM_C_NEEDS(alarm);
  return alarm->alarm.disarm() ? 1 : 0;
}

int sockalarm_alarm_cancel(sockalarm_alarm* alarm) {
  SOCKALARM_C_NEEDS(alarm);
  return found_to_c(alarm->alarm.cancel());
}

int sockalarm_alarm_cancel_and_wait(sockalarm_alarm* alarm) {
  SOCKALARM_C_NEEDS(alarm);
  return found_to_c(alarm->alarm.cancel_and_wait());
}

bool sockalarm_alarm_active(const sockalarm_alarm* alarm) {
  return alarm != nullptr && alarm->alarm.active();
}
bool sockalarm_alarm_triggered(const sockalarm_alarm* alarm) {
  return alarm != nullptr && alarm->alarm.triggered();
}
bool sockalarm_alarm_finished(const sockalarm_alarm* alarm) {
  return alarm != nullptr && alarm->alarm.finished();
}
int sockalarm_alarm_current_action(const sockalarm_alarm* alarm) {
  return alarm != nullptr ? alarm->alarm.current_action() : -1;
}

int sockalarm_alarm_cause(const sockalarm_alarm* alarm, sockalarm_event* cause) {
  SOCKALARM_C_NEEDS(alarm);
  SOCKALARM_C_NEEDS(cause);
  return guarded(__func__, [&] {
    *cause = to_c(alarm->alarm.cause());
    return 0;
  });
}

int sockalarm_alarm_text(const sockalarm_alarm* alarm, char* buffer, size_t size) {
  SOCKALARM_C_NEEDS(alarm);
  return guarded(__func__, [&] { return copy_text(to_string(alarm->alarm), buffer, size); });
}
