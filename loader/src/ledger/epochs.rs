//! Totals by process, for a run of any length. The programs' table has little room, so its entries move to a table in
//! user space.
//!
//! The programs count under an epoch, 0 or 1, and xctl switches the epoch from time to time. The entries of the
//! previous epoch are moved when the next switch is due. No program adds to these entries any more by then. A program
//! reads the epoch and adds within microseconds, and [`SOONEST`] has passed in between. Kernels that preempt programs
//! do so inside an RCU read-side section, and such a section does not last that long either. A virtual CPU that stands still
//! for longer than that, between these two steps of a program, can lose what this program adds.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use anyhow::Result;
use bpf_object::sort;

use crate::ledger::summary::{ByProcess, Others, add_totals, growth, has_row};
use crate::model::events::{ProcessKey, Totals};

/// The duration of an epoch, while events arrive.
const EPOCH: Duration = Duration::from_secs(1);

/// The minimum duration of an epoch, if many events arrive.
const SOONEST: Duration = Duration::from_millis(100);

/// The number of events that make an epoch short, since each event may belong to another process. The programs' table
/// has room for 4,096 entries.
const MANY: usize = 1024;

/// The tables that the programs write: the totals by process, and the owners of sockets.
pub trait Table {
    /// Let the programs count under this epoch from now on.
    ///
    /// # Errors
    /// If a map cannot be written.
    fn count_under(&self, epoch: u32) -> Result<()>;
    /// The entries that were not taken yet. The entries are exact even if events were lost.
    ///
    /// # Errors
    /// If a map cannot be read.
    fn by_process(&self) -> Result<Vec<(ProcessKey, Totals)>>;
    /// The PIDs of the owners of open sockets.
    ///
    /// # Errors
    /// If a map cannot be read.
    fn owners(&self) -> Result<HashSet<u32>>;
    /// Take the entries of this epoch out of the table. The programs must count under the other epoch.
    ///
    /// # Errors
    /// If a map cannot be read or written.
    fn take(&self, epoch: u32) -> Result<Vec<(ProcessKey, Totals)>>;
}

/// The sums so far, and the current epoch.
#[derive(Debug)]
pub struct Moving {
    by_process: ByProcess,
    /// The sum of the rows that were folded.
    others: Others,
    epoch: u32,
    /// The start of the epoch; none if nothing was counted under it and no entries of the other epoch are left.
    since: Option<Instant>,
    /// Events in this epoch.
    events: usize,
    /// Whether entries of the other epoch are still to be moved.
    other: bool,
    /// The gain of each process since [`Moving::gain`] was last called; none: nobody calls it.
    gained: Option<Gained>,
}

/// Add an entry of the table, whatever its epoch, to the sums of its process.
fn add(sums: &mut ByProcess, key: &ProcessKey, totals: &Totals) {
    add_totals(sums.entry(ProcessKey { epoch: 0, ..*key }).or_default(), totals);
}

/// The gain of each process, by the entries of the table as they were read last.
#[derive(Debug, Default)]
struct Gained {
    by_process: ByProcess,
    seen: HashMap<ProcessKey, Totals>,
}

impl Gained {
    /// Add the growth of an entry since it was read last.
    fn add(&mut self, key: &ProcessKey, totals: &Totals) {
        let seen = self.seen.insert(*key, *totals);
        if seen != Some(*totals) {
            add(&mut self.by_process, key, &growth(totals, &seen.unwrap_or_default()));
        }
    }
}

impl Moving {
    /// Start with no sums. With `by_interval`, [`Moving::gain`] is called from time to time.
    #[must_use]
    pub fn new(by_interval: bool) -> Self {
        let (by_process, others, gained) = (ByProcess::new(), Others::default(), by_interval.then(Gained::default));
        Self { by_process, others, epoch: 0, since: None, events: 0, other: false, gained }
    }

    /// The sums of the entries that were moved.
    pub(super) fn by_process(&self) -> &ByProcess {
        &self.by_process
    }

    pub(super) fn add(&mut self, key: &ProcessKey, totals: &Totals) {
        add(&mut self.by_process, key, totals);
    }

    /// Add this process's row, if there is one, to those of the others. `in_ledger`: the process also has figures in the ledger.
    pub(super) fn fold(&mut self, key: &ProcessKey, in_ledger: bool) {
        let totals = self.by_process.remove(key).unwrap_or_default();
        add_totals(&mut self.others.totals, &totals);
        self.others.rows += u64::from(in_ledger || has_row(&totals));
    }

    /// Note that events of processes arrived, which the programs have counted.
    pub fn note(&mut self, events: usize) {
        if events > 0 {
            self.events += events;
            self.since.get_or_insert_with(Instant::now);
        }
    }

