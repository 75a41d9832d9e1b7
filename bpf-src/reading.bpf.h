/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * Reads the counters and gauges of a connection or a listener. The kernel keeps nearly every figure in the socket itself.
 */
#ifndef XCTL_READING_BPF_H
#define XCTL_READING_BPF_H

/* The number of jiffies since `then`, of which the kernel keeps the low 32 bits (tcp_jiffies32). */
static __always_inline __u32 jiffies_since(__u32 then)
{
	return (__u32)bpf_jiffies64() - then;
}

/*
 * The time that the connection spent in each kind of waiting, as tcp_get_info_chrono_stats() tells it: the kind that goes on
 * is in chrono_type, and its time is not in chrono_stat yet. chrono_type is a bit field up to 6.12, and a byte in 7.2. The
 * sums are read first: if the kind changes meanwhile, its time is missing rather than counted twice.
 */
static __always_inline void read_limits(const struct tcp_sock *tp, struct reading *reading)
{
	__u32 running;

	reading->free = BPF_CORE_READ(tp, chrono_stat[0]);
	reading->rwnd_limited = BPF_CORE_READ(tp, chrono_stat[1]);
	reading->sndbuf_limited = BPF_CORE_READ(tp, chrono_stat[2]);
	running = jiffies_since(BPF_CORE_READ(tp, chrono_start));
	reading->limit = BPF_CORE_READ_BITFIELD_PROBED(tp, chrono_type);
	if (reading->limit == TCP_CHRONO_BUSY)
		reading->free += running;
	else if (reading->limit == TCP_CHRONO_RWND_LIMITED)
		reading->rwnd_limited += running;
	else if (reading->limit == TCP_CHRONO_SNDBUF_LIMITED)
		reading->sndbuf_limited += running;
}

/* Timeouts, which Linux counts from 6.7 on. tcp_get_info() adds the recovery that goes on in the same way. */
static __always_inline void read_timeouts(const struct tcp_sock *tp, struct reading *reading)
{
	__u32 since;

	if (!bpf_core_field_exists(tp->total_rto))
		return;
	reading->has_timeouts = 1;
	reading->total_rto = BPF_CORE_READ(tp, total_rto);
	reading->total_rto_time = BPF_CORE_READ(tp, total_rto_time);
	since = BPF_CORE_READ(tp, rto_stamp);
	if (since)
		reading->total_rto_time += (__u32)(bpf_ktime_get_ns() / 1000000) - since;
}

/*
 * The order of the first reads matters for one difference: bytes_sent - bytes_retrans - bytes_acked - (snd_nxt - snd_una) are
 * the bytes that this host's queue refused. If the socket changes between two reads, this order makes the difference too
 * small, never too large. While a segment is being sent, the difference is too large in any order: the kernel adds the segment
 * to bytes_sent first, and to snd_nxt last. From 5.15 on the iterator locks each socket (bpf_iter_tcp_seq_show()), so that
 * nothing changes; `locked` says so.
 */
static __always_inline void read_bytes(const struct tcp_sock *tp, struct reading *reading)
{
	__u32 snd_una, snd_nxt, rcv_nxt;

	reading->bytes_sent = BPF_CORE_READ(tp, bytes_sent);
	snd_una = BPF_CORE_READ(tp, snd_una);
	reading->bytes_retrans = BPF_CORE_READ(tp, bytes_retrans);
	reading->bytes_acked = BPF_CORE_READ(tp, bytes_acked);
	snd_nxt = BPF_CORE_READ(tp, snd_nxt);
	reading->unacked = snd_nxt - snd_una;
	reading->unsent = BPF_CORE_READ(tp, write_seq) - snd_nxt;
	reading->bytes_received = BPF_CORE_READ(tp, bytes_received);
	rcv_nxt = BPF_CORE_READ(tp, rcv_nxt);
	reading->unread = rcv_nxt - BPF_CORE_READ(tp, copied_seq);
	reading->locked = bpf_core_type_exists(struct bpf_tcp_iter_state);
}

