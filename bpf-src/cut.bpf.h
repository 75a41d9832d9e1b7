/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* Handles a cut of a congestion window: why it happened, whose it is, and the record of it. */
#ifndef XCTL_CUT_BPF_H
#define XCTL_CUT_BPF_H

/* include/net/tcp.h: TCP_ECN_OK, and TCP_ECN_MODE_ACCECN of Linux 6.18 and newer */
#define ECN_IN_USE 0x11

/* Marks of claim(): apart from those of inet_sock_set_state, which lie up to 32 bytes behind the socket's address. */
#define CUT_MARK(sk, ca_state) ((const char *)(sk) + 48 + (ca_state))

/* Return addresses on the stack: those of the programs and of the tracepoint, and TCP's down to tcp_ack() with some to spare. */
#define FRAMES 16

/*
 * Why tcp_enter_cwr() was called: __tcp_transmit_skb() calls it if a queue of this host drops a segment, and the functions that
 * tcp_ack() calls do so for marks. The newest call counts. On the way of a segment through loopback, an older one may be on the
 * stack too. tcp_enter_cwr() may be inlined into its callers, and these into theirs, but no farther than to these two: they are
 * in different files. Not inline: the stack of the caller has no room for the addresses.
 */
static __noinline enum cut_why why_cwr(void *ctx)
{
	__u64 frames[FRAMES] = {};

	if (!settings.transmit_from || bpf_get_stack(ctx, frames, sizeof(frames), 0) < 0)
		return CUT_UNKNOWN;
#pragma unroll
	for (int i = 0; i < FRAMES; i++) {
		if (frames[i] >= settings.transmit_from && frames[i] < settings.transmit_to)
			return CUT_LOCAL;
		if (frames[i] >= settings.ack_from && frames[i] < settings.ack_to)
			return CUT_ECN;
	}
	return CUT_UNKNOWN;
}

/*
 * Why tcp_set_ca_state() enters a state that reduces the window. The timer clears icsk_pending before it calls
 * tcp_enter_loss(); tcp_simple_retransmit() runs while a timer is set, since segments are in flight.
 */
static __always_inline enum cut_why why_cut(void *ctx, const struct sock *sk, __u8 ca_state)
{
	const struct inet_connection_sock *icsk = (const void *)sk;
	const struct tcp_sock *tp = (const void *)sk;

	if (ca_state == CA_RECOVERY)
		return CUT_RECOVERY;
	if (ca_state == CA_LOSS)
		return BPF_CORE_READ(icsk, icsk_pending) ? CUT_PMTU : CUT_TIMEOUT;
	return BPF_CORE_READ_BITFIELD_PROBED(tp, ecn_flags) & ECN_IN_USE ? why_cwr(ctx) : CUT_LOCAL;
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
		if (why == CUT_TIMEOUT && !serves_as_probe(sk, BPF_CORE_READ(sk, __sk_common.skc_state)))
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

/* tcp_set_ca_state() is about to store a state. Every state above Disorder is entered by a cut. */
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
