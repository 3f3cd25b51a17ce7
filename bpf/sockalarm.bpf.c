// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// clang-format off: libbpf's headers need the types of the kernel's
#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
// clang-format on

#include "kernel_types.h"
#include "sockalarm_abi.h"

// The programs run in softirq or, on loopback, in the peer's task: `current` never means the socket's owner.
// They see every TCP socket of the host, so the way out for a socket that nobody watches comes first.
// Nothing newer than kernel 5.15 may be used here without "?" (not loaded unless probed) or __weak.

char LICENSE[] SEC("license") = "GPL";

// max_entries of all but `lost` are set by the loader.
struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __uint(max_entries, 1);
  __type(key, __u64);
  __type(value, struct sockalarm_registration);
} registry SEC(".maps");

struct watch_table {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(map_flags, BPF_F_MMAPABLE | BPF_F_INNER_MAP);  // INNER_MAP (5.10): tables may differ in length
  __uint(max_entries, 1);
  __uint(key_size, sizeof(__u32));
  __uint(value_size, sizeof(struct sockalarm_watch_state));  // __type() of an inner map is cut from the BTF
};

struct {
  __uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
  __uint(max_entries, 1);
  __type(key, __u32);
  __array(values, struct watch_table);
} watch_tables SEC(".maps");

struct event_ring {
  __uint(type, BPF_MAP_TYPE_RINGBUF);
  __uint(max_entries, 4096);
};

struct {
  __uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
  __uint(max_entries, 1);
  __type(key, __u32);
  __array(values, struct event_ring);
} event_rings SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
  __uint(max_entries, SOCKALARM_LOST_CAUSES);
  __type(key, __u32);
  __type(value, __u64);
} lost SEC(".maps");

struct news {
  __u64 cookie;
  __u32 events;
  __u32 error;
  __u8 old_state, new_state;
};

static __always_inline void count_lost(__u32 cause) {
  __u64* counter = bpf_map_lookup_elem(&lost, &cause);
  if (counter) *counter += 1;
}

// ORs into `seen` of that generation. Gives the events that are new, 0 also if the slot belongs to another
// socket. 16 rounds are enough: a round is lost only to another change, and there are fewer event bits than
// that.
static __always_inline __u32 mark_seen(struct sockalarm_watch_state* state, __u32 generation, __u32 events) {
  __u64 old = *(volatile __u64*)&state->seen;
  for (int i = 0; i < 16; i++) {
    if ((__u32)(old >> 32) != generation) {
      count_lost(SOCKALARM_LOST_STALE);
      return 0;
    }
    __u32 fresh = events & ~(__u32)old;
    if (!fresh) return 0;
    __u64 before = __sync_val_compare_and_swap(&state->seen, old, old | fresh);
    if (before == old) return fresh;
    old = before;
  }
  return 0;
}

// Is somebody waiting for one of these? Who waits for eof must also hear of the FIN, to start watching reads.
static __always_inline int is_wanted(struct sockalarm_watch_state* state, __u32 events) {
  __u64 control = *(volatile __u64*)&state->control;
  __u32 wanted = *(volatile __u32*)&state->extra;
  if ((control & SOCKALARM_STATE_MASK) == SOCKALARM_ARMED)
    wanted |= (control >> SOCKALARM_INTEREST_SHIFT) & SOCKALARM_INTEREST_MASK;
  if (wanted & SOCKALARM_EOF) wanted |= SOCKALARM_FIN;
  return (wanted & events) != 0;
}

static __always_inline void push(const struct sockalarm_registration* where, const struct news* news,
                                 __u64 now) {
  __u32 client = where->client;
  __u32 header_slot = 0;
  void* ring = bpf_map_lookup_elem(&event_rings, &client);
  void* table = bpf_map_lookup_elem(&watch_tables, &client);
  struct sockalarm_table_header* header = table ? bpf_map_lookup_elem(table, &header_slot) : 0;
  if (!ring || !header) return count_lost(SOCKALARM_LOST_NO_CLIENT);

  struct sockalarm_record* record = bpf_ringbuf_reserve(ring, sizeof *record, 0);
  if (!record) {
    // Announce the loss, then try again: either there is room now, or the reader has still to free some, and
    // will look at `lost` after that. An atomic that returns the old value is a full barrier.
    __sync_fetch_and_add(&header->lost, 1);
    record = bpf_ringbuf_reserve(ring, sizeof *record, 0);
    if (!record) return count_lost(SOCKALARM_LOST_RING_FULL);
  }
  __builtin_memset(record, 0, sizeof *record);
  record->cookie = news->cookie;
  record->at = now;
  record->slot = where->slot;
  record->generation = where->generation;
  record->events = news->events;
  record->error = news->error;
  record->old_state = news->old_state;
  record->new_state = news->new_state;
  bpf_ringbuf_submit(record, 0);
}

