/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * Totals of retransmits, cuts and drops by process, for the summary; and of retransmits, cuts and timeouts by network namespace,
 * for --verify, which compares them with the kernel's counters.
 */
#ifndef XCTL_TOTALS_BPF_H
#define XCTL_TOTALS_BPF_H

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct process_key);
	__type(value, struct totals);
} PROCESS_TOTALS SEC(".maps");

/*
 * The current epoch, which is a part of the keys of PROCESS_TOTALS. User space switches between 0 and 1, and takes the
 * entries of the old epoch out, so that the table has room however long xctl runs.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} EPOCH SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct netns_key);
	__type(value, struct totals);
} NETNS_TOTALS SEC(".maps");

/*
 * Whether the kernel counted the segments of a failed attempt; then they are in TCPRetransFail too (__tcp_retransmit_skb()).
 */
static __always_inline bool failed_to_leave(int err)
{
	return err != -EAGAIN && err != -ENOMEM && err != -EBUSY && err != -EINVAL && err != -EHOSTUNREACH;
}

/*
 * Totals of zeros, which no program changes: the first value of each entry of the maps above. The stack has no room for them:
 * the kernel gives a program and the functions that it calls 512 bytes together, and the caller has its record there.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct totals);
} NO_TOTALS SEC(".maps");

static __noinline void add_nothing(void *map, const void *key)
{
	__u32 zero = 0;
	struct totals *nothing = bpf_map_lookup_elem(&NO_TOTALS, &zero);

	/* If another CPU was faster, its entry serves as well. */
	if (nothing)
		bpf_map_update_elem(map, key, nothing, BPF_NOEXIST);
}

/* NULL if the table has no room, which is counted. */
static __always_inline struct totals *totals_of(void *map, const void *key)
{
	struct totals *totals = bpf_map_lookup_elem(map, key);

	if (!totals) {
		add_nothing(map, key);
		totals = bpf_map_lookup_elem(map, key);
	}
	if (!totals)
		count_lost(LOST_TOTALS);
	return totals;
}

static __always_inline void add_to(struct totals *totals, const struct retransmit_event *event)
{
	if (event->err) {
		__sync_fetch_and_add(&totals->failures, 1);
		if (failed_to_leave(event->err))
			__sync_fetch_and_add(&totals->failed, event->segs);
		return;
	}
	__sync_fetch_and_add(&totals->segs[event->kind & (KINDS - 1)], event->segs);
	__sync_fetch_and_add(&totals->bytes, event->bytes);
	__sync_fetch_and_add(&totals->retransmits, 1);
}

static __always_inline struct totals *totals_of_process(const struct owner *owner)
{
	struct process_key key = { .born = owner->born, .tgid = owner->tgid };
	__u32 zero = 0;
	const __u32 *epoch = bpf_map_lookup_elem(&EPOCH, &zero);
	struct totals *totals;

	if (!has_owner(owner) || owner->how == HOW_KERNEL)
		key.nobody = owner->how + 1;	/* 0 stays for processes */
	if (epoch)	/* always true, which the verifier does not know */
		key.epoch = *epoch;
	totals = totals_of(&PROCESS_TOTALS, &key);
	if (!totals)
		return NULL;
	/* The last name and the last cgroup count. */
	totals->cgroup = owner->cgroup;
	if (!same_name(totals->comm, owner->comm))
		__builtin_memcpy(totals->comm, owner->comm, sizeof(totals->comm));
	return totals;
}

/* NULL too if nobody asks for these totals. */
static __always_inline struct totals *totals_of_netns(__u32 inum, const struct sock_common *skc)
{
	struct netns_key key = { .inum = inum };

	if (!settings.by_netns)
		return NULL;
	key.rtnl = rtnl_inode(skc);
	return totals_of(&NETNS_TOTALS, &key);
}

#endif
