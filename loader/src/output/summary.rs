//! The totals of a run.

use std::collections::HashMap;

use serde::Serialize;

use crate::events::{Kind, Owner, Retransmit, comm};

/// What did not reach the user, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Lost {
    /// Records that found a ring full.
    pub perf: u64,
    /// Records that failed to reach a ring for another reason, or could not be made: a read of kernel memory failed.
    pub output: u64,
    /// Sockets that SOCKET_TO_PID had no room for.
    pub map_full: u64,
    /// Events without an owner.
    pub unknown: u64,
    /// Probe runs that the kernel skipped; none where it does not tell.
    pub missed: Option<u64>,
}

impl Lost {
    /// The ledger as name and count.
    #[must_use]
    pub fn entries(&self) -> [(&'static str, Option<u64>); 5] {
        [
            ("perf", Some(self.perf)),
            ("output", Some(self.output)),
            ("map_full", Some(self.map_full)),
            ("unknown", Some(self.unknown)),
            ("missed", self.missed),
        ]
    }
}

/// Totals of one process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Process {
    /// None: unknown, or the kernel.
    pub pid: Option<u32>,
    /// Its name when it last acted on a socket.
    pub comm: Option<String>,
    /// Retransmitted segments.
    pub segs: u64,
    /// Retransmitted payload bytes.
    pub bytes: u64,
    /// Retransmit events.
    pub retransmits: u64,
}

/// Totals of the run. Attempts that failed are not in them.
#[derive(Debug, Default)]
pub struct Summary {
    /// Retransmit events.
    pub retransmits: u64,
    /// Retransmitted segments.
    pub segs: u64,
    /// Segments by kind, in the order of [`Kind::ALL`].
    pub kinds: [u64; Kind::ALL.len()],
    /// The ledger of losses.
    pub lost: Lost,
    /// By process: PID and start, since a PID may be used twice in a run.
    processes: HashMap<(u32, u64), Process>,
}

impl Summary {
    /// Count an event.
    pub fn add(&mut self, event: &Retransmit) {
        if event.err != 0 {
            return;
        }
        let Owner { tgid, born, .. } = event.owner;
        let segs = u64::from(event.segs);
        self.retransmits += 1;
        self.segs += segs;
        self.kinds[event.kind() as usize] += segs;
        let process = self.processes.entry((tgid, born)).or_insert_with(|| Process {
            pid: event.owner.is_process().then_some(tgid),
            comm: None,
            segs: 0,
            bytes: 0,
            retransmits: 0,
        });
        if process.pid.is_some() {
            process.comm = Some(comm(&event.owner.comm));
        }
        process.segs += segs;
        process.bytes += u64::from(event.bytes);
        process.retransmits += 1;
    }

    /// The processes, worst first.
    #[must_use]
    pub fn processes(&self) -> Vec<&Process> {
        let mut all: Vec<_> = self.processes.values().collect();
        all.sort_by_key(|process| (std::cmp::Reverse((process.segs, process.bytes)), process.pid));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::How;

    fn event(tgid: u32, segs: u32, err: i32) -> Retransmit {
        let how = if tgid == 0 { How::Unknown } else { How::Send };
        let owner = Owner { tgid, how: how as u8, comm: *b"x\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", ..Owner::default() };
        Retransmit { owner, segs, err, kind: Kind::Fast as u8, bytes: segs * 100, ..Retransmit::default() }
    }

    #[test]
    fn worst_first_and_failed_attempts_nowhere() {
        let mut summary = Summary::default();
        for event in [event(1, 2, 0), event(2, 5, 0), event(1, 1, 0), event(0, 1, 0), event(1, 9, -11)] {
            summary.add(&event);
        }
        assert_eq!((summary.retransmits, summary.segs), (4, 9));
        assert_eq!(summary.kinds[Kind::Fast as usize], 9);
        let pids: Vec<_> = summary.processes().iter().map(|process| (process.pid, process.segs)).collect();
        assert_eq!(pids, [(Some(2), 5), (Some(1), 3), (None, 1)]);
    }
}
