/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
#ifndef SOCKALARM_KERNEL_TYPES_H
#define SOCKALARM_KERNEL_TYPES_H

/*
 * The few kernel structs that are read, with only the members that are read. libbpf relocates every access
 * against the running kernel's BTF (CO-RE), so the build needs no BTF and order and size here mean nothing.
 */
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

typedef struct {
  long long counter;
} atomic64_t;

struct sock_common {
  unsigned char skc_state;
  unsigned long skc_flags;
  atomic64_t skc_cookie; /* 0 until somebody asked for it; we ask when we register */
};

struct sock {
  struct sock_common __sk_common;
  int sk_err;
  __u8 sk_shutdown; /* a plain member since 5.6; a bit-field before */
};

struct tcp_sock {
  __u32 rcv_nxt;
  __u32 copied_seq;
};

struct bpf_map {
  __u32 id;
};

struct task_struct {
  unsigned int flags;
  int tgid;
};

#pragma clang attribute pop

/* include/uapi/linux/bpf.h has it since 6.18; a map value that holds one is found by this name. */
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 18, 0)
struct bpf_task_work {
  __u64 __opaque;
} __attribute__((aligned(8)));
#endif

/* include/net/tcp_states.h; user API since TCP_INFO reports them. */
enum {
  TCP_ESTABLISHED = 1,
  TCP_SYN_SENT,
  TCP_SYN_RECV,
  TCP_FIN_WAIT1,
  TCP_FIN_WAIT2,
  TCP_TIME_WAIT,
  TCP_CLOSE,
  TCP_CLOSE_WAIT,
  TCP_LAST_ACK,
  TCP_LISTEN,
  TCP_CLOSING,
};

enum { RCV_SHUTDOWN = 1, SHUTDOWN_MASK = 3 };

enum { SOCK_DEAD = 0 }; /* a bit of skc_flags; the first of enum sock_flags (include/net/sock.h) since 2.6 */

enum { PF_EXITING = 4 }; /* include/linux/sched.h */

/* include/uapi/asm-generic/errno.h, the ones that name an event of their own */
enum { CLOCK_MONOTONIC = 1 }; /* include/uapi/linux/time.h */

enum { ESRCH = 3, EPIPE = 32, ECONNRESET = 104, ETIMEDOUT = 110, ECONNREFUSED = 111 };

#endif
