// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// clang-format off: libbpf's headers need the types of the kernel's
#include <linux/bpf.h>
#include <linux/types.h>
#include <linux/version.h>

#include <bpf/bpf_core_read.h>
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
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(max_entries, 1);
  __type(key, __u32);
  __type(value, struct sockalarm_client);
} clients SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
  __uint(max_entries, SOCKALARM_LOST_CAUSES);
  __type(key, __u32);
  __type(value, __u64);
} lost SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(max_entries, 1);
  __type(key, __u32);
  __type(value, struct sockalarm_late_wake);
} late_wakes SEC(".maps");

// Set by the loader.
const volatile struct sockalarm_settings settings SEC(".rodata.settings");

struct news {
  __u64 cookie;
  __u32 events;
  __u32 error;
  __u8 old_state, new_state;
};

// This file is compiled twice: with SOCKALARM_TASK_WORK for kernels that have task work (6.18), and without.
// Not as one object with weak names: where a name is missing, libbpf looks for it in all modules, which needs
// CAP_SYS_ADMIN.
#if SOCKALARM_TASK_WORK
extern int bpf_task_work_schedule_signal_impl(struct task_struct* task, struct bpf_task_work* work, void* map,
                                              int (*callback)(struct bpf_map* map, void* key, void* value),
                                              void* aux) __ksym;
extern struct task_struct* bpf_task_from_pid(int pid) __ksym;
extern void bpf_task_release(struct task_struct* task) __ksym;
#endif

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

// Where a socket's state is, copied from its registration.
struct place {
  __u32 client, slot, generation, tgid;
};

static __always_inline struct place place_of(struct sockalarm_registration* where) {
  volatile struct sockalarm_registration* now = where;
  struct place place = {now->client, now->slot, now->generation, now->tgid};
  return place;
}

// Null also if the registration is another socket's by now: memory of a deleted entry may be used again while
// we hold a pointer to it, so what was read of it counts only if the state says the same.
static __always_inline struct sockalarm_watch_state* state_of(const struct place* place, __u64 cookie) {
  __u32 client = place->client;
  __u32 slot = place->slot;
  void* table = bpf_map_lookup_elem(&watch_tables, &client);
  struct sockalarm_watch_state* state = table && slot ? bpf_map_lookup_elem(table, &slot) : 0;
  if (!state) {
    count_lost(SOCKALARM_LOST_NO_CLIENT);
    return 0;
  }
  if (*(volatile __u64*)&state->cookie == cookie) return state;
  count_lost(SOCKALARM_LOST_STALE);
  return 0;
}

// What the socket's first alarm waits for, if it is armed.
static __always_inline __u32 interest_of(__u64 control) {
  if ((control & SOCKALARM_STATE_MASK) != SOCKALARM_ARMED) return 0;
  return (control >> SOCKALARM_INTEREST_SHIFT) & SOCKALARM_INTEREST_MASK;
}

// Is one of these wanted? Who waits for eof must also hear of the FIN, to start watching reads.
static __always_inline int wants(__u32 wanted, __u32 events) {
  if (wanted & SOCKALARM_EOF) wanted |= SOCKALARM_FIN;
  return (wanted & events) != 0;
}

static __always_inline struct sockalarm_table_header* header_of(const struct place* place) {
  __u32 client = place->client;
  __u32 slot = 0;
  void* table = bpf_map_lookup_elem(&watch_tables, &client);
  return table ? bpf_map_lookup_elem(table, &slot) : 0;
}

// Though the reader has not caught up.
static __always_inline void wake_reader(void* ring) {
  void* nothing = bpf_ringbuf_reserve(ring, 8, 0);  // a full ring has woken its reader while it filled up
  if (nothing) bpf_ringbuf_discard(nothing, BPF_RB_FORCE_WAKEUP);
}

static int late_wake(void* map, __u32* client, struct sockalarm_late_wake* late) {
  __u32 index = *client;
  __sync_lock_test_and_set(&late->started, 0);
  void* ring = bpf_map_lookup_elem(&event_rings, &index);
  if (ring) wake_reader(ring);
  return 0;
}

// False: no timer is to be had (out of memory, or a kernel that refuses them).
static __always_inline int wake_later(struct sockalarm_late_wake* late) {
  // A constant for the verifier, which then leaves out what follows.
  if (settings.without_timers) return 0;
  if (__sync_lock_test_and_set(&late->started, 1)) return 1;
  bpf_timer_init(&late->timer, &late_wakes, CLOCK_MONOTONIC);  // -EBUSY: it was before
  bpf_timer_set_callback(&late->timer, late_wake);
  if (!bpf_timer_start(&late->timer, SOCKALARM_LATE_NS, 0)) return 1;
  __sync_lock_test_and_set(&late->started, 0);
  return 0;
}