/* Read the counters of a connection and its round-trip times. Numbers are in the units of struct tcp_sock. */
static __always_inline void read_counters(const struct sock *sk, struct reading *reading)
{
	const struct tcp_sock *tp = (const void *)sk;

	reading->of = READING_CONNECTION;
	read_bytes(tp, reading);
	read_limits(tp, reading);
	read_timeouts(tp, reading);
	reading->segs_out = BPF_CORE_READ(tp, segs_out);
	reading->segs_in = BPF_CORE_READ(tp, segs_in);
	reading->data_segs_out = BPF_CORE_READ(tp, data_segs_out);
	reading->data_segs_in = BPF_CORE_READ(tp, data_segs_in);
	reading->total_retrans = BPF_CORE_READ(tp, total_retrans);
	reading->lost = BPF_CORE_READ(tp, lost);
	reading->delivered = BPF_CORE_READ(tp, delivered);
	reading->delivered_ce = BPF_CORE_READ(tp, delivered_ce);
	reading->dsack_dups = BPF_CORE_READ(tp, dsack_dups);
	reading->reord_seen = BPF_CORE_READ(tp, reord_seen);
	reading->rcv_ooopack = BPF_CORE_READ(tp, rcv_ooopack);
	reading->drops = BPF_CORE_READ(sk, sk_drops.counter);
	reading->srtt_us = BPF_CORE_READ(tp, srtt_us);
	reading->mdev_us = BPF_CORE_READ(tp, mdev_us);
	reading->min_rtt_us = BPF_CORE_READ(tp, rtt_min.s[0].v);
	reading->since_sent = jiffies_since(BPF_CORE_READ(tp, lsndtime));
}

/* Read a connection, with the values of this moment. User space converts the units. */
static __always_inline void read_connection(const struct sock *sk, struct reading *reading)
{
	const struct inet_connection_sock *icsk = (const void *)sk;
	const struct tcp_sock *tp = (const void *)sk;

	read_counters(sk, reading);
	reading->snd_cwnd = BPF_CORE_READ(tp, snd_cwnd);
	reading->snd_ssthresh = BPF_CORE_READ(tp, snd_ssthresh);
	reading->mss = BPF_CORE_READ(tp, mss_cache);
	reading->snd_wnd = BPF_CORE_READ(tp, snd_wnd);
	reading->rcv_wnd = BPF_CORE_READ(tp, rcv_wnd);
	reading->sndbuf = BPF_CORE_READ(sk, sk_sndbuf);
	reading->rcvbuf = BPF_CORE_READ(sk, sk_rcvbuf);
	reading->since_received = jiffies_since(BPF_CORE_READ(icsk, icsk_ack.lrcvtime));
	reading->since_acked = jiffies_since(BPF_CORE_READ(tp, rcv_tstamp));
}

/*
 * Read a listener. tcp_listendrop() counts dropped connections in sk_drops; dropped repetitions of a SYN or ACK count there
 * too.
 */
static __always_inline void read_listener(const struct sock *sk, struct reading *reading)
{
	reading->of = READING_LISTENER;
	reading->has_timeouts = bpf_core_field_exists(((const struct tcp_sock *)sk)->total_rto);
	reading->drops = BPF_CORE_READ(sk, sk_drops.counter);
	reading->queue = BPF_CORE_READ(sk, sk_ack_backlog);
	reading->backlog = BPF_CORE_READ(sk, sk_max_ack_backlog);
}

/*
 * Read what this entry of the kernel's tables counts. A connection in TIME_WAIT and a request have no struct tcp_sock: for
 * these `of` stays READING_NOTHING.
 */
static __noinline void read_socket(const struct sock_common *skc, struct reading *reading)
{
	__u8 state = BPF_CORE_READ(skc, skc_state);

	__builtin_memset(reading, 0, sizeof(*reading));
	if (state == TCP_LISTEN)
		read_listener((const void *)skc, reading);
	else if (state != TCP_TIME_WAIT && state != TCP_NEW_SYN_RECV && state != TCP_CLOSE)
		read_connection((const void *)skc, reading);
}

#endif
