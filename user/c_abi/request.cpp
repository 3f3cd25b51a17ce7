// SPDX-License-Identifier: Apache-2.0
#include <sockalarm/request.h>
#include <sockalarm/sockalarm_request_c.h>

#include "c_abi/entry.h"
#include "c_abi/handles.h"

struct sockalarm_requests {
  sockalarm::Requests requests;
};
struct sockalarm_request {
  sockalarm::Request request;
};
struct sockalarm_shield {
  sockalarm::Shield shield;
};

using namespace sockalarm::c_abi;
using sockalarm::Result;

namespace {

int told(const Result<void>& result) { return result ? 0 : fail_with(result.error()); }

}  // namespace

int sockalarm_requests_new(const sockalarm_context* context, const char* policy, sockalarm_requests** out) {
  if (out != nullptr) *out = nullptr;
  SOCKALARM_C_NEEDS(context);
  return make_handle(__func__, out, [&]() -> Result<sockalarm::Requests> {
    auto parsed = policy != nullptr ? sockalarm::parse_policy(policy) : sockalarm::Policy{};
    if (!parsed) return sockalarm::fail(parsed.error());
    return sockalarm::Requests::create(context->watcher, std::move(*parsed));
  });
}

void sockalarm_requests_free(sockalarm_requests* requests) { delete requests; }

int sockalarm_request_begin(const sockalarm_requests* requests, const sockalarm_watch* watch,
                            const char* path, sockalarm_request** out) {
  if (out != nullptr) *out = nullptr;
  SOCKALARM_C_NEEDS(requests);
  SOCKALARM_C_NEEDS(path);
  return make_handle(__func__, out, [&] {
    return watch != nullptr ? requests->requests.begin(watch->watch, path) : requests->requests.begin(path);
  });
}

int sockalarm_request_finish(sockalarm_request* request) {
  SOCKALARM_C_NEEDS(request);
  return guarded(__func__, [&] { return told(request->request.finish()); });
}

void sockalarm_request_free(sockalarm_request* request) { delete request; }

int sockalarm_request_call(sockalarm_request* request, const char* name, int64_t limit,
                           void (*function)(void*), void* data) {
  SOCKALARM_C_NEEDS(request);
  SOCKALARM_C_NEEDS(name);
  SOCKALARM_C_NEEDS(function);
  return guarded(__func__, [&] {
    return told(request->request.call(name, std::chrono::nanoseconds(limit), [&] { function(data); }));
  });
}

bool sockalarm_request_aborted(const sockalarm_request* request) {
  return request != nullptr && request->request.aborted();
}

int sockalarm_request_stopped(const sockalarm_request* request, char* buffer, size_t size) {
  SOCKALARM_C_NEEDS(request);
  return guarded(__func__, [&] {
    const auto stopped = request->request.stopped();
    return copy_text(stopped ? to_string(*stopped) : std::string(), buffer, size);
  });
}

int sockalarm_request_off(sockalarm_request* request) {
  SOCKALARM_C_NEEDS(request);
  request->request.off();
  return 0;
}

int sockalarm_request_on_cleanup(sockalarm_request* request, void (*cleanup)(void*, bool), void* data) {
  SOCKALARM_C_NEEDS(request);
  SOCKALARM_C_NEEDS(cleanup);
  return guarded(__func__, [&] {
    request->request.on_cleanup([cleanup, data](bool aborted) { cleanup(data, aborted); });
    return 0;
  });
}

int sockalarm_request_arm(sockalarm_request* request, const sockalarm_actions* actions, uint32_t events) {
  SOCKALARM_C_NEEDS(request);
  SOCKALARM_C_NEEDS(actions);
  return guarded(__func__,
                 [&] { return told(request->request.arm(actions->chain, sockalarm::Events(events))); });
}

int sockalarm_request_sleep(sockalarm_request* request, int64_t duration) {
  SOCKALARM_C_NEEDS(request);
  return guarded(__func__,
                 [&] { return told(request->request.sleep_for(std::chrono::nanoseconds(duration))); });
}

int sockalarm_request_wait_readable(sockalarm_request* request, int fd, int64_t timeout) {
  SOCKALARM_C_NEEDS(request);
  return guarded(__func__, [&] {
    const auto limit = timeout < 0 ? std::chrono::nanoseconds::max() : std::chrono::nanoseconds(timeout);
    const auto readable = request->request.wait_readable(fd, limit);
    if (!readable) return fail_with(readable.error());
    return *readable ? 1 : 0;
  });
}

int sockalarm_shield_new(sockalarm_request* request, sockalarm_shield** out) {
  if (out != nullptr) *out = nullptr;
  SOCKALARM_C_NEEDS(request);
  return make_handle(__func__, out, [&]() -> Result<sockalarm::Shield> { return request->request.shield(); });
}

void sockalarm_shield_free(sockalarm_shield* shield) { delete shield; }
