//! Sums of the counters of each process's connections and listeners, over the time of a run. An account has the counters since its
//! socket was made, so each figure here is a sum of differences between accounts of one connection.

use std::collections::HashMap;

use super::connection::Connection;
use super::counters::Counters;
use super::group::{By, Gains, Groups};
use super::row::{Fates, Folded, Row};
use crate::model::events::{How, Owner, ProcessKey};
use crate::model::reading::{Account, AccountWhy, ReadingOf};

/// The time for which an ended connection is remembered. A process that does not hold the socket's lock may be about to take
/// a connection when it ends.
const LATE_NS: u64 = 1_000_000_000;

/// If more connections than this are remembered, xctl looks for ended ones to forget.
const MANY: usize = 1024;

/// The most rows that stand for something other than processes. Each takes about 5 kB while an interval is printed.
const MOST_GROUPS: usize = 8192;

/// The most owners of subflows that are kept.
const MOST_SUBFLOWS: usize = 1 << 16;

/// One connection, however often its socket's address is used: the address, the time of the socket's first entry, and the ports.
/// Subflows of MPTCP have the time of their parent. One listener: the address, and the number of its inode.
type Life = (u64, u64, u32);

/// The state of a connection before its next account.
#[derive(Clone, Copy, Debug)]
struct Before {
    counters: Counters,
    at_ns: u64,
    ended: bool,
    /// The last tick that counted it as open; 0: none.
    tick: u64,
}

/// The time of a ledger. Each account of an open connection is of the time before the run, of a tick, or of the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The connections that are open already are read.
    Opening,
    /// The run, from this time on, ns of CLOCK_MONOTONIC.
    Running(u64),
    /// The connections that are still open are read. The ledger began at this time.
    Closing(u64),
}

/// The ledger of a run. Accounts come in the order in which the kernel wrote them.
#[derive(Debug)]
pub struct Balance {
    hz: u64,
    stage: Stage,
    /// The number of ticks that have begun, and one more at the end.
    tick: u64,
    before: HashMap<Life, Before>,
    /// The owners of subflows of MPTCP that were open at their last account, and whether they pass the filters, by the address and
    /// the ports.
    subflows: HashMap<(u64, u32), (Owner, u8)>,
    /// The rows by process.
    pub rows: HashMap<ProcessKey, Row>,
    /// The rows that were folded.
    pub folded: Folded,
    /// The start of the youngest process that was folded though it may still live; none: no process was.
    youngest_folded: Option<u64>,
    /// The rows by something else, if somebody asks for them.
    groups: Groups,
    /// If more connections than this are remembered, those that ended more than [`LATE_NS`] ago are forgotten.
    many: usize,
}

impl Balance {
    /// A ledger that has not begun: the accounts of connections that are open already come next. The kernel has `hz` jiffies in
    /// a second.
    #[must_use]
    pub fn new(hz: u64) -> Self {
        let (before, subflows, rows) = (HashMap::new(), HashMap::new(), HashMap::new());
        let (folded, youngest_folded, groups) = (Folded::default(), None, Groups::default());
        Self { hz, stage: Stage::Opening, tick: 0, before, subflows, rows, folded, youngest_folded, groups, many: MANY }
    }

    /// From now on, also keep rows that stand for something other than processes. A connection counts from its last account on.
    pub fn group(&mut self, by: By) {
        self.groups = Groups::new(by, MOST_GROUPS);
    }

    /// The kind of the groups.
    #[must_use]
    pub fn by(&self) -> By {
        self.groups.by()
    }

    /// The gain of each group since the last call, which was at `since_ns`; none: lines stand for processes.
    pub fn take_groups(&mut self, since_ns: u64) -> Option<Gains> {
        self.groups.take_interval(since_ns)
    }

    /// The ledger begins now, ns of CLOCK_MONOTONIC. All connections that were open have been read.
    pub fn begin(&mut self, now_ns: u64) {
        self.stage = Stage::Running(now_ns);
    }