    /// The time at which [`Moving::go_on`] has work to do; none as long as no events arrive.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.since.map(|since| since + if self.events > MANY { SOONEST } else { EPOCH })
    }

    /// If a switch is due, move the entries of the other epoch, and switch to that epoch.
    ///
    /// # Errors
    /// If a map cannot be read or written.
    pub fn go_on(&mut self, table: &impl Table) -> Result<()> {
        let now = Instant::now();
        if self.due().is_none_or(|due| now < due) {
            return Ok(());
        }
        let other = 1 - self.epoch;
        if std::mem::take(&mut self.other) {
            for (key, totals) in &table.take(other)? {
                if let Some(gained) = &mut self.gained {
                    gained.add(key, totals);
                    gained.seen.remove(key);
                }
                self.add(key, totals);
            }
        }
        self.since = None;
        if self.events > 0 {
            table.count_under(other)?;
            (self.epoch, self.other, self.events, self.since) = (other, true, 0, Some(now));
        }
        Ok(())
    }

    /// The gain of each process since the last call. It is empty without `by_interval`.
    ///
    /// # Errors
    /// If a map cannot be read.
    pub fn gain(&mut self, table: &impl Table) -> Result<ByProcess> {
        let Some(gained) = &mut self.gained else { return Ok(ByProcess::new()) };
        let mut left = table.by_process()?;
        // As in `finish`: the newer name is added last.
        sort::by_key(&mut left, |(key, _)| key.epoch == self.epoch);
        left.iter().for_each(|(key, totals)| gained.add(key, totals));
        let gain = std::mem::take(&mut gained.by_process);
        // The table fills also if no event is printed.
        self.note(gain.len());
        Ok(gain)
    }

    /// All sums, including the entries that were not moved yet.
    ///
    /// # Errors
    /// If a map cannot be read.
    pub fn finish(mut self, table: &impl Table) -> Result<(ByProcess, Others)> {
        let mut left = table.by_process()?;
        // A row keeps the name that was added last, so the older epoch is added first.
        sort::by_key(&mut left, |(key, _)| key.epoch == self.epoch);
        left.iter().for_each(|(key, totals)| self.add(key, totals));
        Ok((self.by_process, self.others))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    fn key(tgid: u32) -> ProcessKey {
        ProcessKey { tgid, ..ProcessKey::default() }
    }

    /// A table in memory, which counts under an epoch.
    #[derive(Default)]
    struct Memory {
        entries: RefCell<HashMap<ProcessKey, Totals>>,
        epoch: Cell<u32>,
    }

    impl Memory {
        /// Count a segment of this process.
        fn count(&self, tgid: u32) {
            let key = ProcessKey { epoch: self.epoch.get(), ..key(tgid) };
            self.entries.borrow_mut().entry(key).or_default().segs[1] += 1;
        }
    }

    impl Table for Memory {
        fn count_under(&self, epoch: u32) -> Result<()> {
            self.epoch.set(epoch);
            Ok(())
        }

        fn by_process(&self) -> Result<Vec<(ProcessKey, Totals)>> {
            Ok(self.entries.borrow().iter().map(|(key, totals)| (*key, *totals)).collect())
        }

        fn owners(&self) -> Result<HashSet<u32>> {
            Ok(HashSet::new())
        }

        fn take(&self, epoch: u32) -> Result<Vec<(ProcessKey, Totals)>> {
            let taken = self.by_process()?.into_iter().filter(|(key, _)| key.epoch == epoch).collect();
            self.entries.borrow_mut().retain(|key, _| key.epoch != epoch);
            Ok(taken)
        }
    }

    #[test]
    fn gains_add_up_whenever_they_are_asked_for_and_entries_move() {
        let (table, mut moving) = (Memory::default(), Moving::new(true));
        let mut gained = HashMap::<u32, u64>::new();
        for step in 0..2000_u32 {
            table.count(step % 7);
            moving.note(1);
            if step % 3 == 0 {
                // The epoch is over.
                moving.since = moving.since.map(|since| since - EPOCH);
                moving.go_on(&table).unwrap();
            }
            if step % 5 == 0 {
                for (key, totals) in moving.gain(&table).unwrap() {
                    assert_eq!(key.epoch, 0);
                    *gained.entry(key.tgid).or_default() += totals.segs[1];
                }
                assert_eq!(gained.values().sum::<u64>(), u64::from(step) + 1);
            }
        }
        for (key, totals) in moving.gain(&table).unwrap() {
            *gained.entry(key.tgid).or_default() += totals.segs[1];
        }
        let (sums, _) = moving.finish(&table).unwrap();
        for (key, totals) in &sums {
            assert_eq!(gained[&key.tgid], totals.segs[1]);
        }
        assert_eq!(sums.values().map(|totals| totals.segs[1]).sum::<u64>(), 2000);
    }
}
