/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* What was sent again and why, and the records about it. */
#ifndef XCTL_RETRANSMIT_BPF_H
#define XCTL_RETRANSMIT_BPF_H

#define TCPHDR_FIN 0x01
#define TCPHDR_SYN 0x02

/* include/net/inet_connection_sock.h, include/uapi/linux/tcp.h (enum tcp_ca_state) */
#define ICSK_TIME_LOSS_PROBE 5
#define CA_RECOVERY 3
#define CA_LOSS 4
#define TCPCB_LOST 0x04	/* include/net/tcp.h */

struct {
	__uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
} EVENTS SEC(".maps");

/*
 * For records of a CPU that has no ring in EVENTS: it came online after the loader did (-ENOENT), or was offline meanwhile,
 * which ends a perf event for good (-EOPNOTSUPP). By the time that user space hears of the CPU it may have run TCP for a
 * while, and to open a ring takes privilege that is given up by then. Linux 5.8 and newer; elsewhere it is not created, and
 * no program may get to where it is used: by what a relocation says, since before 5.5 the verifier does not know what is in
 * .rodata.
 */
struct bpf_ringbuf {} __attribute__((preserve_access_index));

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 256 * 1024);
} SHARED_RING SEC(".maps");

/* The kernel returns -ENOSPC for exactly those records that it later reports as PERF_RECORD_LOST. */
static __always_inline void emit(void *ctx, void *record, __u64 size)
{
	long err = bpf_perf_event_output(ctx, &EVENTS, BPF_F_CURRENT_CPU, record, size);

	if (err && err != -ENOSPC && bpf_core_type_exists(struct bpf_ringbuf))
		err = bpf_ringbuf_output(&SHARED_RING, record, size, 0);	/* -EAGAIN: full */
	if (err)
		count_lost(err == -ENOSPC || err == -EAGAIN ? LOST_PERF : LOST_OUTPUT);
}

static __always_inline void fill_header(struct event_header *header, enum event_type type)
{
	header->mono_ns = bpf_ktime_get_ns();
	header->type = type;
	header->cpu = bpf_get_smp_processor_id();
}

static __always_inline bool wanted_flow(const struct flow *flow)
{
	if (settings.netns && flow->netns != settings.netns)
		return false;
	if (settings.port && flow->sport != settings.port && flow->dport != settings.port)
		return false;
	return !settings.family || flow_is_ipv4(flow) == (settings.family == 4);
}

static __always_inline bool wanted_owner(const struct owner *owner)
{
	if (settings.tgid && owner->tgid != settings.tgid)
		return false;
	if (settings.cgroup && !owner->in_cgroup)
		return false;
	if (settings.comm[0] && !same_name(settings.comm, owner->comm))
		return false;
	return true;
}

/* An event whose owner is not known may be anyone's: it is counted also where only one owner's are asked for. */
static __always_inline bool wanted(const struct flow *flow, const struct owner *owner)
{
	if (!wanted_flow(flow))
		return false;
	if (owner->how == HOW_UNKNOWN)
		count_lost(LOST_UNKNOWN);
	return wanted_owner(owner);
}

static __always_inline bool wanted_kind(__u8 kind)
{
	return !settings.kinds || settings.kinds & (1 << kind);
}

/*
 * Whether this is part of establishing the connection: the socket's clock still is what tcp_init_buffer_space() has set it
 * to. Whatever a timer does, it does after setting it.
 */
static __always_inline bool is_being_established(const struct tcp_sock *tp)
{
	return bpf_core_field_exists(tp->rcvq_space.time) &&
	       BPF_CORE_READ(tp, rcvq_space.time) == BPF_CORE_READ(tp, tcp_mstamp);
}

/*
 * Why this skb goes out again, read inside the one place that all retransmissions pass. tcp_write_timer_handler()
 * clears icsk_pending before an RTO; a loss probe runs with it still set; what is sent in CA_Loss with a timer pending
 * is slow start after that RTO, driven by ACKs. A loss probe that was due before recovery began runs in recovery, with
 * the timer pending as it may be for a fast retransmit too; but what tcp_xmit_retransmit_queue() sends is marked lost.
 *
 * Data of a SYN that the peer did not take (TCP Fast Open) go again when the SYN-ACK has set the timer for a loss probe
 * (tcp_rcv_fastopen_synack()): since 5.12 marked lost, and counted as fast retransmit or, in CA_Loss, slow start; before,
 * not marked and not counted.
 */
