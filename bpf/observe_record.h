/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
#ifndef SOCKALARM_OBSERVE_RECORD_H
#define SOCKALARM_OBSERVE_RECORD_H

#include "observe_connection.h"

// What is made of it when it has ended: figures and a record.

// max_entries of `ends` and `metrics` are set by the loader.
struct {
  __uint(type, BPF_MAP_TYPE_RINGBUF);
  __uint(max_entries, 4096);
} ends SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(max_entries, 1);
  __type(key, struct sockalarm_observe_service);
  __type(value, struct sockalarm_observe_metrics);
} metrics SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(max_entries, 1);
  __type(key, __u32);
  __type(value, struct sockalarm_observe_late_wake);
} late_wakes SEC(".maps");

// On a cache line of its own: every record writes it.
struct {
  __u64 next;
} sequence __attribute__((aligned(64))) = {};

const volatile __u64 wake_at_bytes = 0;  // a quarter of the ring
const volatile __u64 wake_after_ns = 0;  // 0: no timer, which the verifier refuses under PREEMPT_RT

static const struct sockalarm_observe_metrics no_metrics = {};

static __always_inline __u8 verdict_of(const struct connection* c, __u8 cause) {
  if (c->direction != SOCKALARM_DIRECTION_INBOUND) return SOCKALARM_VERDICT_NONE;
  if (cause == SOCKALARM_CAUSE_LOCAL || cause == SOCKALARM_CAUSE_DESTROYED) return SOCKALARM_VERDICT_LOCAL;
  // Written after the FIN, and not to be delivered any more: so there was something in progress after all.
  if (!c->in_progress) return c->unsent ? SOCKALARM_VERDICT_ABANDONED : SOCKALARM_VERDICT_IDLE_CLOSE;
  return cause == SOCKALARM_CAUSE_PEER_FIN && c->served ? SOCKALARM_VERDICT_HALF_CLOSE_SERVED
                                                        : SOCKALARM_VERDICT_ABANDONED;
}

static __always_inline __u32 bucket_of(__u64 ns) {
  __u64 us = ns / 1000;
  __u32 bucket = 0;
  for (int step = 32; step; step /= 2) {
    if (!(us >> step)) continue;
    us >>= step;
    bucket += step;
  }
  bucket += us != 0;
  return bucket < SOCKALARM_OBSERVE_BUCKETS ? bucket : SOCKALARM_OBSERVE_BUCKETS - 1;
}

// What the record says beyond what the connection's state does.
struct summary {
  __u64 cgroup;
  __u64 ended_at;
  __u64 orphaned;
  __u8 cause, verdict;
};

static __always_inline void measure(const struct connection* c, const struct summary* end) {
  struct sockalarm_observe_service service = {
      .cgroup = end->cgroup, .cause = end->cause, .verdict = end->verdict, .direction = c->direction};
  struct sockalarm_observe_metrics* all = bpf_map_lookup_elem(&metrics, &service);
  if (!all) {
    bpf_map_update_elem(&metrics, &service, &no_metrics, BPF_NOEXIST);
    all = bpf_map_lookup_elem(&metrics, &service);
    if (!all) return count(SOCKALARM_OBSERVE_LOST_METRICS);
  }
  __sync_fetch_and_add(&all->ends, 1);
  if (c->bytes_received) __sync_fetch_and_add(&all->bytes_received, c->bytes_received);
  if (c->bytes_sent) __sync_fetch_and_add(&all->bytes_sent, c->bytes_sent);
  int abandoned = end->verdict == SOCKALARM_VERDICT_ABANDONED;
  __u64 until = abandoned && c->departed_at ? c->departed_at : end->ended_at;
  if (c->established_at && until >= c->established_at) {
    __sync_fetch_and_add(&all->age, until - c->established_at);
    __sync_fetch_and_add(&all->ages[bucket_of(until - c->established_at)], 1);
  }
  if (!abandoned) return;
  __sync_fetch_and_add(&all->orphaned, end->orphaned);
  __sync_fetch_and_add(&all->orphaned_times[bucket_of(end->orphaned)], 1);
}

