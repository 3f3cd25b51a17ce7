/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
#ifndef SOCKALARM_ABI_H
#define SOCKALARM_ABI_H

/*
 * What the BPF programs and the library share: the one file that both sides compile. Every size and offset is
 * asserted at the end, since client and kernel side may one day come from different builds.
 */
#if defined(__bpf__)
typedef __u64 sockalarm_u64;
typedef __u32 sockalarm_u32;
typedef __u8 sockalarm_u8;
#else
#include <stdint.h>
typedef uint64_t sockalarm_u64;
typedef uint32_t sockalarm_u32;
typedef uint8_t sockalarm_u8;
#endif

#if defined(__clang__)
#pragma clang diagnostic push
#pragma clang diagnostic error "-Wpadded"
#endif

/* Events; the same bits as in sockalarm/event.h. */
enum {
  SOCKALARM_FIN = 1,
  SOCKALARM_RESET = 2,
  SOCKALARM_TIMEOUT = 4,
  SOCKALARM_ERROR = 8,
  SOCKALARM_EOF = 16,
  SOCKALARM_CLOSED = 128,
  SOCKALARM_SHUT = SOCKALARM_FIN | SOCKALARM_RESET | SOCKALARM_TIMEOUT | SOCKALARM_ERROR,
};

/* control = alarm generation << 32 | wanted events << 8 | state */
enum {
  SOCKALARM_IDLE = 0,
  SOCKALARM_ARMED = 1,
  SOCKALARM_FIRED = 2,      /* won by the library; the dispatcher runs the whole chain */
  SOCKALARM_DELIVERING = 3, /* won in the thread that armed, where the signal is just being sent */
  SOCKALARM_DELIVERED = 4,  /* it has been sent; the dispatcher runs the rest of the chain */
  SOCKALARM_STATE_MASK = 0xff,
  SOCKALARM_INTEREST_SHIFT = 8,
  SOCKALARM_INTEREST_MASK = 0xffffff,
};

/* signal: 0 where the chain does not begin with a signal to the thread that armed */
enum {
  SOCKALARM_SIGNAL_MASK = 0xff,
  SOCKALARM_TELL =
      0x100, /* there is more to it than this signal: the dispatcher must be told of every step */
  SOCKALARM_BY_SIGIO = 0x200, /* the thread's handler of signal-driven I/O sends it; the dispatcher is only
                                 needed where that does not happen, see sockalarm_late_wake */
};

// clang-format off
/*
 * One watched socket: one cache line in memory shared by the kernel programs and the client.
 *
 * word         written by                  how
 * seen         kernel; client (what it     compare-and-swap that ORs into the low half and never touches a word
 *              found out by looking)       of another slot generation (high half): a program that still runs for
 *                                          the slot's former socket cannot mark the new one
 * control      client arms and cancels;    compare-and-swap of the whole word, generation included: armed -> any of
 *              who delivers wins           fired, delivering, idle is won once per generation. delivering ->
 *                                          delivered by the winner alone
 * tid, signal  the thread that arms        plain store before control becomes armed. Who read them after control
 *                                          and then wins control had those of that generation
 * extra        client, under its mutex     plain store: events wanted by further alarms of this socket
 * *_at, error  kernel, client              before `seen` is ORed; compare-and-swap from 0, so the first counts
 * cookie       client, before registering  store; for people and for checks
 *
 * Order. Arming: control := armed, then load seen. Reporting: OR into seen, then load control and extra. Both
 * pairs are sequentially consistent (in BPF, atomics with fetch are full barriers), so at least one side sees the
 * other: an event can be delivered by either, and the compare-and-swap of control lets only one of them win.
 * Direct delivery runs in the thread that armed, so a cancel by that thread either comes before it and wins, or
 * after it and finds the alarm fired and the signal taken. tests/model/ checks all this exhaustively.
 */
