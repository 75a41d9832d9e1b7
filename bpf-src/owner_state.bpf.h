/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* Learns about the owner of a socket from the changes of the socket's state. */
#ifndef XCTL_OWNER_STATE_BPF_H
#define XCTL_OWNER_STATE_BPF_H

/*
 * FIN is sent by close() or shutdown(), in the context of the process. If accept() went unseen and the process never used
 * the socket, close() is the last chance to learn the owner. Such a socket can retransmit only FIN. Only a process that
 * opened the file has accepted the connection. Another process may close it: the receiver of an SCM_RIGHTS message that it
 * never reads, or any process in which the kernel collects unreachable unix sockets (5.10).
 */
static __always_inline void remember_closer(const struct sock *sk)
{
	const struct sock *parent = mptcp_parent(sk);
	struct owner *owner = parent ? entry_by_address(parent) : NULL;
	struct flow flow;

	if (owner) {	/* subflows outlive their parent's entry */
		if (flow_of(&sk->__sk_common, &flow))
			copy_entry(owner, sk, &flow);
		return;
	}
	/* If close() comes before the handshake's end, a softirq completes it: then nobody has locked the socket. */
	if (!BPF_CORE_READ(sk, sk_lock.owned) || !current_acts_for_itself(sk) || !flow_of(&sk->__sk_common, &flow))
		return;
	owner = known_entry(sk, &flow);
	if (owner)	/* an event may need the name after the process has exited; the lock keeps readers away meanwhile */
		refresh_name(owner);
	else if (current_opened(sk))
		remember(sk, &flow, HOW_ACCEPT);
}

/* connect() has got its port: move the entry from the socket's address to its four-tuple. */
static __always_inline void promote(const struct sock *sk)
{
	struct flow key = flow_by_address(sk), flow;
	struct owner *owner = own_entry(sk, &key);

	/* With TCP Fast Open the process has sent already, and that entry is newer. */
	if (!owner || !flow_of(&sk->__sk_common, &flow) || own_entry(sk, &flow))
		return;
	copy_entry(owner, sk, &flow);
	if (own_entry(sk, &flow))
		drop_entry(&key);
}

static __always_inline void state_changed(const struct sock *sk, int state)
{
	__u16 protocol = BPF_CORE_READ_BITFIELD_PROBED(sk, sk_protocol);
	struct flow flow;

	if (protocol != IPPROTO_TCP && protocol != IPPROTO_MPTCP)	/* SCTP and DCCP have the same states */
		return;
	switch (state) {
	case TCP_SYN_SENT:
		if (settings.births_by_state && !mptcp_parent(sk))	/* MPTCP's parent has this state too */
			remember_by_address(sk, HOW_CONNECT);
		break;
	case TCP_LISTEN:
		if (settings.births_by_state)
			remember_by_address(sk, HOW_LISTEN);
		break;
	case TCP_ESTABLISHED:
		drop_cached(sk);
		drop_shut_window(sk);
		if (settings.births_by_state && protocol == IPPROTO_TCP)
			promote(sk);
		break;
	case TCP_FIN_WAIT1:
	case TCP_LAST_ACK:
		remember_closer(sk);
		break;
	case TCP_FIN_WAIT2:
	case TCP_CLOSING:
		/* close() after shutdown() leads here too, and then takes the file away. */
		if (settings.by_inode && flow_of(&sk->__sk_common, &flow))
			known_entry(sk, &flow);
		break;
	case TCP_CLOSE:
		forget(sk);
		break;
	}
}

#endif
