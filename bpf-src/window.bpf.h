/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * Counts how often and for how long a process kept its own receive window shut, because it did not read. Only with
 * settings.reader.
 */
#ifndef XCTL_WINDOW_BPF_H
#define XCTL_WINDOW_BPF_H

/*
 * How often and for how long the receive window of one connection was shut. A shut window accepts no data, so each period in
 * which it is shut has its own rcv_nxt.
 */
struct shut_window {
	__u32 rcv_nxt;	/* of the latest period */
	__u32 times;	/* the number of periods */
	__u32 earlier;	/* the sum of the durations of all periods but the latest, in jiffies */
	__u32 latest;	/* the duration of the latest period, in jiffies */
};

/*
 * Connections whose window was shut when their process read. The loader makes the map as large as SOCKET_TO_PID; it is not
 * created without settings.reader.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, __u64);	/* the address of the struct sock */
	__type(value, struct shut_window);
} SHUT_WINDOWS SEC(".maps");

/* For how long the window has been shut, in jiffies: since the last data came. */
static __always_inline __u32 shut_for(const struct sock *sk)
{
	return jiffies_since(BPF_CORE_READ((const struct inet_connection_sock *)sk, icsk_ack.lrcvtime));
}

/* The end of the received data. A FIN, which newer kernels accept while the window is shut, counts in rcv_nxt too. */
static __always_inline __u32 end_of_data(const struct sock *sk, __u8 state)
{
	return BPF_CORE_READ((const struct tcp_sock *)sk, rcv_nxt) - (state == TCP_CLOSE_WAIT);
}

/*
 * The current task reads, and has not opened the window again yet: tcp_rcv_space_adjust() runs before tcp_cleanup_rbuf(). The
 * socket is locked. Two programs call this; the second call changes nothing. After a reset a process may read what is left,
 * from a socket whose entry is gone.
 */
static __noinline void note_shut_window(const struct sock *sk)
{
	__u8 state = BPF_CORE_READ(sk, __sk_common.skc_state);
	struct shut_window first = { .times = 1 }, *shut;
	__u64 address = (__u64)sk;
	int err;

	if (state == TCP_CLOSE || BPF_CORE_READ((const struct tcp_sock *)sk, rcv_wnd))
		return;
	first.rcv_nxt = end_of_data(sk, state);
	first.latest = shut_for(sk);
	shut = bpf_map_lookup_elem(&SHUT_WINDOWS, &address);
	if (!shut) {
		err = bpf_map_update_elem(&SHUT_WINDOWS, &address, &first, BPF_ANY);
		if (err)
			no_room(sk, err);
		return;
	}
	if (shut->rcv_nxt != first.rcv_nxt) {
		shut->rcv_nxt = first.rcv_nxt;
		shut->times++;
		shut->earlier += shut->latest;
	}
	shut->latest = first.latest;
}

/* The next socket with this address counts from nothing. */
static __noinline void drop_shut_window(const struct sock *sk)
{
	__u64 address = (__u64)sk;

	if (settings.reader)
		bpf_map_delete_elem(&SHUT_WINDOWS, &address);
}

/* Read how often and for how long the window was shut, the period that goes on included. `state` is the socket's state. */
static __noinline void read_shut_windows(const struct sock *sk, __u8 state, struct reading *reading)
{
	const struct tcp_sock *tp = (const void *)sk;
	struct shut_window *shut;
	__u64 address = (__u64)sk;
	bool goes_on;

	if (!settings.reader || mptcp_parent(sk))	/* MPTCP reads from its subflows without tcp_rcv_space_adjust() */
		return;
	reading->has_windows = 1;
	if (state == TCP_LISTEN)
		return;
	/* In other states no more data come. */
	goes_on = (state == TCP_ESTABLISHED || state == TCP_FIN_WAIT1 || state == TCP_FIN_WAIT2) &&
		  !BPF_CORE_READ(tp, rcv_wnd);
	shut = bpf_map_lookup_elem(&SHUT_WINDOWS, &address);
	if (shut) {
		reading->zero_windows = shut->times;
		reading->zero_window_time = shut->earlier;
		if (!goes_on || shut->rcv_nxt != end_of_data(sk, state))
			reading->zero_window_time += shut->latest;
		else
			reading->zero_windows--;
	}
	if (goes_on) {
		reading->zero_windows++;
		reading->zero_window_time += shut_for(sk);
	}
}

#endif