// clang-format on
struct sockalarm_watch_state {
  sockalarm_u64 seen;    /* slot generation << 32 | events so far */
  sockalarm_u64 control; /* of the socket's first alarm */
  sockalarm_u64 fin_at;  /* ns, CLOCK_MONOTONIC: the FIN; 0: none */
  sockalarm_u64 end_at;  /* the reset, timeout or error; 0: none */
  sockalarm_u64 cookie;
  sockalarm_u32 extra;
  sockalarm_u32 error; /* errno of the end; 0: none or unknown */
  sockalarm_u32
      tid; /* of the thread that armed `control`, in the initial pid namespace; 0: dispatcher only */
  sockalarm_u32 signal; /* number | flags */
  sockalarm_u64 reserved;
};

/*
 * Slot 0 of every table is this header instead.
 *
 * The kernel wakes the client for a record unless `looking` is set. A client that is about to sleep clears
 * it, then looks at the ring once more; the kernel reserves the record, adds to `records` (a full barrier),
 * then loads `looking`: either the client sees the reservation, or the kernel sees that it must wake.
 */
struct sockalarm_table_header {
  sockalarm_u64 lost; /* records that found the ring full; atomic add by the kernel, the client only reads */
  sockalarm_u64 records;   /* pushed so far; likewise */
  sockalarm_u64 delivered; /* alarms whose signal was sent directly; likewise */
  sockalarm_u32 looking;   /* by the client: 1 while it looks at the ring by itself */
  sockalarm_u32 reserved_a;
  sockalarm_u64 reserved[4];
};

/* registry: cookie -> this. Written by the privileged side alone; clients cannot. */
struct sockalarm_registration {
  sockalarm_u32 client;     /* index into watch_tables and event_rings */
  sockalarm_u32 slot;       /* of that client's table; never 0 */
  sockalarm_u32 generation; /* of the slot */
  sockalarm_u32 tgid;       /* the only process that may be signalled for this socket */
#if defined(__bpf__)
  struct bpf_task_work task_work; /* at most one is pending; the kernel's alone, cancelled with the entry */
#else
  sockalarm_u64 task_work;
#endif
};

/*
 * clients: index -> this. Written by the privileged side alone; clients cannot even read it. All zero where a
 * process serves itself. The programs look at `flags` and `uid`; the rest is what a daemon that was started
 * anew knows its clients by.
 */
enum {
  SOCKALARM_CLIENT_USED = 1,
  SOCKALARM_CLIENT_CHECK_UID = 2, /* signal only while the thread's real user is `uid`, as kill(2) would */
  SOCKALARM_CLIENT_READS = 4,     /* it waits for eof with data pending */
};
struct sockalarm_client {
  sockalarm_u32 flags;
  sockalarm_u32 uid, gid; /* in the initial user namespace */
  sockalarm_u32 tgid;
  sockalarm_u64 started; /* proc_pid_stat(5), field 22: which of the processes that had this number */
  sockalarm_u32 slots;   /* of its table, slot 0 included */
  sockalarm_u32 ring_bytes;
  sockalarm_u32 table_id, ring_id; /* the kernel's ids of these maps */
  sockalarm_u64 reserved[3];
};

/*
 * late_wakes: index -> this. Where a thread is signalled by signal-driven I/O, waking its dispatcher at the
 * same moment would only contend for the CPU, and may cost the thread its place on the one that took the FIN.
 * So such a record is left unread for a while; a timer of the kernel side then wakes the dispatcher, which
 * sends the signal if the thread has not.
 *
 * Written by the programs alone, by atomic exchange. `started` is set after such a record was submitted, and
 * cleared by the timer before it wakes: who finds it set leaves the waking to a timer whose reader will find
 * the record. `used` is set before the first such record is reserved, and stays: from then on every other
 * record wakes by force, since the kernel itself wakes only readers that had caught up.
 * tests/model/waking.pml checks this.
 */
#define SOCKALARM_LATE_NS 5000000ULL /* less than the dispatcher gives the thread: core.cpp, kDirectGrace */
struct sockalarm_late_wake {
#if defined(__bpf__)
  struct bpf_timer timer;
#else
  sockalarm_u64 timer[2];
#endif
  sockalarm_u32 used, started;
};