static __always_inline void report(const struct sockalarm_registration* where, struct news* news) {
  __u32 client = where->client;
  __u32 slot = where->slot;
  void* table = bpf_map_lookup_elem(&watch_tables, &client);
  struct sockalarm_watch_state* state = table && slot ? bpf_map_lookup_elem(table, &slot) : 0;
  if (!state) return count_lost(SOCKALARM_LOST_NO_CLIENT);

  __u64 now = bpf_ktime_get_ns();
  if ((__u32)(*(volatile __u64*)&state->seen >> 32) == where->generation) {  // the time before the fact
    if (news->events & SOCKALARM_FIN) __sync_val_compare_and_swap(&state->fin_at, 0, now);
    if (news->events & (SOCKALARM_RESET | SOCKALARM_TIMEOUT | SOCKALARM_ERROR)) {
      state->error = news->error;
      __sync_val_compare_and_swap(&state->end_at, 0, now);
    }
  }
  news->events = mark_seen(state, where->generation, news->events);
  if (news->events && is_wanted(state, news->events)) push(where, news, now);
}

static __always_inline __u32 event_of_error(int error) {
  switch (error) {
    case ECONNRESET:    // an RST
    case EPIPE:         // an RST in CLOSE_WAIT
    case ECONNREFUSED:  // an RST to our SYN
      return SOCKALARM_RESET;
    case ETIMEDOUT:  // retransmission, keepalive or TCP_USER_TIMEOUT gave up
      return SOCKALARM_TIMEOUT;
    default:
      return SOCKALARM_ERROR;
  }
}

// Everything before the FIN was read? The unread FIN itself counts as one.
static __always_inline int all_was_read(const struct sock* sk) {
  struct tcp_sock* tp = bpf_skc_to_tcp_sock((void*)sk);
  return tp && tp->rcv_nxt - tp->copied_seq <= 1;
}

static __always_inline __u32 event_of_transition(const struct sock* sk, int old_state, int new_state,
                                                 int error) {
  int fin =
      new_state == TCP_CLOSE_WAIT || new_state == TCP_CLOSING ||
      // A TIME_WAIT stand-in takes over and the socket itself reads CLOSE.
      (old_state == TCP_FIN_WAIT2 && new_state == TCP_CLOSE && !error && (sk->sk_shutdown & RCV_SHUTDOWN));
  if (fin) return SOCKALARM_FIN | (all_was_read(sk) ? SOCKALARM_EOF : 0);
  if (new_state == TCP_CLOSE && error) return event_of_error(error);
  return 0;  // our own side connecting, closing or disconnecting: no news of the peer
}

// Twins. A program on a tracepoint is not entered again while it runs on the same CPU (bpf_trace_run(),
// since 6.1): a softirq that interrupts it in a task, and reports another socket, would find it busy and its
// event would be lost. So these programs exist twice and both are attached: they run one after the other, a
// softirq can interrupt only one of them, and the other takes its event. More than two levels there are not:
// softirqs do not interrupt each other, and tasks do not preempt each other inside a tracepoint. Whoever
// comes second finds the event in `seen` already.

static __always_inline int state_changed(const struct sock* sk, int old_state, int new_state) {
  __u64 cookie = sk->__sk_common.skc_cookie.counter;
  if (!cookie) return 0;
  struct sockalarm_registration* where = bpf_map_lookup_elem(&registry, &cookie);
  if (!where) return 0;
  int error = sk->sk_err;
  struct news news = {.cookie = cookie, .error = error, .old_state = old_state, .new_state = new_state};
  news.events = event_of_transition(sk, old_state, new_state, error);
  if (news.events) report(where, &news);
  return 0;
}

