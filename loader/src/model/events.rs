//! The layouts of `bpf-src/events.h`: the records that the programs write, and the settings that the programs read.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv6Addr};

pub use super::enums::{Counter, CutWhy, How, Kind, KnownBy};
pub use super::mirror::Plain;
use super::mirror::{Field, Mirror, mirror, plain_arrays};
use super::network::Network;
pub use super::tcp::state_name;

/// Bytes of a task's name, with its NUL (TASK_COMM_LEN).
pub const COMM_LEN: usize = 16;

/// The number of entries in a table by [`Kind`].
pub const KINDS: usize = 8;

/// The number of entries in a table by [`CutWhy`].
pub const CUTS: usize = 8;

mirror! {
    /// A four-tuple in its network namespace, as this host sees it.
    "flow" Flow {
        /// Local address, network order; IPv4 as ::ffff:a.b.c.d.
        saddr: [u8; 16],
        /// Remote address, in the same format.
        daddr: [u8; 16],
        /// 0, the socket's kernel address, or the inode number of its file. `known_by` tells which of these it is.
        socket: u64,
        /// Inode number of the network namespace.
        netns: u32,
        /// Local port, host order.
        sport: u16,
        /// Remote port, host order.
        dport: u16,
        /// `enum known_by`; see [`KnownBy`].
        known_by: u8,
        /// Padding.
        zero: [u8; 7],
    }
}

mirror! {
    /// The process behind a socket.
    "owner" Owner {
        /// The socket that the entry belongs to: its kernel address or the inode number of its file, as `known_by`
        /// says.
        socket: u64,
        /// The start time of the process, ns of CLOCK_BOOTTIME. In entries that are seeded from /proc, the start time
        /// has steps of 10 ms.
        born: u64,
        /// Address of the process's `struct pid`, or 0. Only the programs use this address.
        struct_pid: u64,
        /// cgroup v2 id.
        cgroup: u64,
        /// The key of the list of the socket's holders, if several processes held it at the start; else 0.
        holders: u64,
        /// The time at which the socket got its first entry, ns of CLOCK_MONOTONIC; 0: not known.
        since: u64,
        /// The number of the inode that was made together with the socket's `struct socket`, or 0. Only the programs use it.
        own_inode: u64,
        /// The process id, in the initial PID namespace.
        tgid: u32,
        /// The thread that last acted on the socket.
        tid: u32,
        /// User id, in the initial user namespace.
        uid: u32,
        /// `enum how`; see [`How`].
        how: u8,
        /// 1: the thread is inside the cgroup that was asked for.
        in_cgroup: u8,
        /// 1: the process had been reaped by the time of the event.
        gone: u8,
        /// `enum known_by`; see [`KnownBy`].
        known_by: u8,
        /// The process's name, NUL-terminated.
        comm: [u8; COMM_LEN],
    }
}

mirror! {
    /// The beginning of every record.
    "event_header" Header {
        /// The time of the event, ns of CLOCK_MONOTONIC.
        mono_ns: u64,
        /// `enum event_type`.
        kind: u32,
        /// The id of the CPU on which the event happened.
        cpu: u32,
    }
}

mirror! {
    /// How many programs on one CPU began a record, and how many finished one.
    "under_way" UnderWay {
        /// How often a program began, before it took the time of its record.
        started: u64,
        /// How often a program had written its record, or lost it.
        finished: u64,
    }
}

mirror! {
    /// An event: a segment was retransmitted, or its retransmission failed.
    "retransmit_event" Retransmit {
        /// The time and the CPU of the event.
        header: Header,
        /// The connection.
        flow: Flow,
        /// The owner of the socket.
        owner: Owner,
        /// The process id of the process that softirq interrupted.
        current_tgid: u32,
        /// The name of the thread that softirq interrupted.
        current_comm: [u8; COMM_LEN],
        /// 0 or a negative errno.
        err: i32,
        /// The number of segments.
        segs: u32,
        /// Payload bytes.
        bytes: u32,
        /// Smoothed round-trip time, microseconds.
        srtt_us: u32,
        /// Congestion window, segments.
        cwnd: u32,
        /// Slow start threshold, segments.
        ssthresh: u32,
        /// Segment size, bytes.
        mss: u32,
        /// Timeouts in a row, with this one. For a SYN-ACK: how often it has been retransmitted.
        sk_retrans: u32,
        /// `enum kind`; see [`Kind`].
        kind: u8,
        /// Socket state, by number (include/net/tcp_states.h).
        state: u8,
        /// 1 if the segment carries FIN, else 0.
        fin: u8,
        /// Padding.
        zero: u8,
    }
}

