// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
/*
 * Every program, one short entry a hook, grouped by hook set. No logic here: programs of different sets for the same
 * purpose call the same function. loader/src/hooks.rs says which of them are loaded, and for what.
 */
#include "vmlinux.h"
#include "regs.bpf.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_tracing.h>
#include "events.h"

#define ENOENT 2
#define E2BIG 7
#define EAGAIN 11
#define ENOMEM 12
#define EBUSY 16
#define EEXIST 17
#define EINVAL 22
#define ENOSPC 28
#define ENOBUFS 105
#define EHOSTUNREACH 113

const volatile struct settings settings = {};

#include "lost.bpf.h"
#include "flow.bpf.h"
#include "owner.bpf.h"
#include "totals.bpf.h"
#include "retransmit.bpf.h"
#include "in_flight.bpf.h"
#include "stand_in.bpf.h"
#include "seed.bpf.h"
#include "sockets.bpf.h"

/* Puts the layouts of the records, which no map mentions, into this object's BTF for the loader to check. */
const struct retransmit_event *retransmit_event_layout __attribute__((unused));
const struct send_event *send_event_layout __attribute__((unused));
const struct socket_record *socket_record_layout __attribute__((unused));

/* ---- raw tracepoints: exact; tp2_ is the second program of tp_ (stand_in.bpf.h) ---- */

SEC("raw_tp/tcp_retransmit_skb")
int BPF_PROG(tp_retransmit, struct sock *sk, struct sk_buff *skb)
{
	if (claim(skb))
		retransmitted(ctx, sk, skb, 0);
	return 0;
}

SEC("raw_tp/tcp_retransmit_skb")
int BPF_PROG(tp2_retransmit, struct sock *sk, struct sk_buff *skb)
{
	if (must_stand_in(skb, STOOD_IN))
		retransmitted(ctx, sk, skb, 0);
	return 0;
}

/* Linux 6.17, and some 6.14: the tracepoint has a third argument, and fires for attempts that failed too. */
SEC("raw_tp/tcp_retransmit_skb")
int BPF_PROG(tp_retransmit_err, struct sock *sk, struct sk_buff *skb, int err)
{
	if (claim(skb))
		retransmitted(ctx, sk, skb, err);
	return 0;
}

SEC("raw_tp/tcp_retransmit_skb")
int BPF_PROG(tp2_retransmit_err, struct sock *sk, struct sk_buff *skb, int err)
{
	if (must_stand_in(skb, STOOD_IN))
		retransmitted(ctx, sk, skb, err);
	return 0;
}

SEC("raw_tp/tcp_retransmit_synack")
int BPF_PROG(tp_synack, struct sock *sk, struct request_sock *req)
{
	if (claim(req))
		synack_retransmitted(ctx, sk, req, BPF_CORE_READ_BITFIELD_PROBED(req, num_retrans));
	return 0;
}

SEC("raw_tp/tcp_retransmit_synack")
int BPF_PROG(tp2_synack, struct sock *sk, struct request_sock *req)
{
	if (must_stand_in(req, STOOD_IN))
		synack_retransmitted(ctx, sk, req, BPF_CORE_READ_BITFIELD_PROBED(req, num_retrans));
	return 0;
}

/*
 * To handle a change twice changes nothing, so both programs do: newer kernels may preempt them, and skip either for
 * other tasks by the thousand. Claiming only counts what the second alone has done.
 */
SEC("raw_tp/inet_sock_set_state")
int BPF_PROG(tp_state, struct sock *sk, int oldstate, int newstate)
{
	claim((const char *)sk + newstate);	/* sockets lie further apart than states */
	state_changed(sk, newstate);
	return 0;
}

SEC("raw_tp/inet_sock_set_state")
int BPF_PROG(tp2_state, struct sock *sk, int oldstate, int newstate)
{
	must_stand_in((const char *)sk + newstate, STATE_STOOD_IN);
	state_changed(sk, newstate);
	return 0;
}

/* Before the bytes leave, unlike sock_send_length; once for each skb that the call fills. */
SEC("raw_tp/tcp_sendmsg_locked")
int BPF_PROG(tp_sendmsg, struct sock *sk)
{
	remember_sender(sk);
	return 0;
}

/* To remember twice changes nothing, so this second program needs not to know what the first has done. */
SEC("raw_tp/tcp_sendmsg_locked")
int BPF_PROG(tp2_sendmsg, struct sock *sk)
{
	remember_sender(sk);
	return 0;
}

