/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* Facts about a socket: whether a process or the kernel owns it, and which socket the process itself uses. */
#ifndef XCTL_OWNER_SOCKET_BPF_H
#define XCTL_OWNER_SOCKET_BPF_H

#define PF_KTHREAD 0x00200000	/* include/linux/sched.h */
#define IPPROTO_TCP 6
#define IPPROTO_MPTCP 262

static __always_inline bool current_is_kthread(void)
{
	struct task_struct *task = (void *)bpf_get_current_task();

	return BPF_CORE_READ(task, flags) & PF_KTHREAD;
}

/*
 * The MPTCP socket of which this socket is a subflow; NULL for every other socket. The process uses the MPTCP socket, the
 * parent. The kernel makes the subflows: in the process that connects, in a worker, or in the process that configures
 * addresses.
 */
static __always_inline const struct sock *mptcp_parent(const struct sock *sk)
{
	const struct inet_connection_sock *icsk = (const void *)sk;
	const struct tcp_sock *tp = (const void *)sk;
	const struct mptcp_subflow_context *subflow = NULL;

	if (!bpf_core_field_exists(tp->is_mptcp) || !bpf_core_field_exists(subflow->conn))
		return NULL;
	/* The parent itself is no tcp_sock. */
	if (BPF_CORE_READ_BITFIELD_PROBED(sk, sk_protocol) != IPPROTO_TCP || !BPF_CORE_READ_BITFIELD_PROBED(tp, is_mptcp))
		return NULL;
	subflow = BPF_CORE_READ(icsk, icsk_ulp_data);
	return BPF_CORE_READ(subflow, conn);
}

/* The own_inode() of a socket; 0 if nobody has accepted it yet, or close() has taken its struct socket away. */
static __always_inline __u64 own_inode_of(const struct sock *sk)
{
	return own_inode(BPF_CORE_READ(sk, sk_socket));
}

/*
 * Whether a kernel socket is behind a file that was made for another socket. SMC makes a kernel socket for TCP, and gives
 * it the process's file when it falls back to TCP (smc_switch_to_fallback()). The kernel also makes files for sockets that
 * it keeps (sunrpc, nvme-tcp); such a file has the socket's own inode.
 */
static __always_inline bool has_another_sockets_file(const struct sock *sk)
{
	struct socket *socket = BPF_CORE_READ(sk, sk_socket);
	struct file *file = BPF_CORE_READ(socket, file);
	void *inode = BPF_CORE_READ(file, f_inode);
	/* The inodes are the same if this member has one address in both. */
	void *own = (void *)socket + bpf_core_field_offset(struct socket_alloc, vfs_inode.i_ino);
	void *its = inode + bpf_core_field_offset(struct inode, i_ino);

	return file && BPF_CORE_READ(file, private_data) == socket && its != own;
}

/*
 * Whether a socket is the kernel's own (NFS, iSCSI, RDS). No process owns it, even if a process happens to send on it.
 * sk_kern_sock does not tell for MPTCP: subflows are kernel sockets that serve a process.
 */
static __always_inline bool is_kernels_own(const struct sock *sk)
{
	const struct sock *used = mptcp_parent(sk) ?: sk;

	return BPF_CORE_READ_BITFIELD_PROBED(used, sk_kern_sock) && !has_another_sockets_file(used);
}

/* Whether the current task acts on this socket as a process of its own: no thread of the kernel, no socket of the kernel's. */
static __always_inline bool current_acts_for_itself(const struct sock *sk)
{
	return !current_is_kthread() && !is_kernels_own(sk);
}

/* The inode number of the socket's file, by which /proc names the socket; 0 if the socket has no file, or has lost it. */
static __noinline __u64 inode_of(const struct sock *sk)
{
	return BPF_CORE_READ(sk, sk_socket, file, f_inode, i_ino);
}

/*
 * Whether the current process opened the socket's file. The kernel gives a file its opener's struct cred
 * (alloc_empty_file()) and holds a reference, so that no other cred gets this address. Only threads of one process share a
 * struct cred (copy_creds()). After exec() or setuid() the answer is no, since they replace it.
 */
static __always_inline bool current_opened(const struct sock *sk)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	const struct cred *opener = BPF_CORE_READ(sk, sk_socket, file, f_cred);

	return opener && opener == BPF_CORE_READ(task, real_cred);
}

#endif
