/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * Who owns a socket: SOCKET_TO_PID, and the cache in front of it.
 *
 * remember_*() run in process context, where the current task is the owner. owner_of() runs wherever TCP retransmits,
 * mostly softirq, where the current task is whoever was interrupted.
 */
#ifndef XCTL_OWNER_BPF_H
#define XCTL_OWNER_BPF_H

#define PF_KTHREAD 0x00200000	/* include/linux/sched.h */
#define IPPROTO_TCP 6
#define IPPROTO_MPTCP 262
#define NO_ROOM 0		/* nobody's pid_tgid but the idle task's, which sends nothing */
#define NO_SOCKET (~0ULL)	/* no socket's address */

/*
 * Four-tuple -> owner. A socket without a four-tuple of its own is kept under its address instead, the rest of the key
 * zero: a listener, since SO_REUSEPORT lets several share local address and port; and, where only
 * inet_sock_set_state shows connect(), a socket whose local port is not chosen yet. What is seeded from /proc and has no
 * four-tuple of its own is kept under the inode number of its file, which is no kernel address.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, struct flow);
	__type(value, struct owner);
} SOCKET_TO_PID SEC(".maps");

/*
 * Socket address -> pid_tgid of the last sender. It answers the common send, same socket and same process, with one
 * lookup, and a change of thread with one store. An entry says "SOCKET_TO_PID names this process as the sender on this
 * socket", and is dropped together with what it vouches for; when it is evicted, the next send does the work again.
 * NO_ROOM vouches for nothing: there was no room in SOCKET_TO_PID, and that has been counted.
 *
 * A process is told by its PID alone here, since more would cost every send: where one has exited, another has got its PID,
 * and that sends on the same socket, which a third kept open for it, the first's name stays, as one that has exited.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, __u64);
	__type(value, __u64);
} SK_CACHE SEC(".maps");

static __always_inline struct flow flow_by_address(const struct sock *sk)
{
	struct flow flow = {};

	flow.sk = (__u64)sk;
	return flow;
}

static __always_inline bool current_is_kthread(void)
{
	struct task_struct *task = (void *)bpf_get_current_task();

	return BPF_CORE_READ(task, flags) & PF_KTHREAD;
}

/*
 * The socket that a process uses where this one is only a subflow of MPTCP: the kernel made it, in the process that
 * connects, in a worker, or in whoever configures addresses. NULL for every other socket.
 */
static __always_inline const struct sock *mptcp_parent(const struct sock *sk)
{
	const struct inet_connection_sock *icsk = (const void *)sk;
	const struct tcp_sock *tp = (const void *)sk;
	const struct mptcp_subflow_context *subflow = NULL;

	if (!bpf_core_field_exists(tp->is_mptcp) || !bpf_core_field_exists(subflow->conn))
		return NULL;
	/* the parent itself is no tcp_sock */
	if (BPF_CORE_READ_BITFIELD_PROBED(sk, sk_protocol) != IPPROTO_TCP || !BPF_CORE_READ_BITFIELD_PROBED(tp, is_mptcp))
		return NULL;
	subflow = BPF_CORE_READ(icsk, icsk_ulp_data);
	return BPF_CORE_READ(subflow, conn);
}

/*
 * A socket of the kernel's own (NFS, iSCSI, RDS): no process owns it, even where one of them happens to send on it. MPTCP
 * creates subflows as kernel sockets on behalf of a process, and whole listeners on its own.
 */
static __always_inline bool is_kernels_own(const struct sock *sk)
{
	const struct sock *used = mptcp_parent(sk) ?: sk;

	return BPF_CORE_READ_BITFIELD_PROBED(used, sk_kern_sock);
}

/* Whether what happens to this socket is the current process's doing. */
static __always_inline bool current_acts_for_itself(const struct sock *sk)
{
	return !current_is_kthread() && !is_kernels_own(sk);
}

/* start_boottime was real_start_time before 5.5; the same clock. */
struct task_struct___before_5_5 {
	__u64 real_start_time;
} __attribute__((preserve_access_index));

/* Rounded down to a tick of USER_HZ, as /proc tells it, so that what is seeded from there names the same process. */
static __always_inline __u64 born(struct task_struct *leader)
{
	struct task_struct___before_5_5 *old = (void *)leader;
	const __u64 tick = 10 * 1000 * 1000;

	if (bpf_core_field_exists(leader->start_boottime))
		return BPF_CORE_READ(leader, start_boottime) / tick * tick;
	return BPF_CORE_READ(old, real_start_time) / tick * tick;
}

