/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * Counts how often retransmission timers expire, for --verify: the kernel's TCPTimeouts. A timer that expires does one of three
 * things: it cuts the congestion window (cut.bpf.h), it ends the connection, or it belongs to a SYN-ACK.
 */
#ifndef XCTL_TIMEOUTS_BPF_H
#define XCTL_TIMEOUTS_BPF_H

/*
 * Whether the kernel counts a timeout of this connection as one of the connection. If the peer has shut its window, the timer
 * serves as a window probe (tcp_retransmit_timer()); before the handshake ends, no window is known. A child of TCP Fast Open has
 * the timer of its SYN-ACK instead, which another program counts.
 */
static __always_inline bool is_counted_timeout(const struct sock *sk, __u8 state)
{
	bool has_window = state != TCP_SYN_SENT && state != TCP_SYN_RECV;

	return !(has_window && is_window_probe(sk)) && !BPF_CORE_READ((const struct tcp_sock *)sk, fastopen_rsk);
}

/* Not inline: the caller's stack has no room for the key. */
static __noinline void count_timeout(const struct sock_common *skc, bool ended)
{
	struct totals *totals = totals_of_netns(BPF_CORE_READ(skc, skc_net.net, ns.inum), skc);

	if (!totals)
		return;
	__sync_fetch_and_add(&totals->timeouts, 1);
	if (ended)
		__sync_fetch_and_add(&totals->timer_ends, 1);
}

/*
 * A connection ends, from `state`. The retransmission timer ends it (tcp_write_timeout()) after it has cleared icsk_pending, and
 * only after earlier timeouts. An ICMP error comes while the timer is pending; if it makes a timeout shorter, and so ends the
 * connection (tcp_ld_RTO_revert()), the timeout is not counted. Keepalive and window probes run only while nothing
 * is in flight. Then icsk_retransmits is 0: the last ACK reset it (tcp_ack()).
 */
static __always_inline void count_if_timer_ended(const struct sock *sk, __u8 state)
{
	const struct inet_connection_sock *icsk = (const void *)sk;

	if (!settings.by_netns || BPF_CORE_READ_BITFIELD_PROBED(sk, sk_protocol) != IPPROTO_TCP || !BPF_CORE_READ(sk, sk_err) ||
	    BPF_CORE_READ(icsk, icsk_pending) || !BPF_CORE_READ(icsk, icsk_retransmits) || !is_counted_timeout(sk, state))
		return;
	count_timeout(&sk->__sk_common, true);
}

#endif