mirror! {
    /// An event: a process sent.
    "send_event" Send {
        /// The time and the CPU of the event.
        header: Header,
        /// The connection.
        flow: Flow,
        /// The process that sent.
        owner: Owner,
        /// The number of bytes.
        bytes: u64,
    }
}

mirror! {
    /// An event: TCP reduced a congestion window.
    "cut_event" Cut {
        /// The time and the CPU of the event.
        header: Header,
        /// The connection.
        flow: Flow,
        /// The owner of the socket.
        owner: Owner,
        /// The congestion window before, segments; 0: not known.
        cwnd: u32,
        /// The slow start threshold after, segments; 0: not known.
        ssthresh: u32,
        /// `enum cut_why`; see [`CutWhy`].
        why: u8,
        /// Padding.
        zero: [u8; 7],
    }
}

mirror! {
    /// An event: this host dropped a packet that one of its sockets sent.
    "drop_event" Drop {
        /// The time and the CPU of the event.
        header: Header,
        /// The connection.
        flow: Flow,
        /// The owner of the socket.
        owner: Owner,
        /// The kernel's `enum skb_drop_reason`; 0: the kernel does not tell.
        reason: u32,
        /// The number of segments.
        segs: u32,
        /// Payload bytes; [`Drop::UNKNOWN`]: not known.
        bytes: u32,
        /// Socket state, by number (include/net/tcp_states.h).
        state: u8,
        /// Padding.
        zero: [u8; 3],
    }
}

mirror! {
    /// An entry of the kernel's tables of TCP sockets.
    "socket_record" SocketRecord {
        /// The socket's addresses. `socket` is the kernel address, which is never printed.
        flow: Flow,
        /// The owner of the socket.
        owner: Owner,
        /// Socket state, by number (include/net/tcp_states.h).
        state: u8,
        /// 1: the socket has a file.
        held: u8,
        /// Padding.
        zero: [u8; 6],
    }
}

mirror! {
    /// One process that holds a socket that was open before xctl started.
    "holder" Holder {
        /// The socket's address, as in [`Owner::holders`].
        socket: u64,
        /// The process id.
        tgid: u32,
        /// The inode number of the connection's network namespace; 0 for a listener or MPTCP's parent.
        netns: u32,
        /// The process's name, NUL-terminated.
        comm: [u8; COMM_LEN],
        /// 1: the socket was not remembered before.
        first: u8,
        /// Padding.
        zero: [u8; 7],
    }
}

mirror! {
    /// The key of totals by process.
    "process_key" ProcessKey {
        /// The start time of the process, as in [`Owner::born`].
        born: u64,
        /// The process id.
        tgid: u32,
        /// `enum how` plus 1, if there is no process; else 0.
        nobody: u32,
        /// 0 or 1, the value of the map EPOCH; 0 in user space.
        epoch: u32,
        /// Padding.
        zero: u32,
    }
}

impl ProcessKey {
    /// The key of the totals that an owner's events belong to.
    #[must_use]
    pub fn of(owner: &Owner) -> Self {
        let nobody = if owner.is_process() { 0 } else { u32::from(owner.how) + 1 };
        Self { born: owner.born, tgid: owner.tgid, nobody, ..Self::default() }
    }
}

mirror! {
    /// A network namespace. The key distinguishes the namespace from earlier namespaces with the same number.
    "netns_key" NetnsKey {
        /// The inode number, which identifies the namespace.
        inum: u32,
        /// Inode number of the namespace's rtnetlink socket; 0 if it is not known.
        rtnl: u32,
    }
}

mirror! {
    /// The counts of the programs in the kernel.
    "totals" Totals {
        /// Segments by [`Kind`].
        segs: [u64; KINDS],
        /// Payload bytes.
        bytes: u64,
        /// Retransmissions that were sent.
        retransmits: u64,
        /// Segments of failed attempts, as the kernel counts them in TCPRetransFail.
        failed: u64,
        /// Failed attempts, for any reason.
        failures: u64,
        /// Expirations of retransmission timers; by network namespace only.
        timeouts: u64,
        /// Timeouts after which the kernel ended the connection; by network namespace only.
        timer_ends: u64,
        /// Packets that this host dropped.
        drops: u64,
        /// The segments of these packets.
        dropped_segs: u64,
        /// Their payload bytes.
        dropped_bytes: u64,
        /// Reductions of congestion windows, by [`CutWhy`].
        cuts: [u32; CUTS],
        /// The process's cgroup (v2 id); 0: there is no process.
        cgroup: u64,
        /// The process's name, NUL-terminated.
        comm: [u8; COMM_LEN],
    }
}

