/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* sockalarm for C and for bindings of other languages: libsockalarm_c. docs/c-api.md is the guide, watcher.h
 * and action.h say more about what each thing means.
 *
 *   sockalarm_context *context;
 *   sockalarm_watch *watch;
 *   sockalarm_actions *actions;
 *   sockalarm_alarm *alarm;
 *   if (sockalarm_context_new(NULL, &context) < 0 ||                         once per process
 *       sockalarm_actions_parse("sig:ALRM; run:logger 'left'", &actions) < 0 ||   once
 *       sockalarm_watch_new(context, client, &watch) < 0 ||                  once per connection
 *       sockalarm_alarm_new(watch, actions, SOCKALARM_EVENT_SHUT, 0, &alarm) < 0)   per request
 *     return fprintf(stderr, "%s\n", sockalarm_error_text());
 *   if (!sockalarm_peer_gone(sockalarm_watch_peer(watch))) long_blocking_query();
 *   sockalarm_alarm_free(alarm);                                             nothing fires from here on
 *
 * Rules for all functions:
 * - Errors: those that return int return a negative number when they fail, -errno or one of SOCKALARM_E_*,
 * and sockalarm_error_text() then says why. -EINVAL: an argument was NULL that must not be, or out of its
 * range; -ENOMEM. No C++ exception leaves them.
 * - Ownership: *_new() and *_parse() store a handle in *out (NULL if they fail) that the caller gives to the
 * *_free() of that type, once. *_free(NULL) does nothing. Strings and structs that are passed in are copied.
 * Handles may be freed in any order, but where a comment says otherwise.
 * - Threads: any thread may call, but nothing may use a handle while or after it is freed.
 * - Times are nanoseconds; points in time are of CLOCK_MONOTONIC; 0: none.
 * - Functions that write text take a buffer as snprintf(3) does: they write at most `size` bytes with the NUL
 * and return the length of the whole text without it. `size` may be 0, and `buffer` then NULL.
 * - Functions that are called back run with all signals blocked, on a thread of the library where nothing
 * else is said, and must not leave by longjmp(3) or pthread_exit(3).
 * - After fork() the child's handles are inert: they answer, change nothing, and may be freed.
 *   sockalarm_context_after_fork() makes a context useful again. Actions can be armed on the child's own
 * watches; those that post fail before that.
 * - A thread must not be cancelled (pthread_cancel(3)) inside.
 * - Not from signal handlers, but for sockalarm_peer_gone() and sockalarm_peer_seen().
 * - In structs that begin with `size`, it is sizeof the struct, and all else may be zero: that means the
 * default.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/types.h>

#define SOCKALARM_C_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif
/* NOLINTBEGIN(modernize-use-using): it is C */

/* What can be known of a socket, as bits; event.h explains them. The first four are sticky. */
enum {
  SOCKALARM_EVENT_FIN = 1 << 0, /* the peer sent FIN: half-close or close. It may still read! */
  SOCKALARM_EVENT_RESET = 1 << 1,
  SOCKALARM_EVENT_TIMEOUT = 1 << 2,
  SOCKALARM_EVENT_ERROR = 1 << 3,
  SOCKALARM_EVENT_EOF = 1 << 4,
  SOCKALARM_EVENT_READABLE = 1 << 5,
  SOCKALARM_EVENT_URGENT = 1 << 6,
  SOCKALARM_EVENT_CLOSED = 1 << 7,
  SOCKALARM_EVENT_DEADLINE = 1 << 8,
  SOCKALARM_EVENT_SHUT = 15, /* fin, reset, timeout or error */
};

