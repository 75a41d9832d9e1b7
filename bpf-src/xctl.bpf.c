// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
/*
 * All BPF programs, grouped by hook set. A program is short, and calls a function of a header. Programs of different sets for
 * the same purpose call the same function. loader/src/trace/hooks/ says which of them are loaded, and for what.
 */
#include "vmlinux.h"
#include "regs.bpf.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_tracing.h>
#include "events.h"
#include "errno.bpf.h"

const volatile struct settings settings = {};

#include "lost.bpf.h"
#include "flow.bpf.h"
#include "reading.bpf.h"
#include "owner_socket.bpf.h"
#include "subflows.bpf.h"
#include "owner_process.bpf.h"
#include "owner_map.bpf.h"
#include "owner_cache.bpf.h"
#include "window.bpf.h"
#include "owner_forget.bpf.h"
#include "owner_copy.bpf.h"
#include "owner_lookup.bpf.h"
#include "filter.bpf.h"
#include "emit.bpf.h"
#include "ledger.bpf.h"
#include "owner_remember.bpf.h"
#include "owner_state.bpf.h"
#include "totals.bpf.h"
#include "retransmit.bpf.h"
#include "timeouts.bpf.h"
#include "cut.bpf.h"
#include "drop.bpf.h"
#include "in_flight.bpf.h"
#include "backup.bpf.h"
#include "seed.bpf.h"
#include "sockets.bpf.h"
#include "layouts.bpf.h"

/*
 * Two programs with the same action at one hook. The kernel skips a program that already runs on this CPU; then the other one
 * still runs. This is only for actions that may happen twice: to remember an owner, or to handle a change of state.
 */
#define TWICE(hook, first, second, action, args...) \
	SEC(hook) \
	int BPF_PROG(first, args) \
	{ \
		action; \
		return 0; \
	} \
\
	SEC(hook) \
	int BPF_PROG(second, args) \
	{ \
		action; \
		return 0; \
	}

/*
 * A program and its backup (backup.bpf.h): the action happens once, in the backup if the kernel skipped the first program.
 * `object` is the skb, request or socket that the hook is about. `condition` is false in most runs of some hooks; the program
 * then returns at once. `counter` counts the actions of the backup.
 */
#define WITH_BACKUP_IF(hook, first, backup, condition, object, counter, action, args...) \
	SEC(hook) \
	int BPF_PROG(first, args) \
	{ \
		if ((condition) && claim(object)) \
			action; \
		return 0; \
	} \
\
	SEC(hook) \
	int BPF_PROG(backup, args) \
	{ \
		if ((condition) && must_back_up(object, counter)) \
			action; \
		return 0; \
	}

#define WITH_BACKUP(hook, first, backup, object, action, args...) \
	WITH_BACKUP_IF(hook, first, backup, true, object, RETRANSMIT_BACKED_UP, action, args)

/* A socket ends, from the state `earlier`. */
static __always_inline void ended(const struct sock *sk, int earlier)
{
	count_if_timer_ended(sk, earlier);
	connection_ended(sk, earlier);
}

/* ---- raw tracepoints: tp2_ is the second program of tp_ ---- */

WITH_BACKUP("raw_tp/tcp_retransmit_skb", tp_retransmit, tp2_retransmit, skb,
	    retransmitted(ctx, sk, skb, 0, kind_of(sk, skb)),
	    struct sock *sk, struct sk_buff *skb)

/* Since Linux 6.17, and some 6.14, the tracepoint has a third argument, and fires for failed attempts too. */
WITH_BACKUP("raw_tp/tcp_retransmit_skb", tp_retransmit_err, tp2_retransmit_err, skb,
	    retransmitted(ctx, sk, skb, err, kind_of(sk, skb)),
	    struct sock *sk, struct sk_buff *skb, int err)

WITH_BACKUP("raw_tp/tcp_retransmit_synack", tp_synack, tp2_synack, req,
	    synack_retransmitted(ctx, sk, req, BPF_CORE_READ_BITFIELD_PROBED(req, num_retrans)),
	    struct sock *sk, struct request_sock *req)

/*
 * Since Linux 5.19, for every change of the congestion state. Most changes are between Open and Disorder, when segments
 * arrive out of order. For these the programs return at once.
 */
WITH_BACKUP_IF("raw_tp/tcp_cong_state_set", tp_ca_state, tp2_ca_state, ca_state > CA_DISORDER, CUT_MARK(sk, ca_state),
	       RETRANSMIT_BACKED_UP, ca_state_set(ctx, sk, ca_state), struct sock *sk, __u8 ca_state)

/* For every packet of every protocol that the host drops, received ones too. */
WITH_BACKUP_IF("raw_tp/kfree_skb", tp_drop, tp2_drop, sender_of(skb), skb, DROP_BACKED_UP, dropped(ctx, skb, 0),
	       struct sk_buff *skb)

