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
#include "observe_record.h"

// Every end of a TCP connection of the host. What is learnt on the way is kept with the socket; the record is
// made when nothing more can come: when the kernel's socket goes (or is used for another connection), after
// the last local close and after the peer has acknowledged, refused or ignored what was sent last.
//
// Since 6.1 the kernel does not enter a tracing program again while it runs on the same CPU: a change
// of state that comes in a softirq meanwhile goes unnoticed. So each program takes the socket as it finds it,
// and makes up for what should have been noted before. For the end itself there is a second program, which
// runs when the first is left out.

char LICENSE[] SEC("license") = "GPL";

const volatile __u8 has_release = 0;  // observe_release is attached

// When something happens to a connection that its program has closed is of no interest, but that it did; and
// reading the clock costs as much as most of what is done.
static __always_inline __u64 now_or_before(const struct connection* c) {
  return c->released_at && c->cause ? c->released_at : bpf_ktime_get_ns();
}

static __always_inline int on_established(struct sock* sk, struct tcp_sock* tp, int old_state) {
  struct connection* c = add(sk, tp, old_state == TCP_SYN_SENT ? SOCKALARM_DIRECTION_OUTBOUND : FIND_OUT);
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
  c->local_fin_at = c->released_at ?: bpf_ktime_get_ns();
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

// A child in SYN_RECV that dies, of which nobody has heard: not accepted, and without data. With TCP Fast
// Open it may be otherwise.
static __always_inline int never_was(const struct sock* sk, const struct tcp_sock* tp) {
  return !sk->sk_err && !sk->sk_socket && !tp->bytes_received;
}

static __always_inline int on_close(struct sock* sk, struct tcp_sock* tp, int old_state) {
  if (old_state == TCP_LISTEN || old_state == TCP_CLOSE) return 0;
  if (old_state == TCP_SYN_SENT && !sk->sk_err) return 0;  // given up before anything came of it
  struct connection* c;
  if (old_state == TCP_SYN_SENT)
    c = add(sk, tp, SOCKALARM_DIRECTION_OUTBOUND);
  else if (old_state == TCP_SYN_RECV)
    c = add(sk, tp, FIND_OUT);
  else
    c = find_or_add(sk, tp, old_state != TCP_ESTABLISHED && old_state != TCP_CLOSE_WAIT);
  if (!c) return 0;
  if (old_state == TCP_SYN_RECV && never_was(sk, tp))
    c->never = 1;
  else
    close(sk, tp, c, old_state, now_or_before(c));
  return 0;
}

// The socket begins anew, after a connection that failed or was dissolved by connect() to AF_UNSPEC.
static __always_inline int on_reuse(struct sock* sk) {
  struct connection* c = bpf_sk_storage_get(&connections, sk, 0, 0);
  if (!c) return 0;
  if (c->closed_at) finish(sk, c, bpf_ktime_get_ns());
  bpf_sk_storage_delete(&connections, sk);
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

// What has received nothing, not even the peer's SYN: the kernel sets it to 0 before it connects.
static __always_inline int is_connecting(const struct tcp_sock* tp) { return !tp->rcv_nxt; }

// Hook: tracepoint inet_sk_error_report (5.14), right after the change to CLOSE. The program may take the
// error from the socket at any time after that, and a connect() that waits and fails then also forgets whom
// it was for, so this is where a change that was missed is made up for. What was dissolved has no peer.
SEC("?tp_btf/inet_sk_error_report")
int BPF_PROG(observe_error, struct sock* sk) {
  if (sk->__sk_common.skc_state != TCP_CLOSE || !sk->sk_err || !sk->__sk_common.skc_dport) return 0;
  struct connection* c = bpf_sk_storage_get(&connections, sk, 0, 0);
  struct tcp_sock* tp = bpf_skc_to_tcp_sock(sk);
  if (!tp || (c && (c->closed_at || c->never))) return 0;
  int connecting = is_connecting(tp);
  if (!c) c = add(sk, tp, connecting ? SOCKALARM_DIRECTION_OUTBOUND : SOCKALARM_DIRECTION_UNKNOWN);
  if (!c) return 0;
  count(SOCKALARM_OBSERVE_FOUND_LATE);
  close(sk, tp, c, connecting ? TCP_SYN_SENT : TCP_CLOSE, bpf_ktime_get_ns());
  return 0;
}

// Of this processor: a socket goes, and no program has looked at it yet.
struct {
  __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
  __uint(max_entries, 1);
  __type(key, __u32);
  __type(value, __u32);
} going SEC(".maps");

// Gives what it was.
static __always_inline __u32 set_going(__u32 value) {
  __u32 key = 0;
  __u32* now = bpf_map_lookup_elem(&going, &key);
  if (!now) return 0;
  __u32 before = *now;
  *now = value;
  return before;
}

static __always_inline int on_destroy(struct sock* sk, __u32 room) {
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
    return finish(sk, c, now);
  }
  if (!sk->__sk_common.skc_dport) return 0;  // dissolved
  int connecting = is_connecting(tp);
  if (connecting && !sk->sk_err) return 0;  // given up before anything came of it
  __u8 direction = connecting ? SOCKALARM_DIRECTION_OUTBOUND : SOCKALARM_DIRECTION_UNKNOWN;
  if (!c && observed_direction(sk, tp, direction) < 0) return 0;
  count(SOCKALARM_OBSERVE_FOUND_LATE);
  if (!c) {
    c = bpf_map_lookup_elem(&unknown_connection, &room);
    if (!c) return 0;
    __builtin_memset(c, 0, sizeof *c);
    c->direction = direction;
  }
  close(sk, tp, c, connecting ? TCP_SYN_SENT : TCP_CLOSE, now);
  return finish(sk, c, now);
}

// Hook: tracepoint tcp_destroy_sock (4.15): the kernel's socket goes, whatever it was. In a softirq or with
// softirqs off, but for close(2) that finds packets which came meanwhile (__release_sock()): there a softirq
// may interrupt observe_destroy, and the kernel leaves it out for all sockets that go in that. They are
// observe_nested's. The three are called in the order in which they were attached, and softirqs do not
// interrupt each other: so it finds `going` set if, and only if, observe_destroy was left out.
SEC("?tp_btf/tcp_destroy_sock")
int BPF_PROG(observe_going, struct sock* sk) {
  set_going(1);
  return 0;
}

SEC("?tp_btf/tcp_destroy_sock")
int BPF_PROG(observe_destroy, struct sock* sk) {
  set_going(0);
  return on_destroy(sk, 0);
}

SEC("?tp_btf/tcp_destroy_sock")
int BPF_PROG(observe_nested, struct sock* sk) { return set_going(0) ? on_destroy(sk, 1) : 0; }

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
  if (!c && sk->__sk_common.skc_state != TCP_SYN_RECV) return 0;
  struct tcp_sock* tp = bpf_skc_to_tcp_sock(sk);
  if (!tp) return 0;
  if (!c) c = add(sk, tp, FIND_OUT);  // accepted before the handshake is over (TCP Fast Open)
  if (!c) return 0;
  c->written_when_read = tp->write_seq;
  c->has_read = 1;
  return 0;
}
