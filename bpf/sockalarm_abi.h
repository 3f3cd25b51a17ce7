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
  SOCKALARM_FIRED = 2,
  SOCKALARM_STATE_MASK = 0xff,
  SOCKALARM_INTEREST_SHIFT = 8,
  SOCKALARM_INTEREST_MASK = 0xffffff,
};

/*
 * One watched socket: one cache line in memory shared by the kernel programs and the client.
 *
 * word      written by                         how
 * seen      kernel, client (what it found out  compare-and-swap that ORs into the low half and never touches
 * a by looking at the socket)          word of another slot generation (high half): a program that still runs
 * for the slot's former socket cannot mark the new one control   client arms and cancels; whoever
 * compare-and-swap; armed -> fired is won once per generation delivers the alarm fires extra     client,
 * under its mutex            plain store: events wanted by further alarms of this socket
 * *_at,     kernel, client                     before `seen` is ORed; compare-and-swap from 0, so the first
 * counts error cookie    client, before registering         store; for people and for checks
 *
 * Order. Arming: control := armed, then load seen. Reporting: OR into seen, then load control and extra. Both
 * pairs are sequentially consistent (in BPF, atomics with fetch are full barriers), so at least one side sees
 * the other: an event can be delivered by either, and the compare-and-swap of control lets only one of them
 * win.
 */
struct sockalarm_watch_state {
  sockalarm_u64 seen;    /* slot generation << 32 | events so far */
  sockalarm_u64 control; /* of the socket's first alarm */
  sockalarm_u64 fin_at;  /* ns, CLOCK_MONOTONIC: the FIN; 0: none */
  sockalarm_u64 end_at;  /* the reset, timeout or error; 0: none */
  sockalarm_u64 cookie;
  sockalarm_u32 extra;
  sockalarm_u32 error; /* errno of the end; 0: none or unknown */
  sockalarm_u32 tid;   /* of the thread that armed `control`, for direct delivery */
  sockalarm_u32 signal;
  sockalarm_u64 reserved;
};

/* Slot 0 of every table is this header instead. */
struct sockalarm_table_header {
  sockalarm_u64 lost; /* records that found the ring full; atomic add by the kernel, the client only reads */
  sockalarm_u64 reserved[7];
};

/* registry: cookie -> this. Written by the privileged side alone; clients cannot. */
struct sockalarm_registration {
  sockalarm_u32 client;     /* index into watch_tables and event_rings */
  sockalarm_u32 slot;       /* of that client's table; never 0 */
  sockalarm_u32 generation; /* of the slot */
  sockalarm_u32 tgid;       /* the only process that may be signalled for this socket */
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
  sockalarm_u8 reserved[6];
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
SOCKALARM_ASSERT(sizeof(struct sockalarm_registration) == 16);
SOCKALARM_ASSERT(sizeof(struct sockalarm_record) == 40);
SOCKALARM_AT(sockalarm_record, slot, 16);
SOCKALARM_AT(sockalarm_record, events, 24);
SOCKALARM_AT(sockalarm_record, old_state, 32);
#undef SOCKALARM_AT
#undef SOCKALARM_ASSERT

#endif