/* Errors of the library's own; result.h explains them. */
enum {
  SOCKALARM_E_NOT_A_SOCKET = -10001,
  SOCKALARM_E_NOT_A_STREAM = -10002,
  SOCKALARM_E_NOT_CONNECTED = -10003,
  SOCKALARM_E_INVALID_OPTIONS = -10004,
  SOCKALARM_E_INVALID_EVENTS = -10005,
  SOCKALARM_E_INVALID_ACTION = -10006,
  SOCKALARM_E_INVALID_TEXT = -10007,
  SOCKALARM_E_UNSUPPORTED = -10008,
  SOCKALARM_E_INERT_AFTER_FORK = -10009,
  SOCKALARM_E_STOPPED = -10010, /* the context was freed */
  SOCKALARM_E_INVALID_POLICY = -10011,
  SOCKALARM_E_INVALID_USE = -10012,
  SOCKALARM_E_LIMIT_PASSED = -10013,
  SOCKALARM_E_REQUEST_LIMIT_PASSED = -10014,
  SOCKALARM_E_PEER_GONE = -10015,
  SOCKALARM_E_INTERNAL = -19999, /* an exception that should not be: please report it */
};

/* Where events come from (docs/sources.md), who sends signals to threads and how the dispatcher waits
 * (docs/delivery.md), and how bad it is what the log hook is told. */
enum {
  SOCKALARM_SOURCE_AUTOMATIC = 0,
  SOCKALARM_SOURCE_KERNEL = 1,
  SOCKALARM_SOURCE_EPOLL = 2,
  SOCKALARM_SOURCE_POLL = 3,
  SOCKALARM_SOURCE_DAEMON = 4,
};
enum {
  SOCKALARM_DELIVERY_AUTOMATIC = 0,
  SOCKALARM_DELIVERY_TASK_WORK = 1,
  SOCKALARM_DELIVERY_SIGIO = 2,
  SOCKALARM_DELIVERY_DISPATCHER = 3,
};
enum { SOCKALARM_WAKING_SLEEP = 0, SOCKALARM_WAKING_ADAPTIVE = 1, SOCKALARM_WAKING_SPIN = 2 };
enum { SOCKALARM_LOG_DEBUG = 0, SOCKALARM_LOG_INFO = 1, SOCKALARM_LOG_WARNING = 2, SOCKALARM_LOG_ERROR = 3 };

/* What a function that is called by an action answers: go on with the chain, or end it here. */
enum { SOCKALARM_PROCEED = 0, SOCKALARM_STOP = 1 };

/* What a cancel found. 0: nothing changed. */
enum {
  SOCKALARM_INACTIVE = 0,    /* not armed, or its chain had ended */
  SOCKALARM_PREVENTED = 1,   /* it was armed: nothing of it ran or ever will */
  SOCKALARM_INTERRUPTED = 2, /* it had fired: what had not started never will */
};

typedef struct sockalarm_context sockalarm_context; /* a Watcher: the machinery, one per process */
typedef struct sockalarm_watch sockalarm_watch;     /* the registration of one socket */
typedef struct sockalarm_actions sockalarm_actions; /* a chain of actions */
typedef struct sockalarm_alarm sockalarm_alarm;     /* a chain armed on a watch */

/* What set an alarm off. */
typedef struct sockalarm_event {
  uint32_t what; /* the wanted events that had happened */
  int32_t error; /* errno of a reset, timeout or error, if known; else 0 */
  int64_t at;    /* when it happened */
  uint64_t cookie;
} sockalarm_event;

/* How the library is: the version of libsockalarm_c that runs, "0.1.0". Lives for ever. */
SOCKALARM_C_API const char* sockalarm_version(void);

/* Why the last call of this thread that failed did so; "" if none has. Lives until the thread's next failure.
 */
SOCKALARM_C_API const char* sockalarm_error_text(void);

/* ---- Context. */

/* Called on any thread, also the dispatcher. `text` lives for the call. */
typedef void sockalarm_log_fn(void* data, int level, const char* text);

/* 0 or NULL: the default, which watcher.h names for each. */
typedef struct sockalarm_options {
  size_t size; /* sizeof(sockalarm_options) */
  int32_t source;
  int32_t delivery;
  int32_t waking;
  int32_t realtime_priority; /* 1 to 99: SCHED_FIFO */
  int32_t helper_threads;
  int32_t closed_check_ms;
  uint64_t max_watches;
  uint64_t ring_bytes;
  int64_t spin_for; /* ns, whole microseconds */
  const char* daemon_socket;
  sockalarm_log_fn* log; /* NULL: none */
  void* log_data;        /* must live as long as the context, its watches and its alarms */
} sockalarm_options;

