//! The ledger of one process or connection: the fields that the ledger adds to a record.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::counters::{Counters, Rtt};
use super::row::{AcceptQueue, Fates, Row};
use super::verdict::{Check, Observed, Verdict, Word, verdict};
use crate::model::events::{CUTS, CutWhy, Flow, address};

/// The reasons for cuts of congestion windows that the hooks of a run see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CutsSeen {
    /// No cut is seen.
    #[default]
    None,
    /// Losses and timeouts.
    Losses,
    /// All cuts.
    All,
}

/// Reductions of congestion windows, by their reason. None: not known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Cuts {
    recovery: Option<u64>,
    timeout: Option<u64>,
    ecn: Option<u64>,
    local: Option<u64>,
    pmtu: Option<u64>,
    probe: Option<u64>,
    /// Those that are `ecn`, `local` or `probe`.
    unknown: Option<u64>,
}

impl Cuts {
    /// The counts of the programs. Each of `ecn`, `local` and `probe` is known only if no cut may be any of them.
    #[must_use]
    pub fn new(counts: &[u32; CUTS], seen: CutsSeen) -> Self {
        let count = |why: CutWhy| u64::from(counts[why as usize]);
        let of = |why| (seen == CutsSeen::All).then(|| count(why));
        let of_loss = |why| (seen != CutsSeen::None).then(|| count(why));
        let told = |why| of(why).filter(|_| count(CutWhy::Unknown) == 0);
        Self {
            recovery: of_loss(CutWhy::Recovery),
            timeout: of_loss(CutWhy::Timeout),
            ecn: told(CutWhy::Ecn),
            local: told(CutWhy::Local),
            pmtu: of(CutWhy::Pmtu),
            probe: told(CutWhy::Probe),
            unknown: of(CutWhy::Unknown),
        }
    }
}

/// Times at which this host's own window was shut, because the process did not read. None: not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZeroWindow {
    /// How often.
    pub times: Option<u64>,
    /// For how long, microseconds.
    pub us: Option<u64>,
}

/// The drops of a process's listeners, and the accept queue of the fullest one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// Dropped connections, and repeated SYNs and ACKs of requests.
    pub dropped: u64,
    /// Connections that wait for accept().
    pub queue: u32,
    /// How many may wait. The kernel lets one more wait.
    pub backlog: u32,
}

impl Listener {
    /// Whether it drops connections, or would drop the next one.
    #[must_use]
    pub fn is_too_slow(&self) -> bool {
        self.dropped > 0 || self.queue > self.backlog
    }
}

/// The four-tuple of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Ends {
    saddr: IpAddr,
    sport: u16,
    daddr: IpAddr,
    dport: u16,
    netns: u32,
}

/// The round-trip times of the connection that waits longest in queues.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WorstRtt {
    /// The times.
    #[serde(flatten)]
    pub rtt: Rtt,
    /// None: not known, in a record that was read back.
    connection: Option<Ends>,
}

impl From<Rtt> for WorstRtt {
    fn from(rtt: Rtt) -> Self {
        Self { rtt, connection: None }
    }
}

/// The counters of a connection, or of a process's connections, and the verdict about them. Everything is null if this kernel
/// has no ledger.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Ledger {
    /// The number of connections, by their fate.
    pub connections: Option<Fates>,
    /// How long the process was watched.
    pub observed_us: Option<u64>,
    /// Whether the counters have all that these connections counted.
    pub complete: Option<bool>,
    /// The counters.
    pub tcp: Option<Counters>,
    pub(super) local_dropped_bytes: Option<u64>,
    /// The connection that waits longest in queues.
    pub rtt: Option<WorstRtt>,
    pub(super) cuts: Cuts,
    /// Its own windows.
    pub zero_window: ZeroWindow,
    /// Its listeners; none: no listener was read in this time.
    pub listener: Option<Listener>,
    pub(super) verdict: Option<Vec<Word>>,
    pub(super) because: Option<Vec<Check>>,
    pub(super) unknown: Option<Vec<&'static str>>,
    /// The verdict with all its comparisons.
    #[serde(skip)]
    pub judged: Option<Verdict>,
}

impl Ledger {
    /// The ledger of a row at this time, ns of CLOCK_MONOTONIC.
    #[must_use]
    pub fn new(row: &Row, now_ns: u64) -> Self {
        // A process that only listens has no connection to observe or to judge.
        let observed_us = (row.since_ns != u64::MAX).then(|| now_ns.saturating_sub(row.since_ns) / 1000);
        let rtt = row.rtt.map_or_else(Rtt::default, |(rtt, _)| rtt);
        let judged = observed_us.map(|observed_us| verdict(&row.counters, rtt, Observed::For(observed_us)));
        Self {
            connections: Some(row.fates),
            observed_us,
            complete: Some(row.complete),
            tcp: Some(row.counters),
            local_dropped_bytes: row.counters.local_bytes,
            rtt: row.rtt.map(|(rtt, flow)| WorstRtt { rtt, connection: Some(Ends::of(&flow)) }),
            zero_window: ZeroWindow { times: row.counters.zero_windows, us: row.counters.zero_window_us },
            listener: row.accepts.map(|AcceptQueue { queue, backlog }| Listener {
                dropped: row.counters.listen_drops,
                queue,
                backlog,
            }),
            verdict: judged.as_ref().map(|judged| judged.words.clone()),
            because: judged.as_ref().map(|judged| judged.because().copied().collect()),
            unknown: judged.as_ref().map(|judged| judged.unknown().collect()),
            judged,
            ..Self::default()
        }
    }
}

impl Ends {
    fn of(flow: &Flow) -> Self {
        Self {
            saddr: address(flow.saddr),
            sport: flow.sport,
            daddr: address(flow.daddr),
            dport: flow.dport,
            netns: flow.netns,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_of_unknown_reason_hides_the_counts_of_those_it_may_be() {
        let mut counts = [0; CUTS];
        (counts[CutWhy::Recovery as usize], counts[CutWhy::Local as usize]) = (5, 2);
        let told = |counts: &[u32; CUTS], seen| {
            let Cuts { recovery, timeout, ecn, local, pmtu, probe, unknown } = Cuts::new(counts, seen);
            [recovery, timeout, ecn, local, pmtu, probe, unknown]
        };
        assert_eq!(told(&counts, CutsSeen::All), [Some(5), Some(0), Some(0), Some(2), Some(0), Some(0), Some(0)]);
        assert_eq!(told(&counts, CutsSeen::Losses), [Some(5), Some(0), None, None, None, None, None]);
        assert_eq!(told(&counts, CutsSeen::None), [None; 7]);
        counts[CutWhy::Unknown as usize] = 1;
        assert_eq!(told(&counts, CutsSeen::All), [Some(5), Some(0), None, None, Some(0), None, Some(1)]);
    }
}
