/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* SOCKET_TO_PID: the key under which a socket is kept, and the entry that is the socket's own. */
#ifndef XCTL_OWNER_MAP_BPF_H
#define XCTL_OWNER_MAP_BPF_H

#define NO_SOCKET (~0ULL)	/* no socket has this address */

/*
 * Socket -> owner. The key is the four-tuple (BY_FLOW), with these exceptions:
 *
 * - BY_ADDRESS: a socket that shares its four-tuple or has none. These are listeners, since SO_REUSEPORT lets several share
 *   a local address and port; MPTCP's parents; twins (see has_twin()); and sockets in connect() whose local port is not
 *   chosen yet, if only inet_sock_set_state shows connect().
 * - BY_INODE: such a socket in an entry that was seeded from /proc, which does not show addresses of sockets.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, struct flow);
	__type(value, struct owner);
} SOCKET_TO_PID SEC(".maps");

/* Name a socket by its address. The caller's key is zero, but for these two fields. */
static __always_inline void name_by_address(struct flow *key, const struct sock *sk)
{
	key->socket = (__u64)sk;
	key->known_by = BY_ADDRESS;
}

/* Likewise by the inode number of its file. */
static __always_inline void name_by_inode(struct flow *key, __u64 inode)
{
	key->socket = inode;
	key->known_by = BY_INODE;
}

static __always_inline struct flow flow_by_address(const struct sock *sk)
{
	struct flow flow = { .socket = (__u64)sk, .known_by = BY_ADDRESS };

	return flow;
}

/*
 * An entry that was seeded from /proc becomes the socket's at the first lookup for it, since the socket loses its file long
 * before its end. Another CPU may replace the entry meanwhile, and the kernel may give its memory to another socket's entry.
 * That other entry then has a wrong socket. Lookups for its own socket reject it, so the owner becomes unknown.
 */
static __noinline void adopt(struct owner *owner, const struct sock *sk)
{
	if (owner->socket == inode_of(sk)) {
		owner->socket = (__u64)sk;
		barrier();	/* a reader in between finds an address, which equals no inode number */
		owner->known_by = BY_ADDRESS;
	}
}

/*
 * Whether the entry was made for an earlier socket with this address. That happens if the kernel skipped every program that
 * would have seen the earlier socket's end and this one's beginning. Newer kernels may preempt a program. Until it goes on,
 * they skip it for other tasks on that CPU. After close() a socket has no inode number to compare, so remember_closer()
 * compares the numbers inside close().
 */
static __always_inline bool is_of_an_earlier_socket(const struct owner *owner, const struct sock *sk)
{
	__u64 own_inode = own_inode_of(sk);

	return own_inode && owner->own_inode && own_inode != owner->own_inode;
}

/* The socket's own entry; never the entry of another socket with the same tuple or address. */
static __always_inline struct owner *own_entry(const struct sock *sk, const struct flow *key)
{
	struct owner *owner = bpf_map_lookup_elem(&SOCKET_TO_PID, key);

	if (owner && owner->known_by == BY_INODE)
		adopt(owner, sk);
	return owner && owner->socket == (__u64)sk && !is_of_an_earlier_socket(owner, sk) ? owner : NULL;
}

static __always_inline struct owner *entry_by_address(const struct sock *sk)
{
	struct flow key = flow_by_address(sk);

	return own_entry(sk, &key);
}

/* Whether the entry is the socket's, or may be: an entry from /proc, for a socket that has no file to compare. */
static __always_inline bool may_be_own(const struct sock *sk, const struct flow *key)
{
	struct owner *owner = bpf_map_lookup_elem(&SOCKET_TO_PID, key);

	if (!owner)
		return false;
	if (owner->known_by == BY_INODE)
		adopt(owner, sk);
	return owner->socket == (__u64)sk || (owner->known_by == BY_INODE && !inode_of(sk));
}

/*
 * Whether several processes held the socket at the start, and none has used it since. /proc shows that at once (HOW_SHARED).
 * The iterator shows it when it comes to the second holder (held_by_others()).
 */
