/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* Retransmissions counted in the kernel: by process for the summary, by network namespace (--verify) to be held against its own. */
#ifndef XCTL_TOTALS_BPF_H
#define XCTL_TOTALS_BPF_H

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct process_key);
	__type(value, struct totals);
} PROCESS_TOTALS SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u32);	/* inode number of the namespace */
	__type(value, struct totals);
} NETNS_TOTALS SEC(".maps");

/* Whether the kernel had counted the segments when it failed; it counts them in TCPRetransFail then (__tcp_retransmit_skb()). */
static __always_inline bool failed_to_leave(int err)
{
	return err != -EAGAIN && err != -ENOMEM && err != -EBUSY && err != -EINVAL && err != -EHOSTUNREACH;
}

static __always_inline void add_to(void *map, const void *key, const struct retransmit_event *event, const char *comm)
{
	struct totals *totals = bpf_map_lookup_elem(map, key);

	if (!totals) {
		struct totals fresh = {};

		/* Another CPU may have been faster: then its entry is as good. */
		bpf_map_update_elem(map, key, &fresh, BPF_NOEXIST);
		totals = bpf_map_lookup_elem(map, key);
		if (!totals) {
			count_lost(LOST_TOTALS);
			return;
		}
	}
	if (comm && !same_name(totals->comm, comm))	/* it may change: the last one counts */
		__builtin_memcpy(totals->comm, comm, sizeof(totals->comm));
	if (event->err) {
		if (failed_to_leave(event->err))
			__sync_fetch_and_add(&totals->failed, event->segs);
		return;
	}
	__sync_fetch_and_add(&totals->segs[event->kind & (KINDS - 1)], event->segs);
	__sync_fetch_and_add(&totals->bytes, event->bytes);
	__sync_fetch_and_add(&totals->retransmits, 1);
}

static __always_inline void count_for_process(const struct retransmit_event *event)
{
	const struct owner *owner = &event->owner;
	struct process_key key = { .born = owner->born, .tgid = owner->tgid };

	if (owner->how == HOW_UNKNOWN || owner->how == HOW_KERNEL)
		key.nobody = owner->how + 1;	/* so that 0 is left for processes */
	add_to(&PROCESS_TOTALS, &key, event, owner->comm);
}

static __always_inline void count_for_netns(const struct retransmit_event *event)
{
	if (settings.by_netns)
		add_to(&NETNS_TOTALS, &event->flow.netns, event, NULL);
}

#endif
