//! The limit of the tables with a row for each process, for a run of any length: rows of exited processes leave the tables.

use std::collections::{HashMap, HashSet};

use anyhow::Result;
use bpf_object::sort;

use super::balance::Balance;
use super::epochs::{Moving, Table};
use crate::model::events::ProcessKey;

/// The number of rows from which on rows of exited processes leave.
pub(super) const ROWS: usize = 1024;

/// The size of a process's rows: retransmitted segments, retransmitted payload bytes, and bytes sent.
type Size = (u64, u64, u64);

/// The limit of both tables of a run. A process leaves both at once, and only when it can count no more. So no row of the summary
/// has only a part of its process's figures.
#[derive(Debug)]
pub struct Limit {
    /// The number of rows of a table above which rows leave.
    most: usize,
    /// Whether /proc tells which processes exist. It does not in another PID namespace. There a living process without sockets may
    /// leave.
    sees_processes: bool,
}

impl Limit {
    /// No process has left yet.
    #[must_use]
    pub fn new(sees_processes: bool) -> Self {
        Self { most: ROWS, sees_processes }
    }

    /// The processes that have exited and own no socket any more, those with the least segments and bytes first; none: the tables
    /// have room. Their rows leave in [`Limit::fold`]. Before that, add all accounts that were written to the balance: those of
    /// their last sockets may be among them.
    ///
    /// # Errors
    /// If a table of the programs cannot be read.
    pub fn exited(
        &self,
        moving: &Moving,
        balance: Option<&Balance>,
        table: &impl Table,
        is_alive: impl Fn(&ProcessKey) -> bool,
    ) -> Result<Option<Vec<ProcessKey>>> {
        if rows(moving, balance) <= self.most {
            return Ok(None);
        }
        let mut sizes: HashMap<ProcessKey, Size> = HashMap::new();
        for (key, totals) in moving.by_process() {
            sizes.insert(*key, (totals.segs.iter().sum(), totals.bytes, 0));
        }
        for (key, row) in balance.iter().flat_map(|balance| &balance.rows) {
            sizes.entry(*key).or_default().2 = row.counters.bytes_sent;
        }
        let has_exited = |key: &ProcessKey| key.nobody == 0 && !(self.sees_processes && is_alive(key));
        let mut exited: Vec<_> = sizes.into_iter().filter(|(key, _)| has_exited(key)).collect();
        // A connection can outlive its process.
        let owners = table.owners()?;
        exited.retain(|(key, _)| !owners.contains(&key.tgid));
        sort::by_key(&mut exited, |(key, size)| (*size, key.born, key.tgid));
        Ok(Some(exited.into_iter().map(|(key, _)| key).collect()))
    }

    /// If a table has too many rows, fold those of the first of these processes, until a quarter of the table is free. Rows of
    /// living processes stay; the number of these is limited by the number of processes on the host.
    ///
    /// # Errors
    /// If a table of the programs cannot be read.
    pub fn fold(
        &mut self,
        exited: Vec<ProcessKey>,
        moving: &mut Moving,
        mut balance: Option<&mut Balance>,
        table: &impl Table,
    ) -> Result<()> {
        const ENOUGH: usize = ROWS / 4 * 3;
        // The row of a process stays until its last counts have moved here.
        let counted: HashSet<_> = table.by_process()?.iter().map(|(key, _)| key.tgid).collect();
        for key in exited.iter().filter(|key| !counted.contains(&key.tgid)) {
            let in_moving = moving.by_process().len() > ENOUGH && moving.by_process().contains_key(key);
            let in_ledger =
                balance.as_ref().is_some_and(|balance| balance.rows.len() > ENOUGH && balance.rows.contains_key(key));
            if in_moving || in_ledger {
                let in_ledger = balance.as_mut().is_some_and(|balance| balance.fold(key, !self.sees_processes));
                moving.fold(key, in_ledger);
            }
        }
        // Looking at each process again takes time, so this happens only once there are a quarter more rows.
        self.most = ROWS.max(rows(moving, balance.as_deref()) / 4 * 5);
        Ok(())
    }
}

