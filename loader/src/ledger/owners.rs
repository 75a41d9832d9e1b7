//! Sums for metrics: by the name and the cgroup of processes, and never by PID, so that their number stays small. An owner may
//! lose its row. Its sums then move to a common row, so all rows together have everything, and their sum never falls.

use std::collections::HashMap;

use super::counters::Counters;
use super::summary::{Process, Summary};
use crate::model::events::KINDS;
use crate::model::lost::Lost;

/// The time without change after which an owner's sums move to the others, in ns.
const QUIET_NS: u64 = 15 * 60 * 1_000_000_000;

/// An owner: the name of its processes, and the v2 id of their cgroup. The id is none if the owner is no process, or stands for
/// several.
pub type Owner = (String, Option<u64>);

/// The sums of an owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Retransmitted segments, by kind.
    pub segs: [u64; KINDS],
    /// Retransmitted payload bytes.
    pub bytes: u64,
    /// Payload bytes, retransmissions included.
    pub sent: u64,
    /// Microseconds with data under way, by the limit: the network, the peer's window, the send buffer.
    pub limited_us: [u64; 3],
}

impl Sums {
    /// The gain of a process in an interval.
    fn of(process: &Process) -> Self {
        let tcp = process.ledger.tcp.unwrap_or(Counters::ZERO);
        let (receiver, sndbuf) = (tcp.rwnd_limited_us, tcp.sndbuf_limited_us);
        let limited_us = [tcp.busy_us.saturating_sub(receiver + sndbuf), receiver, sndbuf];
        Self { segs: process.kinds, bytes: process.bytes, sent: tcp.bytes_sent, limited_us }
    }

    fn add(&mut self, more: &Self) {
        let both = self.segs.iter_mut().chain(&mut self.limited_us).zip(more.segs.iter().chain(&more.limited_us));
        both.for_each(|(sum, more)| *sum += more);
        self.bytes += more.bytes;
        self.sent += more.sent;
    }

    fn retransmits(&self) -> bool {
        self.segs != [0; KINDS]
    }
}

/// The sums of all owners since the run began.
#[derive(Debug)]
pub struct Owners {
    /// The sums of each owner, and the time of their last change. Those of the others are in one row more.
    rows: HashMap<Owner, (Sums, u64)>,
    most: usize,
    /// Attempts that failed.
    pub failed: u64,
    /// Losses.
    pub lost: Lost,
}

impl Owners {
    /// Begin with nothing. At most so many owners have rows of their own.
    #[must_use]
    pub fn new(most: usize) -> Self {
        let rows = HashMap::from([(others(), (Sums::default(), u64::MAX))]);
        Self { rows, most, failed: 0, lost: Lost::default() }
    }

    /// Add an interval that ended at this time, in ns.
    pub fn add(&mut self, summary: &Summary, now_ns: u64) {
        (self.failed, self.lost) = (self.failed + summary.failed, summary.lost);
        for process in &summary.processes {
            let gain = Sums::of(process);
            if gain != Sums::default() {
                let owner = self.row_for(owner_of(process), gain.retransmits());
                let (sums, changed_ns) = self.rows.entry(owner).or_default();
                sums.add(&gain);
                *changed_ns = now_ns.max(*changed_ns);
            }
        }
        let quiet = |changed_ns: u64| changed_ns.saturating_add(QUIET_NS) <= now_ns;
        let quiet: Vec<_> =
            self.rows.iter().filter(|(_, (_, at))| quiet(*at)).map(|(owner, _)| owner.clone()).collect();
        quiet.iter().for_each(|owner| self.fold(owner));
    }

    /// The row that counts for an owner: its own, if there is room. An owner that retransmits takes the room of one that does
    /// not.
    fn row_for(&mut self, owner: Owner, retransmits: bool) -> Owner {
        if self.rows.contains_key(&owner) || self.rows.len() <= self.most {
            return owner;
        }
        if !retransmits {
            return others();
        }
        let idle = self.rows.iter().filter(|(_, (sums, at))| !sums.retransmits() && *at != u64::MAX);
        let idle = idle.min_by_key(|(_, (_, changed_ns))| *changed_ns).map(|(owner, _)| owner.clone());
        let Some(idle) = idle else { return others() };
        self.fold(&idle);
        owner
    }

