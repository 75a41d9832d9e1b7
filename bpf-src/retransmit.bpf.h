/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* Handles a retransmit: why it happened, whose it is, and the record of it. A SYN-ACK's owner is looked up here. */
#ifndef XCTL_RETRANSMIT_BPF_H
#define XCTL_RETRANSMIT_BPF_H

#define TCPHDR_FIN 0x01
#define TCPHDR_SYN 0x02

/* include/net/inet_connection_sock.h, include/uapi/linux/tcp.h (enum tcp_ca_state) */
#define ICSK_TIME_LOSS_PROBE 5
#define CA_DISORDER 1
#define CA_CWR 2
#define CA_RECOVERY 3
#define CA_LOSS 4
/* include/net/tcp.h */
#define TCPCB_SACKED_ACKED 0x01
#define TCPCB_SACKED_RETRANS 0x02
#define TCPCB_LOST 0x04

/*
 * Whether the segment is a part of establishing the connection. Then the socket's clock still has the value that
 * tcp_init_buffer_space() set. Every timer sets the clock first.
 */
static __always_inline bool is_being_established(const struct tcp_sock *tp)
{
	return bpf_core_field_exists(tp->rcvq_space.time) &&
	       BPF_CORE_READ(tp, rcvq_space.time) == BPF_CORE_READ(tp, tcp_mstamp);
}

/*
 * Whether tcp_xmit_retransmit_queue() sends the skb. An ACK calls that function in most cases. It sends segments that are
 * marked lost and not yet retransmitted, while the congestion window has room, and keeps its position in retransmit_skb_hint.
 *
 * __tcp_retransmit_skb() has two other callers. For each of them, one of the tests below fails:
 * - tcp_retransmit_timer() sends the head of the queue. tcp_enter_loss() has cleared the hint just before.
 * - tcp_send_loss_probe() sends the tail of the queue. If the tail is marked lost, then it was retransmitted before, or the
 *   congestion window has no room.
 * In one case a loss probe is taken for tcp_xmit_retransmit_queue(): the tail is marked lost and the window has room, but the
 * tail was not retransmitted, because this host failed to send it, or delays it for pacing or in its queue.
 */
static __always_inline bool is_from_retransmit_queue(const struct tcp_sock *tp, const struct tcp_skb_cb *tcb)
{
	__u8 marks = BPF_CORE_READ_BITFIELD_PROBED(tcb, sacked);
	__u32 in_flight;

	if ((marks & (TCPCB_LOST | TCPCB_SACKED_RETRANS | TCPCB_SACKED_ACKED)) != TCPCB_LOST)
		return false;
	in_flight = BPF_CORE_READ(tp, packets_out) - BPF_CORE_READ(tp, sacked_out) - BPF_CORE_READ(tp, lost_out) +
		    BPF_CORE_READ(tp, retrans_out);
	return BPF_CORE_READ(tp, retransmit_skb_hint) && in_flight < BPF_CORE_READ(tp, snd_cwnd);
}

/* Whether a timeout serves as a window probe, which tcp_retransmit_timer() does not count in TCPTimeouts. */
static __always_inline bool is_window_probe(const struct sock *sk)
{
	const struct tcp_sock *tp = (const void *)sk;

	return !BPF_CORE_READ(tp, snd_wnd) && !(BPF_CORE_READ(sk, __sk_common.skc_flags) & 1 << SOCK_DEAD);
}

/*
 * Why the skb is retransmitted, by the kernel's own counting. Valid from the entry of __tcp_retransmit_skb() to its return,
 * since tcp_retransmit_skb() changes the marks after that. Its callers are, besides tcp_xmit_retransmit_queue():
 *
 * - tcp_retransmit_timer(), in the state Loss, which it has just entered. The timer calls it with icsk_pending cleared.
 *   An ICMP error that makes the timeout shorter calls it with icsk_pending set (tcp_ld_RTO_revert()).
 * - tcp_send_loss_probe(), with icsk_pending set, in any state: the timer may have been set before the state changed, and
 *   tcp_simple_retransmit(), for one, enters Loss without setting another.
 * - Before 5.12 tcp_rcv_fastopen_synack(), for data of a SYN that the peer did not take (TCP Fast Open), in any state and
 *   with any timer. The kernel counts these as no kind. Since 5.12 they pass tcp_xmit_retransmit_queue().
 */
static __always_inline enum kind kind_of(const struct sock *sk, const struct sk_buff *skb)
{
	const struct tcp_skb_cb *tcb = __builtin_preserve_access_index((const void *)&skb->cb);
	const struct inet_connection_sock *icsk = (const void *)sk;
	const struct tcp_sock *tp = (const void *)sk;
	__u8 ca_state = BPF_CORE_READ_BITFIELD_PROBED(icsk, icsk_ca_state);

	if (BPF_CORE_READ_BITFIELD_PROBED(tcb, tcp_flags) & TCPHDR_SYN)
		return KIND_SYN;
	if (is_from_retransmit_queue(tp, tcb))
		return ca_state == CA_LOSS ? KIND_SLOW_START : KIND_FAST;
	if (is_being_established(tp))
		return KIND_OTHER;
	if (BPF_CORE_READ(icsk, icsk_pending) == ICSK_TIME_LOSS_PROBE)
		return KIND_TLP;
	return ca_state == CA_LOSS && !is_window_probe(sk) ? KIND_RTO : KIND_OTHER;
}

