/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* Describes the process of a task, in a struct owner. */
#ifndef XCTL_OWNER_PROCESS_BPF_H
#define XCTL_OWNER_PROCESS_BPF_H

/* Before Linux 5.5 start_boottime was called real_start_time, with the same clock. */
struct task_struct___before_5_5 {
	__u64 real_start_time;
} __attribute__((preserve_access_index));

/* When a process started, ns of CLOCK_BOOTTIME. */
static __always_inline __u64 born(struct task_struct *leader)
{
	struct task_struct___before_5_5 *old = (void *)leader;

	if (bpf_core_field_exists(leader->start_boottime))
		return BPF_CORE_READ(leader, start_boottime);
	return BPF_CORE_READ(old, real_start_time);
}

/*
 * The same for the totals. With entries seeded from /proc it is rounded down to a tick of USER_HZ, the unit of /proc: then the
 * totals have one row for a process that was seeded and acts later.
 */
static __always_inline __u64 born_for_totals(__u64 born)
{
	const __u64 tick = 10 * 1000 * 1000;

	return settings.by_inode ? born / tick * tick : born;
}

/* Before Linux 5.5 the id was a member of a union. */
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

/* In Linux 6.0 cgroup->ancestor_ids[] became ancestors[]. */
struct cgroup___before_6_0 {
	__u64 ancestor_ids[1];
} __attribute__((preserve_access_index));

/* The id of the cgroup at this depth above a cgroup, or of the cgroup itself; 0: the cgroup is not so deep. */
static __noinline __u64 ancestor_at(const void *cgroup, __u32 level)
{
	struct cgroup *ancestor = NULL;
	__u64 id = 0;

	if (BPF_CORE_READ((struct cgroup *)cgroup, level) < (int)level)
		return 0;
	if (bpf_core_field_exists(struct cgroup, ancestors)) {
		bpf_probe_read_kernel(&ancestor, sizeof(ancestor),
				      cgroup + bpf_core_field_offset(struct cgroup, ancestors) +
					      level * sizeof(ancestor));
		id = cgroup_id(BPF_CORE_READ(ancestor, kn));
	} else {
		bpf_probe_read_kernel(&id, sizeof(id),
				      cgroup + bpf_core_field_offset(struct cgroup___before_6_0, ancestor_ids) +
					      level * sizeof(id));
	}
	return id;
}

/* Whether a task is in one of the cgroups that the user asked for, or below one. */
static __always_inline bool in_wanted_cgroup(struct task_struct *task)
{
	const void *cgroup = BPF_CORE_READ(task, cgroups, dfl_cgrp);

#pragma unroll
	for (int i = 0; i < FILTER_VALUES && settings.cgroups[i]; i++)
		if (ancestor_at(cgroup, settings.cgroup_levels[i]) == settings.cgroups[i])
			return true;
	return false;
}

/*
 * The caller passes zeroes. The bytes after the name must stay zero, since names are compared as a whole, and the kernel
 * keeps the rest of a longer, older name there.
 */
static __always_inline bool read_name(char to[COMM_LEN], const struct task_struct *task)
{
	return bpf_core_read_str(to, COMM_LEN, &task->comm) > 0;
}

/* volatile: the loader sets the value, so the compiler must not use the initial one. */
static __always_inline bool same_name(const volatile char *a, const char *b)
{
	const volatile __u64 *one = (const volatile void *)a;
	const __u64 *other = (const void *)b;

	return one[0] == other[0] && one[1] == other[1];
}

/* Describe the process of this task as the owner of this socket. */
static __noinline void describe(struct owner *owner, struct task_struct *task, const struct sock *sk, enum how how)
{
	struct task_struct *leader = BPF_CORE_READ(task, group_leader);

	__builtin_memset(owner, 0, sizeof(*owner));
	owner->socket = (__u64)sk;
	owner->known_by = BY_ADDRESS;
	owner->born = born(leader);
	owner->since = bpf_ktime_get_ns();
	owner->own_inode = mptcp_parent(sk) ? 0 : own_inode_of(sk);
	owner->struct_pid = (__u64)BPF_CORE_READ(leader, thread_pid);
	owner->cgroup = cgroup_id(BPF_CORE_READ(task, cgroups, dfl_cgrp, kn));
	owner->tgid = BPF_CORE_READ(task, tgid);
	owner->tid = BPF_CORE_READ(task, pid);
	owner->uid = BPF_CORE_READ(task, cred, uid.val);
	owner->how = how;
	owner->in_cgroup = in_wanted_cgroup(task);
	read_name(owner->comm, leader);
}

/*
 * Whether the task is the main thread of the owner's process. A main thread's pid equals its tgid, except for a moment: if
 * another thread calls exec(), de_thread() swaps the pids of both threads first, and makes the struct pid point to the new
 * main thread later. The tgid never changes, so the tgid is compared.
 */
static __always_inline bool is_leader_of(struct task_struct *task, const struct owner *owner)
{
	return (__u32)BPF_CORE_READ(task, tgid) == owner->tgid && born(task) == owner->born;
}

/*
 * Read the process's name again, since exec() and prctl() change it. The struct pid leads to the main thread until that is
 * reaped, also after exec() by another thread. Later the memory may hold another process: then the name stays as it was,
 * and the process counts as gone.
 */
static __noinline void refresh_name(struct owner *owner)
{
	const struct pid *pid = (const void *)owner->struct_pid;
	struct task_struct *leader;
	char comm[COMM_LEN] = {};
	void *link;

	if (!pid || !owner->tgid)
		return;
	link = BPF_CORE_READ(pid, tasks[PIDTYPE_TGID].first);
	owner->gone = 1;
	if (!link)
		return;
	leader = link - bpf_core_field_offset(struct task_struct, pid_links[PIDTYPE_TGID]);
	if (is_leader_of(leader, owner) && read_name(comm, leader) && is_leader_of(leader, owner)) {
		__builtin_memcpy(owner->comm, comm, sizeof(comm));
		owner->gone = 0;
	}
}

#endif
