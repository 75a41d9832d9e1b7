//! The connections of a ledger, grouped by something other than their process: for `xctl top --by`.

use std::collections::HashMap;

use super::row::{Folded, Row};
use crate::model::events::{Flow, ProcessKey};
use crate::model::reading::{Account, ReadingOf};

/// The meaning of a row of `xctl top`: the thing that it stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum By {
    /// A process.
    #[default]
    Process,
    /// A connection, for as long as one process owns it.
    Connection,
    /// A remote address: all connections with it, of whatever process.
    Remote,
    /// The processes in a cgroup.
    Cgroup,
}

impl By {
    /// Every value, in the order in which a key chooses them.
    pub const ALL: [By; 4] = [By::Process, By::Connection, By::Remote, By::Cgroup];

    /// Its name on the command line and in records.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            By::Process => "process",
            By::Connection => "connection",
            By::Remote => "remote",
            By::Cgroup => "cgroup",
        }
    }

    /// The value after this one; after the last, the first.
    #[must_use]
    pub fn next(self) -> Self {
        let after = By::ALL.into_iter().skip_while(|by| *by != self).nth(1);
        after.unwrap_or_default()
    }
}

/// The connections that one row has the sums of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Group {
    /// One connection: its ends, and its owner.
    Connection(Flow, ProcessKey),
    /// Those with this remote address, in network order.
    Remote([u8; 16]),
    /// Those of processes in the cgroup with this id. 0: those of no process, or of one whose cgroup is not known.
    Cgroup(u64),
}

impl Group {
    /// The group of an account; none: the account is of a listener, which has no other end, or `by` asks for processes.
    fn of(by: By, account: &Account) -> Option<Self> {
        let Account { flow, owner, .. } = account;
        let is_listener = account.reading.of() == ReadingOf::Listener;
        match by {
            By::Process => None,
            By::Cgroup => Some(Self::Cgroup(if owner.is_process() { owner.cgroup } else { 0 })),
            _ if is_listener => None,
            By::Connection => {
                let Flow { saddr, daddr, netns, sport, dport, .. } = *flow;
                let ends = Flow { saddr, daddr, netns, sport, dport, ..Flow::default() };
                Some(Self::Connection(ends, ProcessKey::of(owner)))
            }
            By::Remote => Some(Self::Remote(flow.daddr)),
        }
    }
}

/// The gains of groups in an interval.
#[derive(Debug, Default)]
pub struct Gains {
    /// Each group, the owner of its connection that was counted last, and the gain.
    pub rows: Vec<(Group, ProcessKey, Row)>,
    /// The sums of the connections that had no room.
    pub folded: Folded,
}

/// The rows by group. A group without an open connection has a row until the end of its interval.
#[derive(Debug, Default)]
pub(super) struct Groups {
    by: By,
    /// The most rows. Connections of further groups are added up in one.
    most: usize,
    rows: HashMap<Group, (ProcessKey, Row)>,
    folded: Folded,
}

impl Groups {
    pub(super) fn new(by: By, most: usize) -> Self {
        Self { by, most, ..Self::default() }
    }

    pub(super) fn by(&self) -> By {
        self.by
    }

    /// The row of the group that an account belongs to: if there is no room for the group, the common one. `counts` says whether the
    /// account adds a connection.
    pub(super) fn row_of(&mut self, account: &Account, counts: bool) -> Option<&mut Row> {
        let group = Group::of(self.by, account)?;
        if self.rows.len() >= self.most && !self.rows.contains_key(&group) {
            self.folded.rows += u64::from(counts);
            return Some(&mut self.folded.row);
        }
        let (owner, row) = self.rows.entry(group).or_default();
        *owner = ProcessKey::of(&account.owner);
        Some(row)
    }

    /// The accounts of open connections come next, and count each as open again.
    pub(super) fn tick(&mut self) {
        for row in self.rows.values_mut().map(|(_, row)| row).chain([&mut self.folded.row]) {
            row.fates.open = 0;
        }
    }

    /// The gains since the last call, which was at `since_ns`; none if lines stand for processes.
    pub(super) fn take_interval(&mut self, since_ns: u64) -> Option<Gains> {
        if self.by == By::Process {
            return None;
        }
        let rows = std::mem::take(&mut self.folded.rows);
        let folded = Folded { rows, row: self.folded.row.take_interval(since_ns) };
        let gains = self.rows.iter_mut().map(|(group, (owner, row))| (*group, *owner, row.take_interval(since_ns)));
        let rows = gains.filter(|(_, _, row)| !row.is_quiet()).collect();
        self.rows.retain(|_, (_, row)| row.fates.open > 0);
        if self.folded.row.fates.open == 0 {
            self.folded.row = Row::default();
        }
        Some(Gains { rows, folded })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::counters::Counters;
    use crate::ledger::row::Fates;

    fn account(dport: u16) -> Account {
        Account { flow: Flow { dport, ..Flow::default() }, ..Account::default() }
    }

    /// Count an open connection.
    fn open(groups: &mut Groups, dport: u16) {
        let one = Row { fates: Fates { open: 1, ..Fates::default() }, ..Row::default() };
        groups.row_of(&account(dport), true).unwrap().add(&one);
    }

    fn ports(gains: &Gains) -> Vec<u16> {
        let mut ports: Vec<_> = gains
            .rows
            .iter()
            .map(|(group, ..)| match group {
                Group::Connection(flow, _) => flow.dport,
                other => panic!("{other:?}"),
            })
            .collect();
        ports.sort_unstable();
        ports
    }

    #[test]
    fn connections_without_room_are_added_up_and_ended_ones_leave() {
        let mut groups = Groups::new(By::Connection, 2);
        // As in a run: what ends is counted first, then what is open.
        groups.tick();
        (1..=2).for_each(|dport| open(&mut groups, dport));
        let counters = Counters { bytes_sent: 7, ..Counters::ZERO };
        let ended = Row { fates: Fates { ended: 1, ..Fates::default() }, counters, ..Row::default() };
        groups.row_of(&account(3), true).unwrap().add(&ended);
        groups.tick();
        let gains = groups.take_interval(0).unwrap();
        assert_eq!((gains.folded.rows, gains.folded.row.fates.ended, gains.folded.row.counters.bytes_sent), (1, 1, 7));
        groups.tick();
        (1..=4).for_each(|dport| open(&mut groups, dport));
        let gains = groups.take_interval(0).unwrap();
        assert_eq!((ports(&gains), gains.folded.rows, gains.folded.row.fates.open), (vec![1, 2], 2, 2));
        groups.tick();
        open(&mut groups, 2);
        let gains = groups.take_interval(0).unwrap();
        assert_eq!((ports(&gains), gains.folded.rows, gains.folded.row.fates.open), (vec![2], 0, 0));
        groups.tick();
        open(&mut groups, 9);
        assert_eq!(ports(&groups.take_interval(0).unwrap()), [9], "there is room again");
    }

    #[test]
    fn a_key_goes_through_all_of_them() {
        let all = std::iter::successors(Some(By::Process), |by| Some(by.next()).filter(|by| *by != By::Process));
        assert!(all.eq(By::ALL));
    }
}