plain_arrays!([u8; COMM_LEN]);

/// The most values of one filter.
pub const FILTER_VALUES: usize = 8;

mirror! {
    /// The settings that the programs get before they are loaded.
    "settings" Settings {
        /// The filter by address, local or remote. The list of a filter ends at its first 0; an empty list lets everything pass.
        networks: [Network; FILTER_VALUES],
        /// The filter by cgroup: v2 ids.
        cgroups: [u64; FILTER_VALUES],
        /// The filter by process name.
        comms: [[u8; COMM_LEN]; FILTER_VALUES],
        /// The depths of `cgroups` (the root is 0).
        cgroup_levels: [u32; FILTER_VALUES],
        /// The filter by network namespace: inode numbers.
        netns: [u32; FILTER_VALUES],
        /// The filter by process: its id.
        tgids: [u32; FILTER_VALUES],
        /// The filter by port, local or remote, host order.
        ports: [u32; FILTER_VALUES],
        /// The first address of `__tcp_transmit_skb()`; 0: not known, as the next five.
        transmit_from: u64,
        /// The first address behind it.
        transmit_to: u64,
        /// The first address of `tcp_try_to_open()`, or of the function that it is a part of.
        marks_from: u64,
        /// The first address behind it.
        marks_to: u64,
        /// The first address of `tcp_ack()`.
        ack_from: u64,
        /// The first address behind it.
        ack_to: u64,
        /// The number of slots of SK_CACHE, a power of two, minus one.
        cache_mask: u32,
        /// The filter by address family: 4 or 6; 0: both.
        family: u8,
        /// The filter by kind: a mask of 1 << [`Kind`]; 0: all.
        kinds: u8,
        /// 1: emit retransmits.
        retransmits: u8,
        /// 1: emit sends.
        sends: u8,
        /// 1: only inet_sock_set_state shows connect() and listen().
        births_by_state: u8,
        /// 1: count by network namespace too.
        by_netns: u8,
        /// 1: SOCKET_TO_PID may have entries under inode numbers.
        by_inode: u8,
        /// 1: write accounts.
        ledger: u8,
        /// 1: the end of a connection is an event too, and wakes the reader.
        connections: u8,
        /// 1: emit cuts of congestion windows.
        cuts: u8,
        /// 1: count how often and how long windows are shut.
        reader: u8,
        /// 1: count retransmits by process, also if none is emitted.
        totals: u8,
        /// 1: emit and count drops.
        drops: u8,
        /// Padding.
        zero: [u8; 7],
    }
}

/// An address in its usual form; an IPv4-mapped address becomes an IPv4 address.
#[must_use]
pub fn address(bytes: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(bytes).to_canonical()
}

/// A task's name as text. The name may hold any bytes; bytes that are not UTF-8 are replaced.
#[must_use]
pub fn comm(bytes: &[u8; COMM_LEN]) -> Cow<'_, str> {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(COMM_LEN);
    String::from_utf8_lossy(&bytes[..end])
}

impl Owner {
    /// The reason why this owner is known. A number that this program does not know counts as [`How::Unknown`].
    #[must_use]
    pub fn how(&self) -> How {
        How::ALL.get(usize::from(self.how)).copied().unwrap_or(How::Unknown)
    }

    /// Whether the owner is a process.
    #[must_use]
    pub fn is_process(&self) -> bool {
        !matches!(self.how(), How::Unknown | How::Kernel | How::Shared)
    }
}

impl Retransmit {
    /// The reason of the retransmission. A number that this program does not know counts as [`Kind::Other`].
    #[must_use]
    pub fn kind(&self) -> Kind {
        Kind::ALL.get(usize::from(self.kind)).copied().unwrap_or(Kind::Other)
    }
}

impl Drop {
    /// The value of `bytes` if the packet's headers were not found.
    pub const UNKNOWN: u32 = u32::MAX;

    /// Payload bytes; none: not known.
    #[must_use]
    pub fn payload(&self) -> Option<u32> {
        Some(self.bytes).filter(|bytes| *bytes != Self::UNKNOWN)
    }
}

impl Cut {
    /// The reason. A number that this program does not know counts as [`CutWhy::Unknown`].
    #[must_use]
    pub fn why(&self) -> CutWhy {
        CutWhy::ALL.get(usize::from(self.why)).copied().unwrap_or(CutWhy::Unknown)
    }
}

#[cfg(test)]
mod tests;
