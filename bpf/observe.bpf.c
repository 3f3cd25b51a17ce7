// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// clang-format off: libbpf's headers need the types of the kernel's
#include <linux/bpf.h>
#include <linux/types.h>
#include <linux/version.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
// clang-format on

#include "kernel_types.h"
#include "observe_abi.h"

// Every end of a TCP connection of the host. What is learnt on the way is kept with the socket; the record is
// made when nothing more can come: when the kernel's socket goes (or is used for another connection), after
// the last local close and after the peer has acknowledged, refused or ignored what was sent last.
//
// The kernel does not enter a tracing program again while it runs on the same CPU (sockalarm.bpf.c): a change
// of state that comes in a softirq meanwhile goes unnoticed. So each program takes the socket as it finds it,
// and makes up for what should have been noted before. tcp_destroy_sock runs with softirqs off, hence no end
// is missed (realtime kernels excepted; recursion_misses counts there too).

char LICENSE[] SEC("license") = "GPL";

// In slab's 256 bytes together with the kernel's own header (struct bpf_local_storage_elem). Each member is
// written under the socket's lock, but what observe_release notes.
struct connection {
  __u64 established_at;
  __u64 departed_at;  // the peer
  __u64 local_fin_at;
  __u64 released_at;
  __u64 closed_at;  // what follows was taken then, until `endpoints`
  __u64 bytes_received, bytes_sent;
  __u32 unread, unsent, error;
  struct sockalarm_observe_endpoints endpoints;
  __u32 acked_at_departure;  // sequence numbers of our side
  __u32 end_of_data;         // if local_fin_at
  __u32 written_when_read;   // if has_read
  __u32 pid;
  char command[16];
  __u8 cause;  // + 1; 0: it goes on
  __u8 direction;
  __u8 in_progress;    // when the peer left
  __u8 served;         // all that was written after that was acknowledged
  __u8 has_read;       // the program has read something
  __u8 held_at_close;  // somebody had still to close it
  __u8 never;          // it never became a connection
};

struct {
  __uint(type, BPF_MAP_TYPE_SK_STORAGE);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __type(key, int);
  __type(value, struct connection);
} connections SEC(".maps");

// Room for a connection of which nothing had been noted; the stack is too small.
struct {
  __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
  __uint(max_entries, 1);
  __type(key, __u32);
  __type(value, struct connection);
} unknown_connection SEC(".maps");

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
  __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
  __uint(max_entries, SOCKALARM_OBSERVE_LOSSES);
  __type(key, __u32);
  __type(value, __u64);
} losses SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(max_entries, 2);
  __type(key, __u32);
  __type(value, struct sockalarm_observe_filter);
} filters SEC(".maps");

struct cgroup_set {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(max_entries, 1);
  __uint(key_size, sizeof(__u64));  // __type() of an inner map is cut from the BTF
  __uint(value_size, sizeof(__u8));
};

struct {
  __uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
  __uint(max_entries, 2);
  __type(key, __u32);
  __array(values, struct cgroup_set);
} cgroup_sets SEC(".maps");

struct prefix_set {
  __uint(type, BPF_MAP_TYPE_LPM_TRIE);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __uint(max_entries, 1);
  __uint(key_size, sizeof(struct sockalarm_observe_prefix));
  __uint(value_size, sizeof(__u8));
};

struct {
  __uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
  __uint(max_entries, 2);
  __type(key, __u32);
  __array(values, struct prefix_set);
} prefix_sets SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(max_entries, 1);
  __type(key, __u32);
  __type(value, struct sockalarm_observe_late_wake);
} late_wakes SEC(".maps");

__u32 active_filter = 0;  // 0 or 1; written by the loader
// On a cache line of its own: every record writes it.
struct {
  __u64 next;
} sequence __attribute__((aligned(64))) = {};

const volatile __u64 wake_after_ns = 0;  // 0: no timer, which the verifier refuses under PREEMPT_RT
const volatile __u8 has_release = 0;     // observe_release is attached

static const struct sockalarm_observe_metrics no_metrics = {};

static __always_inline void count(__u32 loss) {
  __u64* counter = bpf_map_lookup_elem(&losses, &loss);
  if (counter) *counter += 1;
}

static __always_inline int flag(const struct sock* sk, int bit) {
  return (sk->__sk_common.skc_flags >> bit) & 1;
}

