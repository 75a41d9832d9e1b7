/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* Learns from the kernel's iterator of files which processes held sockets before xctl started. */
#ifndef XCTL_SEED_BPF_H
#define XCTL_SEED_BPF_H

#define S_IFMT 0170000
#define S_IFSOCK 0140000

/*
 * The socket behind a file, or NULL. A unix socket's path that was opened with O_PATH has the same file type and no struct
 * socket, so the socket must point back at the file.
 */
static __always_inline struct sock *socket_of(struct file *file)
{
	struct socket *socket;

	if ((BPF_CORE_READ(file, f_inode, i_mode) & S_IFMT) != S_IFSOCK)
		return NULL;
	socket = BPF_CORE_READ(file, private_data);
	return BPF_CORE_READ(socket, file) == file ? BPF_CORE_READ(socket, sk) : NULL;
}

/*
 * The key of a TCP socket that can retransmit: its four-tuple, or its address for a listener or MPTCP's parent. False for
 * any other socket.
 */
static __always_inline bool seed_key(const struct sock *sk, struct flow *key)
{
	__u16 protocol = BPF_CORE_READ_BITFIELD_PROBED(sk, sk_protocol);
	__u8 state = BPF_CORE_READ(sk, __sk_common.skc_state);
	__u16 family = BPF_CORE_READ(sk, __sk_common.skc_family);

	if ((family != AF_INET && family != AF_INET6) || state == TCP_CLOSE)
		return false;
	if (protocol == IPPROTO_MPTCP || (protocol == IPPROTO_TCP && state == TCP_LISTEN)) {
		*key = flow_by_address(sk);
		return true;
	}
	return protocol == IPPROTO_TCP && flow_of(&sk->__sk_common, key);
}

/*
 * If a second process holds the socket, one store marks the entry as shared. The hooks may replace the entry meanwhile, and
 * the kernel may reuse its memory for another socket's entry. Then the mark has no effect: is_shared() compares it with the
 * entry's socket.
 */
static __always_inline bool held_by_others(const struct sock *sk, const struct flow *key, __u32 tgid)
{
	struct owner *owner = own_entry(sk, key);

	if (!owner || owner->how != HOW_SEED)
		return false;
	if (owner->holders != (__u64)sk && owner->tgid == tgid)	/* a socket may be behind many files of a process */
		return false;
	owner->holders = (__u64)sk;
	drop_cached(sk);	/* the next reader looks at the entry again */
	return true;
}

/*
 * Look at one file of one task; true if it shows a new holder of a socket. An entry that the hooks made meanwhile is newer,
 * and stays. If several processes hold the socket, the iterator does not show which of them uses it.
 */
static __always_inline bool seed(struct task_struct *task, struct file *file, struct holder *holder)
{
	struct sock *sk = socket_of(file);
	struct owner owner;
	struct flow key;
	int err;

	if (!sk || !seed_key(sk, &key))
		return false;
	holder->netns = key.netns;
	describe(&owner, task, sk, HOW_SEED);
	err = bpf_map_update_elem(&SOCKET_TO_PID, &key, &owner, BPF_NOEXIST);
	if (err == -EEXIST && key.known_by == BY_FLOW && has_twin(sk, &key)) {
		key = flow_by_address(sk);
		err = bpf_map_update_elem(&SOCKET_TO_PID, &key, &owner, BPF_NOEXIST);
	}
	holder->socket = (__u64)sk;
	holder->tgid = owner.tgid;
	holder->first = !err;
	__builtin_memcpy(holder->comm, owner.comm, sizeof(holder->comm));
	if (err == -EEXIST)
		return held_by_others(sk, &key, owner.tgid);
	if (err)
		no_room(sk, err);
	if (!err && is_closed(sk, &key)) {	/* the socket is not locked, and may have ended before it had its entry */
		forget(sk);
		return false;
	}
	return !err;
}

#endif