/* Before 5.5 the id was one way to see a union. */
struct kernfs_node___before_5_5 {
	struct {
		__u64 id;
	} id;
} __attribute__((preserve_access_index));

static __always_inline __u64 cgroup_id(const struct kernfs_node *kn)
{
	if (bpf_core_field_exists(kn->id))
		return BPF_CORE_READ(kn, id);
	return BPF_CORE_READ((const struct kernfs_node___before_5_5 *)kn, id.id);
}

/* cgroup->ancestor_ids[] became ancestors[] in 6.0. */
struct cgroup___before_6_0 {
	__u64 ancestor_ids[1];
} __attribute__((preserve_access_index));

/* Whether a task is in the cgroup that the user asked for, or below it. */
static __always_inline bool in_wanted_cgroup(struct task_struct *task)
{
	const void *cgroup = BPF_CORE_READ(task, cgroups, dfl_cgrp);
	struct cgroup *ancestor = NULL;
	__u64 id = 0;

	if (BPF_CORE_READ((struct cgroup *)cgroup, level) < (int)settings.cgroup_level)
		return false;
	if (bpf_core_field_exists(struct cgroup, ancestors)) {
		bpf_probe_read_kernel(&ancestor, sizeof(ancestor),
				      cgroup + bpf_core_field_offset(struct cgroup, ancestors) +
				      settings.cgroup_level * sizeof(ancestor));
		id = cgroup_id(BPF_CORE_READ(ancestor, kn));
	} else {
		bpf_probe_read_kernel(&id, sizeof(id),
				      cgroup + bpf_core_field_offset(struct cgroup___before_6_0, ancestor_ids) +
				      settings.cgroup_level * sizeof(id));
	}
	return id == settings.cgroup;
}

/* Into zeroes, of which what follows the name must be some: names are compared, and the kernel leaves there what was longer. */
static __always_inline bool read_name(char to[COMM_LEN], const struct task_struct *task)
{
	return bpf_core_read_str(to, COMM_LEN, &task->comm) > 0;
}

/* The process of this task, as the owner of this socket. */
static __noinline void describe(struct owner *owner, struct task_struct *task, const struct sock *sk, enum how how)
{
	struct task_struct *leader = BPF_CORE_READ(task, group_leader);

	__builtin_memset(owner, 0, sizeof(*owner));
	owner->sk = (__u64)sk;
	owner->born = born(leader);
	owner->pid = (__u64)BPF_CORE_READ(leader, thread_pid);
	owner->cgroup = cgroup_id(BPF_CORE_READ(task, cgroups, dfl_cgrp, kn));
	owner->tgid = BPF_CORE_READ(task, tgid);
	owner->tid = BPF_CORE_READ(task, pid);
	owner->uid = BPF_CORE_READ(task, cred, uid.val);
	owner->how = how;
	owner->in_cgroup = settings.cgroup && in_wanted_cgroup(task);
	read_name(owner->comm, leader);
}

/* volatile: what the loader sets is not the initial value that the compiler sees. */
static __always_inline bool same_name(const volatile char *a, const char *b)
{
	const volatile __u64 *one = (const volatile void *)a;
	const __u64 *other = (const void *)b;

	return one[0] == other[0] && one[1] == other[1];
}

static __always_inline bool is_leader_of(struct task_struct *task, const struct owner *owner)
{
	return (__u32)BPF_CORE_READ(task, pid) == owner->tgid && born(task) == owner->born;
}

/*
 * exec() and prctl() give a process another name, and need no socket for it. Its struct pid leads to its main thread,
 * whichever thread that is after exec(), until it is reaped. What is found in that memory later is not this process: then
 * the name stays as it was.
 */
static __noinline void refresh_name(struct owner *owner)
{
	const struct pid *pid = (const void *)owner->pid;
	struct task_struct *leader;
	char comm[COMM_LEN] = {};
	void *link;

	link = BPF_CORE_READ(pid, tasks[PIDTYPE_TGID].first);
	if (!link)
		return;
	leader = link - bpf_core_field_offset(struct task_struct, pid_links[PIDTYPE_TGID]);
	if (is_leader_of(leader, owner) && read_name(comm, leader) && is_leader_of(leader, owner))
		__builtin_memcpy(owner->comm, comm, sizeof(comm));
}