static __always_inline enum kind kind_of(const struct sock *sk, const struct tcp_skb_cb *tcb, __u8 tcp_flags)
{
	const struct inet_connection_sock *icsk = (const void *)sk;
	__u8 ca_state = BPF_CORE_READ_BITFIELD_PROBED(icsk, icsk_ca_state);
	__u8 pending = BPF_CORE_READ(icsk, icsk_pending);
	bool lost = BPF_CORE_READ_BITFIELD_PROBED(tcb, sacked) & TCPCB_LOST;

	if (tcp_flags & TCPHDR_SYN)
		return KIND_SYN;
	if (ca_state == CA_RECOVERY)
		return pending == ICSK_TIME_LOSS_PROBE && !lost ? KIND_TLP : KIND_FAST;
	if (ca_state == CA_LOSS)
		return pending ? KIND_SLOW_START : KIND_RTO;
	if (lost)
		return KIND_FAST;
	if (pending == ICSK_TIME_LOSS_PROBE && !is_being_established((const void *)sk))
		return KIND_TLP;
	return KIND_OTHER;
}

static __always_inline void emit_retransmit(void *ctx, struct retransmit_event *event)
{
	count_for_netns(event);
	if (!settings.retransmits || !wanted_kind(event->kind) || !wanted(&event->flow, &event->owner))
		return;
	count_for_process(event);
	fill_header(&event->header, EVENT_RETRANSMIT);
	event->current_tgid = bpf_get_current_pid_tgid() >> 32;
	bpf_get_current_comm(event->current_comm, sizeof(event->current_comm));
	emit(ctx, event, sizeof(*event));
}

/*
 * An attempt to send skb again ended with err. The skb has no headers yet, so its control block tells what it is; by
 * now tcp_gso_segs is what was sent, where the caller's segs argument was only a ceiling.
 */
static __always_inline void retransmitted(void *ctx, const struct sock *sk, const struct sk_buff *skb, int err)
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
	event.err = err > 0 ? -ENOBUFS : err;	/* a queue dropped it (NET_XMIT_DROP): what net_xmit_errno() says */
	event.segs = BPF_CORE_READ(tcb, tcp_gso_segs);
	event.bytes = BPF_CORE_READ(skb, len);
	event.srtt_us = BPF_CORE_READ(tp, srtt_us) >> 3;	/* kept shifted left by 3 */
	event.cwnd = BPF_CORE_READ(tp, snd_cwnd);
	event.ssthresh = BPF_CORE_READ(tp, snd_ssthresh);
	event.mss = BPF_CORE_READ(tp, mss_cache);
	event.sk_retrans = BPF_CORE_READ(icsk, icsk_retransmits);
	event.kind = kind_of(sk, tcb, tcp_flags);
	event.state = BPF_CORE_READ(sk, __sk_common.skc_state);
	event.fin = !!(tcp_flags & TCPHDR_FIN);
	emit_retransmit(ctx, &event);
}

/*
 * A SYN-ACK went out again, as it had `retrans` times before. Until accept() returns, the connection belongs to the
 * listener's process, whoever accepts it later. With TCP Fast Open sk is the child socket, which may have been accepted and
 * sent on already; else the listener is taken from the request.
 */
static __always_inline void synack_retransmitted(void *ctx, const struct sock *sk, const struct request_sock *req,
						 __u32 retrans)
{
	const struct sock *listener = BPF_CORE_READ(req, __req_common.skc_listener);
	struct retransmit_event event = {};

	if (!flow_of(&req->__req_common, &event.flow))
		return;
	owner_of(!listener || own_entry(sk, &event.flow) ? sk : listener, &event.flow, &event.owner);
	event.segs = 1;
	event.sk_retrans = retrans + 1;
	event.kind = KIND_SYNACK;
	event.state = BPF_CORE_READ(req, __req_common.skc_state);
	emit_retransmit(ctx, &event);
}

/* A process called send() or one of its siblings. Only with --events send or all. */
static __always_inline void sent(void *ctx, const struct sock *sk, __u64 bytes)
{
	struct send_event event = {};

	if (!flow_of(&sk->__sk_common, &event.flow))
		return;
	owner_of(sk, &event.flow, &event.owner);
	/* Nobody need have remembered the sender: there was no room, or its connection has been reset. */
	if (event.owner.how == HOW_UNKNOWN && current_acts_for_itself(sk))
		describe(&event.owner, (void *)bpf_get_current_task(), sk, HOW_SEND);
	if (!wanted(&event.flow, &event.owner))
		return;
	event.bytes = bytes;
	fill_header(&event.header, EVENT_SEND);
	emit(ctx, &event, sizeof(event));
}

#endif