/* Since Linux 5.17 the third argument is the reason. */
WITH_BACKUP_IF("raw_tp/kfree_skb", tp_drop_reason, tp2_drop_reason, sender_of(skb), skb, DROP_BACKED_UP,
	       dropped(ctx, skb, reason), struct sk_buff *skb, void *location, int reason)

/*
 * Both programs handle every change, which is harmless: newer kernels may preempt the programs, and skip either of them for
 * other tasks thousands of times. claim() serves only to count the changes that the second alone has handled.
 */
SEC("raw_tp/inet_sock_set_state")
int BPF_PROG(tp_state, struct sock *sk, int oldstate, int newstate)
{
	bool first = claim((const char *)sk + newstate);	/* sockets lie further apart than states */

	if (newstate == TCP_CLOSE && !seen_by_kprobe(sk) && first)
		ended(sk, oldstate);
	state_changed(sk, newstate);
	return 0;
}

SEC("raw_tp/inet_sock_set_state")
int BPF_PROG(tp2_state, struct sock *sk, int oldstate, int newstate)
{
	bool alone = must_back_up((const char *)sk + newstate, STATE_BACKED_UP);

	if (newstate == TCP_CLOSE && alone && !seen_by_kprobe(sk))
		ended(sk, oldstate);
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

/*
 * When the call returns: once for each call, for sockets of every protocol, MPTCP's too. Most sends end at the cache's first
 * lookup. If the kernel skipped tp_sendmsg, this program remembers the sender.
 */
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

/* A process, a thread of the kernel or a softirq has read. */
TWICE("raw_tp/tcp_rcv_space_adjust", tp_read, tp2_read, has_read(sk), struct sock *sk)

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

/* A second listen() on a socket does not pass inet_csk_listen_start(). */
SEC("kprobe/inet_listen")
int BPF_KPROBE(kp_listen_again, struct socket *socket)
{
	remember_listener_again(socket);
	return 0;
}

/*
 * accept() hands out a socket. A kretprobe follows at most maxactive calls at a time, sometimes one for each CPU, and each
 * process that waits in accept() takes one. So this hook is at the entry of a function.
 */
SEC("kprobe/security_sock_graft")
int BPF_KPROBE(kp_accept, struct sock *sk)
{
	remember_accepted(sk);
	return 0;
}

/* For kernels without CONFIG_SECURITY_NETWORK. */
SEC("kretprobe/inet_csk_accept")
int BPF_KRETPROBE(kp_accept_return, struct sock *sk)
{
	if (sk)
		remember_connection(sk, HOW_ACCEPT);
	return 0;
}

/* This function sets the state of TCP and MPTCP sockets, and calls the tracepoint inet_sock_set_state. */
SEC("kprobe/inet_sk_state_store")
int BPF_KPROBE(kp_state, struct sock *sk, int state)
{
	if (state == TCP_CLOSE && claim(SEEN_BY_KPROBE(sk)))
		ended(sk, BPF_CORE_READ(sk, __sk_common.skc_state));
	state_changed(sk, state);
	return 0;
}

/* An attempt to retransmit a segment begins at the entry of a function and ends at its return. */
#define SEGMENT_ATTEMPT(function, entry, exit) \
	SEC("kprobe/" function) \
	int BPF_KPROBE(entry, struct sock *sk, struct sk_buff *skb) \
	{ \
		attempt_begins(ATTEMPT_SEGMENT, sk, skb, kind_of(sk, skb)); \
		return 0; \
	} \
\
	SEC("kretprobe/" function) \
	int BPF_KRETPROBE(exit, int err) \
	{ \
		struct attempt_args args; \
\
		if (attempt_ends(ATTEMPT_SEGMENT, &args)) \
			retransmitted(ctx, args.sk, args.arg, err, args.note); \
		return 0; \
	}

SEGMENT_ATTEMPT("tcp_retransmit_skb", kp_retransmit, kp_retransmit_return)

SEGMENT_ATTEMPT("__tcp_retransmit_skb", kp_inner, kp_inner_return)

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
		synack_retransmitted(ctx, args.sk, args.arg, args.note);
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
 * ---- fentry and fexit: the same hooks as by kprobe, at less cost; fe2_ is the second program of fe_ ----
 *
 * These programs can be preempted. Then the kernel skips the program for other tasks on that CPU.
 */

SEC("fentry/tcp_sendmsg")
int BPF_PROG(fe_sendmsg, struct sock *sk, const void *msg, __u64 size)
{
	if (remember_sender(sk) && settings.sends)
		sent(ctx, sk, size);
	return 0;
}

/* Where the kernel has no tracepoint tcp_cong_state_set. Kprobes on these functions miss some calls. */
WITH_BACKUP("fentry/tcp_enter_recovery", fe_recovery, fe2_recovery, CUT_MARK(sk, CA_RECOVERY),
	    cut_begins(ctx, sk, CUT_RECOVERY), struct sock *sk)

WITH_BACKUP("fentry/tcp_enter_loss", fe_loss, fe2_loss, CUT_MARK(sk, CA_LOSS), cut_begins(ctx, sk, CUT_TIMEOUT),
	    struct sock *sk)

/*
 * A SYN-ACK was not answered in time. Most kernels call this function through a pointer, so no compiler removes it. From Linux
 * 6.19 to 7.1 they call it directly, and the caller for TCP Fast Open, in the same file, may have it inlined.
 */
WITH_BACKUP("fentry/tcp_syn_ack_timeout", fe_synack_timeout, fe2_synack_timeout, req,
	    count_timeout(&req->__req_common, false), const struct request_sock *req)

TWICE("fentry/tcp_sendmsg_locked", fe_sendmsg_locked, fe2_sendmsg_locked, remember_sender(sk), struct sock *sk)

TWICE("fentry/do_tcp_sendpages", fe_sendpages, fe2_sendpages, remember_sender(sk), struct sock *sk)

TWICE("fentry/mptcp_sendmsg", fe_mptcp_sendmsg, fe2_mptcp_sendmsg, remember_mptcp_sender(sk), struct sock *sk)

TWICE("fentry/tcp_connect", fe_connect, fe2_connect, remember_connection(sk, HOW_CONNECT), struct sock *sk)

TWICE("fentry/inet_csk_listen_start", fe_listen, fe2_listen, remember_by_address(sk, HOW_LISTEN), struct sock *sk)

TWICE("fentry/inet_listen", fe_listen_again, fe2_listen_again, remember_listener_again(socket), struct socket *socket)

/* In Linux 6.10 the four arguments became two; the return value comes after them. */
TWICE("fexit/inet_csk_accept", fe_accept_4, fe2_accept_4, if (sk) remember_connection(sk, HOW_ACCEPT),
      struct sock *listener, int flags, int *err, bool kern, struct sock *sk)

TWICE("fexit/inet_csk_accept", fe_accept_2, fe2_accept_2, if (sk) remember_connection(sk, HOW_ACCEPT),
      struct sock *listener, void *arg, struct sock *sk)

/*
 * ---- LSM: the kernel never skips such a program (bpf_prog_check_recur(), Linux 6.2) ----
 *
 * It allows every send, since it returns 0.
 */

/* Runs for sockets of every family and protocol. So the program tests the protocol first, by a direct read, which is cheap. */
SEC("lsm/socket_sendmsg")
int BPF_PROG(lsm_sendmsg, struct socket *socket, const void *msg, int size)
{
	const struct sock *sk = socket->sk;

	if (!sk)	/* for the verifier */
		return 0;
	switch (BPF_CORE_READ_BITFIELD(sk, sk_protocol)) {
	case IPPROTO_TCP:
		if (remember_sender(sk) && settings.sends)
			sent(ctx, sk, size);
		break;
	case IPPROTO_MPTCP:
		remember_mptcp_sender(sk);
		break;
	}
	return 0;
}

/* ---- iterators: they run when user space reads them ---- */

/* Writes one struct holder for each process that holds a socket. */
SEC("iter/task_file")
int it_seed(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct holder holder = {};

	/* The last call of an iteration has neither. */
	if (!task || !file)
		return 0;
	if (seed(task, file, &holder))
		bpf_seq_write(ctx->meta->seq, &holder, sizeof(holder));
	return 0;
}

/* Writes one socket_record for each socket of the network namespace in which the iterator was made. */
SEC("iter/tcp")
int it_sockets(struct bpf_iter__tcp *ctx)
{
	struct sock_common *skc = ctx->sk_common;
	struct socket_record record;

	if (skc && list_socket(skc, &record))
		bpf_seq_write(ctx->meta->seq, &record, sizeof(record));
	return 0;
}

/* Writes a socket_record and a reading for each of these sockets. */
SEC("iter/tcp")
int it_readings(struct bpf_iter__tcp *ctx)
{
	struct sock_common *skc = ctx->sk_common;
	struct socket_record record;
	struct reading reading;

	if (!skc || !list_socket(skc, &record))
		return 0;
	read_socket(skc, &reading);
	/* If there is no room for both, the kernel takes the first back, and shows the socket once more (bpf_seq_read()). */
	if (!bpf_seq_write(ctx->meta->seq, &record, sizeof(record)))
		bpf_seq_write(ctx->meta->seq, &reading, sizeof(reading));
	return 0;
}

/* Writes an account for each connection, request and listener of that namespace. */
SEC("iter/tcp")
int it_accounts(struct bpf_iter__tcp *ctx)
{
	struct sock_common *skc = ctx->sk_common;
	struct account account;

	if (skc && list_account(skc, &account))
		bpf_seq_write(ctx->meta->seq, &account, sizeof(account));
	return 0;
}

/* ---- run by user space (BPF_PROG_TEST_RUN), and attached to nothing ---- */

/* The arguments are the words of a key of SOCKET_TO_PID, and the number of a subflow or COUNT_SUBFLOWS. */
SEC("raw_tp")
int tr_account(__u64 *words)
{
	return account_of_open(words);
}

/* The helpers that read kernel memory are open to GPL-compatible programs only. */
char LICENSE[] SEC("license") = "Dual BSD/GPL";
