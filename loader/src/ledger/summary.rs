//! The totals of a run.

use std::cmp::Reverse;
use std::collections::HashMap;

use bpf_object::sort;
use serde::{Deserialize, Serialize, Serializer};

use super::figures::{Cuts, CutsSeen, Ledger};
use super::group::{Gains, Group};
use super::row::{Folded, Row};
use crate::model::events::{COMM_LEN, CUTS, How, KINDS, Kind, ProcessKey, Retransmit, Totals, comm};
use crate::model::lost::Lost;
use crate::verify::report::Report;

/// A row: the totals of one process, or of the [`Group`] that it stands for.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Process {
    /// The process, or none. In a row of a remote address or a cgroup: the owner of the connection that was counted last.
    #[serde(skip)]
    pub key: ProcessKey,
    /// The group that the row stands for, if not for a process. Its row has only the counters of connections.
    #[serde(skip)]
    pub group: Option<Group>,
    /// The process id. None: the process is unknown, the kernel, shared, or several processes that have exited.
    pub pid: Option<u32>,
    /// Whether these are sockets of the kernel's own, which belong to no process.
    pub kernel: bool,
    /// Whether these are sockets that several processes hold, and that none of them has used since xctl started.
    pub shared: bool,
    /// The number of rows of exited processes, or of connections without a row of their own, that this row stands for; none: the
    /// row stands for one thing.
    pub others: Option<u64>,
    /// The process's name in its last event.
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
    /// Packets of the process that this host dropped; none without `--drops`.
    pub drops: Option<Drops>,
    /// The user of the process; none if there is no process, or no ledger.
    pub uid: Option<u32>,
    /// The cgroup of the process (v2 id); none if there is no process.
    pub cgroup: Option<u64>,
    /// The path of this cgroup; none: not known.
    pub cgroup_path: Option<String>,
    /// The name of the network namespace of the connection that the row stands for; none: there is no name, or nobody asked.
    #[serde(skip)]
    pub netns_name: Option<String>,
    /// What its connections have counted.
    #[serde(flatten)]
    pub ledger: Ledger,
}

/// Packets that this host dropped before they left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drops {
    /// Packets. With segmentation offload, one packet has several segments.
    pub packets: u64,
    /// Their segments.
    pub segs: u64,
    /// Their payload bytes, as far as known.
    pub bytes: u64,
}

/// Which counts, besides retransmissions, the totals of a run have.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// The cuts of congestion windows.
    pub cuts: CutsSeen,
    /// Whether drops are counted.
    pub drops: bool,
}

/// Serialize a table by kind as an object.
pub(crate) fn by_name<S: Serializer>(kinds: &[u64; KINDS], to: S) -> Result<S::Ok, S::Error> {
    to.collect_map(Kind::ALL.iter().zip(kinds).map(|(kind, segs)| (kind.name(), segs)))
}

/// Totals by process while the run counts. Two processes of a run may have the same PID.
pub type ByProcess = HashMap<ProcessKey, Totals>;

/// The common totals of processes that have exited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Others {
    /// The number of rows of a table that were added up.
    pub rows: u64,
    /// The sums of these rows.
    pub totals: Totals,
}

/// Add totals that were counted elsewhere, and later. The last name and the last cgroup count.
pub fn add_totals(to: &mut Totals, more: &Totals) {
    (to.comm, to.cgroup) = (more.comm, more.cgroup);
    for (sum, segs) in to.segs.iter_mut().zip(more.segs) {
        *sum += segs;
    }
    to.bytes += more.bytes;
    to.retransmits += more.retransmits;
    to.failed += more.failed;
    to.failures += more.failures;
    to.drops += more.drops;
    to.dropped_segs += more.dropped_segs;
    to.dropped_bytes += more.dropped_bytes;
    for (sum, cuts) in to.cuts.iter_mut().zip(more.cuts) {
        *sum = sum.saturating_add(cuts);
    }
}

/// The totals without those that were there before.
#[must_use]
pub fn growth(now: &Totals, before: &Totals) -> Totals {
    let mut growth = *now;
    for (segs, before) in growth.segs.iter_mut().zip(before.segs) {
        *segs = segs.saturating_sub(before);
    }
    for (cuts, before) in growth.cuts.iter_mut().zip(before.cuts) {
        *cuts = cuts.saturating_sub(before);
    }
    growth.bytes = now.bytes.saturating_sub(before.bytes);
    growth.retransmits = now.retransmits.saturating_sub(before.retransmits);
    growth.failed = now.failed.saturating_sub(before.failed);
    growth.failures = now.failures.saturating_sub(before.failures);
    growth.drops = now.drops.saturating_sub(before.drops);
    growth.dropped_segs = now.dropped_segs.saturating_sub(before.dropped_segs);
    growth.dropped_bytes = now.dropped_bytes.saturating_sub(before.dropped_bytes);
    growth
}

