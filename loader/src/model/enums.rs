//! The enums of `bpf-src/events.h`, with the words for their values in the output.

use super::mirror::{MirrorEnum, mirror_enum};

mirror_enum! {
    /// The meaning of the field `socket` beside this value.
    "known_by" KnownBy: u8 {
        /// `socket` is 0: the four-tuple identifies the socket.
        Flow = 0 "BY_FLOW",
        /// `socket` is the kernel address of the socket.
        Address = 1 "BY_ADDRESS",
        /// `socket` is the inode number of the socket's file.
        Inode = 2 "BY_INODE",
    }
}

mirror_enum! {
    /// The type of a record.
    "event_type" EventType: u32 {
        /// The record is a [`Retransmit`].
        Retransmit = 1 "EVENT_RETRANSMIT",
        /// The record is a [`Send`].
        Send = 2 "EVENT_SEND",
        /// The record is a [`Cut`].
        Cut = 3 "EVENT_CUT",
        /// The record is a [`Drop`].
        Drop = 4 "EVENT_DROP",
    }
}

mirror_enum! {
    /// The place of a counter in the map LOST.
    "lost" Counter: u8 {
        /// Records that a ring had no room for.
        Perf = 0 "LOST_PERF",
        /// Records that did not reach a ring for another reason.
        Output = 1 "LOST_OUTPUT",
        /// Sockets that SOCKET_TO_PID had no room for.
        MapFull = 2 "LOST_MAP_FULL",
        /// Attempts of which a kprobe missed the beginning or the end.
        InFlight = 3 "LOST_IN_FLIGHT",
        /// Reads of kernel memory that failed.
        Read = 4 "LOST_READ",
        /// Events without an owner.
        Unknown = 5 "LOST_UNKNOWN",
        /// Processes and namespaces that no table of totals had room for.
        Totals = 6 "LOST_TOTALS",
        /// Retransmits and cuts that only the backup program saw. They are no loss.
        RetransmitBackup = 7 "RETRANSMIT_BACKED_UP",
        /// Changes of state that only the backup program saw. Such a change is not a loss.
        StateBackup = 8 "STATE_BACKED_UP",
        /// Operations that SOCKET_TO_PID or its cache refused, for another reason than its size.
        Refused = 9 "LOST_REFUSED",
        /// Events without an owner, if a filter asks for an owner.
        Unattributed = 10 "LOST_UNATTRIBUTED",
        /// Accounts of connections that the ring of the ledger had no room for.
        Ledger = 11 "LOST_LEDGER",
        /// Drops that only the backup program saw. They are no loss.
        DropBackup = 12 "DROP_BACKED_UP",
        /// The number of counters.
        Count = 13 "LOST_KINDS",
    }
}

mirror_enum! {
    /// The reason of a retransmission.
    "kind" Kind: u8 {
        /// None of the other reasons.
        Other = 0 "KIND_OTHER",
        /// The retransmission timer expired.
        Rto = 1 "KIND_RTO",
        /// Fast retransmit, in recovery.
        Fast = 2 "KIND_FAST",
        /// Retransmit after an RTO, driven by ACKs.
        SlowStart = 3 "KIND_SLOW_START",
        /// Tail loss probe.
        Tlp = 4 "KIND_TLP",
        /// Retransmit of a SYN.
        Syn = 5 "KIND_SYN",
        /// Retransmit of a SYN-ACK.
        Synack = 6 "KIND_SYNACK",
    }
}

impl Kind {
    /// The name of the kind in the output and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Other => "other",
            Self::Rto => "rto",
            Self::Fast => "fast",
            Self::SlowStart => "slow_start",
            Self::Tlp => "tlp",
            Self::Syn => "syn",
            Self::Synack => "synack",
        }
    }
}

mirror_enum! {
    /// The reason why TCP reduced a congestion window.
    "cut_why" CutWhy: u8 {
        /// [`CutWhy::Ecn`], [`CutWhy::Local`] or [`CutWhy::Probe`]: it is not known which function reduced the window.
        Unknown = 0 "CUT_UNKNOWN",
        /// Acknowledgements showed a loss.
        Recovery = 1 "CUT_RECOVERY",
        /// The retransmission timer expired.
        Timeout = 2 "CUT_TIMEOUT",
        /// The network marked segments.
        Ecn = 3 "CUT_ECN",
        /// A queue of this host dropped a segment.
        Local = 4 "CUT_LOCAL",
        /// A smaller path MTU.
        Pmtu = 5 "CUT_PMTU",
        /// A loss probe has repaired a loss.
        Probe = 6 "CUT_PROBE",
    }
}

impl CutWhy {
    /// The word for the reason in the output; none if it is not known.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        match self {
            Self::Unknown => None,
            Self::Recovery => Some("recovery"),
            Self::Timeout => Some("timeout"),
            Self::Ecn => Some("ecn"),
            Self::Local => Some("local"),
            Self::Pmtu => Some("pmtu"),
            Self::Probe => Some("probe"),
        }
    }
}

mirror_enum! {
    /// The reason why a process counts as the owner of a socket.
    "how" How: u8 {
        /// The owner is not known.
        Unknown = 0 "HOW_UNKNOWN",
        /// The owner sent.
        Send = 1 "HOW_SEND",
        /// The owner called connect().
        Connect = 2 "HOW_CONNECT",
        /// accept() gave the owner the socket. xctl saw accept(), or saw the owner close the file that accept() opened.
        Accept = 3 "HOW_ACCEPT",
        /// The owner called listen().
        Listen = 4 "HOW_LISTEN",
        /// The owner held the socket before xctl started.
        Seed = 5 "HOW_SEED",
        /// The socket is the kernel's own.
        Kernel = 6 "HOW_KERNEL",
        /// The owner read, and no process was known before.
        Read = 7 "HOW_READ",
        /// Several processes held the socket before xctl started, and none of them has used it since.
        Shared = 8 "HOW_SHARED",
    }
}

impl How {
    /// The word for the reason in the output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Send => "send",
            Self::Connect => "connect",
            Self::Accept => "accept",
            Self::Listen => "listen",
            Self::Seed => "seed",
            Self::Kernel => "kernel",
            Self::Read => "read",
            Self::Shared => "shared",
        }
    }
}