    /// The ledger ends: the accounts of connections that are still open come next.
    pub fn end(&mut self) {
        self.tick();
        self.stage = Stage::Closing(self.begun_ns());
    }

    /// The sums are brought up to now: the accounts of connections that are open come next, and count each as open again.
    pub fn tick(&mut self) {
        self.tick += 1;
        for row in self.rows.values_mut().chain([&mut self.folded.row]) {
            row.fates.open = 0;
        }
        self.groups.tick();
    }

    /// The gain of each row since the last call, which was at `since_ns`; and that of the rows that were folded. Rows without a
    /// connection in that time are left out, unless a listener drops connections or lets them wait.
    pub fn take_interval(&mut self, since_ns: u64) -> (HashMap<ProcessKey, Row>, Folded) {
        let row = self.folded.row.take_interval(since_ns);
        let folded = Folded { rows: if row.is_quiet() { 0 } else { self.folded.rows }, row };
        let mut rows = HashMap::with_capacity(self.rows.len());
        let gains = self.rows.iter_mut().map(|(key, row)| (*key, row.take_interval(since_ns)));
        rows.extend(gains.filter(|(_, row)| !row.is_quiet()));
        (rows, folded)
    }

    /// When the ledger began.
    fn begun_ns(&self) -> u64 {
        match self.stage {
            Stage::Opening => u64::MAX,
            Stage::Running(begun_ns) | Stage::Closing(begun_ns) => begun_ns,
        }
    }

    /// Add an account. Returns the connection if it ended in the time of the ledger and its owner passes the filters.
    pub fn note(&mut self, account: &Account) -> Option<Connection> {
        let with_owner;
        let account = match self.owner_of_subflow(account) {
            Some((owner, wanted)) => {
                with_owner = Account { owner, wanted, ..*account };
                &with_owner
            }
            None => account,
        };
        let before = self.before.get(&life(account)).copied();
        let ended_before = before.is_some_and(|before| before.ended);
        let counted_open = before.is_some_and(|before| before.tick == self.tick && self.tick > 0);
        let is_listener = account.reading.of() == ReadingOf::Listener;
        let mut counters = Counters::new(&account.reading, self.hz);
        let (fates, ended) = match (account.why(), self.stage) {
            // The connection ended while it was read.
            (AccountWhy::Open, _) if ended_before && !is_listener => return None,
            (AccountWhy::Open, stage) if self.tick > 0 => {
                // A later tick may know the dropped bytes. At the end, unknown stays unknown.
                if matches!(stage, Stage::Running(_)) {
                    let seen = before.map_or(Counters::ZERO, |before| before.counters);
                    counters.local_bytes = counters.local_bytes.or(seen.local_bytes);
                }
                // It is counted once, even if the map showed it twice.
                (Fates { open: u64::from(!counted_open), ..Fates::default() }, false)
            }
            // Of the time before the ledger.
            (AccountWhy::Open, _) => {
                self.remember(account, counters, false);
                return None;
            }
            (AccountWhy::Ended, _) if account.mono_ns <= self.begun_ns() => {
                self.remember(account, counters, true);
                return None;
            }
            (AccountWhy::Taken, _) if account.mono_ns <= self.begun_ns() => return None,
            (AccountWhy::Ended, _) if account.lost_race() => return None,
            (AccountWhy::Ended, _) => (Fates::of(account), true),
            (AccountWhy::Taken, _) => (Fates::default(), ended_before),
        };
        // If a subflow of MPTCP ended, the next at its address may have its ports too, and so the same life. But its counters have
        // begun from nothing.
        let is_other = ended_before && account.why() == AccountWhy::Ended && !is_listener;
        let from = before.filter(|_| !is_other);
        if is_listener && from.is_none() && account.owner.since <= self.begun_ns() {
            // Nobody knows what it dropped before. Its next account counts from this one on.
            self.remember(account, counters, ended);
            return None;
        }
        let mut seen = from.map_or(Counters::ZERO, |before| before.counters);
        let gained = counters.since(&seen);
        // Two CPUs may write accounts in the other order than they read the counters. What was counted once does not count
        // again after a smaller reading.
        seen += &gained;
        self.remember(account, Counters { local_bytes: counters.local_bytes, ..seen }, ended);
        if account.wanted == 0 {
            return None;
        }
        let fates = if is_listener { Fates::default() } else { fates };
        let row = Row::of(account, gained, fates, self.begun_ns());
        let closes = account.why() == AccountWhy::Ended && counted_open && !is_listener;
        let key = ProcessKey::of(&account.owner);
        let of_process = self.rows.entry(key).or_insert_with(|| {
            let may_lack = key.nobody == 0 && self.youngest_folded.is_some_and(|youngest| key.born <= youngest);
            Row { complete: !may_lack, ..Row::default() }
        });
        let of_group = self.groups.row_of(account, row.fates != Fates::default());
        for sums in [Some(of_process), of_group].into_iter().flatten() {
            sums.add(&row);
            sums.fates.open -= u64::from(closes).min(sums.fates.open);
        }
        if is_listener {
            return None;
        }
        // The row has nothing of the time in which another process owned the connection.
        let since_ns = from.map_or(row.since_ns, |before| before.at_ns.max(row.since_ns));
        let row = Row { since_ns, complete: row.complete && from.is_none(), ..row };
        (account.why() == AccountWhy::Ended).then(|| Connection::new(account, row))
    }