/* The inode number of the socket's file, by which /proc names it; 0: it has none, or none any more. */
static __noinline __u64 inode_of(const struct sock *sk)
{
	return BPF_CORE_READ(sk, sk_socket, file, f_inode, i_ino);
}

/*
 * An entry that was seeded from /proc becomes the socket's when that first asks for it, since it loses its file long before
 * its end. Another may replace the entry meanwhile, and its place be given to another socket's: that one is nobody's then.
 */
static __noinline void adopt(struct owner *owner, const struct sock *sk)
{
	if (owner->pid == inode_of(sk)) {
		owner->sk = (__u64)sk;
		owner->pid = 0;
	}
}

/* The socket's own entry; never another socket's under the same tuple. */
static __always_inline struct owner *own_entry(const struct sock *sk, const struct flow *key)
{
	struct owner *owner = bpf_map_lookup_elem(&SOCKET_TO_PID, key);

	if (owner && !owner->sk)
		adopt(owner, sk);
	return owner && owner->sk == (__u64)sk ? owner : NULL;
}

/*
 * A map may refuse: from 5.11 on with -EBUSY where a softirq interrupted an operation on the same map between two
 * instructions of htab_lock_bucket() (kernel/bpf/hashtab.c), on newer kernels for other reasons. What had to go and is
 * still there then is altered to be nobody's.
 *
 * The errors of maps are ints: until 6.3 the verifier let programs call functions that return no more than that, and the
 * upper half of the register is not theirs.
 */
static __always_inline bool refused(int err)
{
	if (err && err != -ENOENT)
		count_lost(LOST_REFUSED);
	return err && err != -ENOENT;
}

static __always_inline void drop_entry(const struct flow *key)
{
	struct owner *owner;

	if (refused(bpf_map_delete_elem(&SOCKET_TO_PID, key))) {
		owner = bpf_map_lookup_elem(&SOCKET_TO_PID, key);
		if (owner)
			owner->sk = NO_SOCKET;
	}
}

static __always_inline void drop_cached(const struct sock *sk)
{
	__u64 address = (__u64)sk, *cached;

	if (refused(bpf_map_delete_elem(&SK_CACHE, &address))) {
		cached = bpf_map_lookup_elem(&SK_CACHE, &address);
		if (cached)
			*cached = NO_ROOM;
	}
}

/* Whether the entry is the socket's, or may be: it was seeded from /proc, and the socket has no file to know it by. */
static __always_inline bool may_be_own(const struct sock *sk, const struct flow *key)
{
	struct owner *owner = bpf_map_lookup_elem(&SOCKET_TO_PID, key);

	if (!owner)
		return false;
	if (!owner->sk)
		adopt(owner, sk);
	return owner->sk == (__u64)sk || (!owner->sk && !inode_of(sk));
}

/*
 * What /proc told under the inode number of this socket's file. The file goes at close(), and the number with it. Of the key,
 * all but the address is zero; that is altered.
 */
static __always_inline void drop_by_inode(const struct sock *sk, struct flow *key)
{
	if (!settings.by_inode)
		return;
	key->sk = inode_of(sk);
	if (key->sk)
		drop_entry(key);
}

/*
 * The socket's end, which is not close(): FIN and data are retransmitted long after that. Only the socket's own entry
 * goes: a connect() whose four-tuple is in use puts its own socket into TCP_CLOSE with the tuple of the live one.
 */
static __noinline void forget(const struct sock *sk)
{
	struct flow key = flow_by_address(sk), flow;

	drop_cached(sk);
	drop_entry(&key);
	if (flow_of_closing(sk, &flow) && may_be_own(sk, &flow))
		drop_entry(&flow);
	drop_by_inode(sk, &key);
}

/*
 * No connection, or none any more: no end would come to forget it. tcp_set_state() gives the port back before it tells
 * of TCP_CLOSE, and stores that last. MPTCP's parent has a port of its own only sometimes.
 */
static __always_inline bool is_closed(const struct sock *sk, const struct flow *key)
{
	return BPF_CORE_READ(sk, __sk_common.skc_state) == TCP_CLOSE ||
	       (!key->sk && !BPF_CORE_READ(sk, __sk_common.skc_num));
}