/// Totals of the run. Failed attempts are counted in `failed` alone.
#[derive(Debug, Default)]
pub struct Summary {
    /// Retransmit events.
    pub retransmits: u64,
    /// Retransmitted segments.
    pub segs: u64,
    /// Attempts that failed.
    pub failed: u64,
    /// Segments by kind.
    pub kinds: [u64; KINDS],
    /// The ledger of losses.
    pub lost: Lost,
    /// Totals by process, the worst first.
    pub processes: Vec<Process>,
    /// The comparison with the kernel's counters, if it was asked for.
    pub verify: Option<Report>,
    /// Which counts the totals have.
    pub seen: Seen,
}

/// Count an event as the programs do, but without the counters that only `--verify` needs.
pub fn add(totals: &mut Totals, event: &Retransmit) {
    (totals.comm, totals.cgroup) = (event.owner.comm, event.owner.cgroup);
    if event.err != 0 {
        totals.failures += 1;
        return;
    }
    totals.segs[event.kind() as usize] += u64::from(event.segs);
    totals.bytes += u64::from(event.bytes);
    totals.retransmits += 1;
}

impl Summary {
    /// Add up the totals by process, and those of the processes that have exited.
    #[must_use]
    pub fn new(by_process: &ByProcess, others: &Others, lost: Lost, seen: Seen) -> Self {
        let mut summary = Self { lost, seen, ..Self::default() };
        for (key, totals) in by_process {
            summary.failed += totals.failures;
            // A process whose attempts all failed retransmitted nothing.
            if has_row(totals) {
                let cgroup = (key.nobody == 0).then_some(totals.cgroup);
                summary.push(totals, Process { cgroup, ..row_of(key, &totals.comm) });
            }
        }
        summary.failed += others.totals.failures;
        if has_row(&others.totals) {
            summary.push(&others.totals, Process { others: Some(others.rows), ..Process::default() });
        }
        summary.sort();
        summary
    }

    fn push(&mut self, totals: &Totals, row: Process) {
        let segs = totals.segs.iter().sum();
        self.retransmits += totals.retransmits;
        self.segs += segs;
        for (sum, segs) in self.kinds.iter_mut().zip(totals.segs) {
            *sum += segs;
        }
        let (bytes, retransmits, kinds) = (totals.bytes, totals.retransmits, totals.segs);
        let ledger = Ledger { cuts: Cuts::new(&totals.cuts, self.seen.cuts), ..Ledger::default() };
        let dropped = Drops { packets: totals.drops, segs: totals.dropped_segs, bytes: totals.dropped_bytes };
        let drops = self.seen.drops.then_some(dropped);
        self.processes.push(Process { segs, bytes, retransmits, kinds, drops, ledger, ..row });
    }

    /// Add what connections have counted until this time, ns of CLOCK_MONOTONIC. Processes that retransmitted nothing get rows
    /// too, except processes that only have quiet listeners. Nobody knows which process a lost account belongs to, so no row is
    /// complete if one was lost.
    pub fn add_ledger(&mut self, rows: &HashMap<ProcessKey, Row>, folded: &Folded, now_ns: u64) {
        let lost = self.lost.ledger > 0;
        let no_cuts = Cuts::new(&[0; CUTS], self.seen.cuts);
        let no_drops = self.seen.drops.then(Drops::default);
        let ledger_of =
            |row: &Row, cuts| Ledger { complete: Some(row.complete && !lost), cuts, ..Ledger::new(row, now_ns) };
        let places: HashMap<_, _> = (0..).zip(&self.processes).map(|(place, process)| (process.key, place)).collect();
        self.processes.reserve(rows.len());
        for (key, row) in rows {
            let known = places.get(key).copied();
            if known.is_none() && row.is_quiet() {
                continue;
            }
            let place = known.unwrap_or_else(|| {
                let ledger = Ledger { cuts: no_cuts.clone(), ..Ledger::default() };
                self.processes.push(Process { ledger, drops: no_drops, ..row_of(key, &row.comm) });
                self.processes.len() - 1
            });
            let is_process = key.nobody == 0;
            if let Some(process) = self.processes.get_mut(place) {
                process.uid = is_process.then_some(row.uid);
                process.cgroup = is_process.then_some(row.cgroup);
                process.ledger = ledger_of(row, std::mem::take(&mut process.ledger.cuts));
            }
        }
        if folded.rows > 0 {
            // The totals of these processes are in one row, too, which also counts processes that the ledger does not have.
            match self.processes.iter_mut().find(|process| process.others.is_some()) {
                Some(others) => others.ledger = ledger_of(&folded.row, std::mem::take(&mut others.ledger.cuts)),
                None => {
                    let ledger = ledger_of(&folded.row, no_cuts);
                    let others = Some(folded.rows);
                    self.processes.push(Process { ledger, others, drops: no_drops, ..Process::default() });
                }
            }
        }
        self.sort();
    }