static __always_inline int after(__u32 a, __u32 b) { return (__s32)(a - b) > 0; }

static __always_inline __u32 active(void) { return *(volatile __u32*)&active_filter & 1; }

// ---- what is observed ----

static __always_inline void mapped(__u32* to, __u32 ipv4) {
  to[0] = to[1] = 0;
  to[2] = bpf_htonl(0xffff);
  to[3] = ipv4;
}

static __always_inline int is_ipv6(const struct sock* sk) {
  return sk->__sk_common.skc_family == AF_INET6 && bpf_core_field_exists(sk->__sk_common.skc_v6_daddr);
}

static __always_inline void peer_address(const struct sock* sk, __u32* to) {
  if (!is_ipv6(sk)) return mapped(to, sk->__sk_common.skc_daddr);
  for (int i = 0; i < 4; i++) to[i] = sk->__sk_common.skc_v6_daddr.in6_u.u6_addr32[i];
}

static __always_inline void local_address(const struct sock* sk, __u32* to) {
  if (!is_ipv6(sk)) return mapped(to, sk->__sk_common.skc_rcv_saddr);
  for (int i = 0; i < 4; i++) to[i] = sk->__sk_common.skc_v6_rcv_saddr.in6_u.u6_addr32[i];
}

// Here and below plain reads: a kernel that is locked down for confidentiality has no
// bpf_probe_read_kernel().
static __noinline int in_cgroup(struct cgroup* cgroup, __u32 index) {
  void* set = bpf_map_lookup_elem(&cgroup_sets, &index);
  if (!set) return 0;
  for (int depth = 0; depth < 16 && cgroup; depth++) {
    __u64 id = cgroup->kn->id;
    if (bpf_map_lookup_elem(set, &id)) return 1;
    struct cgroup_subsys_state* parent = cgroup->self.parent;
    cgroup = parent ? parent->cgroup : 0;
  }
  return 0;
}

static __always_inline int has_port(const struct sockalarm_observe_filter* filter, __u16 port) {
  __u32 word = port >> 6;
  barrier_var(word);  // else the compiler knows that the mask is superfluous, which the verifier does not
  return (filter->ports[word & 1023] >> (port & 63)) & 1;
}

// What says no soonest comes first: the cheapest is asked of every connection of the host, several times.
static __always_inline int may_be_in_filter(const struct sockalarm_observe_filter* filter, __u16 local_port,
                                            __u16 peer_port) {
  return !(filter->sets & SOCKALARM_FILTER_PORTS) || has_port(filter, local_port) ||
         has_port(filter, peer_port);
}

static __always_inline int in_sets(const struct sock* sk, __u32 index,
                                   const struct sockalarm_observe_filter* filter, const __u32* peer) {
  if (filter->sets & SOCKALARM_FILTER_PREFIXES) {
    void* set = bpf_map_lookup_elem(&prefix_sets, &index);
    struct sockalarm_observe_prefix key = {.length = 128};
    for (int i = 0; i < 4; i++) key.address[i] = peer[i];
    if (!set || !bpf_map_lookup_elem(set, &key)) return 0;
  }
  return !(filter->sets & SOCKALARM_FILTER_CGROUPS) || in_cgroup(sk->sk_cgrp_data.cgroup, index);
}

static __always_inline __u16 local_port_of(const struct tcp_sock* tp) {
  return bpf_ntohs(tp->inet_conn.icsk_inet.inet_sport);
}

static __always_inline __u16 peer_port_of(const struct sock* sk) {
  return bpf_ntohs(sk->__sk_common.skc_dport);
}

static __always_inline void endpoints_of(const struct sock* sk, const struct tcp_sock* tp,
                                         struct sockalarm_observe_endpoints* to) {
  local_address(sk, to->local);
  peer_address(sk, to->peer);
  to->local_port = local_port_of(tp);
  to->peer_port = peer_port_of(sk);
}

// For a connection that was there before we were. The octets sent so far are data, and our SYN: which is
// counted as acknowledged only on the side that connected, since the other side's counters begin after it.
static __always_inline __u8 direction_of(const struct tcp_sock* tp) {
  __u64 octets = tp->bytes_acked + (__u32)(tp->snd_nxt - tp->snd_una);
  __u64 data = tp->bytes_sent - tp->bytes_retrans;
  if (octets == data) return SOCKALARM_DIRECTION_INBOUND;
  return octets == data + 1 ? SOCKALARM_DIRECTION_OUTBOUND : SOCKALARM_DIRECTION_UNKNOWN;
}

