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
	ATTEMPT_SEGMENT,	/* __tcp_retransmit_skb */
	ATTEMPT_SYNACK,		/* tcp_rtx_synack */
};

struct attempt_key {
	__u64 task;
	__u64 what;	/* enum attempt: a softirq may run the one while its task is in the other */
};

struct attempt_args {
	const struct sock *sk;
	const void *arg;	/* struct sk_buff * or struct request_sock * */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct attempt_key);
	__type(value, struct attempt_args);
} IN_FLIGHT SEC(".maps");

static __always_inline void attempt_begins(enum attempt what, const struct sock *sk, const void *arg)
{
	struct attempt_key key = { .task = bpf_get_current_task(), .what = what };
	struct attempt_args args = { .sk = sk, .arg = arg };

	if (bpf_map_update_elem(&IN_FLIGHT, &key, &args, BPF_ANY))
		count_lost(LOST_IN_FLIGHT);
}

/* False, and counted, where the entry was not seen. */
static __always_inline bool attempt_ends(enum attempt what, struct attempt_args *args)
{
	struct attempt_key key = { .task = bpf_get_current_task(), .what = what };
	struct attempt_args *found = bpf_map_lookup_elem(&IN_FLIGHT, &key);

	if (!found) {
		count_lost(LOST_IN_FLIGHT);
		return false;
	}
	*args = *found;
	bpf_map_delete_elem(&IN_FLIGHT, &key);
	return true;
}

#endif