    /// Put rows by group in place of those by process. The programs count retransmissions and their kinds by process alone. The
    /// segments and bytes of a group are those that its connections counted, without SYN-ACKs.
    pub fn set_groups(&mut self, gains: Gains, now_ns: u64) {
        let lost = self.lost.ledger > 0;
        let row_of = |group: Option<Group>, key: ProcessKey, row: &Row| {
            let is_process = key.nobody == 0;
            let of_connection = matches!(group, Some(Group::Connection(..)));
            let cgroup = match group {
                Some(Group::Cgroup(id)) => Some(id).filter(|id| *id != 0),
                _ => (of_connection && is_process).then_some(row.cgroup),
            };
            let named = if of_connection { row_of(&key, &row.comm) } else { Process { key, ..Process::default() } };
            let ledger = Ledger { complete: Some(row.complete && !lost), ..Ledger::new(row, now_ns) };
            let (segs, bytes) = (row.counters.retrans, row.counters.bytes_retrans);
            let uid = (of_connection && is_process).then_some(row.uid);
            Process { group, segs, bytes, uid, cgroup, ledger, ..named }
        };
        self.processes = gains.rows.into_iter().map(|(group, key, row)| row_of(Some(group), key, &row)).collect();
        if gains.folded.rows > 0 || !gains.folded.row.is_quiet() {
            let others = Some(gains.folded.rows);
            self.processes.push(Process { others, ..row_of(None, ProcessKey::default(), &gains.folded.row) });
        }
        self.sort();
    }

    /// Packets of all processes that this host dropped; none: drops are not counted.
    #[must_use]
    pub fn drops(&self) -> Option<Drops> {
        let mut sum = Drops::default();
        for Drops { packets, segs, bytes } in self.processes.iter().filter_map(|process| process.drops) {
            sum.packets = sum.packets.saturating_add(packets);
            sum.segs = sum.segs.saturating_add(segs);
            sum.bytes = sum.bytes.saturating_add(bytes);
        }
        self.seen.drops.then_some(sum)
    }

    /// Put the worst process first.
    pub(super) fn sort(&mut self) {
        let sent = |process: &Process| process.ledger.tcp.map(|tcp| tcp.bytes_sent);
        let dropped = |process: &Process| process.ledger.listener.map_or(0, |listener| listener.dropped);
        sort::by_key(&mut self.processes, |process| {
            (Reverse((process.segs, process.bytes, dropped(process), sent(process))), process.pid, process.group)
        });
    }
}

/// Whether a process retransmitted something, had a window cut, or had a packet dropped.
pub(super) fn has_row(totals: &Totals) -> bool {
    totals.retransmits > 0 || totals.drops > 0 || totals.cuts != [0; CUTS]
}