    /// The owner of a subflow that has ended without one, and whether it passes the filters. If a connection of MPTCP is reset,
    /// its parent ends before its subflows (`mptcp_do_fastclose()`), and their owner with it. None: the account has its owner, or
    /// none was known before.
    fn owner_of_subflow(&mut self, account: &Account) -> Option<(Owner, u8)> {
        let place = (account.socket, ports(account));
        match account.why() {
            // The entry that was found is the parent's.
            AccountWhy::Open if account.owner.socket != account.socket => {
                // The ends of most were lost, if there are so many.
                if self.subflows.len() >= MOST_SUBFLOWS {
                    self.subflows.clear();
                }
                self.subflows.insert(place, (account.owner, account.wanted));
                None
            }
            AccountWhy::Ended if !self.subflows.is_empty() => {
                self.subflows.remove(&place).filter(|_| account.owner.how() == How::Unknown)
            }
            _ => None,
        }
    }

    /// The connection's next account counts from this one on.
    fn remember(&mut self, account: &Account, counters: Counters, ended: bool) {
        let now_ns = account.mono_ns;
        let tick = if account.why() == AccountWhy::Open { self.tick } else { 0 };
        self.before.insert(life(account), Before { counters, at_ns: now_ns, ended, tick });
        if self.before.len() > self.many {
            self.before.retain(|_, before| !before.ended || before.at_ns + LATE_NS > now_ns);
            self.many = MANY.max(self.before.len() * 2);
        }
    }

    /// Fold the row of this process. Returns whether it had one with figures. `may_live`: the process may get a row again.
    pub(super) fn fold(&mut self, key: &ProcessKey, may_live: bool) -> bool {
        if may_live {
            self.youngest_folded = self.youngest_folded.max(Some(key.born));
        }
        let row = self.rows.remove(key);
        let has_figures = row.as_ref().is_some_and(|row| !row.is_quiet());
        row.iter().for_each(|row| self.folded.add(row));
        has_figures
    }
}

fn ports(account: &Account) -> u32 {
    u32::from(account.flow.sport) << 16 | u32::from(account.flow.dport)
}

fn life(account: &Account) -> Life {
    let Owner { since, own_inode, .. } = account.owner;
    // A socket may listen again after shutdown(). The kernel keeps its count of drops, and its inode.
    let listens = account.reading.of() == ReadingOf::Listener && own_inode != 0;
    if listens { (account.socket, own_inode, 0) } else { (account.socket, since, ports(account)) }
}

#[cfg(test)]
mod tests;
