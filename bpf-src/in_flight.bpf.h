/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * Kprobe set only: what a kretprobe needs from its function's entry.
 *
 * The key must be the same at entry and return, and nobody else's in between. pid_tgid is not: it is 0 on every idle
 * CPU. The task's address is (each CPU has its own idle task, and a task that is interrupted runs nowhere else), and it
 * follows a task that migrates, where a per-CPU slot would not.
 */
#ifndef XCTL_IN_FLIGHT_BPF_H
#define XCTL_IN_FLIGHT_BPF_H

enum attempt {
	ATTEMPT_SEGMENT,	/* tcp_retransmit_skb, __tcp_retransmit_skb */
	ATTEMPT_SYNACK,		/* tcp_rtx_synack */
};

struct attempt_key {
	__u64 task;
	__u32 what;	/* enum attempt: a softirq may run the one while its task is in the other */
	__u32 level;	/* 1: in a softirq that interrupted the same kind of attempt in its task */
};

struct attempt_args {
	const struct sock *sk;
	const void *arg;	/* struct sk_buff * or struct request_sock * */
	/*
	 * Functions entered with these arguments and not left: tcp_retransmit_skb() calls __tcp_retransmit_skb(), which
	 * compilers inline there on some kernels (Debian's 6.1) and a loss probe calls directly, so both are probed.
	 */
	__u64 depth;
	__u64 began;	/* when, on CLOCK_MONOTONIC */
	__u64 retrans;	/* how often a SYN-ACK had gone again before: newer kernels count this time before the return */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct attempt_key);
	__type(value, struct attempt_args);
} IN_FLIGHT SEC(".maps");

/*
 * What was entered under this key. An attempt takes microseconds: what is older by far has lost its return, which a kprobe
 * may, and its socket may be gone.
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

static __always_inline void attempt_begins(enum attempt what, const struct sock *sk, const void *arg, __u64 retrans)
{
	struct attempt_key key = { .task = bpf_get_current_task(), .what = what };
	struct attempt_args args = { .sk = sk, .arg = arg, .depth = 1, .began = bpf_ktime_get_ns(), .retrans = retrans };
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

/* The outermost function of an attempt returns. A return whose entry was not seen is counted. */
static __always_inline bool attempt_ends(enum attempt what, struct attempt_args *args)
{
	struct attempt_key key = { .task = bpf_get_current_task(), .what = what, .level = 1 };
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
