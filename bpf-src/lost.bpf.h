/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* Counts each loss, by reason. */
#ifndef XCTL_LOST_BPF_H
#define XCTL_LOST_BPF_H

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, LOST_KINDS);
	__type(key, __u32);
	__type(value, __u64);
} LOST SEC(".maps");

/* Atomic, since a softirq may interrupt this function on the same CPU. */
static __always_inline void count_lost(enum lost why)
{
	__u32 key = why;
	__u64 *count = bpf_map_lookup_elem(&LOST, &key);

	if (count)
		__sync_fetch_and_add(count, 1);
}

#endif