/* An entry could not be made: count it, once for each socket, since a sender asks for room with every send. */
static __always_inline void no_room(const struct sock *sk, int err)
{
	__u64 address = (__u64)sk, nobody = NO_ROOM, *cached = bpf_map_lookup_elem(&SK_CACHE, &address);

	if (cached && *cached == NO_ROOM)
		return;
	count_lost(err == -E2BIG ? LOST_MAP_FULL : LOST_REFUSED);
	bpf_map_update_elem(&SK_CACHE, &address, &nobody, BPF_ANY);
}

/*
 * Whether the entry under this four-tuple is of another socket that still has it: two may, in VRFs or between link-local
 * addresses on different devices. Then this one is kept under its address. To be wrong costs nothing: both are looked for.
 */
static __always_inline bool has_twin(const struct sock *sk, const struct flow *key)
{
	const struct owner *owner = bpf_map_lookup_elem(&SOCKET_TO_PID, key);
	const struct sock *other;

	if (!owner || owner->sk == (__u64)sk)
		return false;
	if (!owner->sk)	/* seeded from /proc */
		return owner->pid != inode_of(sk);
	other = (const void *)owner->sk;
	return BPF_CORE_READ(other, __sk_common.skc_state) != TCP_CLOSE &&
	       BPF_CORE_READ(other, __sk_common.skc_num) == key->sport &&
	       bpf_ntohs(BPF_CORE_READ(other, __sk_common.skc_dport)) == key->dport;
}

/* The owner of before is that no longer, and there is no room for the new one. */
static __always_inline void disown(const struct sock *sk, const struct flow *key)
{
	struct owner *owner = own_entry(sk, key);

	if (owner)
		owner->sk = NO_SOCKET;
}

/*
 * Puts it under the four-tuple, or, where that is a twin's, under the address. Whose the tuple is, is asked after it was found
 * taken: of two that connect at the same time one must not be lost.
 */
static __always_inline int keep(const struct sock *sk, const struct flow *flow, const struct flow *by_address,
				const struct owner *owner)
{
	int err = bpf_map_update_elem(&SOCKET_TO_PID, flow, owner, BPF_NOEXIST);

	if (err != -EEXIST)
		return err;
	if (!flow->sk && has_twin(sk, flow))
		flow = by_address;
	return bpf_map_update_elem(&SOCKET_TO_PID, flow, owner, BPF_ANY);
}

/* Make the current process the owner of the socket behind this key. */
static __noinline void remember(const struct sock *sk, const struct flow *flow, enum how how)
{
	__u64 address = (__u64)sk, vouched = bpf_get_current_pid_tgid();
	struct flow by_address = flow_by_address(sk);
	struct owner owner, *entry;
	int err;

	describe(&owner, (void *)bpf_get_current_task(), sk, how);
	err = keep(sk, flow, &by_address, &owner);
	drop_by_inode(sk, &by_address);
	by_address.sk = address;
	if (err) {
		disown(sk, flow);
		disown(sk, &by_address);
		no_room(sk, err);
		return;
	}
	if (how != HOW_SEND) {
		drop_cached(sk);
		return;
	}
	bpf_map_update_elem(&SK_CACHE, &address, &vouched, BPF_ANY);
	/*
	 * Not every hook holds the socket's lock. Who sends at the same time may have made the entry after us, and have
	 * filled the cache before us: then nothing may vouch for us.
	 */
	entry = own_entry(sk, flow) ?: own_entry(sk, &by_address);
	if (!entry || entry->tgid != owner.tgid)
		drop_cached(sk);
}

/*
 * As remember(), for a socket that may have ended already or end meanwhile, since nobody has locked it: accept() hands
 * out connections that were reset in its queue, and send() may be called on one that was reset.
 */
static __always_inline void remember_until_closed(const struct sock *sk, const struct flow *key, enum how how)
{
	if (is_closed(sk, key) || (!key->sk && !key->sport))
		return;
	remember(sk, key, how);
	if (is_closed(sk, key))
		forget(sk);
}

/*
 * The current task sends on a connection, which may have changed hands since (fork, SCM_RIGHTS, pre-forked workers).
 * This is the path of every send on the host, so it looks first and writes only on change.
 *
 * False if this is not a TCP socket.
 */