static int wake(void* map, __u32* key, struct sockalarm_observe_late_wake* late) {
  __sync_lock_test_and_set(&late->started, 0);
  void* nothing = bpf_ringbuf_reserve(&ends, 8, 0);  // a ring that is full has woken its reader
  if (nothing) bpf_ringbuf_discard(nothing, BPF_RB_FORCE_WAKEUP);
  return 0;
}

// Waking the reader for each record would cost more than all the rest. A timer wakes it for those that came
// in the meantime; before that, a ring that fills up.
static __always_inline __u64 wake_later(void) {
  if (!wake_after_ns) return 0;  // at once, if the reader had caught up
  return bpf_ringbuf_query(&ends, BPF_RB_AVAIL_DATA) >= wake_at_bytes ? BPF_RB_FORCE_WAKEUP
                                                                      : BPF_RB_NO_WAKEUP;
}

// After the record was submitted: a timer that was started before finds it.
static __always_inline void start_timer(void) {
  if (!wake_after_ns) return;  // a constant for the verifier, which leaves out what follows
  __u32 key = 0;
  struct sockalarm_observe_late_wake* late = bpf_map_lookup_elem(&late_wakes, &key);
  if (!late || __sync_lock_test_and_set(&late->started, 1)) return;
  bpf_timer_init(&late->timer, &late_wakes, CLOCK_MONOTONIC);  // -EBUSY: it was before
  bpf_timer_set_callback(&late->timer, wake);
  if (bpf_timer_start(&late->timer, wake_after_ns, 0)) wake(&late_wakes, &key, late);
}

static __always_inline void push(struct sock* sk, const struct connection* c, const struct summary* summary,
                                 __u64 now) {
  __u64 number = __sync_fetch_and_add(&sequence.next, 1);
  struct sockalarm_observe_end* end = bpf_ringbuf_reserve(&ends, sizeof *end, 0);
  if (!end) return count(SOCKALARM_OBSERVE_LOST_RECORD);
  end->sequence = number;
  end->cookie = bpf_get_socket_cookie(sk);
  end->cgroup = summary->cgroup;
  end->established_at = c->established_at;
  end->departed_at = c->departed_at;
  end->ended_at = summary->ended_at;
  end->recorded_at = now;
  end->orphaned = summary->orphaned;
  end->bytes_received = c->bytes_received;
  end->bytes_sent = c->bytes_sent;
  end->unread = c->unread;
  end->unsent = c->unsent;
  end->error = c->error;
  end->pid = c->pid;
  end->endpoints = c->endpoints;
  end->cause = summary->cause;
  end->verdict = summary->verdict;
  end->direction = c->direction;
  end->reserved = 0;
  __builtin_memcpy(end->command, c->command, sizeof end->command);
  __u64 flags = wake_later();
  bpf_ringbuf_submit(end, flags);
  if (flags == BPF_RB_NO_WAKEUP) start_timer();
}

static __noinline int finish(struct sock* sk, struct connection* c, __u64 now) {
  __u32 index = active();
  struct sockalarm_observe_filter* filter = bpf_map_lookup_elem(&filters, &index);
  if (!sk || !c || !filter || !((filter->directions >> (c->direction & 3)) & 1) ||
      !may_be_in_filter(filter, c->endpoints.local_port, c->endpoints.peer_port) ||
      !in_sets(sk, index, filter, c->endpoints.peer))
    return 0;
  struct summary end = {.cgroup = sk->sk_cgrp_data.cgroup->kn->id,
                        .ended_at = c->released_at ?: c->local_fin_at ?: c->closed_at,
                        .cause = c->cause - 1};
  end.verdict = verdict_of(c, end.cause);
  if (end.verdict == SOCKALARM_VERDICT_ABANDONED && c->departed_at && end.ended_at > c->departed_at)
    end.orphaned = end.ended_at - c->departed_at;
  measure(c, &end);

  if (!((filter->causes >> (end.cause & 7)) & 1) || end.orphaned < filter->minimum_orphaned) return 0;
  if (filter->one_in > 1 && bpf_get_prandom_u32() % filter->one_in) return 0;
  push(sk, c, &end, now);
  return 0;
}

#endif
