/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* Lists the TCP sockets of a network namespace, with their owners: the iterator behind `xctl sockets`. */
#ifndef XCTL_SOCKETS_BPF_H
#define XCTL_SOCKETS_BPF_H

/*
 * Describe an entry of the kernel's tables of TCP sockets: a socket, a connection in TIME_WAIT, or a request that waits for
 * the last ACK of its handshake. The three have only sock_common in common. False if the entry must not be listed.
 */
static __always_inline bool list_socket(const struct sock_common *skc, struct socket_record *record)
{
	const struct sock *sk = (const void *)skc;
	bool is_request;

	__builtin_memset(record, 0, sizeof(*record));
	if (!flow_of(skc, &record->flow))
		return false;
	record->state = BPF_CORE_READ(skc, skc_state);
	is_request = record->state == TCP_NEW_SYN_RECV;
	switch (record->state) {
	case TCP_CLOSE:	/* it ended while the iterator looked at it */
		return false;
	case TCP_TIME_WAIT:
		/* A struct inet_timewait_sock remains of a closed connection, also in FIN_WAIT2. Nobody owns it. */
		record->state = BPF_CORE_READ((const struct inet_timewait_sock *)skc, tw_substate);
		sk = NULL;
		break;
	case TCP_NEW_SYN_RECV:
		/* As for SYN-ACKs (synack_retransmitted()): until accept() the listener's process owns the connection. */
		sk = BPF_CORE_READ(skc, skc_listener);
		break;
	default:
		record->held = BPF_CORE_READ(sk, sk_socket) != NULL;
	}
	if (sk)
		owner_of(sk, &record->flow, &record->owner);
	if (is_request && record->owner.tgid)
		record->owner.how = HOW_LISTEN;
	name_by_address(&record->flow, (const void *)skc);
	return true;
}

#endif