static __always_inline bool remember_sender(const struct sock *sk)
{
	__u64 address = (__u64)sk, pid_tgid = bpf_get_current_pid_tgid(), *cached;
	struct flow flow;

	cached = bpf_map_lookup_elem(&SK_CACHE, &address);
	if (cached && *cached >> 32 == pid_tgid >> 32) {
		if (*cached != pid_tgid)
			*cached = pid_tgid;
		return true;
	}
	if (!flow_of(&sk->__sk_common, &flow) || BPF_CORE_READ_BITFIELD_PROBED(sk, sk_protocol) != IPPROTO_TCP)
		return false;
	if (!current_acts_for_itself(sk))	/* a kworker sends for a process (kTLS, sockmap) or for the kernel */
		return true;
	remember_until_closed(sk, &flow, HOW_SEND);
	return true;
}

/*
 * MPTCP: the process acts on the parent socket, which has no segments of its own; its subflows know it (mptcp_parent).
 * As in remember_sender(), look first.
 */
static __always_inline void remember_mptcp_sender(const struct sock *msk)
{
	__u64 address = (__u64)msk, pid_tgid = bpf_get_current_pid_tgid(), *cached;
	struct flow key = flow_by_address(msk);

	cached = bpf_map_lookup_elem(&SK_CACHE, &address);
	if (cached && *cached >> 32 == pid_tgid >> 32) {
		if (*cached != pid_tgid)
			*cached = pid_tgid;
		return;
	}
	if (!current_is_kthread())
		remember_until_closed(msk, &key, HOW_SEND);
}

static __always_inline void remember_by_address(const struct sock *sk, enum how how)
{
	struct flow key = flow_by_address(sk);

	if (current_acts_for_itself(sk))
		remember(sk, &key, how);
}

/* connect() and accept(): the four-tuple is complete, and nothing older about this address or tuple can be true. */
static __always_inline void remember_connection(const struct sock *sk, enum how how)
{
	const struct sock *parent = mptcp_parent(sk);
	struct flow flow;

	if (parent) {
		/* One more subflow of a connection that has its owner already is nobody's connect(). */
		if (how != HOW_CONNECT || BPF_CORE_READ(parent, __sk_common.skc_state) == TCP_SYN_SENT)
			remember_by_address(parent, how);
		return;
	}
	if (current_acts_for_itself(sk) && flow_of(&sk->__sk_common, &flow))
		remember_until_closed(sk, &flow, how);
}

/* What accept() hands out: of any family, and for MPTCP the parent. */
static __always_inline void remember_accepted(const struct sock *sk)
{
	__u16 family = BPF_CORE_READ(sk, __sk_common.skc_family);
	__u16 protocol = BPF_CORE_READ_BITFIELD_PROBED(sk, sk_protocol);

	if (family != AF_INET && family != AF_INET6)	/* another family's protocols have other numbers, and other sockets */
		return;
	if (protocol == IPPROTO_MPTCP)
		remember_by_address(sk, HOW_ACCEPT);
	else if (protocol == IPPROTO_TCP)
		remember_connection(sk, HOW_ACCEPT);
}

static __always_inline struct owner *entry_by_address(const struct sock *sk)
{
	struct flow key = flow_by_address(sk);

	return own_entry(sk, &key);
}

/* Keep what is known of this socket, or of its parent, under the four-tuple. */
static __noinline void copy_entry(const struct owner *owner, const struct sock *sk, const struct flow *flow)
{
	struct flow by_address = flow_by_address(sk);
	struct owner copy = *owner;
	int err;

	copy.sk = (__u64)sk;
	refresh_name(&copy);
	err = keep(sk, flow, &by_address, &copy);
	if (err)
		no_room(sk, err);
}

/*
 * Copy the socket's own entry. While it is copied another may replace it, and its place be given to another socket's: what
 * was copied is whole if it is still the entry of this key afterwards, unless that place has come back to the key meanwhile.
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
 * What /proc told under an inode number goes under the socket's address, which the socket has to its end: its file it loses
 * at close(). At each moment one of the two is there, but where there is no room for both. A listener is not locked, and may
 * end meanwhile.
 */
static __noinline void move_to_address(const struct sock *sk, const struct owner *owner, __u64 inode)
{
	struct flow key = flow_by_address(sk);
	int err = bpf_map_update_elem(&SOCKET_TO_PID, &key, owner, BPF_NOEXIST);

	key.sk = inode;
	drop_entry(&key);
	key.sk = (__u64)sk;
	if (err == -E2BIG)
		err = bpf_map_update_elem(&SOCKET_TO_PID, &key, owner, BPF_NOEXIST);
	if (err && err != -EEXIST)
		no_room(sk, err);
	if (is_closed(sk, &key))
		drop_entry(&key);
}

