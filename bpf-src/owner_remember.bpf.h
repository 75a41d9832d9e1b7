/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * Makes the process of a call the owner of the socket. Owners are made in process context only, where the current task is the
 * caller.
 */
#ifndef XCTL_OWNER_REMEMBER_BPF_H
#define XCTL_OWNER_REMEMBER_BPF_H

/* Make the current process the owner of the socket under this key. */
static __noinline void remember(const struct sock *sk, const struct flow *flow, enum how how)
{
	struct flow by_address = flow_by_address(sk);
	struct owner owner;
	int err;

	describe(&owner, (void *)bpf_get_current_task(), sk, how);
	settle(sk, flow, &by_address, &owner);
	err = keep(sk, flow, &by_address, &owner);
	drop_by_inode(sk, &by_address);
	name_by_address(&by_address, sk);
	if (err) {
		disown(sk, flow);
		disown(sk, &by_address);
		no_room(sk, err);
		return;
	}
	if (how == HOW_SEND)
		vouch(sk, flow, &by_address, &owner);
	else
		drop_cached(sk);
}

/*
 * As remember(), for a socket that nobody has locked, and that may have ended already or may end meanwhile. accept() hands
 * out connections that were reset in its queue, and a process may call send() on a connection that was reset.
 */
static __always_inline void remember_until_closed(const struct sock *sk, const struct flow *key, enum how how)
{
	if (is_closed(sk, key) || (key->known_by == BY_FLOW && !key->sport))
		return;
	remember(sk, key, how);
	if (is_closed(sk, key))
		forget(sk);
}

/*
 * If SOCKET_TO_PID already names the current thread as the sender, put its word into the cache again, and return true. Another
 * socket with the same slot has replaced the word. With many sockets such sends are common, and remember() costs several times
 * as much.
 */
static __noinline bool vouch_again(const struct sock *sk, const struct flow *flow)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	const struct owner *entry = own_entry(sk, flow);
	__u64 pid_tgid = bpf_get_current_pid_tgid();
	struct owner owner;

	if (!entry || entry->how != HOW_SEND || entry->tgid != pid_tgid >> 32 || entry->tid != (__u32)pid_tgid ||
	    entry->born != born(BPF_CORE_READ(task, group_leader)))
		return false;
	owner = *entry;
	owner.socket = (__u64)sk;	/* another CPU may have given the entry's memory to another socket */
	vouch(sk, flow, flow, &owner);
	return true;
}

/*
 * The current task sends on a connection, which may have changed hands before (fork, SCM_RIGHTS, pre-forked workers). Every
 * send on the host takes this path, so it looks first and writes only on change.
 *
 * False if this is not a TCP socket.
 */
static __always_inline bool remember_sender(const struct sock *sk)
{
	struct flow flow;

	if (current_is_cached(sk))
		return true;
	/* The protocol comes first: sock_send_length shows the sends of every protocol, UDP's too. */
	if (BPF_CORE_READ_BITFIELD_PROBED(sk, sk_protocol) != IPPROTO_TCP || !flow_of(&sk->__sk_common, &flow))
		return false;
	if (vouch_again(sk, &flow)) {
		if (is_closed(sk, &flow))	/* as in remember_until_closed() */
			forget(sk);
		return true;
	}
	if (!current_acts_for_itself(sk))	/* a kworker sends for a process (kTLS, sockmap) or for the kernel */
		return true;
	remember_until_closed(sk, &flow, HOW_SEND);
	return true;
}

/* MPTCP: the process sends on the parent, which has no segments of its own. owner_of() leads from its subflows to it. */
static __always_inline void remember_mptcp_sender(const struct sock *msk)
{
	struct flow key = flow_by_address(msk);

	if (!current_is_cached(msk) && !current_is_kthread())
		remember_until_closed(msk, &key, HOW_SEND);
}

static __noinline void remember_by_address(const struct sock *sk, enum how how)
{
	struct flow key = flow_by_address(sk);

	if (current_acts_for_itself(sk))
		remember(sk, &key, how);
}

/* listen() on a socket that listens already: the process takes the listener over. Nobody has locked the socket. */
static __always_inline void remember_listener_again(const struct socket *socket)
{
	const struct sock *sk = BPF_CORE_READ(socket, sk);
	struct flow key = flow_by_address(sk);

	if (BPF_CORE_READ(sk, __sk_common.skc_state) == TCP_LISTEN && current_acts_for_itself(sk))
		remember_until_closed(sk, &key, HOW_LISTEN);
}

/* connect() and accept(): the four-tuple is complete, and every older entry for this address or tuple is out of date. */
static __always_inline void remember_connection(const struct sock *sk, enum how how)
{
	const struct sock *parent = mptcp_parent(sk);
	struct flow flow;

	if (parent) {
		/* A further subflow of a connection with an owner comes from no connect() call of a process. */
		if (how != HOW_CONNECT || BPF_CORE_READ(parent, __sk_common.skc_state) == TCP_SYN_SENT)
			remember_by_address(parent, how);
		return;
	}
	if (current_acts_for_itself(sk) && flow_of(&sk->__sk_common, &flow))
		remember_until_closed(sk, &flow, how);
}

/* accept() hands out a socket of any family; for MPTCP it is the parent. */
static __always_inline void remember_accepted(const struct sock *sk)
{
	__u16 family = BPF_CORE_READ(sk, __sk_common.skc_family);
	__u16 protocol = BPF_CORE_READ_BITFIELD_PROBED(sk, sk_protocol);

	if (family != AF_INET && family != AF_INET6)	/* other families number their protocols differently */
		return;
	if (protocol == IPPROTO_MPTCP)
		remember_by_address(sk, HOW_ACCEPT);
	else if (protocol == IPPROTO_TCP)
		remember_connection(sk, HOW_ACCEPT);
}

/*
 * The current task reads from a connection (tcp_rcv_space_adjust()). A reader becomes the owner only if no process is known,
 * since retransmitted data are the sender's. tcp_read_sock() also reads in softirq and in workers (sockmap, strparser,
 * kTLS). There no process has locked the socket, or the current task is a thread of the kernel.
 *
 * Every read on the host takes this path: the cache ends it at the first lookup.
 */
static __noinline void remember_reader(const struct sock *sk)
{
	struct flow flow;

	if (owner_is_cached(sk))
		return;
	if (!BPF_CORE_READ(sk, sk_lock.owned) || mptcp_parent(sk) || !current_acts_for_itself(sk) ||
	    !flow_of(&sk->__sk_common, &flow))
		return;
	if (has_process(known_entry(sk, &flow)))
		cache_some_owner(sk);
	else
		remember_until_closed(sk, &flow, HOW_READ);
}

static __always_inline void has_read(const struct sock *sk)
{
	if (settings.reader)
		note_shut_window(sk);
	remember_reader(sk);
}

#endif
