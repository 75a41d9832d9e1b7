//! The sums of the connections of one process.

use serde::{Deserialize, Serialize};

use super::counters::{Counters, Rtt};
use crate::model::events::{COMM_LEN, Flow};
use crate::model::reading::Account;
use crate::model::tcp::error::{ECONNREFUSED, ETIMEDOUT};
use crate::model::tcp::state::{CLOSE_WAIT, ESTABLISHED};

/// Connections by their fate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fates {
    /// Open at the last tick, or at the end of the run.
    pub open: u64,
    /// Ended, in any way.
    pub ended: u64,
    /// Of these, connections that were reset: they were established, and neither end had closed them in an orderly way. The
    /// kernel counts them, and those that timed out, as `EstabResets`.
    pub reset: u64,
    /// Of these, connections whose peer did not answer.
    pub timed_out: u64,
    /// Of these, connections that the peer refused.
    pub refused: u64,
}

/// The connections of one process.
#[derive(Clone, Debug)]
pub struct Row {
    /// The process's name in its last account.
    pub comm: [u8; COMM_LEN],
    /// Its user.
    pub uid: u32,
    /// Its cgroup.
    pub cgroup: u64,
    /// The number of connections, by their fate.
    pub fates: Fates,
    /// The sums of all connections, while xctl watched them.
    pub counters: Counters,
    /// Whether the sums have all that these connections counted. If not, a connection is older than the ledger.
    pub complete: bool,
    /// The connection that waits longest in queues: with the largest round-trip time above its least.
    pub rtt: Option<(Rtt, Flow)>,
    /// When the process's first connection was seen; not before the ledger began.
    pub since_ns: u64,
    /// The part that was added since the last interval was taken.
    pub(crate) gain: Gain,
}

/// The part of a row that is of the current interval.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gain {
    fates: Fates,
    counters: Counters,
    rtt: Option<(Rtt, Flow)>,
}

/// Nothing was gained yet.
const NO_GAIN: Gain = Gain {
    fates: Fates { open: 0, ended: 0, reset: 0, timed_out: 0, refused: 0 },
    counters: Counters::ZERO,
    rtt: None,
};

impl Default for Row {
    /// A process without a connection.
    fn default() -> Self {
        Self {
            comm: [0; COMM_LEN],
            uid: 0,
            cgroup: 0,
            fates: Fates::default(),
            counters: Counters::ZERO,
            complete: true,
            rtt: None,
            since_ns: u64::MAX,
            gain: NO_GAIN,
        }
    }
}

/// The sums of several processes that have exited.
#[derive(Clone, Debug, Default)]
pub struct Folded {
    /// How many.
    pub rows: u64,
    /// Their sums.
    pub row: Row,
}

impl Row {
    /// A row with what one connection has gained since its last account.
    pub(super) fn of(account: &Account, gained: Counters, fates: Fates, begun_ns: u64) -> Self {
        let owner = &account.owner;
        // A process's socket without this time was seeded from /proc, which does not show counters.
        let known = owner.since != 0 || !owner.is_process();
        let rtt = Rtt::new(&account.reading);
        Self {
            comm: owner.comm,
            uid: owner.uid,
            cgroup: owner.cgroup,
            fates,
            counters: if known { gained } else { Counters::ZERO },
            // Nobody knows whether a connection without a process is older than the ledger.
            complete: known && owner.is_process() && owner.since > begun_ns,
            rtt: (known && rtt.srtt_us.is_some()).then_some((rtt, account.flow)),
            since_ns: owner.since.max(begun_ns),
            ..Self::default()
        }
    }

    /// The gain of the row since the last call, which was at `since_ns`.
    pub(super) fn take_interval(&mut self, since_ns: u64) -> Row {
        let Gain { fates, counters, rtt } = std::mem::replace(&mut self.gain, NO_GAIN);
        let fates = Fates { open: self.fates.open, ..fates };
        Row { fates, counters, rtt, since_ns: self.since_ns.max(since_ns), ..self.clone() }
    }

    /// Add what a connection of the same process has gained.
    pub(super) fn add(&mut self, more: &Row) {
        (self.comm, self.uid, self.cgroup) = (more.comm, more.uid, more.cgroup);
        self.fates.add(more.fates);
        self.counters += &more.counters;
        self.gain.fates.add(more.fates);
        self.gain.counters += &more.counters;
        self.complete &= more.complete;
        self.since_ns = self.since_ns.min(more.since_ns);
        if let Some((rtt, flow)) = more.rtt {
            self.note_rtt(rtt, flow);
        }
    }

    fn note_rtt(&mut self, rtt: Rtt, flow: Flow) {
        let above = |rtt: &Rtt| rtt.srtt_us.zip(rtt.min_us).map(|(srtt, min)| srtt.saturating_sub(min));
        for worst in [&mut self.rtt, &mut self.gain.rtt] {
            let larger = above(&rtt) > worst.as_ref().and_then(|(rtt, _)| above(rtt));
            if worst.is_none() || larger {
                *worst = Some((rtt, flow));
            }
        }
    }
}

impl Folded {
    /// Fold a row.
    pub(super) fn add(&mut self, row: &Row) {
        self.rows += 1;
        self.row.fates.add(row.fates);
        self.row.counters += &row.counters;
        self.row.complete &= row.complete;
        self.row.since_ns = self.row.since_ns.min(row.since_ns);
        self.row.gain.fates.add(row.gain.fates);
        self.row.gain.counters += &row.gain.counters;
    }
}

impl Fates {
    /// The fate of a connection that has ended.
    pub(super) fn of(account: &Account) -> Self {
        let timed_out = account.err == ETIMEDOUT;
        let refused = account.err == ECONNREFUSED;
        let reset = !timed_out && matches!(account.state, ESTABLISHED | CLOSE_WAIT);
        Self {
            open: 0,
            ended: 1,
            reset: reset.into(),
            timed_out: timed_out.into(),
            refused: (refused && !reset).into(),
        }
    }

    fn add(&mut self, more: Fates) {
        self.open += more.open;
        self.ended += more.ended;
        self.reset += more.reset;
        self.timed_out += more.timed_out;
        self.refused += more.refused;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fates_exclude_each_other() {
        let ended = |err, state| Fates::of(&Account { err, state, ..Account::default() });
        let one = |fates: Fates| (fates.reset, fates.timed_out, fates.refused);
        assert_eq!(one(ended(0, ESTABLISHED)), (1, 0, 0));
        assert_eq!(one(ended(104, CLOSE_WAIT)), (1, 0, 0));
        assert_eq!(one(ended(ETIMEDOUT, ESTABLISHED)), (0, 1, 0));
        assert_eq!(one(ended(ECONNREFUSED, 2)), (0, 0, 1));
        assert_eq!(one(ended(0, 9)), (0, 0, 0), "LAST_ACK: an orderly end");
    }
}
