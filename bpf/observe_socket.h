/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
#ifndef SOCKALARM_OBSERVE_SOCKET_H
#define SOCKALARM_OBSERVE_SOCKET_H

// What is read of a socket, and what is not to be had is counted.

struct {
  __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
  __uint(max_entries, SOCKALARM_OBSERVE_LOSSES);
  __type(key, __u32);
  __type(value, __u64);
} losses SEC(".maps");

static __always_inline void count(__u32 loss) {
  __u64* counter = bpf_map_lookup_elem(&losses, &loss);
  if (counter) __sync_fetch_and_add(counter, 1);  // one program may interrupt another
}

static __always_inline int flag(const struct sock* sk, int bit) {
  return (sk->__sk_common.skc_flags >> bit) & 1;
}

static __always_inline int after(__u32 a, __u32 b) { return (__s32)(a - b) > 0; }

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

#endif