/* When the call returns: once for each call, for sockets of every protocol. */
SEC("raw_tp/sock_send_length")
int BPF_PROG(tp_send_length, struct sock *sk, int ret)
{
	if (!remember_sender(sk)) {
		if (BPF_CORE_READ_BITFIELD_PROBED(sk, sk_protocol) == IPPROTO_MPTCP)
			remember_mptcp_sender(sk);
	} else if (settings.sends && ret >= 0) {
		sent(ctx, sk, ret);
	}
	return 0;
}

/* The same tracepoint for senders of MPTCP alone, where tcp_sendmsg_locked shows the others. */
SEC("raw_tp/sock_send_length")
int BPF_PROG(tp_mptcp_send_length, struct sock *sk)
{
	if (BPF_CORE_READ_BITFIELD_PROBED(sk, sk_protocol) == IPPROTO_MPTCP)
		remember_mptcp_sender(sk);
	return 0;
}

/* ---- kprobes and kretprobes ---- */

SEC("kprobe/tcp_sendmsg")
int BPF_KPROBE(kp_sendmsg, struct sock *sk, const void *msg, __u64 size)
{
	if (remember_sender(sk) && settings.sends)
		sent(ctx, sk, size);
	return 0;
}

SEC("kprobe/tcp_connect")
int BPF_KPROBE(kp_connect, struct sock *sk)
{
	remember_connection(sk, HOW_CONNECT);
	return 0;
}

SEC("kprobe/inet_csk_listen_start")
int BPF_KPROBE(kp_listen, struct sock *sk)
{
	remember_by_address(sk, HOW_LISTEN);
	return 0;
}

/*
 * accept() hands out a socket: in an entry, since a kretprobe is in so many calls at a time (its maxactive, as few as there
 * are CPUs), and each process that waits in accept() is in one.
 */
SEC("kprobe/security_sock_graft")
int BPF_KPROBE(kp_accept, struct sock *sk)
{
	remember_accepted(sk);
	return 0;
}

/* Where the kernel was built without CONFIG_SECURITY_NETWORK. */
SEC("kretprobe/inet_csk_accept")
int BPF_KRETPROBE(kp_accept_return, struct sock *sk)
{
	if (sk)
		remember_connection(sk, HOW_ACCEPT);
	return 0;
}

/* What sets the state of TCP's sockets and of MPTCP's, and has the tracepoint inet_sock_set_state. */
SEC("kprobe/inet_sk_state_store")
int BPF_KPROBE(kp_state, struct sock *sk, int state)
{
	state_changed(sk, state);
	return 0;
}

SEC("kprobe/tcp_retransmit_skb")
int BPF_KPROBE(kp_retransmit, struct sock *sk, struct sk_buff *skb)
{
	attempt_begins(ATTEMPT_SEGMENT, sk, skb, 0);
	return 0;
}

SEC("kretprobe/tcp_retransmit_skb")
int BPF_KRETPROBE(kp_retransmit_return, int err)
{
	struct attempt_args args;

	if (attempt_ends(ATTEMPT_SEGMENT, &args))
		retransmitted(ctx, args.sk, args.arg, err);
	return 0;
}

SEC("kprobe/__tcp_retransmit_skb")
int BPF_KPROBE(kp_inner, struct sock *sk, struct sk_buff *skb)
{
	attempt_begins(ATTEMPT_SEGMENT, sk, skb, 0);
	return 0;
}

SEC("kretprobe/__tcp_retransmit_skb")
int BPF_KRETPROBE(kp_inner_return, int err)
{
	struct attempt_args args;

	if (attempt_ends(ATTEMPT_SEGMENT, &args))
		retransmitted(ctx, args.sk, args.arg, err);
	return 0;
}

SEC("kprobe/tcp_rtx_synack")
int BPF_KPROBE(kp_synack, struct sock *sk, struct request_sock *req)
{
	attempt_begins(ATTEMPT_SYNACK, sk, req, BPF_CORE_READ_BITFIELD_PROBED(req, num_retrans));
	return 0;
}

SEC("kretprobe/tcp_rtx_synack")
int BPF_KRETPROBE(kp_synack_return, int err)
{
	struct attempt_args args;

	if (attempt_ends(ATTEMPT_SYNACK, &args) && !err)
		synack_retransmitted(ctx, args.sk, args.arg, args.retrans);
	return 0;
}

SEC("kprobe/tcp_sendmsg_locked")
int BPF_KPROBE(kp_sendmsg_locked, struct sock *sk)
{
	remember_sender(sk);
	return 0;
}

SEC("kprobe/do_tcp_sendpages")
int BPF_KPROBE(kp_sendpages, struct sock *sk)
{
	remember_sender(sk);
	return 0;
}

