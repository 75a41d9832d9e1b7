/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* The TCP sockets of a network namespace, each with its owner as SOCKET_TO_PID has it. */
#ifndef XCTL_SOCKETS_BPF_H
#define XCTL_SOCKETS_BPF_H

/*
 * An entry of the kernel's tables of TCP sockets: a socket, a connection in TIME_WAIT, or a request that waits for the
 * last ACK of its handshake. Only sock_common is common to the three. False if there is nothing to say about it.
 */
static __always_inline bool list_socket(const struct sock_common *skc, struct socket_record *record)
{
	const struct sock *sk = (const void *)skc;

	__builtin_memset(record, 0, sizeof(*record));
	if (!flow_of(skc, &record->flow))
		return false;
	record->state = BPF_CORE_READ(skc, skc_state);
	switch (record->state) {
	case TCP_CLOSE:	/* it ended while the iterator looked at it */
		return false;
	case TCP_TIME_WAIT:
		/* What is left of a closed connection is small, in FIN_WAIT2 too; nobody owns it. */
		record->state = BPF_CORE_READ((const struct inet_timewait_sock *)skc, tw_substate);
		break;
	case TCP_NEW_SYN_RECV:
		/* As for SYN-ACKs (synack_retransmitted): until accept(), it is the listener's process's. */
		owner_of(BPF_CORE_READ(skc, skc_listener), &record->flow, &record->owner);
		if (record->owner.tgid)
			record->owner.how = HOW_LISTEN;
		break;
	default:
		owner_of(sk, &record->flow, &record->owner);
		record->held = BPF_CORE_READ(sk, sk_socket) != NULL;
	}
	record->flow.sk = (__u64)skc;
	return true;
}

#endif