// `late`: the reader need not know at once. A ring that fills up wakes it all the same.
static __always_inline void push(const struct place* place, const struct news* news, __u64 now, __u8 direct,
                                 int late) {
  __u32 client = place->client;
  void* ring = bpf_map_lookup_elem(&event_rings, &client);
  struct sockalarm_table_header* header = header_of(place);
  struct sockalarm_late_wake* later = bpf_map_lookup_elem(&late_wakes, &client);
  if (!ring || !header || !later) return count_lost(SOCKALARM_LOST_NO_CLIENT);
  late = late && bpf_ringbuf_query(ring, BPF_RB_AVAIL_DATA) < bpf_ringbuf_query(ring, BPF_RB_RING_SIZE) / 4;
  if (late) __sync_lock_test_and_set(&later->used, 1);

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
  record->slot = place->slot;
  record->generation = place->generation;
  record->events = news->events;
  record->error = news->error;
  record->old_state = news->old_state;
  record->new_state = news->new_state;
  record->direct = direct;
  // See the header's comment. The result must be used, else the compiler drops the fetch and with it the
  // barrier.
  __u64 before = __sync_fetch_and_add(&header->records, 1);
  __u32 looking = *(volatile __u32*)&header->looking;
  __u32 late_used = *(volatile __u32*)&later->used;
  __u64 flags = before != ~0ULL && (looking || late) ? BPF_RB_NO_WAKEUP : late_used ? BPF_RB_FORCE_WAKEUP : 0;
  bpf_ringbuf_submit(record, flags);
  if (late && !wake_later(later)) wake_reader(ring);
}

#if SOCKALARM_TASK_WORK
// A client of the daemon names its threads by itself. Its process may have become a privileged program since,
// or the number another process: what kill(2) would refuse it must not do.
static __always_inline int may_signal(const struct place* place) {
  __u32 index = place->client;
  struct sockalarm_client* client = bpf_map_lookup_elem(&clients, &index);
  if (!client) return 0;
  return !(client->flags & SOCKALARM_CLIENT_CHECK_UID) || client->uid == (__u32)bpf_get_current_uid_gid();
}

// Runs in the thread that armed, on its way out of the kernel, some time after it was scheduled: everything
// is looked at anew. Must not touch an alarm that was armed by another thread, nor another socket's.
static int deliver(struct bpf_map* map, void* key, void* value) {
  struct place place = place_of(value);
  __u64 cookie = *(__u64*)key;
  struct sockalarm_watch_state* state = state_of(&place, cookie);
  if (!state) return 0;
  // In this order, with a barrier in between: the thread and the signal are those of this control word or
  // later ones, and then the compare-and-swap fails.
  __u64 control = __sync_fetch_and_add(&state->control, 0);
  __u32 tid = *(volatile __u32*)&state->tid;
  __u32 signal = *(volatile __u32*)&state->signal;
  __u64 seen = *(volatile __u64*)&state->seen;
  __u32 events = interest_of(control) & (__u32)seen;
  if (!events || (__u32)(seen >> 32) != place.generation) return 0;

  struct news news = {.cookie = cookie, .events = events, .error = state->error};
  struct task_struct* task = bpf_get_current_task_btf();
  __u8 direct = SOCKALARM_DIRECT_NONE;
  if (tid == (__u32)bpf_get_current_pid_tgid() && (signal & SOCKALARM_SIGNAL_MASK) &&
      !(task->flags & PF_EXITING) && may_signal(&place)) {
    __u64 ours = (control & ~(__u64)SOCKALARM_STATE_MASK) | SOCKALARM_DELIVERING;
    if (__sync_val_compare_and_swap(&state->control, control, ours) != control) return 0;  // another took it
    direct = bpf_send_signal_thread(signal & SOCKALARM_SIGNAL_MASK) ? SOCKALARM_DIRECT_FAILED
                                                                    : SOCKALARM_DIRECT_DONE;
    struct sockalarm_table_header* header = direct == SOCKALARM_DIRECT_DONE ? header_of(&place) : 0;
    if (header) __sync_fetch_and_add(&header->delivered, 1);
    __u64 after = direct == SOCKALARM_DIRECT_DONE ? SOCKALARM_DELIVERED : SOCKALARM_FIRED;
    __sync_val_compare_and_swap(&state->control, ours, ours ^ SOCKALARM_DELIVERING ^ after);
  }
  // A signal that was all there was to do needs no dispatcher, which would only contend for the CPU.
  if (direct != SOCKALARM_DIRECT_DONE || (signal & SOCKALARM_TELL))
    push(&place, &news, bpf_ktime_get_ns(), direct, 0);
  return 0;
}