SEC("kprobe/mptcp_sendmsg")
int BPF_KPROBE(kp_mptcp_sendmsg, struct sock *sk)
{
	remember_mptcp_sender(sk);
	return 0;
}

/*
 * ---- fentry and fexit: what kprobes show, at a sixth of the cost; fe2_ is the second program of fe_ ----
 *
 * These run preemptibly, and a program is skipped for whoever runs on its CPU while it is preempted.
 */

SEC("fentry/tcp_sendmsg")
int BPF_PROG(fe_sendmsg, struct sock *sk, const void *msg, __u64 size)
{
	if (remember_sender(sk) && settings.sends)
		sent(ctx, sk, size);
	return 0;
}

SEC("fentry/tcp_sendmsg_locked")
int BPF_PROG(fe_sendmsg_locked, struct sock *sk)
{
	remember_sender(sk);
	return 0;
}

SEC("fentry/tcp_sendmsg_locked")
int BPF_PROG(fe2_sendmsg_locked, struct sock *sk)
{
	remember_sender(sk);
	return 0;
}

SEC("fentry/do_tcp_sendpages")
int BPF_PROG(fe_sendpages, struct sock *sk)
{
	remember_sender(sk);
	return 0;
}

SEC("fentry/do_tcp_sendpages")
int BPF_PROG(fe2_sendpages, struct sock *sk)
{
	remember_sender(sk);
	return 0;
}

SEC("fentry/mptcp_sendmsg")
int BPF_PROG(fe_mptcp_sendmsg, struct sock *sk)
{
	remember_mptcp_sender(sk);
	return 0;
}

SEC("fentry/mptcp_sendmsg")
int BPF_PROG(fe2_mptcp_sendmsg, struct sock *sk)
{
	remember_mptcp_sender(sk);
	return 0;
}

SEC("fentry/tcp_connect")
int BPF_PROG(fe_connect, struct sock *sk)
{
	remember_connection(sk, HOW_CONNECT);
	return 0;
}

SEC("fentry/tcp_connect")
int BPF_PROG(fe2_connect, struct sock *sk)
{
	remember_connection(sk, HOW_CONNECT);
	return 0;
}

SEC("fentry/inet_csk_listen_start")
int BPF_PROG(fe_listen, struct sock *sk)
{
	remember_by_address(sk, HOW_LISTEN);
	return 0;
}

SEC("fentry/inet_csk_listen_start")
int BPF_PROG(fe2_listen, struct sock *sk)
{
	remember_by_address(sk, HOW_LISTEN);
	return 0;
}

/* Its four arguments became two in 6.10; the return value comes after them. */
SEC("fexit/inet_csk_accept")
int BPF_PROG(fe_accept_4, struct sock *listener, int flags, int *err, bool kern, struct sock *sk)
{
	if (sk)
		remember_connection(sk, HOW_ACCEPT);
	return 0;
}

SEC("fexit/inet_csk_accept")
int BPF_PROG(fe2_accept_4, struct sock *listener, int flags, int *err, bool kern, struct sock *sk)
{
	if (sk)
		remember_connection(sk, HOW_ACCEPT);
	return 0;
}

SEC("fexit/inet_csk_accept")
int BPF_PROG(fe_accept_2, struct sock *listener, void *arg, struct sock *sk)
{
	if (sk)
		remember_connection(sk, HOW_ACCEPT);
	return 0;
}

SEC("fexit/inet_csk_accept")
int BPF_PROG(fe2_accept_2, struct sock *listener, void *arg, struct sock *sk)
{
	if (sk)
		remember_connection(sk, HOW_ACCEPT);
	return 0;
}

/* ---- iterators: run when user space reads them ---- */

/* One byte of output for each socket that was remembered. */
SEC("iter/task_file")
int it_seed(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	const char one = 1;

	/* The end of the iteration is one more call, with neither. */
	if (!task || !file)
		return 0;
	if (seed(task, file))
		bpf_seq_write(ctx->meta->seq, &one, sizeof(one));
	return 0;
}

/* One socket_record for each socket of the namespace in which the iterator was made. */
SEC("iter/tcp")
int it_sockets(struct bpf_iter__tcp *ctx)
{
	struct sock_common *skc = ctx->sk_common;
	struct socket_record record;

	if (skc && list_socket(skc, &record))
		bpf_seq_write(ctx->meta->seq, &record, sizeof(record));
	return 0;
}

/* The helpers that read kernel memory are open to GPL-compatible programs only. */
char LICENSE[] SEC("license") = "Dual BSD/GPL";
