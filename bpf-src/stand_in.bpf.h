/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * Since 6.1 a raw tracepoint program is skipped while it is already running on the same CPU (__bpf_trace_run(),
 * kernel/trace/bpf_trace.c). It happens: a retransmission in process context (release_sock() works off the backlog with
 * softirqs enabled) is interrupted by a softirq that retransmits for another socket. So each such tracepoint has a
 * second program, attached after the first and so called after it, that does the work where the first was skipped.
 */
#ifndef XCTL_STAND_IN_BPF_H
#define XCTL_STAND_IN_BPF_H

/*
 * What the first program has done and the second has not seen yet. The task tells apart what happens on two CPUs at
 * once: a request's timer and its client's repeated SYN both send its SYN-ACK again, and no lock keeps them from doing
 * so at the same time. The CPU would not do: newer kernels may move the task between the two programs.
 */
struct handled {
	__u64 what;	/* the address of the skb or request */
	__u64 task;
};

/*
 * With a list of free elements for each CPU: of one that they share a CPU may take 128 at a time, and where there are more
 * than eight, others then evict what is in use (bpf_common_lru_pop_free(), kernel/bpf/bpf_lru_list.c). The loader makes it
 * larger where there are many CPUs.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(map_flags, BPF_F_NO_COMMON_LRU);
	__uint(max_entries, 1024);
	__type(key, struct handled);
	__type(value, __u8);
} HANDLED SEC(".maps");

/* For the first program: false where it cannot tell the second, which then does the work. */
static __always_inline bool claim(const void *what)
{
	struct handled key = { .what = (__u64)what, .task = bpf_get_current_task() };
	__u8 one = 1;

	return !bpf_map_update_elem(&HANDLED, &key, &one, BPF_ANY);
}

/* For the second program: true where the first was skipped, which is counted. */
static __always_inline bool must_stand_in(const void *what, enum lost counter)
{
	struct handled key = { .what = (__u64)what, .task = bpf_get_current_task() };

	if (bpf_map_lookup_elem(&HANDLED, &key)) {
		bpf_map_delete_elem(&HANDLED, &key);
		return false;
	}
	count_lost(counter);
	return true;
}

#endif
