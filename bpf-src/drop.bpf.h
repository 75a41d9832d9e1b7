/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* Handles a packet that this host drops before sending it: finds the owner and writes the record. Only with settings.drops. */
#ifndef XCTL_DROP_BPF_H
#define XCTL_DROP_BPF_H

#define SOCK_STREAM 1
#define PACKET_OUTGOING 4
/* skb->transport_header of a packet without one (skb_transport_header_was_set()) */
#define NO_HEADER ((__u16)~0)

/* The beginning of a TCP header (RFC 9293). */
struct tcp_header {
	__be16 source;
	__be16 dest;
	__be32 seq;
	__be32 ack;
	__u8 words;	/* upper half: the length of the header, in words of 4 bytes */
	__u8 flags;
} __attribute__((packed));

/*
 * The TCP socket that sent a packet; NULL if there is none. These also have skb->sk, and were not sent by that socket: received
 * packets, for which the stack sets skb_iif; received data that TCP has put together anew (tcp_collapse()) and notifications of
 * MSG_ZEROCOPY, which have no transport header; and timestamps of sent packets in the error queue, which are PACKET_OUTGOING
 * (skb_set_err_queue()).
 *
 * Some packets have no owner. Answers without a connection come from a raw socket of the kernel; newer kernels name the listener.
 * Answers for TIME_WAIT come from a struct inet_timewait_sock.
 */
static __always_inline const struct sock *sender_of(const struct sk_buff *skb)
{
	const struct sock *sk = BPF_CORE_READ(skb, sk);
	__u8 state;

	if (!sk || BPF_CORE_READ(skb, skb_iif) || BPF_CORE_READ(skb, transport_header) == NO_HEADER ||
	    BPF_CORE_READ_BITFIELD_PROBED(skb, pkt_type) == PACKET_OUTGOING)
		return NULL;
	state = BPF_CORE_READ(sk, __sk_common.skc_state);
	if (state == TCP_NEW_SYN_RECV)	/* a request: it has no more than sock_common */
		return sk;
	if (state == TCP_TIME_WAIT || state == TCP_LISTEN || BPF_CORE_READ_BITFIELD_PROBED(sk, sk_protocol) != IPPROTO_TCP ||
	    BPF_CORE_READ_BITFIELD_PROBED(sk, sk_type) != SOCK_STREAM)
		return NULL;
	return sk;
}

/*
 * The payload of a packet with its headers, in bytes. In a tunnel, the headers of the connection are the inner ones. All bits set
 * if the headers are not found, since something has encrypted the packet or packed it into another one.
 */
static __always_inline __u32 payload_of(const struct sk_buff *skb, const struct flow *flow)
{
	const unsigned char *head = BPF_CORE_READ(skb, head), *end = BPF_CORE_READ(skb, data) + BPF_CORE_READ(skb, len);
	bool in_tunnel = BPF_CORE_READ_BITFIELD_PROBED(skb, encapsulation);
	struct tcp_header tcp = {};
	__u64 payload;
	__u16 offset;

	offset = in_tunnel ? BPF_CORE_READ(skb, inner_transport_header) : BPF_CORE_READ(skb, transport_header);
	if (bpf_probe_read_kernel(&tcp, sizeof(tcp), head + offset))
		return ~0U;
	/* Address translation changes one of the two ports. */
	if (bpf_ntohs(tcp.source) != flow->sport && bpf_ntohs(tcp.dest) != flow->dport)
		return ~0U;
	payload = end - (head + offset + (tcp.words >> 4) * 4);
	return payload <= BPF_CORE_READ(skb, len) ? payload : ~0U;
}

/* The kernel drops a packet that has a sender. Not inline: several programs call it. */
static __noinline void dropped(void *ctx, const struct sk_buff *skb, __u32 reason)
{
	const struct sock *sk = sender_of(skb);
	const struct skb_shared_info *shared = (const void *)BPF_CORE_READ(skb, head) + BPF_CORE_READ(skb, end);
	struct drop_event event = {};
	struct totals *totals;

	if (!sk)
		return;
	event.state = BPF_CORE_READ(sk, __sk_common.skc_state);
	if (!(event.state == TCP_NEW_SYN_RECV ? flow_of(&sk->__sk_common, &event.flow) : flow_of_closing(sk, &event.flow)))
		return;
	if (event.state == TCP_NEW_SYN_RECV)
		sk = BPF_CORE_READ((const struct request_sock *)sk, __req_common.skc_listener);
	if (sk)
		owner_of(sk, &event.flow, &event.owner);
	if (!wanted(&event.flow, &event.owner))
		return;
	event.segs = BPF_CORE_READ(shared, gso_segs) ?: 1;
	event.bytes = payload_of(skb, &event.flow);
	event.reason = reason;
	totals = totals_of_process(&event.owner);
	if (totals) {
		__sync_fetch_and_add(&totals->drops, 1);
		__sync_fetch_and_add(&totals->dropped_segs, event.segs);
		if (event.bytes != ~0U)
			__sync_fetch_and_add(&totals->dropped_bytes, event.bytes);
	}
	emit(ctx, &event.header, sizeof(event), EVENT_DROP);
}

#endif
