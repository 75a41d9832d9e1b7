/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * Every layout and enum that crosses between the kernel and the loader. loader/src/model/events.rs mirrors them. At the
 * start of xctl, and in a test, each offset and enumerator of the mirror is compared with the BTF inside the object.
 *
 * No struct here has implicit padding: map keys are compared as bytes, and padding in a perf record would show the kernel's
 * stack.
 */
#ifndef XCTL_EVENTS_H
#define XCTL_EVENTS_H

#define COMM_LEN 16

/* How a socket is named, and what the field `socket` beside this byte holds. */
enum known_by {
	BY_FLOW = 0,	/* by its four-tuple; socket is 0 */
	BY_ADDRESS,	/* socket is the kernel address of its struct sock */
	BY_INODE,	/* socket is the inode number of its file, as /proc shows it */
};

/*
 * The four-tuple of a socket in its network namespace, seen from this host. The key of SOCKET_TO_PID.
 *
 * An IPv4 address is kept as IPv6 writes it, ::ffff:a.b.c.d. So the address includes the family, and a v4-mapped IPv6
 * socket has the key of its IPv4 connection.
 */
struct flow {
	__u8 saddr[16];	/* local, network order */
	__u8 daddr[16];	/* remote, network order */
	__u64 socket;	/* as known_by says */
	__u32 netns;	/* inode number of the network namespace */
	__u16 sport;	/* local, host order */
	__u16 dport;	/* remote, host order */
	__u8 known_by;	/* enum known_by */
	__u8 zero[7];
};

/* How an owner is known. */
enum how {
	HOW_UNKNOWN = 0,
	HOW_SEND,	/* it sent on this socket */
	HOW_CONNECT,	/* it called connect() */
	HOW_ACCEPT,	/* accept() gave it the socket: seen in accept(), or when it closed the file that it had opened */
	HOW_LISTEN,	/* it called listen(); the connection is not accepted yet */
	HOW_SEED,	/* it held the socket before xctl started */
	HOW_KERNEL,	/* no process: a socket of the kernel's own */
	HOW_READ,	/* it read from this socket; no process was known before */
	HOW_SHARED,	/* several processes held it before xctl started, and none of them has used it since */
};

/* The process behind a socket: the value of SOCKET_TO_PID. */
struct owner {
	__u64 socket;	/* as known_by says: the socket of this entry, and the only one that may use or remove it */
	__u64 born;	/* when the process started, ns of CLOCK_BOOTTIME (see born()): tells processes with the same PID apart */
	__u64 struct_pid;	/* address of the process's struct pid (see refresh_name()); 0: not known (seeded from /proc) */
	__u64 cgroup;	/* cgroup v2 id of the thread */
	/*
	 * The key of the list of holders in user space, if several processes held the socket at the start; else 0. It is
	 * compared and never followed. The code that seeds the entry sets it: the socket's address
	 * (seed.bpf.h) or its inode number (loader/src/trace/seed/procfs.rs). See struct holder.
	 */
	__u64 holders;
	/*
	 * When the socket got its first entry, ns of CLOCK_MONOTONIC; it stays when the owner changes. It tells apart connections
	 * whose sockets had the same address one after the other. 0: not known (seeded from /proc).
	 */
	__u64 since;
	/*
	 * own_inode_of() when the entry was made: it tells apart sockets that had the same address one after the other. 0: not
	 * known, or seeded from /proc, or a subflow of MPTCP, whose struct socket the kernel exchanges (mptcp_sock_graft()).
	 */
	__u64 own_inode;
	__u32 tgid;	/* the process, in the initial PID namespace */
	__u32 tid;	/* the thread that last acted on the socket */
	__u32 uid;	/* its user, in the initial user namespace */
	__u8 how;	/* enum how */
	__u8 in_cgroup;	/* 1: inside the cgroup that the user asked for */
	__u8 gone;	/* 1 in an event: the process had been reaped before */
	__u8 known_by;	/* enum known_by: BY_ADDRESS or BY_INODE; BY_FLOW if there is no entry */
	char comm[COMM_LEN];	/* the name of the process, which is its main thread's; see refresh_name() */
};

enum event_type {
	EVENT_RETRANSMIT = 1,
	EVENT_SEND = 2,
	EVENT_CUT = 3,
	EVENT_DROP = 4,
};

struct event_header {
	__u64 mono_ns;	/* CLOCK_MONOTONIC */
	__u32 type;	/* enum event_type */
	__u32 cpu;
};

