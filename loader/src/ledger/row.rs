//! The sums of the connections of one process.

use serde::{Deserialize, Serialize};

use super::counters::{Counters, Rtt};
use crate::model::events::{COMM_LEN, Flow};
use crate::model::reading::{Account, Reading, ReadingOf};
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

/// The connections that wait for accept() at one listener.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AcceptQueue {
    /// How many wait.
    pub queue: u32,
    /// How many may wait. The kernel lets one more wait (`sk_acceptq_is_full()`).
    pub backlog: u32,
}

impl AcceptQueue {
    /// The queue of a listener; none: this is no listener.
    fn new(reading: &Reading) -> Option<Self> {
        let is_listener = reading.of() == ReadingOf::Listener;
        is_listener.then_some(Self { queue: reading.queue, backlog: reading.backlog })
    }

    /// Whether a larger part of this queue is taken than of the other.
    fn is_fuller(self, other: Self) -> bool {
        let part = |one: Self, other: Self| u64::from(one.queue) * (u64::from(other.backlog) + 1);
        part(self, other) > part(other, self)
    }
}

/// The connections of one process, or of one group of connections.
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
    /// The connection that waits longest in queues: the one whose round-trip time is furthest above its own least.
    pub rtt: Option<(Rtt, Flow)>,
    /// The fullest accept queue at a tick, at the end of the run, and when its listener ended or got another owner; none: there
    /// was no listener.
    pub accepts: Option<AcceptQueue>,
    /// The time when the process's first connection was seen, or the beginning of the ledger if that is later: ns of
    /// CLOCK_MONOTONIC. `u64::MAX`: the process had no connection.
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
    accepts: Option<AcceptQueue>,
}

/// Nothing was gained yet.
const NO_GAIN: Gain = Gain {
    fates: Fates { open: 0, ended: 0, reset: 0, timed_out: 0, refused: 0 },
    counters: Counters::ZERO,
    rtt: None,
    accepts: None,
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
            accepts: None,
            since_ns: u64::MAX,
            gain: NO_GAIN,
        }
    }
}

/// The sums of several rows: of processes that have exited, or of connections that had no room.
#[derive(Clone, Debug, Default)]
pub struct Folded {
    /// How many.
    pub rows: u64,
    /// Their sums.
    pub row: Row,
}

impl Row {
    /// A row with what one connection or listener has gained since its last account.
    pub(super) fn of(account: &Account, gained: Counters, fates: Fates, begun_ns: u64) -> Self {
        let owner = &account.owner;
        let (comm, uid, cgroup) = (owner.comm, owner.uid, owner.cgroup);
        // A process's socket without this time was seeded from /proc, which does not show counters.
        let known = owner.since != 0 || !owner.is_process();
        let no_figures = Counters { zero_windows: None, zero_window_us: None, ..Counters::ZERO };
        let counters = if known { gained } else { no_figures };
        if let Some(accepts) = AcceptQueue::new(&account.reading) {
            // The time and the completeness of a row are those of its connections.
            return Self { comm, uid, cgroup, counters, accepts: known.then_some(accepts), ..Self::default() };
        }
        let rtt = Rtt::new(&account.reading);
        Self {
            comm,
            uid,
            cgroup,
            fates,
            counters,
            // Nobody knows whether a connection without a process is older than the ledger.
            complete: known && owner.is_process() && owner.since > begun_ns,
            rtt: (known && rtt.srtt_us.is_some()).then_some((rtt, account.flow)),
            since_ns: owner.since.max(begun_ns),
            ..Self::default()
        }
    }

    /// The gain of the row since the last call, which was at `since_ns`.
    pub(super) fn take_interval(&mut self, since_ns: u64) -> Row {
        let Gain { fates, counters, rtt, accepts } = std::mem::replace(&mut self.gain, NO_GAIN);
        let fates = Fates { open: self.fates.open, ..fates };
        Row { fates, counters, rtt, accepts, since_ns: self.since_ns.max(since_ns), ..self.clone() }
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
        note_fullest(&mut self.accepts, more.accepts);
        note_fullest(&mut self.gain.accepts, more.accepts);
    }

    /// Whether the process has no connection, drops none, and none waits for it. Most daemons only listen.
    pub(super) fn is_quiet(&self) -> bool {
        // Counters that this kernel does not have are no reason for a row.
        let known = |count: Option<u64>| count.or(Some(0));
        let known = Counters {
            total_rto: known(self.counters.total_rto),
            total_rto_time_us: known(self.counters.total_rto_time_us),
            local_bytes: known(self.counters.local_bytes),
            zero_windows: known(self.counters.zero_windows),
            zero_window_us: known(self.counters.zero_window_us),
            ..self.counters
        };
        let none_waits = self.accepts.is_none_or(|accepts| accepts.queue == 0);
        self.fates == Fates::default() && known == Counters::ZERO && none_waits
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

fn note_fullest(fullest: &mut Option<AcceptQueue>, more: Option<AcceptQueue>) {
    if let Some(more) = more
        && fullest.is_none_or(|fullest| more.is_fuller(fullest))
    {
        *fullest = Some(more);
    }
}

impl Folded {
    /// Fold a row.
    pub(super) fn add(&mut self, row: &Row) {
        self.rows += u64::from(!row.is_quiet());
        self.row.fates.add(row.fates);
        self.row.counters += &row.counters;
        self.row.complete &= row.complete;
        self.row.since_ns = self.row.since_ns.min(row.since_ns);
        self.row.gain.fates.add(row.gain.fates);
        self.row.gain.counters += &row.gain.counters;
        note_fullest(&mut self.row.accepts, row.accepts);
        note_fullest(&mut self.row.gain.accepts, row.gain.accepts);
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
    fn the_fullest_accept_queue_of_a_process_is_told() {
        let of = |queue, backlog| AcceptQueue { queue, backlog };
        let mut row = Row::default();
        for (queue, backlog) in [(0, 128), (5, 4), (100, 128), (5, 5)] {
            row.add(&Row { accepts: Some(of(queue, backlog)), ..Row::default() });
        }
        row.add(&Row::default());
        assert_eq!(row.accepts, Some(of(5, 4)));
        assert_eq!(row.take_interval(0).accepts, Some(of(5, 4)));
        row.add(&Row { accepts: Some(of(1, 4)), ..Row::default() });
        assert_eq!((row.take_interval(0).accepts, row.accepts), (Some(of(1, 4)), Some(of(5, 4))));
        assert!(!row.is_quiet() && Row { accepts: Some(of(0, 4)), ..Row::default() }.is_quiet());
    }

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
