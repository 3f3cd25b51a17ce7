/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* The scope of one request for C: limits, cleanups, critical sections (docs/requests.md, request.h). In
 * libsockalarm_c, under the rules of sockalarm_c.h.
 *
 *   sockalarm_requests_new(context, "limit = 60", &requests);           once per policy
 *   sockalarm_request_begin(requests, watch, "/report", &request);      per request
 *   rc = sockalarm_request_call(request, "query", 2000000000, query, &query_arguments);
 *   if (rc < 0) log(sockalarm_error_text());                            "limit of 2s of the call 'query'"
 *   sockalarm_request_free(request);
 */

#include <sockalarm/sockalarm_c.h>

#ifdef __cplusplus
extern "C" {
#endif
/* NOLINTBEGIN(modernize-use-using): it is C */

typedef struct sockalarm_requests sockalarm_requests; /* makes requests under one policy; any thread */
typedef struct sockalarm_request sockalarm_request;   /* of one thread at a time */
typedef struct sockalarm_shield sockalarm_shield;     /* a critical section */

/* `policy`: TOML as load_policy() takes it; NULL: the default, 180 s. Takes a real-time signal that is not
 * used, one for all. Errors: SOCKALARM_E_INVALID_POLICY; _UNSUPPORTED: no signal is left; _INERT_AFTER_FORK;
 * _STOPPED. */
SOCKALARM_C_API int sockalarm_requests_new(const sockalarm_context* context, const char* policy,
                                           sockalarm_requests** out);
/* Requests may outlive it. */
SOCKALARM_C_API void sockalarm_requests_free(sockalarm_requests* requests);

/* `watch` must outlive the request; NULL: no peer, only limits. */
SOCKALARM_C_API int sockalarm_request_begin(const sockalarm_requests* requests, const sockalarm_watch* watch,
                                            const char* path, sockalarm_request** out);
/* Ends it: cancels its alarms, runs its cleanups. SOCKALARM_E_INVALID_USE: shields were left, or a call was
 * under way; the rest is done all the same. The second time it does nothing. */
SOCKALARM_C_API int sockalarm_request_finish(sockalarm_request* request);
/* And forgets it. */
SOCKALARM_C_API void sockalarm_request_free(sockalarm_request* request);

/* Calls `function` in this thread. After `limit` (0: only the limits around it count) or when the peer
 * leaves, its blocking system calls end with EINTR, again and again until it returns. 0: it returned in time.
 * Errors: SOCKALARM_E_LIMIT_PASSED, _REQUEST_LIMIT_PASSED, _PEER_GONE, _INVALID_USE, _INERT_AFTER_FORK; it
 * was not called if the request was stopped before. Signals are as the caller has them. */
SOCKALARM_C_API int sockalarm_request_call(sockalarm_request* request, const char* name, int64_t limit,
                                           void (*function)(void* data), void* data);
/* Has the client left? A load of shared memory. Any thread. */
SOCKALARM_C_API bool sockalarm_request_aborted(const sockalarm_request* request);
/* Text: what stopped the innermost call or the request. 0: nothing did. Any thread. */
SOCKALARM_C_API int sockalarm_request_stopped(const sockalarm_request* request, char* buffer, size_t size);
/* Turns the limits off: the request's, and those of calls under way. */
SOCKALARM_C_API int sockalarm_request_off(sockalarm_request* request);
/* Runs at the end of the request in its thread, in reverse order. */
SOCKALARM_C_API int sockalarm_request_on_cleanup(sockalarm_request* request,
                                                 void (*cleanup)(void* data, bool aborted), void* data);
/* An alarm of this request: disarmed at its end, held back by its shields. */
SOCKALARM_C_API int sockalarm_request_arm(sockalarm_request* request, const sockalarm_actions* actions,
                                          uint32_t events);
/* Waits, but not beyond a stop: then it fails as sockalarm_request_call() does. */
SOCKALARM_C_API int sockalarm_request_sleep(sockalarm_request* request, int64_t duration);
/* 1: a read would not block; 0: `timeout` is over (negative: none). */
SOCKALARM_C_API int sockalarm_request_wait_readable(sockalarm_request* request, int fd, int64_t timeout);

/* While one is held, nothing of its request goes off; what was due does at the end of the outermost one. Keep
 * it short. Ends in the thread that began it, before its request. */
SOCKALARM_C_API int sockalarm_shield_new(sockalarm_request* request, sockalarm_shield** out);
SOCKALARM_C_API void sockalarm_shield_free(sockalarm_shield* shield);

/* NOLINTEND(modernize-use-using) */
#ifdef __cplusplus
}
#endif
