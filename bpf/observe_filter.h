/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
#ifndef SOCKALARM_OBSERVE_FILTER_H
#define SOCKALARM_OBSERVE_FILTER_H

#include "observe_socket.h"

// Which connections are observed, and from which side they were opened.

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

__u32 active_filter = 0;  // 0 or 1; written by the loader

static __always_inline __u32 active(void) { return *(volatile __u32*)&active_filter & 1; }

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

// By what was counted: for a connection that was there before we were, and in SYN_RECV, where also a socket
// is that connected at the same moment as its peer did (simultaneous open). The octets sent so far are data,
// and our SYN: which is counted only on the side that connected, since the other side's counters begin after
// it.
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

#endif