/* `options` NULL: all defaults. Errors: those of Watcher::create(); -E2BIG: `options` has something set that
 * this version does not know. */
SOCKALARM_C_API int sockalarm_context_new(const sockalarm_options* options, sockalarm_context** out);
/* Ends all chains after their running action. Watches and alarms may outlive it and then say
 * SOCKALARM_E_STOPPED. Not from inside an action. */
SOCKALARM_C_API void sockalarm_context_free(sockalarm_context* context);
/* In the child of a fork(): makes the inherited context new, with the options that it had. 1: done; 0: it was
 * not inherited. Watches, alarms and what was posted before the fork stay the parent's; the child makes its
 * own. The descriptor of sockalarm_context_fd() is another one then. If it fails the context stays as it was.
 * One thread alone, before any other uses the context. */
SOCKALARM_C_API int sockalarm_context_after_fork(sockalarm_context* context);
/* Text: which source serves, and a line for each better one, why it does not. */
SOCKALARM_C_API int sockalarm_context_describe(const sockalarm_context* context, char* buffer, size_t size);
/* Of SOCKALARM_SOURCE_*: which source serves. */
SOCKALARM_C_API int sockalarm_context_source(const sockalarm_context* context);

/* Counters since the context was made; watcher.h explains them. */
typedef struct sockalarm_stats {
  size_t size; /* sizeof(sockalarm_stats) */
  uint64_t watches, fired, fired_directly, wakeups, actions_run, actions_failed;
  uint64_t records, records_lost, records_bad;
} sockalarm_stats;
SOCKALARM_C_API int sockalarm_context_stats(const sockalarm_context* context, sockalarm_stats* stats);

/* For an event loop: readable while something waits for sockalarm_context_next(). The context's own: watch it
 * with poll(2), do not read or close it. */
SOCKALARM_C_API int sockalarm_context_fd(const sockalarm_context* context);
/* What a post action put down. This and sockalarm_event stay as they are. */
typedef struct sockalarm_news {
  void* tag;
  sockalarm_event event;
} sockalarm_news;
/* Takes the oldest. 1: taken; 0: there is none. Never blocks. */
SOCKALARM_C_API int sockalarm_context_next(sockalarm_context* context, sockalarm_news* news);

/* ---- Actions: a chain that is built by one thread, then armed as often and by as many threads as you like.
 * Alarms keep what they need, so it may be freed while they are armed; what is added later counts for later
 * arming only. An action that could never run is refused here (SOCKALARM_E_INVALID_ACTION). */

/* An empty chain: that it fired is recorded, nothing runs. */
SOCKALARM_C_API int sockalarm_actions_new(sockalarm_actions** out);
/* From text, "sig:ALRM; sleep:2s; run:mysql -e 'kill 42'" (docs/actions.md). SOCKALARM_E_INVALID_TEXT. */
SOCKALARM_C_API int sockalarm_actions_parse(const char* text, sockalarm_actions** out);
SOCKALARM_C_API void sockalarm_actions_free(sockalarm_actions* actions);
SOCKALARM_C_API int sockalarm_actions_count(const sockalarm_actions* actions);
/* Text: the form that sockalarm_actions_parse() takes. */
SOCKALARM_C_API int sockalarm_actions_text(const sockalarm_actions* actions, char* buffer, size_t size);

/* One or more actions in text form. */
SOCKALARM_C_API int sockalarm_actions_add(sockalarm_actions* actions, const char* text);
/* A signal to the thread that arms (Linux), or to this process. It needs a handler without SA_RESTART. */
SOCKALARM_C_API int sockalarm_actions_add_signal(sockalarm_actions* actions, int signal);
SOCKALARM_C_API int sockalarm_actions_add_process_signal(sockalarm_actions* actions, int signal);
/* A signal to any process, which is remembered now by a pidfd. Linux >= 5.3 */
SOCKALARM_C_API int sockalarm_actions_add_kill(sockalarm_actions* actions, int signal, pid_t pid);
/* `how` as for shutdown(2): SHUT_RD, SHUT_WR, SHUT_RDWR. Which file `fd` is, is remembered now. */
SOCKALARM_C_API int sockalarm_actions_add_close(sockalarm_actions* actions, int fd);
SOCKALARM_C_API int sockalarm_actions_add_shutdown(sockalarm_actions* actions, int fd, int how);
/* The same for every socket of this process that is connected to `peer` when the alarm fires. */
SOCKALARM_C_API int sockalarm_actions_add_close_peer(sockalarm_actions* actions, const struct sockaddr* peer,
                                                     socklen_t length);