// False: the dispatcher must do it. Also if the thread's former work is still pending (EBUSY): that may be
// for another thread, which armed before.
static __always_inline int schedule(struct sockalarm_registration* where, __u64 cookie, __u32 tgid,
                                    __u32 tid) {
  struct task_struct* task = bpf_task_from_pid(tid);
  if (!task) return 0;
  int failed = -ESRCH;  // the client named a thread of another process, or it is on its way out
  if ((__u32)task->tgid == tgid && !(task->flags & PF_EXITING))
    failed = bpf_task_work_schedule_signal_impl(task, &where->task_work, &registry, deliver, 0);
  bpf_task_release(task);
  // An entry that was deleted meanwhile takes the work with it.
  return !failed && bpf_map_lookup_elem(&registry, &cookie) == where;
}

#else
static __always_inline int schedule(struct sockalarm_registration* where, __u64 cookie, __u32 tgid,
                                    __u32 tid) {
  return 0;
}
#endif

static __always_inline void report(struct sockalarm_registration* where, struct news* news,
                                   int may_be_direct) {
  struct place place = place_of(where);
  struct sockalarm_watch_state* state = state_of(&place, news->cookie);
  if (!state) return;
  __u64 now = bpf_ktime_get_ns();
  if ((__u32)(*(volatile __u64*)&state->seen >> 32) == place.generation) {  // the time before the fact
    if (news->events & SOCKALARM_FIN) __sync_val_compare_and_swap(&state->fin_at, 0, now);
    if (news->events & (SOCKALARM_RESET | SOCKALARM_TIMEOUT | SOCKALARM_ERROR)) {
      state->error = news->error;
      __sync_val_compare_and_swap(&state->end_at, 0, now);
    }
  }
  news->events = mark_seen(state, place.generation, news->events);
  if (!news->events) return;

  __u32 interest = interest_of(*(volatile __u64*)&state->control);
  int tell = wants(*(volatile __u32*)&state->extra, news->events);
  __u8 direct = SOCKALARM_DIRECT_NONE;
  int late = 0;
  if (wants(interest, news->events)) {
    __u32 signal = *(volatile __u32*)&state->signal;
    __u32 tid = *(volatile __u32*)&state->tid;
    if (may_be_direct && (interest & news->events) && signal && tid &&
        schedule(where, news->cookie, place.tgid, tid))
      direct = SOCKALARM_DIRECT_SCHEDULED;
    late = may_be_direct && !tell && (interest & news->events) && (signal & SOCKALARM_BY_SIGIO);
    tell |= !direct || (signal & SOCKALARM_TELL);
  }
  if (tell) push(&place, news, now, direct, late);
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

static __always_inline void forget(__u64 cookie) {
  struct sockalarm_registration* where = bpf_map_lookup_elem(&registry, &cookie);
  if (!where) return;
  struct place place = place_of(where);
  struct news news = {.cookie = cookie, .events = SOCKALARM_CLOSED};
  report(where, &news, 0);
  bpf_map_delete_elem(&registry, &cookie);
  // A direct delivery that was still pending went with the entry: the dispatcher does it.
  struct sockalarm_watch_state* state = state_of(&place, cookie);
  if (!state) return;
  __u64 seen = *(volatile __u64*)&state->seen;
  if ((__u32)(seen >> 32) != place.generation) return;
  news.events = interest_of(*(volatile __u64*)&state->control) & (__u32)seen & ~SOCKALARM_CLOSED;
  if (news.events) push(&place, &news, bpf_ktime_get_ns(), SOCKALARM_DIRECT_NONE, 0);
}

// No descriptor refers to it any more: its owner has closed it, and nothing that follows is news for anybody.
static __always_inline int is_orphan(const struct sock* sk) {
  return (sk->__sk_common.skc_flags >> SOCK_DEAD) & 1;
}

// 0: nobody watches it, or not any more.
static __always_inline struct sockalarm_registration* registration_of(const struct sock* sk, __u64* cookie) {
  *cookie = sk->__sk_common.skc_cookie.counter;
  if (!*cookie) return 0;
  struct sockalarm_registration* where = bpf_map_lookup_elem(&registry, cookie);
  if (!where || !is_orphan(sk)) return where;
  forget(*cookie);
  return 0;
}

// A connection passes through ten states on loopback, seldom with news: what needs no memory is asked first.
static __always_inline int may_be_news(const struct sock* sk, int old_state, int new_state) {
  if (new_state == TCP_CLOSE) return old_state == TCP_FIN_WAIT2 || sk->sk_err;
  return new_state == TCP_CLOSE_WAIT || new_state == TCP_CLOSING;
}

// Hook: tracepoint inet_sock_set_state (4.16), in every change of a TCP socket's state; decides every end of
// a connection. sk_err is already set. Must not read anything of the current task, nor sleep.
//
// The kernel does not enter it again while it runs on the same CPU (bpf_trace_run(), since 6.1): if a softirq
// interrupts it in a task and reports another socket, that is counted in recursion_misses and nothing else
// happens. The library looks at that count (Core::schedule_missed_check), and errors are reported twice.
SEC("?tp_btf/inet_sock_set_state")
int BPF_PROG(on_set_state, const struct sock* sk, int old_state, int new_state) {
  if (!may_be_news(sk, old_state, new_state)) return 0;
  int error = sk->sk_err;
  __u64 cookie;
  struct sockalarm_registration* where = registration_of(sk, &cookie);
  if (!where) return 0;
  struct news news = {.cookie = cookie, .error = error, .old_state = old_state, .new_state = new_state};
  news.events = event_of_transition(sk, old_state, new_state, error);
  if (news.events) report(where, &news, 1);
  return 0;
}

// Hook: tracepoint inet_sk_error_report (5.14), when an error is handed to the socket's owner: for the errors
// that leave the state alone (an ICMP error with IP_RECVERR), and a second chance for those that end the
// connection. A failing connect() is left to on_set_state.
SEC("?tp_btf/inet_sk_error_report")
int BPF_PROG(on_error_report, const struct sock* sk) {
  __u64 cookie;
  struct sockalarm_registration* where = registration_of(sk, &cookie);
  if (!where) return 0;
  int state = sk->__sk_common.skc_state;
  int error = sk->sk_err;
  if (!error || state == TCP_SYN_SENT) return 0;
  // Our own disconnect (connect() to AF_UNSPEC) sets an error too, after it has reopened both directions.
  if (state == TCP_CLOSE && sk->sk_shutdown != SHUTDOWN_MASK) return 0;
  struct news news = {.cookie = cookie,
                      .events = event_of_error(error),
                      .error = error,
                      .old_state = state,
                      .new_state = state};
  report(where, &news, 0);
  return 0;
}

// What raises `closed` is attached only while somebody waits for that: every close on the host passes there.
//
// Hook: cgroup/sock_release on the root cgroup (5.9): the last descriptor of an IPv4 or IPv6 socket went, in
// the closing task, before any change of state. Returns 1: allow (the value is ignored for a release).
SEC("?cgroup/sock_release")
int on_release(struct bpf_sock* sk) {
  // bpf_get_socket_cookie() would give every socket of the host a cookie that nobody asked for, and the later
  // programs something to look up. The context of this program type is the kernel's struct sock
  // (include/linux/bpf_types.h).
  __u64 cookie = 0;
  bpf_probe_read_kernel(&cookie, sizeof cookie,
                        (void*)sk + bpf_core_field_offset(struct sock, __sk_common.skc_cookie.counter));
  if (cookie) forget(cookie);
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
  __u64 cookie;
  struct sockalarm_registration* where = registration_of(sk, &cookie);
  if (!where || !all_was_read(sk)) return 0;
  int state = sk->__sk_common.skc_state;
  // Our own shutdown(SHUT_RD) sets RCV_SHUTDOWN too; only a FIN that came leads to these states.
  if (state != TCP_CLOSE_WAIT && state != TCP_CLOSING && state != TCP_CLOSE) return 0;
  if (sk->sk_err) return 0;  // ended by a reset: no end of stream
  struct news news = {.cookie = cookie, .events = SOCKALARM_EOF, .old_state = state, .new_state = state};
  report(where, &news, 0);
  return 0;
}

#if SOCKALARM_TASK_WORK
// Run by a thread of the client, in that thread: which thread it is for the whole host, whatever pid
// namespace it lives in. The answer goes into the caller's own memory.
SEC("?syscall")
int introduce_thread(struct sockalarm_thread* thread) {
  __u64 ids = bpf_get_current_pid_tgid();
  thread->tgid = ids >> 32;
  thread->tid = (__u32)ids;
  return 0;
}
#endif
