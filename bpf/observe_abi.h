/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
#ifndef SOCKALARM_OBSERVE_ABI_H
#define SOCKALARM_OBSERVE_ABI_H

/* What observe.bpf.c and user/observe/ share. */
#if defined(__bpf__)
typedef __u64 sockalarm_observe_u64;
typedef __u32 sockalarm_observe_u32;
typedef __u16 sockalarm_observe_u16;
typedef __u8 sockalarm_observe_u8;
#else
#include <stdint.h>
typedef uint64_t sockalarm_observe_u64;
typedef uint32_t sockalarm_observe_u32;
typedef uint16_t sockalarm_observe_u16;
typedef uint8_t sockalarm_observe_u8;
#endif

#if defined(__clang__)
#pragma clang diagnostic push
#pragma clang diagnostic error "-Wpadded"
#endif

/* The same numbers as in user/observe/connection_end.h. What came first decides on the cause. */
enum sockalarm_observe_cause {
  SOCKALARM_CAUSE_PEER_FIN,
  SOCKALARM_CAUSE_PEER_RESET,
  SOCKALARM_CAUSE_TIMEOUT,
  SOCKALARM_CAUSE_UNREACHABLE,
  SOCKALARM_CAUSE_REFUSED,
  SOCKALARM_CAUSE_DESTROYED,
  SOCKALARM_CAUSE_LOCAL,
  SOCKALARM_CAUSES
};
enum sockalarm_observe_verdict {
  SOCKALARM_VERDICT_NONE,
  SOCKALARM_VERDICT_IDLE_CLOSE,
  SOCKALARM_VERDICT_ABANDONED,
  SOCKALARM_VERDICT_HALF_CLOSE_SERVED,
  SOCKALARM_VERDICT_LOCAL,
  SOCKALARM_VERDICTS
};
enum sockalarm_observe_direction {
  SOCKALARM_DIRECTION_UNKNOWN,
  SOCKALARM_DIRECTION_INBOUND,
  SOCKALARM_DIRECTION_OUTBOUND,
  SOCKALARM_DIRECTIONS
};

/* IPv4 as ::ffff:a.b.c.d, also where the socket is an IPv4 one. Ports in the host's byte order. */
struct sockalarm_observe_endpoints {
  sockalarm_observe_u32 local[4], peer[4]; /* in network byte order, as they stand in the packets */
  sockalarm_observe_u16 local_port, peer_port;
};

/* One ring record: one end of one connection. Times: ns, CLOCK_MONOTONIC; 0: unknown. */
struct sockalarm_observe_end {
  sockalarm_observe_u64 sequence;
  sockalarm_observe_u64 cookie;
  sockalarm_observe_u64 cgroup;
  sockalarm_observe_u64 established_at, departed_at, ended_at;
  sockalarm_observe_u64 recorded_at;
  sockalarm_observe_u64 orphaned; /* ns */
  sockalarm_observe_u64 bytes_received, bytes_sent;
  sockalarm_observe_u32 unread; /* received, not read by the program */
  sockalarm_observe_u32 unsent; /* written by the program, not acknowledged by the peer */
  sockalarm_observe_u32 error;
  sockalarm_observe_u32 pid;
  struct sockalarm_observe_endpoints endpoints;
  sockalarm_observe_u8 cause, verdict, direction;
  sockalarm_observe_u8 reserved;
  char command[16];
};

/*
 * Two of them, of which one is in force (`observe_control.active`). The other is filled while nobody reads
 * it. A connection is observed if it is in every set that is used.
 */
enum {
  SOCKALARM_FILTER_CGROUPS = 1, /* cgroup_sets[index]: its cgroup or one above that */
  SOCKALARM_FILTER_PORTS = 2,   /* ports: local or peer's */
  SOCKALARM_FILTER_PREFIXES = 4 /* prefix_sets[index]: the peer's address */
};
struct sockalarm_observe_filter {
  sockalarm_observe_u32 sets;
  sockalarm_observe_u32 directions; /* bits by direction */
  /* Which observed ends have a record; they are counted all the same. */
  sockalarm_observe_u32 causes; /* bits by cause */
  sockalarm_observe_u32 one_in;
  sockalarm_observe_u64 minimum_orphaned; /* ns */
  sockalarm_observe_u64 ports[1024];      /* a bit per port */
};

/* Key of prefix_sets (BPF_MAP_TYPE_LPM_TRIE). */
struct sockalarm_observe_prefix {
  sockalarm_observe_u32 length; /* bits; 96 more for IPv4 */
  sockalarm_observe_u32 address[4];
};

/* metrics: what ended, by service and cause, observed and complete whatever happens to the records. */
struct sockalarm_observe_service {
  sockalarm_observe_u64 cgroup;
  sockalarm_observe_u8 cause, verdict, direction;
  sockalarm_observe_u8 reserved[5];
};
#define SOCKALARM_OBSERVE_BUCKETS 40
struct sockalarm_observe_metrics {
  sockalarm_observe_u64 ends;
  sockalarm_observe_u64 bytes_received, bytes_sent;
  sockalarm_observe_u64 orphaned; /* ns */
  sockalarm_observe_u64 age;      /* ns, the sum of what `ages` has */
  /* Bucket 0: less than 1 us; bucket n: from 2^(n-1) us to less than 2^n; the last: all beyond. Ages, of the
     abandoned when the peer left, are in none if they are not known; times of verdicts other than abandoned
     neither. */
  sockalarm_observe_u64 ages[SOCKALARM_OBSERVE_BUCKETS];
  sockalarm_observe_u64 orphaned_times[SOCKALARM_OBSERVE_BUCKETS];
};

/* losses: per-CPU counters by stage. */
enum sockalarm_observe_loss {
  SOCKALARM_OBSERVE_LOST_RECORD,  /* the ring was full: counted in the metrics, no record */
  SOCKALARM_OBSERVE_LOST_STATE,   /* no memory for a connection's state: its end lacks age, verdict, holder */
  SOCKALARM_OBSERVE_LOST_METRICS, /* more services than there is room for: a record, not counted */
  SOCKALARM_OBSERVE_FOUND_LATE, /* a change of state was missed or came before we looked; made up for later */
  SOCKALARM_OBSERVE_LOSSES
};

struct sockalarm_observe_late_wake {
#if defined(__bpf__)
  struct bpf_timer timer;
#else
  sockalarm_observe_u64 timer[2];
#endif
  sockalarm_observe_u64 started;
};

#if defined(__clang__)
#pragma clang diagnostic pop
#endif

#if defined(__cplusplus)
static_assert(sizeof(struct sockalarm_observe_endpoints) == 36, "no padding");
static_assert(sizeof(struct sockalarm_observe_end) == 152, "no padding");
#endif

#endif
