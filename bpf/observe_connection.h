/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
#ifndef SOCKALARM_OBSERVE_CONNECTION_H
#define SOCKALARM_OBSERVE_CONNECTION_H

#include "observe_filter.h"

// What is kept of a connection while it lives.

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
  __u64 command[2];  // text
  __u8 cause;        // + 1; 0: it goes on
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

// Room for a connection of which nothing had been noted; the stack is too small. One for each program that
// needs it, since one may interrupt the other.
struct {
  __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
  __uint(max_entries, 2);
  __type(key, __u32);
  __type(value, struct connection);
} unknown_connection SEC(".maps");

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
  // Two loads, in place of a call that costs more than all the rest of this.
  const __u64* name = (const __u64*)task->group_leader->comm;
  c->command[0] = name[0];
  c->command[1] = name[1];
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
  int connecting = old_state == TCP_SYN_SENT ||
                   (old_state == TCP_SYN_RECV && c->direction == SOCKALARM_DIRECTION_OUTBOUND);
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

#endif
