//! The layout of `struct reading` of `bpf-src/events.h`: the counters and gauges of one socket, in the kernel's own units.

use super::events::{Flow, Owner, Plain};
use super::mirror::{Field, Mirror, MirrorEnum, mirror, mirror_enum};
use super::tcp::state::SYN_RECV;

mirror_enum! {
    /// The kind of socket that a [`Reading`] is of.
    "reading_of" ReadingOf: u8 {
        /// A connection in TIME_WAIT or a request, which counts nothing.
        Nothing = 0 "READING_NOTHING",
        /// A connection.
        Connection = 1 "READING_CONNECTION",
        /// A listener.
        Listener = 2 "READING_LISTENER",
    }
}

mirror! {
    /// The counters of a socket since it was made, and its gauges. The fields have the names of `struct tcp_sock`, and
    /// their units; times without a unit are in jiffies.
    "reading" Reading {
        /// Payload bytes, retransmissions included.
        bytes_sent: u64,
        /// Payload bytes that were retransmitted.
        bytes_retrans: u64,
        /// Acknowledged sequence numbers: payload, SYN and FIN.
        bytes_acked: u64,
        /// Received payload bytes.
        bytes_received: u64,
        /// Segments sent.
        segs_out: u32,
        /// Segments received.
        segs_in: u32,
        /// Segments sent with payload.
        data_segs_out: u32,
        /// Segments received with payload.
        data_segs_in: u32,
        /// Retransmitted segments.
        total_retrans: u32,
        /// Segments that were marked lost.
        lost: u32,
        /// Segments that the peer has acknowledged.
        delivered: u32,
        /// Of these, segments acknowledged with ECE.
        delivered_ce: u32,
        /// Segments that the peer says it had twice.
        dsack_dups: u32,
        /// Reorderings that the sender has seen.
        reord_seen: u32,
        /// Segments received out of order.
        rcv_ooopack: u32,
        /// Segments received and thrown away; of a listener: dropped connections.
        drops: u32,
        /// Timeouts.
        total_rto: u32,
        /// Time in recovery from timeouts, milliseconds.
        total_rto_time: u32,
        /// Busy time that neither of the next two limits has.
        free: u32,
        /// Busy time limited by the peer's window.
        rwnd_limited: u32,
        /// Busy time limited by the send buffer.
        sndbuf_limited: u32,
        /// Smoothed round-trip time, 8 times the microseconds; 0: not measured.
        srtt_us: u32,
        /// Its deviation, 4 times the microseconds.
        mdev_us: u32,
        /// The least round-trip time of the last five minutes; all bits set: not measured.
        min_rtt_us: u32,
        /// Congestion window, segments.
        snd_cwnd: u32,
        /// Slow start threshold, segments.
        snd_ssthresh: u32,
        /// Segment size, bytes.
        mss: u32,
        /// The peer's window, bytes.
        snd_wnd: u32,
        /// The own window, bytes.
        rcv_wnd: u32,
        /// Bytes sent and not acknowledged.
        unacked: u32,
        /// Bytes not sent yet.
        unsent: u32,
        /// Bytes received that the process has not read.
        unread: u32,
        /// Size of the send buffer.
        sndbuf: u32,
        /// Size of the receive buffer.
        rcvbuf: u32,
        /// Time since data were sent.
        since_sent: u32,
        /// Time since data were received.
        since_received: u32,
        /// Time since an acknowledgement came.
        since_acked: u32,
        /// Connections that wait for accept().
        queue: u32,
        /// How many connections may wait.
        backlog: u32,
        /// `enum reading_of`; see [`ReadingOf`].
        of: u8,
        /// `enum tcp_chrono`: the kind of waiting that goes on; 0: none.
        limit: u8,
        /// 1: the kernel counts timeouts.
        has_timeouts: u8,
        /// 1: the socket was locked meanwhile.
        locked: u8,
        /// 1: the next two are known.
        has_windows: u8,
        /// Padding.
        zero: [u8; 7],
        /// How often the own window was shut.
        zero_windows: u32,
        /// The time for which the own window was shut, in jiffies.
        zero_window_time: u32,
    }
}

mirror_enum! {
    /// The reason why the ledger reads a connection or a listener.
    "account_why" AccountWhy: u8 {
        /// The connection is open when xctl starts or ends, or at a tick.
        Open = 0 "ACCOUNT_OPEN",
        /// The connection ended.
        Ended = 1 "ACCOUNT_ENDED",
        /// Another process takes the connection.
        Taken = 2 "ACCOUNT_TAKEN",
    }
}

mirror! {
    /// The counters of a connection or a listener until now, and its owner until now.
    "account" Account {
        /// The four-tuple.
        flow: Flow,
        /// The owner until now.
        owner: Owner,
        /// The counters since the connection was made.
        reading: Reading,
        /// The socket's kernel address, which is never printed.
        socket: u64,
        /// The time, ns of CLOCK_MONOTONIC.
        mono_ns: u64,
        /// Of a connection that ended: why, as an errno (`sk_err`); 0: it was closed.
        err: u32,
        /// Inode number of the namespace's rtnetlink socket, as in `netns_key`; 0 without `by_netns`.
        rtnl: u32,
        /// `enum account_why`; see [`AccountWhy`].
        why: u8,
        /// Socket state, by number; of a connection that ended, the last one before `TCP_CLOSE`.
        state: u8,
        /// 1: it passes the filters.
        wanted: u8,
        /// 1: a subflow of MPTCP.
        mptcp: u8,
        /// Padding.
        zero: [u8; 4],
    }
}

impl Account {
    /// Why the ledger has read the connection. A number that this program does not know counts as [`AccountWhy::Open`].
    #[must_use]
    pub fn why(&self) -> AccountWhy {
        AccountWhy::ALL.get(usize::from(self.why)).copied().unwrap_or(AccountWhy::Open)
    }

    /// Whether the connection never left `SYN_RECV` and has no data. Most often, another ACK of its handshake was faster on
    /// another CPU, so that nobody can accept this one. It carries the retransmitted SYN-ACKs of its request, which the other
    /// connection carries too. With TCP Fast Open a connection in this state has received data.
    #[must_use]
    pub fn lost_race(&self) -> bool {
        self.state == SYN_RECV && self.reading.bytes_received == 0 && self.reading.bytes_sent == 0
    }
}

impl Reading {
    /// The kind of socket. A number that this program does not know counts as [`ReadingOf::Nothing`].
    #[must_use]
    pub fn of(&self) -> ReadingOf {
        ReadingOf::ALL.get(usize::from(self.of)).copied().unwrap_or(ReadingOf::Nothing)
    }
}