static __always_inline bool is_shared(const struct owner *owner)
{
	return owner->how == HOW_SHARED || (owner->how == HOW_SEED && owner->holders == owner->socket);
}

static __always_inline bool has_process(const struct owner *owner)
{
	return owner && owner->tgid && !is_shared(owner);
}

/*
 * Make the description one of a shared socket, which names no process. User space keeps the list of the holders; the field
 * `holders` is its key.
 */
static __noinline void share(struct owner *owner)
{
	__u64 sk = owner->socket, holders = owner->holders, since = owner->since, own_inode = owner->own_inode;

	__builtin_memset(owner, 0, sizeof(*owner));
	owner->socket = sk;
	owner->known_by = BY_ADDRESS;
	owner->holders = holders;
	owner->since = since;
	owner->own_inode = own_inode;
	owner->how = HOW_SHARED;
}

/*
 * Whether a map refused an operation. From Linux 5.11 on it may return -EBUSY, if a softirq interrupted an operation on the
 * same map inside htab_lock_bucket() (kernel/bpf/hashtab.c); newer kernels have other reasons. An entry that could not be
 * removed is altered to belong to no socket.
 *
 * The errors of maps are ints here: until 6.3 the verifier let programs call functions that return no more than an int, and
 * the upper half of the register is undefined.
 */
static __always_inline bool refused(int err)
{
	if (err && err != -ENOENT)
		count_lost(LOST_REFUSED);
	return err && err != -ENOENT;
}

static __always_inline void make_nobodys(struct owner *owner)
{
	owner->socket = NO_SOCKET;
	owner->known_by = BY_ADDRESS;
}

static __always_inline void drop_entry(const struct flow *key)
{
	struct owner *owner;

	if (refused(bpf_map_delete_elem(&SOCKET_TO_PID, key))) {
		owner = bpf_map_lookup_elem(&SOCKET_TO_PID, key);
		if (owner)
			make_nobodys(owner);
	}
}

/* Make the entry of the old owner invalid: the map had no room for the new owner. */
static __always_inline void disown(const struct sock *sk, const struct flow *key)
{
	struct owner *owner = own_entry(sk, key);

	if (owner)
		make_nobodys(owner);
}

/*
 * Whether the entry under this four-tuple belongs to another socket that still has the tuple. Two sockets may have the same
 * one: in VRFs, or between link-local addresses on different devices. The second one, the twin, is kept under its address. A
 * wrong answer costs nothing, since lookups try both keys.
 */
static __always_inline bool has_twin(const struct sock *sk, const struct flow *key)
{
	const struct owner *owner = bpf_map_lookup_elem(&SOCKET_TO_PID, key);
	const struct sock *other;

	if (!owner || owner->socket == (__u64)sk)
		return false;
	if (owner->known_by == BY_INODE)
		return owner->socket != inode_of(sk);
	other = (const void *)owner->socket;
	return BPF_CORE_READ(other, __sk_common.skc_state) != TCP_CLOSE &&
	       BPF_CORE_READ(other, __sk_common.skc_num) == key->sport &&
	       bpf_ntohs(BPF_CORE_READ(other, __sk_common.skc_dport)) == key->dport;
}

/*
 * Put the entry under the four-tuple, or under the address if a twin has the tuple. The search for a twin comes after the
 * insertion has failed: two sockets that connect at the same time must both be kept. A reader does not replace another
 * process that became the owner meanwhile; some hooks see a sender before it locks the socket.
 */
static __always_inline int keep(const struct sock *sk, const struct flow *flow, const struct flow *by_address,
				const struct owner *owner)
{
	int err = bpf_map_update_elem(&SOCKET_TO_PID, flow, owner, BPF_NOEXIST);

	if (err != -EEXIST)
		return err;
	if (flow->known_by == BY_FLOW && has_twin(sk, flow))
		flow = by_address;
	else if (owner->how == HOW_READ && has_process(own_entry(sk, flow)))
		return 0;
	return bpf_map_update_elem(&SOCKET_TO_PID, flow, owner, BPF_ANY);
}

#endif
