/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* Copies an entry as a whole, and moves it from one key to another. */
#ifndef XCTL_OWNER_COPY_BPF_H
#define XCTL_OWNER_COPY_BPF_H

/* Keep the owner of this socket, or of its parent, under the socket's four-tuple too. */
static __noinline void copy_entry(const struct owner *owner, const struct sock *sk, const struct flow *flow)
{
	struct flow by_address = flow_by_address(sk);
	struct owner copy = *owner;
	int err;

	if (is_shared(&copy))
		share(&copy);
	if (copy.socket != (__u64)sk)	/* a subflow */
		copy.own_inode = 0;
	copy.socket = (__u64)sk;
	copy.known_by = BY_ADDRESS;
	refresh_name(&copy);
	err = keep(sk, flow, &by_address, &copy);
	if (err)
		no_room(sk, err);
}

/*
 * Copy the socket's own entry. Meanwhile another CPU may replace the entry, and the kernel may reuse its memory for another
 * socket's entry. The copy is taken if the key leads to the same address before and after. An entry that was removed and put
 * back at the same address in between goes unnoticed.
 */
static __noinline bool copy_of(const struct sock *sk, const struct flow *key, struct owner *to)
{
	const struct owner *owner;
	int i;

#pragma unroll
	for (i = 0; i < 2; i++) {
		owner = own_entry(sk, key);
		if (!owner)
			return false;
		*to = *owner;
		if (own_entry(sk, key) == owner)
			return true;
		__builtin_memset(to, 0, sizeof(*to));
	}
	return false;
}

/*
 * Move an entry from the inode number in the key, which the socket loses at close(), to the socket's address, which it keeps
 * to its end. One of the two entries exists at each moment, unless the map has no room for both. A listener is not locked,
 * and may end meanwhile.
 */
static __noinline void move_to_address(const struct sock *sk, const struct owner *owner, struct flow *key)
{
	__u64 inode = key->socket;
	int err;

	name_by_address(key, sk);
	err = bpf_map_update_elem(&SOCKET_TO_PID, key, owner, BPF_NOEXIST);
	name_by_inode(key, inode);
	drop_entry(key);
	name_by_address(key, sk);
	if (err == -E2BIG)
		err = bpf_map_update_elem(&SOCKET_TO_PID, key, owner, BPF_NOEXIST);
	if (err && err != -EEXIST)
		no_room(sk, err);
	if (is_closed(sk, key))
		drop_entry(key);
}

/*
 * Copy the entry that was seeded under the inode number, for a socket that shares its four-tuple: a listener or a twin. In
 * `key` only `socket` and `known_by` are set. This function overwrites both.
 */
static __always_inline bool copy_by_inode(const struct sock *sk, struct flow *key, struct owner *to)
{
	name_by_inode(key, inode_of(sk));	/* if it has no file: 0, which has no entry */
	if (!copy_of(sk, key, to))
		return false;
	move_to_address(sk, to, key);
	return true;
}

/*
 * Copy an entry that was seeded from /proc and has not been found under the socket's other keys. Another CPU may move
 * the entry at the same time (move_to_address()), or be inside adopt(). So the address and the four-tuple are looked up again.
 * On arm64 the two stores of adopt() may become visible in either order.
 */
static __always_inline bool copy_seeded(const struct sock *sk, const struct flow *flow, struct flow *key, struct owner *to)
{
	if (!settings.by_inode)
		return false;
	if (copy_by_inode(sk, key, to))
		return true;
	name_by_address(key, sk);
	return copy_of(sk, key, to) || copy_of(sk, flow, to);
}

/* The socket's entry under any key. An entry from /proc becomes the socket's own, as long as the socket has its file. */
static __noinline struct owner *known_entry(const struct sock *sk, const struct flow *flow)
{
	struct owner *owner = own_entry(sk, flow) ?: entry_by_address(sk);
	struct flow key = {};
	struct owner seeded;

	if (owner)
		drop_by_inode(sk, &key);
	else if (settings.by_inode && copy_by_inode(sk, &key, &seeded))
		owner = entry_by_address(sk);
	return owner;
}

#endif