/// The number of rows of the larger table.
fn rows(moving: &Moving, balance: Option<&Balance>) -> usize {
    moving.by_process().len().max(balance.map_or(0, |balance| balance.rows.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::counters::Counters;
    use crate::ledger::row::{Fates, Row};
    use crate::model::events::Totals;

    /// The entries of processes in the programs' table, and the processes with open sockets.
    #[derive(Default)]
    struct Held(Vec<(ProcessKey, Totals)>, HashSet<u32>);

    impl Table for Held {
        fn count_under(&self, _epoch: u32) -> Result<()> {
            Ok(())
        }

        fn by_process(&self) -> Result<Vec<(ProcessKey, Totals)>> {
            Ok(self.0.clone())
        }

        fn owners(&self) -> Result<HashSet<u32>> {
            Ok(self.1.clone())
        }

        fn take(&self, _epoch: u32) -> Result<Vec<(ProcessKey, Totals)>> {
            Ok(Vec::new())
        }
    }

    fn key(tgid: u32) -> ProcessKey {
        ProcessKey { tgid, born: tgid.into(), ..ProcessKey::default() }
    }

    fn segs(count: u32) -> Totals {
        let mut totals = Totals { retransmits: 1, failures: 2, ..Totals::default() };
        totals.segs[1] = count.into();
        totals
    }

    /// A row with one connection that has ended.
    fn sent(bytes: u32) -> Row {
        let counters = Counters { bytes_sent: bytes.into(), ..Counters::ZERO };
        Row { counters, fates: Fates { ended: 1, ..Fates::default() }, ..Row::default() }
    }

    struct Tables {
        limit: Limit,
        moving: Moving,
        balance: Balance,
    }

    impl Tables {
        fn new() -> Self {
            Self { limit: Limit::new(true), moving: Moving::new(false), balance: Balance::new(250) }
        }

        fn fold(&mut self, held: &Held, is_alive: impl Fn(&ProcessKey) -> bool) {
            let Self { limit, moving, balance } = self;
            if let Some(exited) = limit.exited(moving, Some(balance), held, is_alive).unwrap() {
                limit.fold(exited, moving, Some(balance), held).unwrap();
            }
        }

        /// The row by both tables.
        fn has(&self, key: ProcessKey) -> (bool, bool) {
            (self.moving.by_process().contains_key(&key), self.balance.rows.contains_key(&key))
        }
    }

    #[test]
    fn exited_processes_with_the_least_leave_both_tables_and_sums_stay() {
        let mut tables = Tables::new();
        let nobody = ProcessKey { nobody: 1, ..ProcessKey::default() };
        tables.moving.add(&nobody, &Totals::default());
        let (mut all, processes) = ((0, 0, 0), 3 * ROWS as u32);
        for tgid in 1..=processes {
            for epoch in [0, 1] {
                tables.moving.add(&ProcessKey { epoch, ..key(tgid) }, &segs(tgid));
            }
            // Every second process has a connection.
            if tgid % 2 == 0 {
                tables.balance.rows.insert(key(tgid), sent(tgid));
                all.2 += u64::from(tgid);
            }
            all = (all.0 + 2 * u64::from(tgid), all.1 + 4, all.2);
            // One process in a hundred is alive.
            tables.fold(&Held::default(), |key| key.tgid % 100 == 0);
            assert!(tables.moving.by_process().len() <= ROWS && tables.balance.rows.len() <= ROWS);
        }
        assert_eq!(tables.has(nobody), (true, false), "who owns nothing has not exited");
        assert_eq!((tables.has(key(100)), tables.has(key(101))), ((true, true), (false, false)));
        assert_eq!(tables.moving.by_process()[&key(100)].segs[1], 200, "one row, whatever the epoch");
        assert!(tables.balance.rows.keys().all(|key| tables.has(*key).0), "a process leaves both");
        let Tables { moving, balance, .. } = tables;
        let sent = balance.rows.values().chain([&balance.folded.row]).map(|row| row.counters.bytes_sent).sum();
        let (by_process, others) = moving.finish(&Held::default()).unwrap();
        assert_eq!(by_process.len() as u64 + others.rows, u64::from(processes) + 1);
        let totals = by_process.values().chain([&others.totals]);
        let (segs, failures) = totals.fold((0, 0), |(segs, failures), of| (segs + of.segs[1], failures + of.failures));
        assert_eq!((segs, failures, sent), all);
    }

    #[test]
    fn processes_that_can_count_keep_their_rows() {
        let mut tables = Tables::new();
        let many = 2 * ROWS as u32;
        (1..=many).for_each(|tgid| tables.moving.add(&key(tgid), &segs(tgid)));
        tables.fold(&Held::default(), |_| true);
        assert_eq!((tables.moving.by_process().len(), tables.limit.most), (2 * ROWS, 2 * ROWS / 4 * 5));
        tables.limit.most = ROWS;
        let entries = (1..=4).map(|tgid| (ProcessKey { epoch: 1, ..key(tgid) }, segs(1))).collect();
        tables.fold(&Held(entries, (5..=7).collect()), |_| false);
        let kept: Vec<_> = (1..=9).filter(|tgid| tables.has(key(*tgid)).0).collect();
        assert_eq!((tables.moving.by_process().len(), kept), (ROWS / 4 * 3, vec![1, 2, 3, 4, 5, 6, 7]));
    }

    #[test]
    fn only_rows_of_the_table_without_room_are_folded() {
        let mut tables = Tables::new();
        (1..=2 * ROWS as u32).for_each(|tgid| tables.moving.add(&key(tgid), &segs(tgid)));
        (1..=7).for_each(|tgid| _ = tables.balance.rows.insert(key(9000 + tgid), sent(1)));
        tables.fold(&Held::default(), |_| false);
        assert_eq!((tables.moving.by_process().len(), tables.balance.rows.len()), (ROWS / 4 * 3, 7));
    }
}
