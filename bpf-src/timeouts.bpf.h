/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * Counts how often retransmission timers expire, for --verify: the kernel's TCPTimeouts. A timer that expires does one of three
 * things: it cuts the congestion window (cut.bpf.h), it ends the connection, or it belongs to a SYN-ACK.
 */
#ifndef XCTL_TIMEOUTS_BPF_H
#define XCTL_TIMEOUTS_BPF_H

/*
 * Whether the timer serves as a window probe, which the kernel counts elsewhere: the peer has shut its window
 * (tcp_retransmit_timer()). Before the handshake ends, no window is known.
 */
static __always_inline bool serves_as_probe(const struct sock *sk, __u8 state)
{
	return state != TCP_SYN_SENT && state != TCP_SYN_RECV && is_window_probe(sk);
}

/* Not inline: the caller's stack has no room for the key. */
static __noinline void count_timeout(const struct sock_common *skc)
{
	struct totals *totals = totals_of_netns(BPF_CORE_READ(skc, skc_net.net, ns.inum), skc);

	if (totals)
		__sync_fetch_and_add(&totals->timeouts, 1);
}

/*
 * A connection ends, from `state`. The retransmission timer ends it (tcp_write_timeout()) after it has cleared icsk_pending, and
 * only after earlier timeouts. An ICMP error comes while the timer is pending. The timers of keepalive and of window probes run
 * while nothing is in flight: then there is no timeout without progress. A child of TCP Fast Open that has not been established
 * has its SYN-ACK's timer.
 */
static __always_inline void count_if_timer_ended(const struct sock *sk, __u8 state)
{
	const struct inet_connection_sock *icsk = (const void *)sk;

	if (!settings.by_netns || state == TCP_SYN_RECV || !BPF_CORE_READ(sk, sk_err) || BPF_CORE_READ(icsk, icsk_pending) ||
	    !BPF_CORE_READ(icsk, icsk_retransmits) || serves_as_probe(sk, state))
		return;
	count_timeout(&sk->__sk_common);
}

#endif
