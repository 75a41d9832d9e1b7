/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * Tells the backup of a tracepoint program whether the kernel skipped the first program.
 *
 * Since Linux 6.1 the kernel skips a raw tracepoint program that is already running on the same CPU (__bpf_trace_run(),
 * kernel/trace/bpf_trace.c). That happens if a retransmission in process context is interrupted by a softirq that
 * retransmits for another socket (release_sock() works off the backlog with softirqs enabled). So each such tracepoint has
 * a backup: a second program, which is attached and called after the first.
 */
#ifndef XCTL_BACKUP_BPF_H
#define XCTL_BACKUP_BPF_H

/*
 * The key of one run of a first program that its backup has not seen yet. The object alone is not enough: two CPUs may
 * retransmit the SYN-ACK of one request at once, one by the request's timer and one for a repeated SYN, without a lock. The
 * task tells the two runs apart. The CPU number cannot: newer kernels may move a task to another CPU between both programs.
 */
struct handled {
	__u64 object;	/* the address of the skb, request or socket */
	__u64 task;
};

/*
 * BPF_F_NO_COMMON_LRU gives each CPU a list of free elements. From a common list each CPU takes up to 128 elements at
 * once. Eight CPUs then have all 1024, and further CPUs evict elements in use (bpf_common_lru_pop_free(),
 * kernel/bpf/bpf_lru_list.c). The loader makes the map larger for many CPUs.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(map_flags, BPF_F_NO_COMMON_LRU);
	__uint(max_entries, 1024);
	__type(key, struct handled);
	__type(value, __u8);
} HANDLED SEC(".maps");

/*
 * For the first program: mark the event as handled. False if the mark could not be stored; the backup handles the event
 * then.
 */
static __always_inline bool claim(const void *object)
{
	struct handled key = { .object = (__u64)object, .task = bpf_get_current_task() };
	__u8 one = 1;

	return !bpf_map_update_elem(&HANDLED, &key, &one, BPF_ANY);
}

/* For the backup. True if the kernel skipped the first program, which is counted. */
static __always_inline bool must_back_up(const void *object, enum lost counter)
{
	struct handled key = { .object = (__u64)object, .task = bpf_get_current_task() };

	if (bpf_map_lookup_elem(&HANDLED, &key)) {
		bpf_map_delete_elem(&HANDLED, &key);
		return false;
	}
	count_lost(counter);
	return true;
}

/*
 * The mark of a socket's end, as a kprobe sees it right before the tracepoint. The kprobe forgets the owner, so it alone
 * handles the end, if it runs. States are smaller than 32, so no mark of the tracepoint (socket + state) equals this one.
 */
#define SEEN_BY_KPROBE(sk) ((const char *)(sk) + 32)

/* For the programs of the tracepoint. False if there is no kprobe, if it was skipped, or if its mark could not be stored. */
static __always_inline bool seen_by_kprobe(const struct sock *sk)
{
	struct handled key = { .object = (__u64)SEEN_BY_KPROBE(sk), .task = bpf_get_current_task() };

	return !bpf_map_delete_elem(&HANDLED, &key);
}

#endif