static __always_inline void emit_retransmit(void *ctx, struct retransmit_event *event, const struct sock_common *skc)
{
	struct totals *totals = totals_of_netns(event->flow.netns, skc);

	if (totals)
		add_to(totals, event);
	if (!(settings.retransmits || settings.totals) || !wanted_kind(event->kind))
		return;
	if (settings.retransmits ? !wanted(&event->flow, &event->owner) : !wanted_in_totals(&event->flow, &event->owner))
		return;
	totals = totals_of_process(&event->owner);
	if (totals)
		add_to(totals, event);
	if (!settings.retransmits)
		return;
	event->current_tgid = bpf_get_current_pid_tgid() >> 32;
	bpf_get_current_comm(event->current_comm, sizeof(event->current_comm));
	emit(ctx, &event->header, sizeof(*event), EVENT_RETRANSMIT);
}

/*
 * An attempt to retransmit skb ended with err. The skb has no headers yet, so its control block describes it. tcp_gso_segs
 * now is the number of segments sent; the argument segs of the kernel's function is only a ceiling.
 */
static __always_inline void retransmitted(void *ctx, const struct sock *sk, const struct sk_buff *skb, int err,
					  enum kind kind)
{
	const struct inet_connection_sock *icsk = (const void *)sk;
	const struct tcp_sock *tp = (const void *)sk;
	const struct tcp_skb_cb *tcb = __builtin_preserve_access_index((const void *)&skb->cb);
	struct retransmit_event event = {};
	__u8 tcp_flags;

	if (!flow_of(&sk->__sk_common, &event.flow))
		return;
	tcp_flags = BPF_CORE_READ_BITFIELD_PROBED(tcb, tcp_flags);	/* 8 bits; 16 since AccECN */
	owner_of(sk, &event.flow, &event.owner);
	if (event.owner.how == HOW_UNKNOWN)
		drop_cached(sk);	/* an earlier socket with this address may have left a word, which would hide each send */
	event.err = err > 0 ? -ENOBUFS : err;	/* a queue dropped it (NET_XMIT_DROP), as net_xmit_errno() */
	event.segs = BPF_CORE_READ(tcb, tcp_gso_segs);
	event.bytes = BPF_CORE_READ(skb, len);
	event.srtt_us = BPF_CORE_READ(tp, srtt_us) >> 3;	/* the kernel stores it times 8 */
	event.cwnd = BPF_CORE_READ(tp, snd_cwnd);
	event.ssthresh = BPF_CORE_READ(tp, snd_ssthresh);
	event.mss = BPF_CORE_READ(tp, mss_cache);
	event.sk_retrans = BPF_CORE_READ(icsk, icsk_retransmits);
	event.kind = kind;
	event.state = BPF_CORE_READ(sk, __sk_common.skc_state);
	event.fin = !!(tcp_flags & TCPHDR_FIN);
	emit_retransmit(ctx, &event, &sk->__sk_common);
}

/*
 * Report a retransmitted SYN-ACK. `retrans` is the number of its earlier retransmissions. Until accept() returns, the
 * connection belongs to the listener's process, whichever process accepts it later.
 *
 * The listener is sk, not req->skc_listener: if sk took over the request of a closed listener, the request still names the
 * closed one (net.ipv4.tcp_migrate_req, 5.14; tcp_v4_rcv()). With TCP Fast Open, sk is not the listener but the child socket.
 * If the child has an owner of its own, since it was accepted already, sk is used; otherwise the request names the listener.
 */
static __always_inline void synack_retransmitted(void *ctx, const struct sock *sk, const struct request_sock *req,
						 __u32 retrans)
{
	const struct sock *listener = BPF_CORE_READ(req, __req_common.skc_listener);
	struct retransmit_event event = {};

	if (!flow_of(&req->__req_common, &event.flow))
		return;
	if (!listener || BPF_CORE_READ(sk, __sk_common.skc_state) == TCP_LISTEN || own_entry(sk, &event.flow))
		listener = sk;
	owner_of(listener, &event.flow, &event.owner);
	event.segs = 1;
	event.sk_retrans = retrans + 1;
	event.kind = KIND_SYNACK;
	event.state = BPF_CORE_READ(req, __req_common.skc_state);
	emit_retransmit(ctx, &event, &req->__req_common);
}

/*
 * A process called send(), write() or the like. Only with --events send or all. Not inline: the record would take the stack
 * that remember() needs, which the program calls before.
 */
static __noinline void sent(void *ctx, const struct sock *sk, __u64 bytes)
{
	struct send_event event = {};

	if (!flow_of(&sk->__sk_common, &event.flow))
		return;
	owner_of(sk, &event.flow, &event.owner);
	/* The sender may not be remembered: the map had no room, or the connection has been reset. */
	if ((event.owner.how == HOW_UNKNOWN || event.owner.how == HOW_SHARED) && current_acts_for_itself(sk))
		describe(&event.owner, (void *)bpf_get_current_task(), sk, HOW_SEND);
	if (!wanted(&event.flow, &event.owner))
		return;
	event.bytes = bytes;
	emit(ctx, &event.header, sizeof(event), EVENT_SEND);
}

#endif
