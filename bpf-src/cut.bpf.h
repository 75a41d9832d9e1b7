/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* Handles a cut of a congestion window: why it happened, whose it is, and the record of it. */
#ifndef XCTL_CUT_BPF_H
#define XCTL_CUT_BPF_H

/* Marks of claim(): apart from those of inet_sock_set_state, which lie up to 32 bytes behind the socket's address. */
#define CUT_MARK(sk, ca_state) ((const char *)(sk) + 48 + (ca_state))

/* The number of return addresses to read: enough for the programs, the tracepoint, and TCP's functions down to tcp_ack(). */
#define FRAMES 16

static __always_inline bool is_within(__u64 address, __u64 from, __u64 to)
{
	return address >= from && address < to;
}

/*
 * Why TCP enters the state CWR. __tcp_transmit_skb() calls tcp_enter_cwr() if a queue of this host drops a segment;
 * tcp_try_to_open() does so for marks. Without either, tcp_ack() has seen that a loss probe repaired a loss. The innermost of these
 * functions on the stack decides: with loopback, the stack may also hold calls for another socket. Not inline: the stack of the
 * caller has no room for the addresses.
 */
static __noinline enum cut_why why_cwr(void *ctx)
{
	__u64 frames[FRAMES] = {};

	if (!settings.transmit_from || bpf_get_stack(ctx, frames, sizeof(frames), 0) < 0)
		return CUT_UNKNOWN;
#pragma unroll
	for (int i = 0; i < FRAMES; i++) {
		if (is_within(frames[i], settings.transmit_from, settings.transmit_to))
			return CUT_LOCAL;
		if (is_within(frames[i], settings.marks_from, settings.marks_to))
			return CUT_ECN;
		if (is_within(frames[i], settings.ack_from, settings.ack_to))
			return CUT_PROBE;
	}
	return CUT_UNKNOWN;
}

/*
 * Why tcp_set_ca_state() enters a state that reduces the window. The timer clears icsk_pending before it calls
 * tcp_enter_loss(); tcp_simple_retransmit() runs while a timer is set, since segments are in flight, and enters Loss only from
 * another state. An ICMP error that makes a timeout shorter calls tcp_enter_loss() in the state Loss (tcp_ld_RTO_revert()).
 */
static __always_inline enum cut_why why_cut(void *ctx, const struct sock *sk, __u8 ca_state)
{
	const struct inet_connection_sock *icsk = (const void *)sk;
	bool by_other;

	if (ca_state == CA_RECOVERY)
		return CUT_RECOVERY;
	if (ca_state == CA_LOSS) {
		by_other = BPF_CORE_READ(icsk, icsk_pending) && BPF_CORE_READ_BITFIELD_PROBED(icsk, icsk_ca_state) != CA_LOSS;
		return by_other ? CUT_PMTU : CUT_TIMEOUT;
	}
	return why_cwr(ctx);
}

/*
 * The window before the cut. tcp_enter_loss() has reduced it already, and has kept the earlier value in prior_cwnd if this is
 * the first loss in a window of data. The others call tcp_set_ca_state() before they reduce it.
 */
static __always_inline __u32 cwnd_before(const struct sock *sk, enum cut_why why)
{
	const struct inet_connection_sock *icsk = (const void *)sk;
	const struct tcp_sock *tp = (const void *)sk;
	__u8 earlier = BPF_CORE_READ_BITFIELD_PROBED(icsk, icsk_ca_state);

	if (why != CUT_TIMEOUT)
		return BPF_CORE_READ(tp, snd_cwnd);
	if (earlier <= CA_DISORDER || (__s32)(BPF_CORE_READ(tp, high_seq) - BPF_CORE_READ(tp, snd_una)) <= 0 ||
	    (earlier == CA_LOSS && !BPF_CORE_READ(icsk, icsk_retransmits)))
		return BPF_CORE_READ(tp, prior_cwnd);
	return 0;
}

/* Count a cut, and report it. Not inline: several programs call it. */
static __noinline void cut(void *ctx, const struct sock *sk, enum cut_why why, __u32 cwnd, __u32 ssthresh)
{
	struct cut_event event = {};
	struct totals *totals;

	if (!flow_of(&sk->__sk_common, &event.flow))
		return;
	event.why = why & (CUTS - 1);
	totals = totals_of_netns(event.flow.netns, &sk->__sk_common);
	if (totals) {
		__sync_fetch_and_add(&totals->cuts[event.why & (CUTS - 1)], 1);
		if (why == CUT_TIMEOUT && is_counted_timeout(sk, BPF_CORE_READ(sk, __sk_common.skc_state)))
			__sync_fetch_and_add(&totals->timeouts, 1);
	}
	owner_of(sk, &event.flow, &event.owner);
	if (settings.cuts ? !wanted(&event.flow, &event.owner) : !wanted_in_totals(&event.flow, &event.owner))
		return;
	totals = totals_of_process(&event.owner);
	if (totals)
		__sync_fetch_and_add(&totals->cuts[event.why & (CUTS - 1)], 1);
	if (!settings.cuts)
		return;
	event.cwnd = cwnd;
	event.ssthresh = ssthresh;
	emit(ctx, &event.header, sizeof(event), EVENT_CUT);
}

/* tcp_set_ca_state() is about to store a state above Disorder. */
static __always_inline void ca_state_set(void *ctx, const struct sock *sk, __u8 ca_state)
{
	const struct tcp_sock *tp = (const void *)sk;
	enum cut_why why = why_cut(ctx, sk, ca_state);

	cut(ctx, sk, why, cwnd_before(sk, why), BPF_CORE_READ(tp, snd_ssthresh));
}

/*
 * Before Linux 5.19 no tracepoint shows a cut. Programs at the entries of tcp_enter_recovery() and tcp_enter_loss() show it,
 * before the kernel computes ssthresh.
 */
static __always_inline void cut_begins(void *ctx, const struct sock *sk, enum cut_why why)
{
	const struct tcp_sock *tp = (const void *)sk;

	cut(ctx, sk, why, BPF_CORE_READ(tp, snd_cwnd), 0);
}

#endif