/* Constants of the programs, set before they are loaded. */
struct sockalarm_settings {
  sockalarm_u8 without_timers; /* the verifier refuses them under PREEMPT_RT (EACCES or EOPNOTSUPP) */
};

/* What the program introduce_thread answers: ids in the initial pid namespace. */
struct sockalarm_thread {
  sockalarm_u32 tgid, tid;
};

/* direct: how far direct delivery is */
enum {
  SOCKALARM_DIRECT_NONE = 0,
  SOCKALARM_DIRECT_SCHEDULED = 1, /* the thread will do it when it runs next */
  SOCKALARM_DIRECT_DONE = 2,      /* control is `delivered` */
  SOCKALARM_DIRECT_FAILED =
      3, /* the kernel refused the signal: control is `fired`, and the dispatcher runs the chain */
};

/* One ring record: something new was seen of a socket that somebody waits for. */
struct sockalarm_record {
  sockalarm_u64 cookie;
  sockalarm_u64 at; /* ns, CLOCK_MONOTONIC */
  sockalarm_u32 slot;
  sockalarm_u32 generation;
  sockalarm_u32 events; /* new ones */
  sockalarm_u32 error;
  sockalarm_u8 old_state, new_state; /* TCP states; 0 where no transition reported it */
  sockalarm_u8 direct;
  sockalarm_u8 reserved[5];
};

/* lost: per-CPU counters by cause. */
enum sockalarm_lost_cause {
  SOCKALARM_LOST_RING_FULL, /* the client sweeps its table instead */
  SOCKALARM_LOST_NO_CLIENT, /* registration without table, slot or ring */
  SOCKALARM_LOST_STALE,     /* the slot has a new generation */
  SOCKALARM_LOST_CAUSES
};

#if defined(__clang__)
#pragma clang diagnostic pop
#endif

#if defined(__cplusplus)
#define SOCKALARM_ASSERT(condition) static_assert(condition, #condition)
#else
#define SOCKALARM_ASSERT(condition) _Static_assert(condition, #condition)
#endif
#define SOCKALARM_AT(type, member, offset) \
  SOCKALARM_ASSERT(__builtin_offsetof(struct type, member) == (offset))
SOCKALARM_ASSERT(sizeof(struct sockalarm_watch_state) == 64);
SOCKALARM_AT(sockalarm_watch_state, control, 8);
SOCKALARM_AT(sockalarm_watch_state, fin_at, 16);
SOCKALARM_AT(sockalarm_watch_state, end_at, 24);
SOCKALARM_AT(sockalarm_watch_state, cookie, 32);
SOCKALARM_AT(sockalarm_watch_state, extra, 40);
SOCKALARM_AT(sockalarm_watch_state, error, 44);
SOCKALARM_AT(sockalarm_watch_state, tid, 48);
SOCKALARM_AT(sockalarm_watch_state, signal, 52);
SOCKALARM_ASSERT(sizeof(struct sockalarm_table_header) == sizeof(struct sockalarm_watch_state));
SOCKALARM_ASSERT(sizeof(struct sockalarm_registration) == 24);
SOCKALARM_AT(sockalarm_table_header, looking, 24);
SOCKALARM_AT(sockalarm_registration, task_work, 16);
SOCKALARM_ASSERT(sizeof(struct sockalarm_client) == 64);
SOCKALARM_AT(sockalarm_client, started, 16);
SOCKALARM_AT(sockalarm_client, table_id, 32);
SOCKALARM_ASSERT(sizeof(struct sockalarm_late_wake) == 24);
SOCKALARM_AT(sockalarm_late_wake, used, 16);
SOCKALARM_ASSERT(sizeof(struct sockalarm_record) == 40);
SOCKALARM_AT(sockalarm_record, slot, 16);
SOCKALARM_AT(sockalarm_record, events, 24);
SOCKALARM_AT(sockalarm_record, old_state, 32);
#undef SOCKALARM_AT
#undef SOCKALARM_ASSERT

#endif