enum { FIND_OUT = SOCKALARM_DIRECTIONS };  // a direction that is not known, but can be

// Gives the direction, or -1 if it is not observed.
static __always_inline int observed_direction(const struct sock* sk, const struct tcp_sock* tp,
                                              __u8 direction) {
  __u32 index = active();
  struct sockalarm_observe_filter* filter = bpf_map_lookup_elem(&filters, &index);
  if (!filter || !may_be_in_filter(filter, local_port_of(tp), peer_port_of(sk))) return -1;
  if (direction == FIND_OUT) direction = direction_of(tp);
  if (!((filter->directions >> (direction & 3)) & 1)) return -1;
  if (filter->sets & (SOCKALARM_FILTER_PREFIXES | SOCKALARM_FILTER_CGROUPS)) {
    __u32 peer[4];
    peer_address(sk, peer);
    if (!in_sets(sk, index, filter, peer)) return -1;
  }
  return direction;
}

// ---- the state of a connection ----

static __noinline struct connection* add(struct sock* sk, const struct tcp_sock* tp, __u8 direction) {
  int found = observed_direction(sk, tp, direction);
  if (found < 0) return 0;
  struct connection* c = bpf_sk_storage_get(&connections, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
  if (c)
    c->direction = found;
  else
    count(SOCKALARM_OBSERVE_LOST_STATE);
  return c;
}

static __always_inline struct connection* find_or_add(struct sock* sk, const struct tcp_sock* tp,
                                                      int fin_was_sent) {
  struct connection* c = bpf_sk_storage_get(&connections, sk, 0, 0);
  return c ?: add(sk, tp, fin_was_sent ? SOCKALARM_DIRECTION_UNKNOWN : FIND_OUT);
}

// The current task holds the socket: only where the kernel does what a program asked of it.
static __always_inline void held_by_current(struct connection* c) {
  struct task_struct* task = bpf_get_current_task_btf();
  if (task->flags & PF_KTHREAD) return;
  c->pid = task->tgid;
  const struct task_struct* leader = task->group_leader;
  for (unsigned i = 0; i < sizeof c->command; i++) c->command[i] = leader->comm[i];
}

static __always_inline __u32 unread_of(const struct tcp_sock* tp, __u32 fin) {
  __u32 unread = tp->rcv_nxt - tp->copied_seq;  // a FIN counts until it was read too
  return after(unread, fin) ? unread - fin : 0;
}

// Was the program at work for the peer? Unread data; something written that was not acknowledged; or
// something was read and nothing written since. The last is exact if observe_read saw it. Else by the
// kernel's times, which are in jiffies (1 to 10 ms): what came in and went out in the same one counts as
// answered, unless nothing at all was sent since.
static __always_inline int is_in_progress(const struct tcp_sock* tp, const struct connection* c, __u32 fin) {
  if (unread_of(tp, fin) || tp->write_seq != tp->snd_una) return 1;
  if (c->has_read) return c->written_when_read == tp->write_seq;
  if (tp->bytes_received <= fin) return 0;
  return after(tp->inet_conn.icsk_ack.lrcvtime, tp->lsndtime) || tp->rcv_wup != tp->rcv_nxt - fin;
}

static __always_inline void departed(const struct tcp_sock* tp, struct connection* c, __u8 cause, __u64 at,
                                     __u32 fin) {
  c->cause = cause + 1;
  c->departed_at = at;
  c->acked_at_departure = tp->snd_una;
  c->in_progress = is_in_progress(tp, c, fin);
}

// The FIN was missed: it is not known when it came.
static __always_inline void departed_unnoticed(const struct tcp_sock* tp, struct connection* c) {
  count(SOCKALARM_OBSERVE_FOUND_LATE);
  departed(tp, c, SOCKALARM_CAUSE_PEER_FIN, 0, 1);
}

static __always_inline __u8 cause_of(int error, int connecting) {
  switch (error) {
    case ECONNRESET:  // an RST
    case EPIPE:       // an RST in CLOSE_WAIT
      return SOCKALARM_CAUSE_PEER_RESET;
    case ETIMEDOUT:
      return SOCKALARM_CAUSE_TIMEOUT;
    case ECONNABORTED:  // SOCK_DESTROY
      return SOCKALARM_CAUSE_DESTROYED;
    case ECONNREFUSED:  // later it is an ICMP message, remembered until the peer was given up
      return connecting ? SOCKALARM_CAUSE_REFUSED : SOCKALARM_CAUSE_UNREACHABLE;
    default:
      return SOCKALARM_CAUSE_UNREACHABLE;
  }
}

// It is over for TCP, but perhaps not for the program that holds the socket.
static __noinline int close(const struct sock* sk, const struct tcp_sock* tp, struct connection* c,
                            int old_state, __u64 at) {
  __u32 fin = flag(sk, SOCK_DONE);
  int connecting = old_state == TCP_SYN_SENT;
  c->error = sk->sk_err;
  if (!c->cause && c->error)
    departed(tp, c, cause_of(c->error, connecting), at, fin);
  else if (!c->cause && old_state == TCP_CLOSE_WAIT)
    departed_unnoticed(tp, c);
  else if (!c->cause)
    c->cause = SOCKALARM_CAUSE_LOCAL + 1;
  c->closed_at = at;
  c->held_at_close = !flag(sk, SOCK_DEAD);
  endpoints_of(sk, tp, &c->endpoints);
  if (connecting) return 0;
  __u32 end_of_data = tp->write_seq;
  barrier_var(end_of_data);  // one load from two kinds of memory is more than the verifier takes
  if (c->local_fin_at) end_of_data = c->end_of_data;
  c->bytes_received = tp->bytes_received - (tp->bytes_received ? fin : 0);
  c->bytes_sent = tp->bytes_sent - tp->bytes_retrans;
  c->unread = unread_of(tp, fin);
  c->unsent = after(end_of_data, tp->snd_una) ? end_of_data - tp->snd_una : 0;
  c->served = !c->unsent && after(end_of_data, c->acked_at_departure);
  return 0;
}

// ---- what is made of it ----

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

static __always_inline void measure(const struct sockalarm_observe_end* end) {
  struct sockalarm_observe_service service = {
      .cgroup = end->cgroup, .cause = end->cause, .verdict = end->verdict, .direction = end->direction};
  struct sockalarm_observe_metrics* all = bpf_map_lookup_elem(&metrics, &service);
  if (!all) {
    bpf_map_update_elem(&metrics, &service, &no_metrics, BPF_NOEXIST);
    all = bpf_map_lookup_elem(&metrics, &service);
    if (!all) return count(SOCKALARM_OBSERVE_LOST_METRICS);
  }
  __sync_fetch_and_add(&all->ends, 1);
  __sync_fetch_and_add(&all->bytes_received, end->bytes_received);
  __sync_fetch_and_add(&all->bytes_sent, end->bytes_sent);
  int abandoned = end->verdict == SOCKALARM_VERDICT_ABANDONED;
  __u64 until = abandoned && end->departed_at ? end->departed_at : end->ended_at;
  if (end->established_at && until >= end->established_at) {
    __sync_fetch_and_add(&all->age, until - end->established_at);
    __sync_fetch_and_add(&all->ages[bucket_of(until - end->established_at)], 1);
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
  int fills_up =
      bpf_ringbuf_query(&ends, BPF_RB_AVAIL_DATA) >= bpf_ringbuf_query(&ends, BPF_RB_RING_SIZE) / 4;
  return fills_up ? BPF_RB_FORCE_WAKEUP : BPF_RB_NO_WAKEUP;
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

static __always_inline void push(const struct sockalarm_observe_end* end) {
  struct sockalarm_observe_end* record = bpf_ringbuf_reserve(&ends, sizeof *record, 0);
  if (!record) return count(SOCKALARM_OBSERVE_LOST_RECORD);
  *record = *end;
  __u64 flags = wake_later();
  bpf_ringbuf_submit(record, flags);
  if (flags == BPF_RB_NO_WAKEUP) start_timer();
}

static __noinline int finish(struct sock* sk, struct connection* c) {
  __u32 index = active();
  struct sockalarm_observe_filter* filter = bpf_map_lookup_elem(&filters, &index);
  if (!sk || !c || !filter || !((filter->directions >> (c->direction & 3)) & 1) ||
      !may_be_in_filter(filter, c->endpoints.local_port, c->endpoints.peer_port) ||
      !in_sets(sk, index, filter, c->endpoints.peer))
    return 0;
  struct sockalarm_observe_end end;
  __builtin_memset(&end, 0, sizeof end);
  end.cause = c->cause - 1;
  end.verdict = verdict_of(c, end.cause);
  end.direction = c->direction;
  end.cgroup = sk->sk_cgrp_data.cgroup->kn->id;
  end.established_at = c->established_at;
  end.departed_at = c->departed_at;
  end.ended_at = c->released_at ?: c->local_fin_at ?: c->closed_at;
  if (end.verdict == SOCKALARM_VERDICT_ABANDONED && c->departed_at && end.ended_at > c->departed_at)
    end.orphaned = end.ended_at - c->departed_at;
  end.bytes_received = c->bytes_received;
  end.bytes_sent = c->bytes_sent;
  end.unread = c->unread;
  end.unsent = c->unsent;
  end.error = c->error;
  end.pid = c->pid;
  end.endpoints = c->endpoints;
  __builtin_memcpy(end.command, c->command, sizeof end.command);
  measure(&end);

  if (!((filter->causes >> (end.cause & 7)) & 1) || end.orphaned < filter->minimum_orphaned) return 0;
  if (filter->one_in > 1 && bpf_get_prandom_u32() % filter->one_in) return 0;
  end.cookie = bpf_get_socket_cookie(sk);
  end.sequence = __sync_fetch_and_add(&sequence.next, 1);
  push(&end);
  return 0;
}

// ---- the hooks ----

static __always_inline int on_established(struct sock* sk, struct tcp_sock* tp, int old_state) {
  struct connection* c =
      add(sk, tp, old_state == TCP_SYN_SENT ? SOCKALARM_DIRECTION_OUTBOUND : SOCKALARM_DIRECTION_INBOUND);
  if (c) c->established_at = bpf_ktime_get_ns();
  return 0;
}

static __always_inline int on_peer_fin(struct sock* sk, struct tcp_sock* tp) {
  struct connection* c = find_or_add(sk, tp, 0);
  if (c && !c->cause) departed(tp, c, SOCKALARM_CAUSE_PEER_FIN, bpf_ktime_get_ns(), 1);
  return 0;
}

// close() or shutdown(): in the task that calls it. Our FIN is queued after this.
static __always_inline int on_local_fin(struct sock* sk, struct tcp_sock* tp, int old_state) {
  struct connection* c = find_or_add(sk, tp, 0);
  if (!c) return 0;
  c->local_fin_at = bpf_ktime_get_ns();
  c->end_of_data = tp->write_seq;
  if (!c->released_at) held_by_current(c);
  if (c->cause) return 0;
  if (old_state != TCP_CLOSE_WAIT) {
    c->cause = SOCKALARM_CAUSE_LOCAL + 1;
  } else {
    departed_unnoticed(tp, c);
  }
  return 0;
}

static __always_inline int on_close(struct sock* sk, struct tcp_sock* tp, int old_state) {
  if (old_state == TCP_LISTEN || old_state == TCP_CLOSE) return 0;
  if (old_state == TCP_SYN_SENT && !sk->sk_err) return 0;  // given up before anything came of it
  struct connection* c;
  if (old_state == TCP_SYN_SENT)
    c = add(sk, tp, SOCKALARM_DIRECTION_OUTBOUND);
  else if (old_state == TCP_SYN_RECV)
    c = add(sk, tp, SOCKALARM_DIRECTION_INBOUND);
  else
    c = find_or_add(sk, tp, old_state != TCP_ESTABLISHED && old_state != TCP_CLOSE_WAIT);
  if (!c) return 0;
  if (old_state == TCP_SYN_RECV && !c->cause)
    c->never = 1;
  else
    close(sk, tp, c, old_state, bpf_ktime_get_ns());
  return 0;
}

// The socket begins anew, after a connection that failed or was dissolved by connect() to AF_UNSPEC.
static __always_inline int on_reuse(struct sock* sk) {
  struct connection* c = bpf_sk_storage_get(&connections, sk, 0, 0);
  if (!c) return 0;
  if (c->closed_at) finish(sk, c);
  __builtin_memset(c, 0, sizeof *c);
  return 0;
}

// Hook: tracepoint inet_sock_set_state (4.16), before the change and, while a program calls, in its task.
// Null of bpf_skc_to_tcp_sock: another protocol, or the upper socket of MPTCP, whose connections are each
// seen by themselves.
SEC("?tp_btf/inet_sock_set_state")
int BPF_PROG(observe_state, struct sock* sk, int old_state, int new_state) {
  if (new_state == TCP_SYN_SENT || new_state == TCP_LISTEN) return on_reuse(sk);
  if (new_state == TCP_SYN_RECV || new_state == TCP_FIN_WAIT2 || new_state == TCP_CLOSING) return 0;
  struct tcp_sock* tp = bpf_skc_to_tcp_sock(sk);
  if (!tp) return 0;
  switch (new_state) {
    case TCP_ESTABLISHED:
      return on_established(sk, tp, old_state);
    case TCP_CLOSE_WAIT:
      return on_peer_fin(sk, tp);
    case TCP_FIN_WAIT1:
    case TCP_LAST_ACK:
      return on_local_fin(sk, tp, old_state);
    case TCP_CLOSE:
      return on_close(sk, tp, old_state);
  }
  return 0;
}

// Hook: tracepoint inet_sk_error_report (5.14), after the change to CLOSE: the program may take the error
// from the socket at any time after that, so this is where a change that was missed is made up for.
SEC("?tp_btf/inet_sk_error_report")
int BPF_PROG(observe_error, struct sock* sk) {
  if (sk->__sk_common.skc_state != TCP_CLOSE || !sk->sk_err) return 0;
  struct connection* c = bpf_sk_storage_get(&connections, sk, 0, 0);
  struct tcp_sock* tp = bpf_skc_to_tcp_sock(sk);
  if (!c || !tp || c->closed_at || c->never) return 0;
  if (!c->established_at && !c->cause) return 0;  // another connection of a socket that is used again
  count(SOCKALARM_OBSERVE_FOUND_LATE);
  close(sk, tp, c, TCP_CLOSE, bpf_ktime_get_ns());
  return 0;
}

// Hook: tracepoint tcp_destroy_sock (4.15): the kernel's socket goes, whatever it was.
SEC("?tp_btf/tcp_destroy_sock")
int BPF_PROG(observe_destroy, struct sock* sk) {
  struct connection* c = bpf_sk_storage_get(&connections, sk, 0, 0);
  if (!c && !sk->__sk_common.skc_dport) return 0;  // neither connected nor accepted
  struct tcp_sock* tp = bpf_skc_to_tcp_sock(sk);
  if (!tp || (c && c->never)) return 0;
  __u64 now = bpf_ktime_get_ns();
  if (c && c->closed_at) {
    if (c->held_at_close &&
        !c->released_at) {  // in the task that closes it, or the listener that it waits in
      held_by_current(c);
      if (!has_release) c->released_at = now;
    }
    return finish(sk, c);
  }
  if (!tp->rcv_nxt || !sk->__sk_common.skc_dport) return 0;  // never connected, or dissolved
  if (!c && observed_direction(sk, tp, SOCKALARM_DIRECTION_UNKNOWN) < 0) return 0;
  count(SOCKALARM_OBSERVE_FOUND_LATE);
  __u32 first = 0;
  if (!c) {
    c = bpf_map_lookup_elem(&unknown_connection, &first);
    if (!c) return 0;
    __builtin_memset(c, 0, sizeof *c);
  }
  close(sk, tp, c, TCP_CLOSE, bpf_ktime_get_ns());
  return finish(sk, c);
}

// Hook: cgroup/sock_release on the root cgroup (5.9): the last descriptor of an IPv4 or IPv6 socket went, in
// the closing task, before any change of state. Returns 1: allow (the value is ignored for a release).
SEC("?cgroup/sock_release")
int observe_release(struct bpf_sock* sk) {
  struct connection* c = bpf_sk_storage_get(&connections, sk, 0, 0);
  if (!c) return 1;
  c->released_at = bpf_ktime_get_ns();
  held_by_current(c);
  return 1;
}

// Hook: tracepoint tcp_rcv_space_adjust (4.15), in every receive (recv, splice, zero-copy), after copied_seq
// moved.
SEC("?tp_btf/tcp_rcv_space_adjust")
int BPF_PROG(observe_read, struct sock* sk) {
  struct connection* c = bpf_sk_storage_get(&connections, sk, 0, 0);
  if (!c) return 0;
  struct tcp_sock* tp = bpf_skc_to_tcp_sock(sk);
  if (!tp) return 0;
  c->written_when_read = tp->write_seq;
  c->has_read = 1;
  return 0;
}