/*
 * What /proc told of a socket that its four-tuple does not tell from others: a listener, or one of two twins. Of the key, all
 * but the address is zero; that is altered.
 */
static __always_inline bool copy_by_inode(const struct sock *sk, struct flow *key, struct owner *to)
{
	if (!settings.by_inode)
		return false;
	key->sk = inode_of(sk);
	if (!key->sk || !copy_of(sk, key, to))
		return false;
	move_to_address(sk, to, key->sk);
	return true;
}

/* The same a moment later, when a softirq on another CPU has moved it. */
static __always_inline bool copy_moved(const struct sock *sk, struct flow *key, struct owner *to)
{
	key->sk = (__u64)sk;
	return settings.by_inode && copy_of(sk, key, to);
}

/* Makes what /proc told the socket's own, while it has its file. */
static __noinline struct owner *known_entry(const struct sock *sk, const struct flow *flow)
{
	struct owner *owner = own_entry(sk, flow) ?: entry_by_address(sk);
	struct flow key = {};
	struct owner told;

	if (owner)
		drop_by_inode(sk, &key);
	else if (copy_by_inode(sk, &key, &told))
		owner = entry_by_address(sk);
	return owner;
}

/*
 * FIN goes out from close() or shutdown(), in the process's context. For a socket that was accepted unseen and never
 * sent on, this is the last moment to learn its owner, and FIN is all that it can retransmit: who closes it is taken for
 * who accepted it.
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
	/* A close() that came before the handshake's end is completed in softirq: then nobody has locked the socket. */
	if (!BPF_CORE_READ(sk, sk_lock.owned) || !current_acts_for_itself(sk) || !flow_of(&sk->__sk_common, &flow))
		return;
	owner = known_entry(sk, &flow);
	if (owner)	/* its name may be needed when it has exited; with the socket locked nobody reads it meanwhile */
		refresh_name(owner);
	else
		remember(sk, &flow, HOW_ACCEPT);
}

/* connect() has got its port: move the entry from the socket's address to its four-tuple. */
static __always_inline void promote(const struct sock *sk)
{
	struct flow key = flow_by_address(sk), flow;
	struct owner *owner = own_entry(sk, &key);

	/* with TCP Fast Open it has sent already, which is newer */
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
		if (settings.births_by_state && !mptcp_parent(sk))	/* the parent has this state too */
			remember_by_address(sk, HOW_CONNECT);
		break;
	case TCP_LISTEN:
		if (settings.births_by_state)
			remember_by_address(sk, HOW_LISTEN);
		break;
	case TCP_ESTABLISHED:
		if (settings.births_by_state && protocol == IPPROTO_TCP)
			promote(sk);
		break;
	case TCP_FIN_WAIT1:
	case TCP_LAST_ACK:
		remember_closer(sk);
		break;
	case TCP_FIN_WAIT2:
	case TCP_CLOSING:
		/* from close() too, where shutdown() came before; after that nothing leads to the file */
		if (settings.by_inode && flow_of(&sk->__sk_common, &flow))
			known_entry(sk, &flow);
		break;
	case TCP_CLOSE:
		forget(sk);
		break;
	}
}

/* Who owns the socket of this flow; if nobody is known, say whether it is the kernel's own. Never a guess. */
static __always_inline void owner_of(const struct sock *sk, const struct flow *flow, struct owner *to)
{
	const struct sock *parent = mptcp_parent(sk);
	struct flow by_address = flow_by_address(parent);
	__u64 address = (__u64)sk, *cached;

	if (parent && copy_of(parent, &by_address, to)) {	/* what the process has done last, it has done to this one */
		address = (__u64)parent;
	} else {
		by_address.sk = (__u64)sk;
		if (!copy_of(sk, flow, to) && !copy_of(sk, &by_address, to) && !copy_by_inode(sk, &by_address, to) &&
		    !copy_moved(sk, &by_address, to)) {
			if (is_kernels_own(sk))
				to->how = HOW_KERNEL;
			return;
		}
	}
	cached = bpf_map_lookup_elem(&SK_CACHE, &address);
	if (cached && *cached >> 32 == to->tgid)
		to->tid = (__u32)*cached;
	refresh_name(to);
}

#endif
