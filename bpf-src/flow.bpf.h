/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* The four-tuple of a socket, and its network namespace. Elsewhere only has_twin() and is_closed() read a port. */
#ifndef XCTL_FLOW_BPF_H
#define XCTL_FLOW_BPF_H

#define AF_INET 2
#define AF_INET6 10

/* An IPv4 address as IPv6 writes it: ::ffff:a.b.c.d. */
static __always_inline long read_ipv4(__u8 to[16], const void *be32)
{
	to[10] = 0xff;
	to[11] = 0xff;
	return bpf_probe_read_kernel(&to[12], 4, be32);
}

/*
 * The four-tuple of a full socket or of a request_sock, which share sock_common. False if this is not an inet socket or a
 * read failed: then the caller must not report anything about it.
 *
 * skc_num is host order and skc_dport network order. The family alone decides which addresses count. IPV6_ADDRFORM turns a
 * v4-mapped AF_INET6 socket into an AF_INET one, and both give the same flow.
 *
 * __noinline, here and elsewhere: the object has the function once, and not in each program. Functions on the path of every
 * send are inlined.
 */
static __noinline bool flow_of(const struct sock_common *skc, struct flow *flow)
{
	__u16 family = 0, dport = 0;
	struct net *net = NULL;
	long err;

	__builtin_memset(flow, 0, sizeof(*flow));
	err = bpf_core_read(&family, sizeof(family), &skc->skc_family);
	err |= bpf_core_read(&flow->sport, sizeof(flow->sport), &skc->skc_num);
	err |= bpf_core_read(&dport, sizeof(dport), &skc->skc_dport);
	err |= bpf_core_read(&net, sizeof(net), &skc->skc_net.net);
	err |= bpf_core_read(&flow->netns, sizeof(flow->netns), &net->ns.inum);
	flow->dport = bpf_ntohs(dport);
	if (family == AF_INET) {
		err |= read_ipv4(flow->saddr, __builtin_preserve_access_index(&skc->skc_rcv_saddr));
		err |= read_ipv4(flow->daddr, __builtin_preserve_access_index(&skc->skc_daddr));
	} else if (family == AF_INET6) {
		err |= bpf_core_read(flow->saddr, sizeof(flow->saddr), &skc->skc_v6_rcv_saddr);
		err |= bpf_core_read(flow->daddr, sizeof(flow->daddr), &skc->skc_v6_daddr);
	} else {
		return false;
	}
	if (err)
		count_lost(LOST_READ);
	return !err;
}

/*
 * The four-tuple of a socket at its end. Before tcp_set_state() calls inet_sock_set_state for TCP_CLOSE, inet_put_port() has
 * zeroed skc_num. inet_sport still holds the port.
 */
static __always_inline bool flow_of_closing(const struct sock *sk, struct flow *flow)
{
	__u16 sport = 0;

	if (!flow_of(&sk->__sk_common, flow))
		return false;
	if (!flow->sport) {
		if (bpf_core_read(&sport, sizeof(sport), &((const struct inet_sock *)sk)->inet_sport))
			return false;
		flow->sport = bpf_ntohs(sport);
	}
	return true;
}

/*
 * The number of the inode that is made together with a struct socket; 0 without a struct socket. The inode of the socket's
 * file may be another one: see has_another_sockets_file(). The number comes from a counter of 32 bits (get_next_ino()), which
 * gives out all numbers before it gives out one of them again.
 */
static __always_inline __u64 own_inode(const struct socket *socket)
{
	const struct socket_alloc *alloc = (const void *)socket - bpf_core_field_offset(struct socket_alloc, socket);

	return socket ? BPF_CORE_READ(alloc, vfs_inode.i_ino) : 0;
}

/*
 * The inode number of the namespace's rtnetlink socket. No two namespaces of a run have the same number, and /proc/net/netlink
 * shows the number to user space. net_cookie would serve as well, but needs Linux 5.14, and CAP_SYS_ADMIN to query.
 */
static __always_inline __u32 rtnl_inode(const struct sock_common *skc)
{
	return own_inode(BPF_CORE_READ(skc, skc_net.net, rtnl, sk_socket));
}

static __always_inline bool flow_is_ipv4(const struct flow *flow)
{
	const __u32 *words = (const __u32 *)flow->saddr;

	return !words[0] && !words[1] && words[2] == bpf_htonl(0xffff);
}

#endif