SOCKALARM_C_API int sockalarm_actions_add_shutdown_peer(sockalarm_actions* actions,
                                                        const struct sockaddr* peer, socklen_t length,
                                                        int how);
/* Start a program, detached; or replace this process by it. `argv` ends with NULL. */
SOCKALARM_C_API int sockalarm_actions_add_run(sockalarm_actions* actions, const char* const argv[]);
SOCKALARM_C_API int sockalarm_actions_add_exec(sockalarm_actions* actions, const char* const argv[]);
SOCKALARM_C_API int sockalarm_actions_add_sleep(sockalarm_actions* actions, int64_t duration);
/* Add 1 to an eventfd(2) that the caller keeps open. */
SOCKALARM_C_API int sockalarm_actions_add_notify(sockalarm_actions* actions, int eventfd);
/* Put `tag` and what happened where sockalarm_context_next() takes it. `tag` is never looked into. */
SOCKALARM_C_API int sockalarm_actions_add_post(sockalarm_actions* actions, sockalarm_context* context,
                                               void* tag);

/* Answers SOCKALARM_PROCEED or SOCKALARM_STOP. `event` lives for the call. */
typedef int sockalarm_call_fn(void* data, const sockalarm_event* event);
/* Told once, when nobody needs `data` any more: neither the chain, nor an alarm, nor a watch, which keeps the
 * chain of its last alarm until the next one or its own end. On whichever thread that is. */
typedef void sockalarm_release_fn(void* data);
/* Call a function on the dispatcher thread, where no other alarm is served meanwhile: keep it short.
 * `release` may be NULL. If adding fails, `data` stays the caller's and `release` is not called. */
SOCKALARM_C_API int sockalarm_actions_add_call(sockalarm_actions* actions, sockalarm_call_fn* function,
                                               void* data, sockalarm_release_fn* release);
/* Call a function that may block, on a helper thread. */
SOCKALARM_C_API int sockalarm_actions_add_call_blocking(sockalarm_actions* actions,
                                                        sockalarm_call_fn* function, void* data,
                                                        sockalarm_release_fn* release);

/* ---- Watch: the registration of one socket, once per connection. */

/* `fd` stays the caller's, and may be closed while it is watched. Errors: those of Watcher::watch(). */
SOCKALARM_C_API int sockalarm_watch_new(sockalarm_context* context, int fd, sockalarm_watch** out);
/* Alarms may outlive it. */
SOCKALARM_C_API void sockalarm_watch_free(sockalarm_watch* watch);
SOCKALARM_C_API int sockalarm_watch_fd(const sockalarm_watch* watch);
/* Of SOCKALARM_SOURCE_*: which one serves this socket. */
SOCKALARM_C_API int sockalarm_watch_source(const sockalarm_watch* watch);
SOCKALARM_C_API uint64_t sockalarm_watch_cookie(const sockalarm_watch* watch); /* SO_COOKIE; 0 if NULL */
/* When the first of `events` (of SOCKALARM_EVENT_SHUT) happened; 0: none did. */
SOCKALARM_C_API int64_t sockalarm_watch_seen_at(const sockalarm_watch* watch, uint32_t events);
/* errno that came with a reset, timeout or error, if known; else 0. */
SOCKALARM_C_API int sockalarm_watch_error(const sockalarm_watch* watch);

/* What is known of the peer: one pointer into shared memory, to be copied freely. The low 32 bits of *seen
 * are SOCKALARM_EVENT_*, and those of SOCKALARM_EVENT_SHUT stay once set. Whoever loads it in another
 * language: an aligned load of 64 bits with acquire order. Valid while the watch lives; `seen` is NULL if
 * `watch` is. */