    /// Add an owner's sums to those of the others.
    fn fold(&mut self, owner: &Owner) {
        if let Some((sums, _)) = self.rows.remove(owner) {
            self.rows.entry(others()).or_default().0.add(&sums);
        }
    }

    /// The owners and their sums, in no order.
    pub fn rows(&self) -> impl Iterator<Item = (&Owner, &Sums)> {
        self.rows.iter().map(|(owner, (sums, _))| (owner, sums))
    }
}

/// The name of the common row, which counts for all owners without a row of their own.
#[must_use]
pub fn others() -> Owner {
    ("other".into(), None)
}

fn owner_of(process: &Process) -> Owner {
    let nobody = match process {
        process if process.others.is_some() => return others(),
        process if process.kernel => "(kernel)",
        process if process.shared => "(shared)",
        _ => "(unknown)",
    };
    (process.comm.clone().unwrap_or_else(|| nobody.into()), process.cgroup)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::figures::Ledger;

    const MINUTE_NS: u64 = 60_000_000_000;

    fn process(name: &str, segs: u64, sent: u64) -> Process {
        let tcp = Counters { bytes_sent: sent, busy_us: 10, rwnd_limited_us: 3, ..Counters::ZERO };
        let mut kinds = [0; KINDS];
        kinds[1] = segs;
        let ledger = Ledger { tcp: Some(tcp), ..Ledger::default() };
        Process { comm: Some(name.into()), cgroup: Some(1), kinds, bytes: segs * 100, ledger, ..Process::default() }
    }

    fn add(owners: &mut Owners, minute: u64, processes: Vec<Process>) {
        owners.add(&Summary { processes, failed: 1, ..Summary::default() }, minute * MINUTE_NS);
    }

    fn names(owners: &Owners) -> Vec<&str> {
        let mut names: Vec<_> = owners.rows().map(|((name, _), _)| name.as_str()).collect();
        names.sort_unstable();
        names
    }

    fn sum(owners: &Owners) -> (u64, u64) {
        owners.rows().fold((0, 0), |(segs, sent), (_, sums)| (segs + sums.segs[1], sent + sums.sent))
    }

    #[test]
    fn sums_are_exact_whatever_number_of_owners() {
        let mut owners = Owners::new(3);
        for number in 0..1000 {
            add(&mut owners, 0, vec![process(&format!("p{number}"), number, 10)]);
            assert!(owners.rows().count() <= 4, "three and the others");
        }
        assert_eq!(sum(&owners), (999 * 1000 / 2, 10_000));
        assert_eq!(owners.failed, 1000);
        let (_, others) = owners.rows().find(|((name, _), _)| name == "other").unwrap();
        assert_eq!(others.limited_us, [7 * 997, 3 * 997, 0]);
    }

    #[test]
    fn who_retransmits_takes_the_room_of_who_does_not() {
        let mut owners = Owners::new(2);
        add(&mut owners, 0, vec![process("old", 0, 1), process("new", 0, 1)]);
        add(&mut owners, 1, vec![process("new", 0, 1), process("idle", 0, 1)]);
        assert_eq!(names(&owners), ["new", "old", "other"]);
        add(&mut owners, 2, vec![process("lossy", 1, 1)]);
        assert_eq!(names(&owners), ["lossy", "new", "other"]);
        assert_eq!(sum(&owners), (1, 5));
    }

    #[test]
    fn after_a_quarter_of_an_hour_without_change_an_owner_is_one_of_the_others() {
        let mut owners = Owners::new(9);
        add(&mut owners, 0, vec![process("a", 1, 5), process("b", 1, 5)]);
        add(&mut owners, 10, vec![process("b", 1, 5)]);
        add(&mut owners, 15, vec![process("c", 0, 0)]);
        assert_eq!(names(&owners), ["b", "c", "other"]);
        add(&mut owners, 60, vec![]);
        assert_eq!((names(&owners), sum(&owners)), (vec!["other"], (3, 15)));
    }

    #[test]
    fn nobody_has_a_name_that_no_process_has_in_its_cgroup() {
        let mut owners = Owners::new(9);
        let kernel = Process { kernel: true, comm: None, cgroup: None, ..process("", 1, 0) };
        let exited = Process { others: Some(7), comm: None, cgroup: None, ..process("", 1, 0) };
        add(&mut owners, 0, vec![kernel, exited, process("other", 1, 0)]);
        assert_eq!(names(&owners), ["(kernel)", "other", "other"]);
    }
}
