//! The counters of losses: those of the LOST map, and those that a user sees.

use serde::{Deserialize, Serialize};

pub use super::enums::Counter;

/// The number of counters in the LOST map.
pub const COUNTERS: usize = Counter::Count as usize;

/// Every counter of the LOST map, each summed over all CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts(pub [u64; COUNTERS]);

impl Counts {
    /// The value of one counter.
    #[must_use]
    pub fn of(&self, counter: Counter) -> u64 {
        self.0[counter as usize]
    }
}

/// Losses, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Lost {
    /// Records that found a ring full.
    pub perf: u64,
    /// Records that did not reach a ring for another reason, or that could not be made because a read of kernel memory
    /// failed. Operations that a map refused for another reason than its size are counted here too.
    pub output: u64,
    /// Sockets that SOCKET_TO_PID had no room for.
    pub map_full: u64,
    /// Events that passed the filters and have no owner.
    pub unknown: u64,
    /// Events that have no owner and passed the other filters, if a filter asks for an owner. These events are not
    /// printed.
    pub unattributed: u64,
    /// Processes and network namespaces that the totals had no room for. If this is not 0, the summary is a lower
    /// bound.
    pub totals: u64,
    /// Connections and listeners whose counters are missing in the ledger, because its ring had no room; and readings of connections
    /// of MPTCP with too many subflows.
    pub ledger: u64,
    /// Probe runs that the kernel skipped; none if the kernel does not tell.
    pub missed: Option<u64>,
}

impl Lost {
    /// Each reason with its count.
    #[must_use]
    pub fn entries(&self) -> [(&'static str, Option<u64>); 8] {
        [
            ("perf", Some(self.perf)),
            ("output", Some(self.output)),
            ("map_full", Some(self.map_full)),
            ("unknown", Some(self.unknown)),
            ("unattributed", Some(self.unattributed)),
            ("totals", Some(self.totals)),
            ("ledger", Some(self.ledger)),
            ("missed", self.missed),
        ]
    }
}
