/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* Sockets that were open before we came: every file of every process, once, by the kernel's own iterator. */
#ifndef XCTL_SEED_BPF_H
#define XCTL_SEED_BPF_H

#define S_IFMT 0170000
#define S_IFSOCK 0140000

/*
 * The socket behind a file, or NULL. A named pipe of AF_UNIX opened with O_PATH has the same file type and no struct
 * socket behind it, so the socket must point back at the file.
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
 * Under which key the socket is kept, if it is a TCP socket that can retransmit: by its four-tuple when it has one, by
 * its address when it is a listener, is connecting, or is MPTCP's parent.
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
 * One file of one task. What the hooks have learned meanwhile is newer, so it stays; of several processes that hold the
 * socket the first is taken, the one with the lowest PID: whoever uses it next will be seen doing so.
 */
static __always_inline bool seed(struct task_struct *task, struct file *file)
{
	struct sock *sk = socket_of(file);
	struct owner owner;
	struct flow key;
	int err;

	if (!sk || !seed_key(sk, &key))
		return false;
	describe(&owner, task, sk, HOW_SEED);
	err = bpf_map_update_elem(&SOCKET_TO_PID, &key, &owner, BPF_NOEXIST);
	if (err == -EEXIST && !key.sk && has_twin(sk, &key)) {
		key = flow_by_address(sk);
		err = bpf_map_update_elem(&SOCKET_TO_PID, &key, &owner, BPF_NOEXIST);
	}
	if (err && err != -EEXIST)	/* a socket may be behind many files */
		no_room(sk, err);
	if (!err && is_closed(sk, &key)) {	/* nobody has locked it: its end may have come before its entry */
		forget(sk);
		return false;
	}
	return !err;
}

#endif