/*
 * How often programs on a CPU began and ended to emit a record, since they were loaded. A program adds to the first before it
 * takes the time of the record, and to the second when the record is in a ring or lost.
 */
struct under_way {
	__u64 started;
	__u64 finished;
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
	__u32 current_tgid;	/* the process that softirq interrupted, and that a naive tool blames */
	char current_comm[COMM_LEN];
	__s32 err;		/* 0, or why the attempt failed (negative errno) */
	__u32 segs;
	__u32 bytes;		/* payload */
	__u32 srtt_us;		/* this and the next three: 0 for a SYN-ACK, whose socket does not exist yet */
	__u32 cwnd;		/* segments */
	__u32 ssthresh;		/* segments */
	__u32 mss;		/* bytes */
	/*
	 * Timeouts in a row without progress, with this one (icsk_retransmits; ss shows it behind the timer). It is 0 if an
	 * ACK or a loss probe caused the retransmit. The kernel does not count while the peer's window is shut. For a SYN-ACK:
	 * how often it has been retransmitted.
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

/* Why TCP reduced a congestion window. */
enum cut_why {
	CUT_UNKNOWN = 0,	/* CUT_ECN, CUT_LOCAL or CUT_PROBE: it is not known which function reduced the window */
	CUT_RECOVERY,		/* ACKs showed a loss (tcp_enter_recovery()) */
	CUT_TIMEOUT,		/* the retransmission timer expired (tcp_enter_loss()) */
	CUT_ECN,		/* the network marked segments (tcp_enter_cwr()) */
	CUT_LOCAL,		/* a queue of this host dropped a segment (tcp_enter_cwr()) */
	CUT_PMTU,		/* a smaller path MTU: segments are sent again in smaller pieces (tcp_simple_retransmit()) */
	CUT_PROBE,		/* a loss probe has repaired a loss (tcp_process_tlp_ack()) */
};

struct cut_event {
	struct event_header header;
	struct flow flow;
	struct owner owner;
	__u32 cwnd;	/* before, segments; 0: not known */
	__u32 ssthresh;	/* after, segments; 0: not known */
	__u8 why;	/* enum cut_why */
	__u8 zero[7];
};

/* This host dropped a packet that one of its sockets sent. */
struct drop_event {
	struct event_header header;
	struct flow flow;
	struct owner owner;
	__u32 reason;	/* the kernel's enum skb_drop_reason, whose values differ between kernels; 0: the kernel does not tell */
	__u32 segs;
	__u32 bytes;		/* payload; all bits set: not known */
	__u8 state;	/* TCP_ESTABLISHED, ... */
	__u8 zero[3];
};

/* The process of some totals: the key of PROCESS_TOTALS. */
struct process_key {
	__u64 born;	/* owner.born: a PID may be used twice in a run */
	__u32 tgid;
	__u32 nobody;	/* without a process: enum how + 1; else 0 */
	__u32 epoch;	/* 0 or 1: the value of EPOCH */
	__u32 zero;
};

/* A network namespace. Two numbers name it, since the kernel gives inum to the next namespace as soon as it is free. */
struct netns_key {
	__u32 inum;
	__u32 rtnl;	/* inode number of its rtnetlink socket, which lives as long as the namespace; 0: not known */
};

/* One entry of the kernel's tables of TCP sockets. The iterator it_sockets writes it. */
struct socket_record {
	struct flow flow;	/* BY_ADDRESS, with its four-tuple too: the address tells entries apart, and is never printed */
	struct owner owner;
	__u8 state;	/* TCP_ESTABLISHED, ... */
	__u8 held;	/* 1: it has a struct socket, and so a file, or had one until just now */
	__u8 zero[6];
};

/* The kind of socket that a reading is of. */
enum reading_of {
	READING_NOTHING = 0,	/* neither of these: it counts nothing */
	READING_CONNECTION,
	READING_LISTENER,
};

/*
 * The counters of a socket since it was made, and its gauges. The iterator it_readings writes them behind the socket_record of
 * the same socket. Units are those of struct tcp_sock. Times without a unit are in jiffies.
 */
struct reading {
	__u64 bytes_sent;	/* payload, retransmissions included */
	__u64 bytes_retrans;
	__u64 bytes_acked;
	__u64 bytes_received;
	__u32 segs_out;
	__u32 segs_in;
	__u32 data_segs_out;
	__u32 data_segs_in;
	__u32 total_retrans;
	__u32 lost;		/* segments marked lost, also wrongly */
	__u32 delivered;
	__u32 delivered_ce;
	__u32 dsack_dups;
	__u32 reord_seen;
	__u32 rcv_ooopack;
	__u32 drops;		/* a connection: segments received and thrown away; a listener: connections dropped */
	__u32 total_rto;	/* this and the next: only with has_timeouts */
	__u32 total_rto_time;	/* milliseconds */
	__u32 free;		/* busy, and limited by neither of the next two */
	__u32 rwnd_limited;
	__u32 sndbuf_limited;
	__u32 srtt_us;		/* 8 times the microseconds; 0: not measured */
	__u32 mdev_us;		/* 4 times the microseconds */
	__u32 min_rtt_us;	/* all bits set: not measured */
	__u32 snd_cwnd;		/* segments, as the next */
	__u32 snd_ssthresh;
	__u32 mss;		/* bytes, as the following */
	__u32 snd_wnd;
	__u32 rcv_wnd;
	__u32 unacked;		/* sent, and not acknowledged */
	__u32 unsent;
	__u32 unread;		/* received, and not read by the process */
	__u32 sndbuf;
	__u32 rcvbuf;
	__u32 since_sent;	/* since data were sent; this and the next two are meaningless before a connection is established */
	__u32 since_received;	/* since data were received */
	__u32 since_acked;	/* since an acknowledgement came */
	__u32 queue;		/* of a listener: connections that wait for accept() */
	__u32 backlog;		/* of a listener: how many may wait */
	__u8 of;		/* enum reading_of */
	__u8 limit;		/* enum tcp_chrono: the kind of waiting that goes on */
	__u8 has_timeouts;	/* 1: this kernel counts timeouts */
	__u8 locked;		/* 1: the socket was locked, so that no value changed meanwhile */
	__u8 has_windows;	/* 1: the next two are known: with settings.reader, and only in an account */
	__u8 zero[7];
	__u32 zero_windows;	/* how often the own window was shut */
	__u32 zero_window_time;	/* for how long */
};

/* Why the ledger reads a connection or a listener. */
enum account_why {
	ACCOUNT_OPEN = 0,	/* it is open when xctl starts or ends, or at a tick */
	ACCOUNT_ENDED,
	ACCOUNT_TAKEN,		/* another process takes it; `owner` is the owner until then */
};

#define COUNT_SUBFLOWS (~0ULL)	/* in place of the number of a subflow: tr_account returns how many there are */

/* The counters of a connection or a listener until now, and its owner: a record of the ring LEDGER. */
struct account {
	struct flow flow;
	struct owner owner;
	struct reading reading;
	__u64 socket;	/* the address of the struct sock */
	__u64 mono_ns;	/* CLOCK_MONOTONIC */
	__u32 err;	/* ACCOUNT_ENDED: sk_err, why it ended (errno); 0: it was closed */
	__u32 rtnl;	/* with settings.by_netns: as in struct netns_key; else 0 */
	__u8 why;	/* enum account_why */
	__u8 state;	/* TCP_ESTABLISHED, ...; ACCOUNT_ENDED: the last one before TCP_CLOSE */
	__u8 wanted;	/* 1: it passes the filters; 0: it adds nothing, and the next account counts from it */
	__u8 mptcp;	/* 1: a subflow of MPTCP */
	__u8 zero[4];
};

/* One holder of a socket that was open before xctl started. The iterator it_seed writes it. */
struct holder {
	__u64 socket;	/* the socket's address, which is owner.holders too */
	__u32 tgid;
	__u32 netns;	/* inode number of the connection's network namespace; 0 for a listener or MPTCP's parent */
	char comm[COMM_LEN];
	__u8 first;	/* 1: the socket was not remembered before */
	__u8 zero[7];
};

#define KINDS 8		/* the number of kinds, rounded up to a power of two */
#define CUTS 8		/* the number of reasons for a cut, likewise */

/* Counted in the kernel, so that lost events do not change them. Failed attempts count in `failed` and `failures` alone. */
struct totals {
	__u64 segs[KINDS];
	__u64 bytes;
	__u64 retransmits;
	__u64 failed;		/* segments that the kernel counts in TCPRetransFail */
	__u64 failures;		/* attempts that failed, for any reason */
	__u64 timeouts;		/* of retransmission timers; this and the next: by network namespace only */
	__u64 timer_ends;	/* timeouts after which the kernel ended the connection */
	__u64 drops;		/* packets that this host dropped; this and the next two: with settings.drops */
	__u64 dropped_segs;
	__u64 dropped_bytes;	/* payload */
	__u32 cuts[CUTS];	/* reductions of congestion windows, by enum cut_why */
	__u64 cgroup;		/* cgroup v2 id of the thread that last acted; 0 without a process */
	char comm[COMM_LEN];	/* the name of the process; empty without one */
};

/* Index into the LOST map. */
enum lost {
	LOST_PERF = 0,		/* the ring was full */
	LOST_OUTPUT,		/* any other reason for which a record did not reach a ring */
	LOST_MAP_FULL,		/* SOCKET_TO_PID had no room for a socket */
	LOST_IN_FLIGHT,		/* kprobe set: an entry without its return, a return without its entry, or no room for an entry */
	LOST_READ,		/* a read of kernel memory failed: nothing was emitted */
	LOST_UNKNOWN,		/* an event that passed every filter has no owner, and so is incomplete */
	LOST_TOTALS,		/* the totals had no room for a process or namespace */
	RETRANSMIT_BACKED_UP,	/* no loss: the kernel skipped a program on a retransmit or cut, and its backup did the work */
	STATE_BACKED_UP,	/* no loss: the same for the programs on inet_sock_set_state */
	LOST_REFUSED,		/* SOCKET_TO_PID or its cache refused an operation, for another reason than its size */
	LOST_UNATTRIBUTED,	/* an event without an owner, not emitted because a filter asks for one owner */
	LOST_LEDGER,		/* the ring LEDGER had no room for a connection or listener, or MPTCP has too many subflows */
	DROP_BACKED_UP,		/* no loss: as RETRANSMIT_BACKED_UP, for the programs on drops */
	LOST_KINDS,
};

/* A network of IP addresses: those whose bits under `mask` are the bits of `first`. */
struct network {
	__u8 first[16];	/* as in struct flow */
	__u8 mask[16];
	__u64 family;	/* 4 or 6; 0: no network */
};

#define FILTER_VALUES 8	/* the most values of one filter */

/*
 * The loader sets these before loading. They are read-only for the programs, so the verifier removes code that they disable.
 * A list of a filter ends at its first 0. An empty list lets everything pass.
 */
struct settings {
	struct network networks[FILTER_VALUES];	/* of the local or the remote address */
	__u64 cgroups[FILTER_VALUES];	/* cgroup v2 ids */
	char comms[FILTER_VALUES][COMM_LEN];
	__u32 cgroup_levels[FILTER_VALUES];	/* their depths; the root is 0 */
	__u32 netns[FILTER_VALUES];	/* inode numbers */
	__u32 tgids[FILTER_VALUES];
	__u32 ports[FILTER_VALUES];	/* local or remote, host order */
	/* Where these functions begin and end, to tell which of them entered the state CWR; 0: not known. */
	__u64 transmit_from;	/* __tcp_transmit_skb() */
	__u64 transmit_to;
	__u64 marks_from;	/* tcp_try_to_open(), or the function that it is a part of */
	__u64 marks_to;
	__u64 ack_from;		/* tcp_ack() */
	__u64 ack_to;
	__u32 cache_mask;	/* the number of slots of SK_CACHE, a power of two, minus one */
	__u8 family;		/* 4 or 6 */
	__u8 kinds;		/* bit mask of 1 << enum kind; 0: all */
	__u8 retransmits;	/* 1: emit retransmit events */
	__u8 sends;		/* 1: emit send events */
	__u8 births_by_state;	/* 1: only inet_sock_set_state shows connect() and listen() */
	__u8 by_netns;		/* 1: count in NETNS_TOTALS too */
	__u8 by_inode;		/* 1: SOCKET_TO_PID was seeded from /proc, and may have entries BY_INODE */
	__u8 ledger;		/* 1: write accounts */
	__u8 connections;	/* 1: the end of a connection is an event too, and wakes the reader */
	__u8 cuts;		/* 1: emit cuts of congestion windows */
	__u8 reader;		/* 1: count how often and how long windows are shut */
	__u8 totals;		/* 1: count retransmits by process, also without retransmit events */
	__u8 drops;		/* 1: emit and count what this host drops of its own segments */
	__u8 zero[7];
};

#endif
