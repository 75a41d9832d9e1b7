/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* Takes the time of an event and writes its record to the ring of the CPU. Counts the record if that fails. */
#ifndef XCTL_EMIT_BPF_H
#define XCTL_EMIT_BPF_H

struct {
	__uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
} EVENTS SEC(".maps");

/*
 * For records of a CPU that has no ring in EVENTS. Either the CPU came online after xctl started (-ENOENT), or it was offline
 * meanwhile, which ends a perf event for good (-EOPNOTSUPP). The CPU may retransmit before user space learns that it is
 * online. And xctl has no privilege left to open a ring for it.
 *
 * The map needs Linux 5.8, and is not created on older kernels. There a CO-RE relocation cuts off the code that uses it. A
 * value in .rodata would not do: before 5.5 the verifier does not know .rodata.
 */
struct bpf_ringbuf {
} __attribute__((preserve_access_index));

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 256 * 1024);
} SHARED_RING SEC(".maps");

/*
 * How many programs on each CPU began a record, and how many finished one. From these counts user space derives before which
 * time every record is in a ring.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct under_way);
} UNDER_WAY SEC(".maps");

/* The kernel returns -ENOSPC for exactly the records that it later reports as PERF_RECORD_LOST. */
static __always_inline void write_record(void *ctx, void *record, __u64 size)
{
	long err = bpf_perf_event_output(ctx, &EVENTS, BPF_F_CURRENT_CPU, record, size);

	if (err && err != -ENOSPC && bpf_core_type_exists(struct bpf_ringbuf))
		err = bpf_ringbuf_output(&SHARED_RING, record, size, 0);	/* -EAGAIN: full */
	if (err)
		count_lost(err == -ENOSPC || err == -EAGAIN ? LOST_PERF : LOST_OUTPUT);
}

/*
 * Count the program in UNDER_WAY from before it takes the time of its record until it has written the record. Another task or
 * a softirq may run the program on this CPU meanwhile, so the counts are atomic. The result is never NULL, which the verifier
 * does not know.
 */
static __always_inline struct under_way *begin_record(void)
{
	__u32 zero = 0;
	struct under_way *under_way = bpf_map_lookup_elem(&UNDER_WAY, &zero);

	if (under_way)
		__sync_fetch_and_add(&under_way->started, 1);
	return under_way;
}

static __always_inline void end_record(struct under_way *under_way)
{
	__sync_fetch_and_add(&under_way->finished, 1);
}

/* Fill in the header, with which the record begins, and write the record. */
static __always_inline void emit(void *ctx, struct event_header *header, __u64 size, enum event_type type)
{
	struct under_way *under_way = begin_record();

	if (!under_way)
		return;
	header->mono_ns = bpf_ktime_get_ns();
	header->type = type;
	header->cpu = bpf_get_smp_processor_id();
	write_record(ctx, header, size);
	end_record(under_way);
}

#endif
