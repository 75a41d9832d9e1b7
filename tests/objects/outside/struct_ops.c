/*
 * Congestion controls by struct_ops, for a running kernel: one for each macro that tests/relocations/ defines. What it
 * makes of `struct tcp_congestion_ops` is not all that the kernel has.
 */
#include "../core.h"

struct sock;

struct tcp_congestion_ops___ours {
	unsigned int (*ssthresh)(struct sock *sk);
	void (*cong_avoid)(struct sock *sk, unsigned int ack, unsigned int acked);
	unsigned int (*undo_cwnd)(struct sock *sk);
#ifdef other_kind
	unsigned long init;
#endif
#ifdef other_size
	char name[8];
#else
	char name[16];
#endif
#if defined(absent_callback) || defined(absent_and_empty)
	void (*xctl_no_such_callback)(struct sock *sk);
#endif
#ifdef absent_value
	int xctl_no_such_value;
#endif
};

struct xctl_no_such_ops {
	unsigned int (*ssthresh)(struct sock *sk);
};

/* Reaches what no kernel has, so it must not be loaded. */
struct sock___ours {
	int xctl_no_such_member;
} RELOCATED;
#define IMPOSSIBLE(context) ((struct sock___ours *)*(context))->xctl_no_such_member

#if defined(loaded_for_a_map) || defined(loaded_for_one_of_two)
SEC("?struct_ops") unsigned int half(unsigned long long *context)
{
	return IMPOSSIBLE(context);
}
#elif defined(left_out_with_its_map)
SEC("struct_ops") unsigned int half(unsigned long long *context)
{
	return IMPOSSIBLE(context);
}
#elif defined(of_another_type)
SEC("socket") unsigned int half(void *context)
{
	return 2;
}
#else
SEC("struct_ops") unsigned int half(unsigned long long *context)
{
	return 2;
}
#endif

#if defined(unnamed)
SEC("struct_ops") unsigned int idle(unsigned long long *context)
{
	return 4;
}
#elif defined(unnamed_by_choice)
SEC("?struct_ops") unsigned int idle(unsigned long long *context)
{
	return 4;
}
#endif

#ifdef untold
/* In a section of which the types say nothing. */
__asm__(".section .struct_ops, \"aw\", @progbits\n.quad 0\n.text");
#elif defined(absent_type)
SEC(".struct_ops") struct xctl_no_such_ops ops = { .ssthresh = (void *)half };
#elif defined(by_choice)
SEC("?.struct_ops") struct xctl_no_such_ops ops = { .ssthresh = (void *)half };
#elif defined(two_by_choice)
SEC("?.struct_ops") struct xctl_no_such_ops first = {}, ops = { .ssthresh = (void *)half };
#elif defined(left_out_with_its_map)
SEC("?.struct_ops") struct tcp_congestion_ops___ours ops = { .ssthresh = (void *)half };
#elif defined(loaded_for_one_of_two)
SEC("?.struct_ops.link") struct tcp_congestion_ops___ours other = { .ssthresh = (void *)half };
SEC(".struct_ops") struct tcp_congestion_ops___ours ops = { .ssthresh = (void *)half };
#elif defined(loaded_for_a_map) || defined(of_another_type) || defined(unnamed) || defined(unnamed_by_choice)
SEC(".struct_ops") struct tcp_congestion_ops___ours ops = { .ssthresh = (void *)half };
#else

SEC("struct_ops") void keep(unsigned long long *context)
{
}

#ifdef twice
#define UNDO half
#else
#define UNDO undo
SEC("struct_ops") unsigned int undo(unsigned long long *context)
{
	return 3;
}
#endif
#if defined(absent_callback)
#define MORE .xctl_no_such_callback = (void *)keep
#elif defined(absent_value)
#define MORE .xctl_no_such_value = 1
#else
#define MORE
#endif
#define OURS                                                                                        \
	{                                                                                           \
		.ssthresh = (void *)half, .cong_avoid = (void *)keep, .undo_cwnd = (void *)UNDO, .name = "xctl", MORE \
	}

#if defined(linked)
SEC(".struct_ops.link") struct tcp_congestion_ops___ours ops = OURS;
#else
SEC(".struct_ops") struct tcp_congestion_ops___ours other = { .name = "other" }, ops = OURS;
#endif
#endif
