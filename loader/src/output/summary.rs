//! The totals of a run.

use std::cmp::Reverse;
use std::collections::HashMap;

use serde::{Serialize, Serializer};

use crate::events::{How, KINDS, Kind, Owner, ProcessKey, Retransmit, Totals, comm};
use crate::verify::Report;

/// What did not reach the user, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Lost {
    /// Records that found a ring full.
    pub perf: u64,
    /// Records that failed to reach a ring for another reason, or could not be made: a read of kernel memory failed. And
    /// what a map refused to remember or to forget for another reason than its size.
    pub output: u64,
    /// Sockets that SOCKET_TO_PID had no room for.
    pub map_full: u64,
    /// Events without an owner, printed or, where one owner's are asked for, not.
    pub unknown: u64,
    /// Processes and network namespaces that the totals had no room for: with it, the summary is a lower bound.
    pub totals: u64,
    /// Probe runs that the kernel skipped; none where it does not tell.
    pub missed: Option<u64>,
}

impl Lost {
    /// The ledger as name and count.
    #[must_use]
    pub fn entries(&self) -> [(&'static str, Option<u64>); 6] {
        [
            ("perf", Some(self.perf)),
            ("output", Some(self.output)),
            ("map_full", Some(self.map_full)),
            ("unknown", Some(self.unknown)),
            ("totals", Some(self.totals)),
            ("missed", self.missed),
        ]
    }
}

/// Totals of one process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Process {
    /// None: unknown, or the kernel.
    pub pid: Option<u32>,
    /// It is none: these are sockets of the kernel's own.
    pub kernel: bool,
    /// Its name, the last that it had in an event.
    pub comm: Option<String>,
    /// Retransmitted segments.
    pub segs: u64,
    /// Retransmitted payload bytes.
    pub bytes: u64,
    /// Retransmit events.
    pub retransmits: u64,
    /// Segments by kind.
    #[serde(serialize_with = "by_name")]
    pub kinds: [u64; KINDS],
}

/// A table by kind as an object.
pub(super) fn by_name<S: Serializer>(kinds: &[u64; KINDS], to: S) -> Result<S::Ok, S::Error> {
    to.collect_map(Kind::ALL.iter().zip(kinds).map(|(kind, segs)| (kind.name(), segs)))
}

/// Totals by process while they are being counted. A PID may be used twice in a run.
pub type ByProcess = HashMap<ProcessKey, Totals>;

/// Totals of the run. Attempts that failed are not in them.
#[derive(Debug, Default)]
pub struct Summary {
    /// Retransmit events.
    pub retransmits: u64,
    /// Retransmitted segments.
    pub segs: u64,
    /// Segments by kind.
    pub kinds: [u64; KINDS],
    /// The ledger of losses.
    pub lost: Lost,
    /// By process, worst first.
    pub processes: Vec<Process>,
    /// How that compares with the kernel's counters, if it was asked for.
    pub verify: Option<Report>,
}

/// Whose totals an event belongs to.
#[must_use]
pub fn key_of(owner: &Owner) -> ProcessKey {
    let nobody = if owner.is_process() { 0 } else { u32::from(owner.how) + 1 };
    ProcessKey { born: owner.born, tgid: owner.tgid, nobody }
}

/// Count an event as the programs do, but for attempts that failed, which are of no process's summary.
pub fn add(totals: &mut Totals, event: &Retransmit) {
    totals.comm = event.owner.comm;
    if event.err != 0 {
        return;
    }
    totals.segs[event.kind() as usize] += u64::from(event.segs);
    totals.bytes += u64::from(event.bytes);
    totals.retransmits += 1;
}

impl Summary {
    /// Add up what was counted by process.
    #[must_use]
    pub fn new(by_process: &ByProcess, lost: Lost) -> Self {
        let mut summary = Self { lost, ..Self::default() };
        // A process whose attempts all failed retransmitted nothing.
        for (key, totals) in by_process.iter().filter(|(_, totals)| totals.retransmits > 0) {
            let is_process = key.nobody == 0;
            let segs = totals.segs.iter().sum();
            summary.retransmits += totals.retransmits;
            summary.segs += segs;
            for (sum, segs) in summary.kinds.iter_mut().zip(totals.segs) {
                *sum += segs;
            }
            summary.processes.push(Process {
                pid: is_process.then_some(key.tgid),
                kernel: key.nobody == How::Kernel as u32 + 1,
                comm: is_process.then(|| comm(&totals.comm)),
                segs,
                bytes: totals.bytes,
                retransmits: totals.retransmits,
                kinds: totals.segs,
            });
        }
        summary.processes.sort_by_key(|process| (Reverse((process.segs, process.bytes)), process.pid));
        summary
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(tgid: u32, segs: u32, err: i32) -> Retransmit {
        let how = if tgid == 0 { How::Unknown } else { How::Send };
        let owner = Owner { tgid, how: how as u8, comm: *b"x\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", ..Owner::default() };
        Retransmit { owner, segs, err, kind: Kind::Fast as u8, bytes: segs * 100, ..Retransmit::default() }
    }

    #[test]
    fn worst_first_and_failed_attempts_nowhere() {
        let mut by_process = ByProcess::new();
        for event in
            [event(1, 2, 0), event(2, 5, 0), event(1, 1, 0), event(0, 1, 0), event(1, 9, -11), event(3, 1, -16)]
        {
            add(by_process.entry(key_of(&event.owner)).or_default(), &event);
        }
        let summary = Summary::new(&by_process, Lost::default());
        assert_eq!((summary.retransmits, summary.segs), (4, 9));
        assert_eq!(summary.kinds[Kind::Fast as usize], 9);
        let pids: Vec<_> = summary.processes.iter().map(|process| (process.pid, process.segs)).collect();
        assert_eq!(pids, [(Some(2), 5), (Some(1), 3), (None, 1)]);
        assert_eq!((&summary.processes[2].comm, summary.processes[2].kernel), (&None, false));
        let own = Retransmit { owner: Owner { how: How::Kernel as u8, ..Owner::default() }, ..event(0, 1, 0) };
        let by_process = ByProcess::from([(key_of(&own.owner), Totals { retransmits: 1, ..Totals::default() })]);
        assert!(Summary::new(&by_process, Lost::default()).processes[0].kernel);
    }
}