typedef struct sockalarm_peer {
  const uint64_t* seen;
} sockalarm_peer;
SOCKALARM_C_API sockalarm_peer sockalarm_watch_peer(const sockalarm_watch* watch);

/* Which events were seen: one load. Any thread, also in signal handlers. */
static inline uint32_t sockalarm_peer_seen(sockalarm_peer peer) {
  return (uint32_t)__atomic_load_n(peer.seen, __ATOMIC_ACQUIRE) & 0x1ffU;
}
/* Has the peer gone (SOCKALARM_EVENT_SHUT)? One load and one branch; for hot loops. */
static inline bool sockalarm_peer_gone(sockalarm_peer peer) {
  return (sockalarm_peer_seen(peer) & SOCKALARM_EVENT_SHUT) != 0;
}

/* ---- Alarm: a chain armed on a watch, for the thread that arms. It runs at most once per start. One thread
 * at a time may start and free it. */

/* Arms. `events`: what sets it off; `deadline`: after so long it goes off with SOCKALARM_EVENT_DEADLINE, 0:
 * never. What has happened already fires at once. Errors: those of Watch::arm(). */
SOCKALARM_C_API int sockalarm_alarm_new(sockalarm_watch* watch, const sockalarm_actions* actions,
                                        uint32_t events, int64_t deadline, sockalarm_alarm** out);
/* Disarms and waits for an action that is running (not from inside that action). Nothing of it runs
 * afterwards. */
SOCKALARM_C_API void sockalarm_alarm_free(sockalarm_alarm* alarm);
/* Arms again, for the calling thread, without a system call on most sources. 1: armed; 0: it was armed or its
 * chain is under way, or the context is gone or inert. */
SOCKALARM_C_API int sockalarm_alarm_start(sockalarm_alarm* alarm);
/* Cancels if it has not fired; else the chain goes on. 1: nothing of it ran or will. */
SOCKALARM_C_API int sockalarm_alarm_disarm(sockalarm_alarm* alarm);
/* When it returns, no further action starts. SOCKALARM_INACTIVE, _PREVENTED or _INTERRUPTED. */
SOCKALARM_C_API int sockalarm_alarm_cancel(sockalarm_alarm* alarm);
/* And none is running either. */
SOCKALARM_C_API int sockalarm_alarm_cancel_and_wait(sockalarm_alarm* alarm);

/* State; false, -1 or 0 if `alarm` is NULL. */
SOCKALARM_C_API bool sockalarm_alarm_active(
    const sockalarm_alarm* alarm); /* armed, or its chain is under way */
SOCKALARM_C_API bool sockalarm_alarm_triggered(const sockalarm_alarm* alarm); /* fired since the last start */
SOCKALARM_C_API bool sockalarm_alarm_finished(
    const sockalarm_alarm* alarm); /* and ran to the end of its chain */
SOCKALARM_C_API int sockalarm_alarm_current_action(const sockalarm_alarm* alarm); /* -1: not triggered */
/* What set it off; all zero before that. */
SOCKALARM_C_API int sockalarm_alarm_cause(const sockalarm_alarm* alarm, sockalarm_event* cause);
/* Text: descriptor, events, state and actions, for logs. */
SOCKALARM_C_API int sockalarm_alarm_text(const sockalarm_alarm* alarm, char* buffer, size_t size);

/* ---- Names. */

/* Text: "fin,reset", "shut", "none". */
SOCKALARM_C_API int sockalarm_events_text(uint32_t events, char* buffer, size_t size);
/* From names separated by commas or '|'. SOCKALARM_E_INVALID_TEXT names the known ones. */
SOCKALARM_C_API int sockalarm_events_parse(const char* text, uint32_t* events);
/* Text: "kernel"; and SOCKALARM_SOURCE_* from text. */
SOCKALARM_C_API int sockalarm_source_text(int source, char* buffer, size_t size);
SOCKALARM_C_API int sockalarm_source_parse(const char* text);

/* NOLINTEND(modernize-use-using) */
#ifdef __cplusplus
}
#endif
