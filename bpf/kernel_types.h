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

struct in6_addr {
  union {
    __u32 u6_addr32[4];
  } in6_u;
};

struct sock_common {
  unsigned char skc_state;
  unsigned long skc_flags;
  atomic64_t skc_cookie; /* 0 until somebody asked for it; we ask when we register */
  __u16 skc_family;
  __be16 skc_dport;
  __be32 skc_daddr, skc_rcv_saddr;
  struct in6_addr skc_v6_daddr, skc_v6_rcv_saddr; /* not in a kernel without IPv6 */
};

struct kernfs_node {
  __u64 id; /* 5.5 */
};

struct cgroup;

struct cgroup_subsys_state {
  struct cgroup* cgroup;
  struct cgroup_subsys_state* parent;
};

struct cgroup {
  struct cgroup_subsys_state self;
  struct kernfs_node* kn;
};

struct sock_cgroup_data {
  struct cgroup* cgroup; /* a pointer and nothing else since 5.15; the root's for sockets of no other */
};

struct socket;

struct sock {
  struct sock_common __sk_common;
  int sk_err;
  struct socket* sk_socket; /* null: nobody has accepted it yet, or nobody has it any more */
  __u8 sk_shutdown;         /* a plain member since 5.6; a bit-field before */
  struct sock_cgroup_data sk_cgrp_data;
};

struct inet_sock {
  __be16 inet_sport; /* unlike inet_num, it outlives the change to CLOSE */
};

struct inet_connection_sock {
  struct inet_sock icsk_inet;
  struct {
    __u32 lrcvtime; /* jiffies: data came in last */
  } icsk_ack;
};

struct tcp_sock {
  __u32 rcv_nxt;
  __u32 copied_seq;
  struct inet_connection_sock inet_conn;
  __u32 rcv_wup; /* rcv_nxt when anything was sent last */
  __u32 snd_una, snd_nxt, write_seq;
  __u32 lsndtime;                    /* jiffies: data went out last */
  __u64 bytes_received, bytes_acked; /* an octet each for FIN; bytes_acked also for our SYN */
  __u64 bytes_sent, bytes_retrans;   /* data alone; 4.19 */
};

struct bpf_map {
  __u32 id;
};

struct task_struct {
  unsigned int flags;
  int tgid;
  struct task_struct* group_leader;
  char comm[16]; /* TASK_COMM_LEN */
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

/* Bits of skc_flags; the first of enum sock_flags (include/net/sock.h) since 2.6. DONE: a FIN came. */
enum { SOCK_DEAD = 0, SOCK_DONE = 1 };

enum { PF_EXITING = 4, PF_KTHREAD = 0x200000 }; /* include/linux/sched.h */

enum { AF_INET = 2, AF_INET6 = 10 }; /* include/linux/socket.h */

/* include/uapi/asm-generic/errno.h, the ones that name an event of their own */
enum { CLOCK_MONOTONIC = 1 }; /* include/uapi/linux/time.h */

enum { ESRCH = 3, EPIPE = 32, ECONNABORTED = 103, ECONNRESET = 104, ETIMEDOUT = 110, ECONNREFUSED = 111 };

#endif
