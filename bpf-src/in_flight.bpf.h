/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * Kprobe set only: keeps a function's arguments from the kprobe to the kretprobe.
 *
 * The key must be the same at entry and return, and unique in between. pid_tgid is not unique: it is 0 on every idle CPU.
 * The task's address is: each CPU has its own idle task, and an interrupted task runs nowhere else. It also follows a task
 * that migrates, unlike a slot of each CPU.
 */
#ifndef XCTL_IN_FLIGHT_BPF_H
#define XCTL_IN_FLIGHT_BPF_H

enum attempt {
	ATTEMPT_SEGMENT,	/* tcp_retransmit_skb, __tcp_retransmit_skb */
	ATTEMPT_SYNACK,		/* tcp_rtx_synack */
};

struct attempt_key {
	__u64 task;
	__u32 attempt;	/* enum attempt: a softirq may make one kind of attempt while the interrupted task is in the other */
	__u32 level;	/* 1: in a softirq that interrupted the same kind of attempt of the task */
};

struct attempt_args {
	const struct sock *sk;
	const void *arg;	/* struct sk_buff * or struct request_sock * */
	/*
	 * How many functions are entered with these arguments, and not left. tcp_retransmit_skb() calls
	 * __tcp_retransmit_skb(). Both are probed: compilers inline the latter on some kernels (Debian's 6.1), and a loss
	 * probe calls it directly.
	 */
	__u64 depth;
	__u64 began;	/* when, on CLOCK_MONOTONIC */
	/*
	 * A value that the function changes before it returns. ATTEMPT_SEGMENT: enum kind, since tcp_retransmit_skb() marks
	 * the skb. ATTEMPT_SYNACK: how often the SYN-ACK was retransmitted before, since newer kernels count this time too.
	 */
	__u64 note;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct attempt_key);
	__type(value, struct attempt_args);
} IN_FLIGHT SEC(".maps");

/*
 * The attempt under this key, if it goes on. An attempt takes microseconds. If one is older than a second, the kernel
 * skipped the kretprobe at its end, and its socket may be gone.
 */
static __always_inline struct attempt_args *in_flight(const struct attempt_key *key)
{
	const __u64 second = 1000 * 1000 * 1000;
	struct attempt_args *found = bpf_map_lookup_elem(&IN_FLIGHT, key);

	if (!found || bpf_ktime_get_ns() - found->began < second)
		return found;
	bpf_map_delete_elem(&IN_FLIGHT, key);
	count_lost(LOST_IN_FLIGHT);
	return NULL;
}

static __always_inline void attempt_begins(enum attempt attempt, const struct sock *sk, const void *arg, __u64 note)
{
	struct attempt_key key = { .task = bpf_get_current_task(), .attempt = attempt };
	struct attempt_args args = { .sk = sk, .arg = arg, .depth = 1, .began = bpf_ktime_get_ns(), .note = note };
	struct attempt_args *found = in_flight(&key);

	if (found && found->arg != arg) {
		key.level = 1;
		found = in_flight(&key);
	}
	if (found && found->arg == arg)
		found->depth++;
	else if (bpf_map_update_elem(&IN_FLIGHT, &key, &args, BPF_ANY))
		count_lost(LOST_IN_FLIGHT);
}

/* Whether the outermost function of an attempt returns. A return without a known entry is counted. */
static __always_inline bool attempt_ends(enum attempt attempt, struct attempt_args *args)
{
	struct attempt_key key = { .task = bpf_get_current_task(), .attempt = attempt, .level = 1 };
	struct attempt_args *found = in_flight(&key);

	if (!found) {
		key.level = 0;
		found = in_flight(&key);
	}
	if (!found) {
		count_lost(LOST_IN_FLIGHT);
		return false;
	}
	if (--found->depth)
		return false;
	*args = *found;
	bpf_map_delete_elem(&IN_FLIGHT, &key);
	return true;
}

#endif