/// The row of a process that has retransmitted nothing yet.
fn row_of(key: &ProcessKey, name: &[u8; COMM_LEN]) -> Process {
    let is_process = key.nobody == 0;
    Process {
        key: *key,
        pid: is_process.then_some(key.tgid),
        kernel: key.nobody == How::Kernel as u32 + 1,
        shared: key.nobody == How::Shared as u32 + 1,
        comm: is_process.then(|| comm(name).into_owned()),
        ..Process::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::balance::Balance;
    use crate::ledger::row::{AcceptQueue, Fates};
    use crate::model::events::Owner;

    fn event(tgid: u32, segs: u32, err: i32) -> Retransmit {
        let how = if tgid == 0 { How::Unknown } else { How::Send };
        let owner = Owner { tgid, how: how as u8, comm: *b"x\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", ..Owner::default() };
        Retransmit { owner, segs, err, kind: Kind::Fast as u8, bytes: segs * 100, ..Retransmit::default() }
    }

    #[test]
    fn rows_are_sorted_worst_first_and_failed_attempts_are_separate() {
        let mut by_process = ByProcess::new();
        for event in
            [event(1, 2, 0), event(2, 5, 0), event(1, 1, 0), event(0, 1, 0), event(1, 9, -11), event(3, 1, -16)]
        {
            add(by_process.entry(ProcessKey::of(&event.owner)).or_default(), &event);
        }
        let summary = Summary::new(&by_process, &Others::default(), Lost::default(), Seen::default());
        assert_eq!((summary.retransmits, summary.segs, summary.failed), (4, 9, 2));
        assert_eq!(summary.kinds[Kind::Fast as usize], 9);
        let pids: Vec<_> = summary.processes.iter().map(|process| (process.pid, process.segs)).collect();
        assert_eq!(pids, [(Some(2), 5), (Some(1), 3), (None, 1)]);
        assert_eq!((&summary.processes[2].comm, summary.processes[2].kernel), (&None, false));
        let own = Retransmit { owner: Owner { how: How::Kernel as u8, ..Owner::default() }, ..event(0, 1, 0) };
        let by_process =
            ByProcess::from([(ProcessKey::of(&own.owner), Totals { retransmits: 1, ..Totals::default() })]);
        assert!(Summary::new(&by_process, &Others::default(), Lost::default(), Seen::default()).processes[0].kernel);
    }

    #[test]
    fn a_listener_has_a_row_only_if_something_happened_to_it() {
        let key = |tgid| ProcessKey { tgid, ..ProcessKey::default() };
        let listens = |queue| Row { accepts: Some(AcceptQueue { queue, backlog: 4 }), ..Row::default() };
        let rows = HashMap::from([(key(1), listens(0)), (key(2), listens(1)), (key(3), listens(0))]);
        let retransmitted = Totals { retransmits: 1, segs: [1; KINDS], ..Totals::default() };
        let totals = ByProcess::from([(key(3), retransmitted)]);
        let mut summary = Summary::new(&totals, &Others::default(), Lost::default(), Seen::default());
        summary.add_ledger(&rows, &Folded::default(), 1);
        let told = summary.processes.iter().map(|process| (process.pid, process.ledger.listener.map(|of| of.queue)));
        assert_eq!(told.collect::<Vec<_>>(), [(Some(3), Some(0)), (Some(2), Some(1))]);
    }

    #[test]
    fn folded_processes_have_one_row_with_their_totals_and_counters() {
        let totals = Totals { retransmits: 2, segs: [1; KINDS], ..Totals::default() };
        let row = Row { fates: Fates { ended: 5, ..Fates::default() }, ..Row::default() };
        let folded = Folded { rows: 3, row };
        let others = Others { rows: 4, totals };
        for (others, expected) in [(others, (Some(4), KINDS as u64)), (Others::default(), (Some(3), 0))] {
            let mut summary = Summary::new(&ByProcess::new(), &others, Lost::default(), Seen::default());
            summary.add_ledger(&HashMap::new(), &folded, 1);
            let [process] = &summary.processes[..] else { panic!("{:?}", summary.processes) };
            assert_eq!((process.others, process.segs), expected);
            assert_eq!(process.ledger.connections.map(|fates| fates.ended), Some(5));
        }
    }

    #[test]
    fn no_row_is_complete_if_an_account_was_lost() {
        let mut balance = Balance::new(250);
        let row = Row { fates: Fates { open: 1, ..Fates::default() }, ..Row::default() };
        balance.rows.insert(ProcessKey { tgid: 7, ..ProcessKey::default() }, row);
        balance.folded.rows = 1;
        for (ledger, complete) in [(0, true), (1, false)] {
            let lost = Lost { ledger, ..Lost::default() };
            let mut summary = Summary::new(&ByProcess::new(), &Others::default(), lost, Seen::default());
            summary.add_ledger(&balance.rows, &balance.folded, 1);
            let told: Vec<_> = summary.processes.iter().map(|process| process.ledger.complete).collect();
            assert_eq!(told, [Some(complete); 2], "{ledger} lost");
        }
    }
}