// Hook: tracepoint inet_sock_set_state (4.16), in every change of a TCP socket's state; decides every end of
// a connection. sk_err is already set. Must not read anything of the current task, nor sleep.
SEC("?tp_btf/inet_sock_set_state")
int BPF_PROG(on_set_state, const struct sock* sk, int old_state, int new_state) {
  return state_changed(sk, old_state, new_state);
}
SEC("?tp_btf/inet_sock_set_state")
int BPF_PROG(on_set_state_twin, const struct sock* sk, int old_state, int new_state) {
  return state_changed(sk, old_state, new_state);
}

static __always_inline int error_reported(const struct sock* sk) {
  __u64 cookie = sk->__sk_common.skc_cookie.counter;
  if (!cookie) return 0;
  struct sockalarm_registration* where = bpf_map_lookup_elem(&registry, &cookie);
  if (!where) return 0;
  int state = sk->__sk_common.skc_state;
  int error = sk->sk_err;
  if (!error || state == TCP_CLOSE || state == TCP_SYN_SENT) return 0;
  struct news news = {.cookie = cookie,
                      .events = event_of_error(error),
                      .error = error,
                      .old_state = state,
                      .new_state = state};
  report(where, &news);
  return 0;
}

// Hook: tracepoint inet_sk_error_report (5.14), when an error is handed to the socket's owner. Wanted only
// for the errors that leave the state alone (an ICMP error with IP_RECVERR); where a CLOSE follows (some
// kernels report before it) it is the same news. A failing connect() is left to on_set_state.
SEC("?tp_btf/inet_sk_error_report")
int BPF_PROG(on_error_report, const struct sock* sk) { return error_reported(sk); }
SEC("?tp_btf/inet_sk_error_report")
int BPF_PROG(on_error_report_twin, const struct sock* sk) { return error_reported(sk); }

static __always_inline void forget(__u64 cookie) {
  struct sockalarm_registration* where = bpf_map_lookup_elem(&registry, &cookie);
  if (!where) return;
  struct news news = {.cookie = cookie, .events = SOCKALARM_CLOSED};
  report(where, &news);
  bpf_map_delete_elem(&registry, &cookie);
}

// Hook: cgroup/sock_release on the root cgroup (5.9): the last descriptor of an IPv4 or IPv6 socket went, in
// the closing task, before any change of state. Returns 1: allow (the value is ignored for a release).
SEC("?cgroup/sock_release")
int on_release(struct bpf_sock* sk) {
  forget(bpf_get_socket_cookie(sk));
  return 1;
}

// Hook: tracepoint tcp_destroy_sock (4.15), where on_release cannot be attached: the kernel's socket is gone.
// Late for an orphan whose peer stays silent.
SEC("?tp_btf/tcp_destroy_sock")
int BPF_PROG(on_destroy, const struct sock* sk) {
  __u64 cookie = sk->__sk_common.skc_cookie.counter;
  if (cookie) forget(cookie);
  return 0;
}

// Hook: tracepoint tcp_rcv_space_adjust (4.15), in every receive (recv, splice, zero-copy) of every TCP
// socket of the host, after copied_seq moved. Attached only while somebody waits for eof with data pending.
SEC("?tp_btf/tcp_rcv_space_adjust")
int BPF_PROG(on_read, const struct sock* sk) {
  if (!(sk->sk_shutdown & RCV_SHUTDOWN)) return 0;
  __u64 cookie = sk->__sk_common.skc_cookie.counter;
  if (!cookie) return 0;
  struct sockalarm_registration* where = bpf_map_lookup_elem(&registry, &cookie);
  if (!where || !all_was_read(sk)) return 0;
  int state = sk->__sk_common.skc_state;
  // Our own shutdown(SHUT_RD) sets RCV_SHUTDOWN too; only a FIN that came leads to these states.
  if (state != TCP_CLOSE_WAIT && state != TCP_CLOSING && state != TCP_CLOSE) return 0;
  if (sk->sk_err) return 0;  // ended by a reset: no end of stream
  struct news news = {.cookie = cookie, .events = SOCKALARM_EOF, .old_state = state, .new_state = state};
  report(where, &news);
  return 0;
}
