/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* Handles a packet that this host drops before it has left: whose it is, and the record of it. Only with settings.drops. */
#ifndef XCTL_DROP_BPF_H
#define XCTL_DROP_BPF_H

#define SOCK_STREAM 1
/* The byte of a TCP header (RFC 9293) whose upper half is the header's length, in words of 4 bytes. */
#define TCP_DATA_OFFSET 12

/*
 * The TCP socket that sent a packet; NULL if there is none, or if the packet has been received. The stack sets skb_iif when a
 * packet is received, from a device or through loopback or veth. Only a received packet may name its receiver in skb->sk.
 *
 * The kernel answers without a socket through a raw socket of its own, and for one in TIME_WAIT in the name of its remains:
 * both belong to nobody.
 */
static __always_inline const struct sock *sender_of(const struct sk_buff *skb)
{
	const struct sock *sk = BPF_CORE_READ(skb, sk);
	__u8 state;

	if (!sk || BPF_CORE_READ(skb, skb_iif))
		return NULL;
	state = BPF_CORE_READ(sk, __sk_common.skc_state);
	if (state == TCP_NEW_SYN_RECV)	/* a request: it has no more than sock_common */
		return sk;
	if (state == TCP_TIME_WAIT || BPF_CORE_READ_BITFIELD_PROBED(sk, sk_protocol) != IPPROTO_TCP ||
	    BPF_CORE_READ_BITFIELD_PROBED(sk, sk_type) != SOCK_STREAM)
		return NULL;
	return sk;
}

/* The payload of a packet with its headers, in bytes. In a tunnel, the headers of the connection are the inner ones. */
static __always_inline __u32 payload_of(const struct sk_buff *skb)
{
	const unsigned char *head = BPF_CORE_READ(skb, head);
	const unsigned char *end = BPF_CORE_READ(skb, data) + BPF_CORE_READ(skb, len);
	bool in_tunnel = BPF_CORE_READ_BITFIELD_PROBED(skb, encapsulation);
	__u16 tcp;
	__u8 words = 0;

	tcp = in_tunnel ? BPF_CORE_READ(skb, inner_transport_header) : BPF_CORE_READ(skb, transport_header);
	if (bpf_probe_read_kernel(&words, sizeof(words), head + tcp + TCP_DATA_OFFSET))
		count_lost(LOST_READ);
	return end - (head + tcp + (words >> 4) * 4);
}

/* The kernel drops a packet that has a sender. Not inline: several programs call it. */
static __noinline void dropped(void *ctx, const struct sk_buff *skb, __u32 reason)
{
	const struct sock *sk = sender_of(skb);
	const struct skb_shared_info *shared = (const void *)BPF_CORE_READ(skb, head) + BPF_CORE_READ(skb, end);
	struct drop_event event = {};
	struct totals *totals;

	if (!sk || !flow_of(&sk->__sk_common, &event.flow))
		return;
	event.state = BPF_CORE_READ(sk, __sk_common.skc_state);
	if (event.state == TCP_NEW_SYN_RECV)
		sk = BPF_CORE_READ((const struct request_sock *)sk, __req_common.skc_listener);
	if (sk)
		owner_of(sk, &event.flow, &event.owner);
	if (!wanted(&event.flow, &event.owner))
		return;
	event.segs = BPF_CORE_READ(shared, gso_segs) ?: 1;
	event.bytes = payload_of(skb);
	event.reason = reason;
	totals = totals_of_process(&event.owner);
	if (totals) {
		__sync_fetch_and_add(&totals->drops, 1);
		__sync_fetch_and_add(&totals->dropped_segs, event.segs);
		__sync_fetch_and_add(&totals->dropped_bytes, event.bytes);
	}
	emit(ctx, &event.header, sizeof(event), EVENT_DROP);
}

#endif
