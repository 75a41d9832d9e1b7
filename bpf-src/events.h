/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * Every layout that crosses between the kernel and the loader. loader/src/events.rs mirrors these structs, and at
 * start (and in a test) each offset of the mirror is compared with the BTF inside the object.
 *
 * No struct here has implicit padding: map keys are compared as bytes, and what is padding in one compiler's eyes
 * would be kernel stack in a perf record.
 */
#ifndef XCTL_EVENTS_H
#define XCTL_EVENTS_H

#define COMM_LEN 16

/*
 * The four-tuple of a socket in its network namespace, seen from this host. The key of SOCKET_TO_PID.
 *
 * An IPv4 address is kept as IPv6 writes it, ::ffff:a.b.c.d, so the family is part of the address and a v4-mapped
 * IPv6 socket has the key of the IPv4 connection that it is.
 */
struct flow {
	__u8 saddr[16];	/* local, network order */
	__u8 daddr[16];	/* remote, network order */
	__u64 sk;	/* where no four-tuple tells: the socket's address, or its file's inode number (see owner.bpf.h); else 0 */
	__u32 netns;	/* inode number of the network namespace */
	__u16 sport;	/* local, host order */
	__u16 dport;	/* remote, host order */
};

/* How an owner is known. */
enum how {
	HOW_UNKNOWN = 0,
	HOW_SEND,	/* it sent on this socket */
	HOW_CONNECT,	/* it called connect() */
	HOW_ACCEPT,	/* accept() gave it the socket: seen there, or when it closes it */
	HOW_LISTEN,	/* it called listen(); the connection is not accepted yet */
	HOW_SEED,	/* it held the socket before we came */
	HOW_KERNEL,	/* no process: a socket of the kernel's own */
};

/* The process behind a socket: the value of SOCKET_TO_PID. */
struct owner {
	__u64 sk;	/* the socket that made this entry, and alone may use or remove it; 0: not known yet (seeded from /proc) */
	__u64 born;	/* when the process started, ns of CLOCK_BOOTTIME in steps of 10 ms: tells a reused PID from the first */
	/*
	 * Address of the process's struct pid, by which its main thread is found; 0: not known (seeded from /proc). While sk is
	 * not known: the inode number of the socket's file.
	 */
	__u64 pid;
	__u64 cgroup;	/* cgroup v2 id of the thread */
	__u32 tgid;	/* the process, in the initial PID namespace */
	__u32 tid;	/* the thread that last acted on the socket */
	__u32 uid;	/* its user, in the initial user namespace */
	__u8 how;	/* enum how */
	__u8 in_cgroup;	/* 1: inside the cgroup that the user asked for */
	__u8 zero[2];
	char comm[COMM_LEN];	/* the process's name: its main thread's, not the sending thread's; see refresh_name() */
};

enum event_type {
	EVENT_RETRANSMIT = 1,
	EVENT_SEND = 2,
};

struct event_header {
	__u64 mono_ns;	/* CLOCK_MONOTONIC */
	__u32 type;	/* enum event_type */
	__u32 cpu;
};

/* Why a segment was sent again. */
enum kind {
	KIND_OTHER = 0,
	KIND_RTO,
	KIND_FAST,
	KIND_SLOW_START,
	KIND_TLP,
	KIND_SYN,
	KIND_SYNACK,
};

struct retransmit_event {
	struct event_header header;
	struct flow flow;
	struct owner owner;
	__u32 current_tgid;	/* whom softirq interrupted: what a naive tool blames */
	char current_comm[COMM_LEN];
	__s32 err;		/* 0, or why the attempt failed (negative errno) */
	__u32 segs;
	__u32 bytes;		/* payload */
	__u32 srtt_us;		/* this and the next three: 0 for a SYN-ACK, whose socket does not exist yet */
	__u32 cwnd;		/* segments */
	__u32 ssthresh;		/* segments */
	__u32 mss;		/* bytes */
	/*
	 * Timeouts in a row with no progress, this one included, as the kernel counts them for the socket and ss shows them
	 * behind its timer: 0 where an ACK or a loss probe led to this. It does not count while the peer's window is shut.
	 * For a SYN-ACK, how often it has gone again.
	 */
	__u32 sk_retrans;
	__u8 kind;		/* enum kind */
	__u8 state;		/* TCP_ESTABLISHED, ... */
	__u8 fin;
	__u8 zero;
};

struct send_event {
	struct event_header header;
	struct flow flow;
	struct owner owner;
	__u64 bytes;
};

/* Whose totals: the key of PROCESS_TOTALS. */
struct process_key {
	__u64 born;	/* owner.born: a PID may be used twice in a run */
	__u32 tgid;
	__u32 nobody;	/* where there is no process: enum how + 1; else 0 */
};

/* One entry of the kernel's tables of TCP sockets, as the iterator it_sockets writes it. */
struct socket_record {
	struct flow flow;	/* sk always set: it tells entries apart, and is for no eyes but the loader's */
	struct owner owner;
	__u8 state;	/* TCP_ESTABLISHED, ... */
	__u8 held;	/* 1: a struct socket is behind it, so some file is, or was until just now */
	__u8 zero[6];
};

#define KINDS 8		/* enum kind, and one to spare for alignment's sake */

/* Counted in the kernel, so that they hold whatever happens to the events. Failed attempts are at most in failed. */
struct totals {
	__u64 segs[KINDS];
	__u64 bytes;
	__u64 retransmits;
	__u64 failed;		/* segments that the kernel counts in TCPRetransFail */
	char comm[COMM_LEN];	/* of a process; else empty */
};

/* Index into the LOST map. */
enum lost {
	LOST_PERF = 0,		/* the ring was full */
	LOST_OUTPUT,		/* any other reason for which a record did not reach a ring */
	LOST_MAP_FULL,		/* SOCKET_TO_PID had no room for a socket */
	LOST_IN_FLIGHT,		/* kprobe set: a return without its entry or an entry without its return, or no room for one */
	LOST_READ,		/* a read of kernel memory failed: nothing was emitted */
	LOST_UNKNOWN,		/* an event without an owner: incomplete, or not emitted where one owner's are asked for */
	LOST_TOTALS,		/* a process or namespace that no totals had room for */
	STOOD_IN,		/* no loss: the kernel skipped a program, and its second did the work */
	STATE_STOOD_IN,		/* the same, for the programs on inet_sock_set_state */
	LOST_REFUSED,		/* SOCKET_TO_PID or its cache refused an operation, for another reason than its size */
	LOST_KINDS,
};

/* What the loader fixes before loading: read-only for the programs, so the verifier removes what is switched off. */
struct settings {
	__u64 cgroup;		/* cgroup v2 id */
	__u32 cgroup_level;	/* its depth; the root is 0 */
	__u32 netns;		/* inode number */
	__u32 tgid;
	__u16 port;		/* local or remote, host order */
	__u8 family;		/* 4 or 6 */
	__u8 kinds;		/* bit mask of 1 << enum kind; 0: all */
	char comm[COMM_LEN];
	__u8 retransmits;	/* 1: emit retransmit events */
	__u8 sends;		/* 1: emit send events */
	__u8 births_by_state;	/* 1: inet_sock_set_state is what shows connect() and listen() */
	__u8 by_netns;		/* 1: count in NETNS_TOTALS too */
	__u8 by_inode;		/* 1: there are entries under inode numbers */
	__u8 zero[3];
};

#endif
