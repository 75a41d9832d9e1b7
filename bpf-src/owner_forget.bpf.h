/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* Removes the entries of a socket that ends. */
#ifndef XCTL_OWNER_FORGET_BPF_H
#define XCTL_OWNER_FORGET_BPF_H

/*
 * Whether the socket is closed, or is about to be. An entry that is made now would stay for ever: no later change to TCP_CLOSE
 * removes it. tcp_set_state() gives the port back first, calls the tracepoint for TCP_CLOSE next, and stores the state last.
 * So a socket without a port is closed, too. This does not hold for an MPTCP parent, which may have no port of its own.
 */
static __always_inline bool is_closed(const struct sock *sk, const struct flow *key)
{
	return BPF_CORE_READ(sk, __sk_common.skc_state) == TCP_CLOSE ||
	       (key->known_by == BY_FLOW && !BPF_CORE_READ(sk, __sk_common.skc_num));
}

/*
 * Remove the entry that was seeded under the inode number of this socket's file. close() takes the file away, and the number
 * with it. In `key` only `socket` and `known_by` are set. This function
 * overwrites both.
 */
static __always_inline void drop_by_inode(const struct sock *sk, struct flow *key)
{
	if (!settings.by_inode)
		return;
	name_by_inode(key, inode_of(sk));	/* if it has no file: 0, which has no entry */
	drop_entry(key);
}

/*
 * The socket ends. That is later than close(): TCP retransmits FIN and data long after it. Only the socket's own entry goes:
 * a connect() whose four-tuple is in use puts its own socket into TCP_CLOSE with the tuple of the live one.
 */
static __noinline void forget(const struct sock *sk)
{
	struct flow key = flow_by_address(sk), flow;

	drop_entry(&key);
	if (flow_of_closing(sk, &flow) && may_be_own(sk, &flow))
		drop_entry(&flow);
	drop_by_inode(sk, &key);
	drop_cached(sk);	/* after the entry: see owner_cache.bpf.h */
	drop_no_room(sk);
	drop_shut_window(sk);
}

#endif
