//! The rules of the verdicts about a connection: all of them. This module only computes; it asks the kernel nothing.

use bpf_object::sort;
use serde::{Deserialize, Serialize};

use super::counters::{Counters, Rtt};

/// A connection that is busy for less than this share of the observed time is idle.
const BUSY_FROM: f64 = 0.1;
/// The network loses segments if at least this share of the sent bytes was retransmitted.
const LOSS_FROM: f64 = 0.01;
/// Retransmissions are needless if at least this share of the retransmitted segments had arrived before.
const NEEDLESS_FROM: f64 = 0.5;
/// The network marks segments if at least this share of the delivered segments was acknowledged with ECE.
const ECN_FROM: f64 = 0.01;
/// Segments wait in a queue if the round-trip time is at least this multiple of the least round-trip time,
const QUEUE_FROM: f64 = 2.0;
/// and at least so many microseconds above the least round-trip time.
const QUEUE_FROM_US: f64 = 20_000.0;

/// A word of a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Word {
    /// The connection has nothing to send most of the time.
    Idle,
    /// The peer's window is full.
    Receiver,
    /// The send buffer is too small.
    Sndbuf,
    /// The network sets the pace. At least one reason follows.
    Network,
    /// Reason: segments get lost.
    Loss,
    /// Reason: segments that had arrived were retransmitted.
    Needless,
    /// Reason: the network marks segments.
    Ecn,
    /// Reason: this host's queue drops segments.
    Local,
    /// Reason: segments wait in a queue of the network.
    Queue,
    /// No other reason: the path or the congestion window sets the pace.
    Path,
}

impl Word {
    /// The words, in the order of the rules.
    pub const ALL: [Self; 10] = [
        Self::Idle,
        Self::Receiver,
        Self::Sndbuf,
        Self::Network,
        Self::Loss,
        Self::Needless,
        Self::Ecn,
        Self::Local,
        Self::Queue,
        Self::Path,
    ];

    /// The word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Receiver => "receiver",
            Self::Sndbuf => "sndbuf",
            Self::Network => "network",
            Self::Loss => "loss",
            Self::Needless => "needless",
            Self::Ecn => "ecn",
            Self::Local => "local",
            Self::Queue => "queue",
            Self::Path => "path",
        }
    }

    /// The rule, with its threshold.
    #[must_use]
    pub fn rule(self) -> &'static str {
        match self {
            Self::Idle => "data to send or to be acknowledged in less than 10 % of the observed time",
            Self::Receiver => "else, if the peer's window was full for the largest share of that busy time",
            Self::Sndbuf => "else, if the send buffer was too small for the largest share of that busy time",
            Self::Network => "in all other cases, with each of the following reasons that holds",
            Self::Loss => "at least 1 % of the sent bytes were retransmissions",
            Self::Needless => {
                "in place of loss, if the peer says that at least half of the retransmitted segments had arrived before"
            }
            Self::Ecn => "the peer says of at least 1 % of the delivered segments that the network marked them",
            Self::Local => "this host's own queue dropped at least one byte",
            Self::Queue => {
                "a round trip takes at least twice as long as the least of five minutes, and at least 20 ms longer"
            }
            Self::Path => "none of these reasons: the path or the congestion window sets the pace",
        }
    }
}

/// One comparison of a rule: it holds from a threshold on.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Check {
    /// The figure, in the names of [`Counters`] and [`Rtt`].
    pub what: &'static str,
    /// Its value; none: not known.
    pub is: Option<f64>,
    /// The threshold.
    pub from: f64,
    /// Whether the rule holds.
    #[serde(skip)]
    pub holds: bool,
}

/// How long the connection was observed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Observed {
    /// For so many microseconds.
    For(u64),
    /// For at least so many microseconds. A connection that was found open does not tell its age.
    AtLeast(u64),
}

/// The verdict about a connection or a process.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verdict {
    /// The words. [`Word::Network`] comes with at least one reason.
    pub words: Vec<Word>,
    /// The comparisons that were made, in the order of the rules.
    pub checks: Vec<Check>,
}

impl Verdict {
    /// The comparisons that the words come from.
    pub fn because(&self) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(|check| check.holds)
    }

    /// The figures that were needed and are not known.
    pub fn unknown(&self) -> impl Iterator<Item = &'static str> {
        self.checks.iter().filter(|check| check.is.is_none()).map(|check| check.what)
    }

    /// Compare, and remember the comparison.
    fn check(&mut self, what: &'static str, is: Option<f64>, from: f64) -> bool {
        let holds = is.is_some_and(|is| is >= from);
        self.checks.push(Check { what, is, from, holds });
        holds
    }
}

/// The verdict about these figures.
#[must_use]
pub fn verdict(counters: &Counters, rtt: Rtt, observed: Observed) -> Verdict {
    let mut verdict = Verdict::default();
    if idle(&mut verdict, counters.busy_us, observed) {
        verdict.words.push(Word::Idle);
        return verdict;
    }
    let limit = limit(&mut verdict, counters);
    verdict.words.push(limit);
    if limit == Word::Network {
        reasons(&mut verdict, counters, rtt);
    }
    verdict
}

fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

fn idle(verdict: &mut Verdict, busy_us: u64, observed: Observed) -> bool {
    let (Observed::For(us) | Observed::AtLeast(us)) = observed;
    // A connection that was never busy is idle, whatever its age.
    let busy = if busy_us == 0 { 0.0 } else { busy_us as f64 / us as f64 };
    let holds = busy < BUSY_FROM;
    // The true age may be greater than the known one, and then the busy share is smaller. So the known age can prove that a
    // connection is idle, but not that the connection is busy.
    let is = (holds || matches!(observed, Observed::For(_))).then_some(1.0 - busy);
    verdict.checks.push(Check { what: "1-busy_us/observed_us", is, from: 1.0 - BUSY_FROM, holds });
    holds
}

/// The largest share of busy time. Its threshold is the next largest share.
fn limit(verdict: &mut Verdict, counters: &Counters) -> Word {
    let &Counters { busy_us, rwnd_limited_us, sndbuf_limited_us, .. } = counters;
    let free_us = busy_us.saturating_sub(rwnd_limited_us + sndbuf_limited_us);
    let mut shares = [
        (rwnd_limited_us, Word::Receiver, "rwnd_limited_us/busy_us"),
        (sndbuf_limited_us, Word::Sndbuf, "sndbuf_limited_us/busy_us"),
        (free_us, Word::Network, "(busy_us-rwnd_limited_us-sndbuf_limited_us)/busy_us"),
    ];
    // Of equal shares the first in the order of the rules is taken.
    sort::by_key(&mut shares, |(us, word, _)| (std::cmp::Reverse(*us), *word));
    let [(largest, word, what), (next, ..), _] = shares;
    verdict.check(what, Some(ratio(largest, busy_us)), ratio(next, busy_us));
    word
}

/// Every reason why the network sets the pace.
fn reasons(verdict: &mut Verdict, counters: &Counters, rtt: Rtt) {
    let before = verdict.words.len();
    if verdict.check("bytes_retrans/bytes_sent", Some(ratio(counters.bytes_retrans, counters.bytes_sent)), LOSS_FROM) {
        let needless = Some(ratio(counters.needless, counters.retrans));
        let is_needless = verdict.check("min(dsack_dups,retrans)/retrans", needless, NEEDLESS_FROM);
        verdict.words.push(if is_needless { Word::Needless } else { Word::Loss });
    }
    if verdict.check("delivered_ce/delivered", Some(ratio(counters.delivered_ce, counters.delivered)), ECN_FROM) {
        verdict.words.push(Word::Ecn);
    }
    if verdict.check("local_dropped_bytes", counters.local_bytes.map(|bytes| bytes as f64), 1.0) {
        verdict.words.push(Word::Local);
    }
    let both = rtt.srtt_us.zip(rtt.min_us);
    let times = both.map(|(srtt, min)| srtt as f64 / min.max(1) as f64);
    let above = both.map(|(srtt, min)| srtt as f64 - min as f64);
    let times = verdict.check("srtt_us/min_us", times, QUEUE_FROM);
    let above = verdict.check("srtt_us-min_us", above, QUEUE_FROM_US);
    if times && above {
        verdict.words.push(Word::Queue);
    } else {
        // Only both together are the reason.
        verdict.checks.iter_mut().rev().take(2).for_each(|check| check.holds = false);
    }
    if verdict.words.len() == before {
        verdict.words.push(Word::Path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Word::{Ecn, Idle, Local, Loss, Needless, Network, Path, Queue, Receiver, Sndbuf};

    const SECOND: Observed = Observed::For(1_000_000);

    /// Busy all the time, and held up by nothing.
    fn busy() -> Counters {
        Counters {
            bytes_sent: 10_000,
            delivered: 1_000,
            busy_us: 1_000_000,
            local_bytes: Some(0),
            ..Counters::default()
        }
    }

    fn rtt(srtt_us: u64, min_us: u64) -> Rtt {
        Rtt { srtt_us: Some(srtt_us), min_us: Some(min_us), var_us: Some(0) }
    }

    fn words(counters: &Counters, rtt: Rtt, observed: Observed) -> Vec<Word> {
        verdict(counters, rtt, observed).words
    }

    fn of(counters: &Counters) -> Vec<Word> {
        words(counters, rtt(1000, 1000), SECOND)
    }

    #[test]
    fn idle_is_busy_below_a_tenth() {
        let busy_for = |busy_us| Counters { busy_us, ..busy() };
        assert_eq!(of(&busy_for(99_999)), [Idle]);
        assert_eq!(of(&busy_for(100_000)), [Network, Path]);
        assert_eq!(of(&busy_for(0)), [Idle]);
        assert_eq!(words(&busy_for(0), Rtt::default(), Observed::AtLeast(0)), [Idle]);
        assert_eq!(words(&busy_for(1), rtt(1, 1), Observed::For(0)), [Network, Path]);
    }

    #[test]
    fn the_least_age_proves_that_a_connection_is_idle_and_not_that_it_is_busy() {
        let idle = verdict(&Counters { busy_us: 9, ..busy() }, rtt(1, 1), Observed::AtLeast(100));
        assert_eq!((idle.words.as_slice(), idle.unknown().count()), (&[Idle][..], 0));
        let perhaps = verdict(&Counters { busy_us: 10, ..busy() }, rtt(1, 1), Observed::AtLeast(100));
        assert_eq!(perhaps.words, [Network, Path]);
        assert_eq!(perhaps.unknown().collect::<Vec<_>>(), ["1-busy_us/observed_us"]);
    }

    #[test]
    fn the_largest_share_of_busy_time_decides() {
        let limits =
            |rwnd_limited_us, sndbuf_limited_us| of(&Counters { rwnd_limited_us, sndbuf_limited_us, ..busy() });
        assert_eq!(limits(500_001, 0), [Receiver]);
        assert_eq!(limits(499_999, 0), [Network, Path]);
        assert_eq!(limits(0, 500_001), [Sndbuf]);
        assert_eq!(limits(340_000, 330_000), [Receiver]);
        assert_eq!(limits(330_000, 340_000), [Sndbuf]);
        assert_eq!(limits(330_000, 330_000), [Network, Path]);
        let receiver = verdict(&Counters { rwnd_limited_us: 600_000, ..busy() }, Rtt::default(), SECOND);
        let because: Vec<_> = receiver.because().map(|check| (check.what, check.is, check.from)).collect();
        assert_eq!(because, [("rwnd_limited_us/busy_us", Some(0.6), 0.4)]);
        assert_eq!(receiver.unknown().count(), 0, "reasons of the network were not asked for");
    }

    #[test]
    fn loss_is_a_hundredth_of_the_bytes() {
        let lossy = |bytes_retrans| Counters { bytes_retrans, retrans: 10, ..busy() };
        assert_eq!(of(&lossy(100)), [Network, Loss]);
        assert_eq!(of(&lossy(99)), [Network, Path]);
    }

    #[test]
    fn needless_takes_the_place_of_loss_from_one_half() {
        let twice = |needless| Counters { bytes_retrans: 100, retrans: 10, needless, ..busy() };
        assert_eq!(of(&twice(5)), [Network, Needless]);
        assert_eq!(of(&twice(4)), [Network, Loss]);
        assert_eq!(of(&Counters { bytes_retrans: 99, ..twice(10) }), [Network, Path]);
        let because = verdict(&twice(5), rtt(1, 1), SECOND);
        let what: Vec<_> = because.because().map(|check| check.what).collect();
        assert_eq!(what[1..], ["bytes_retrans/bytes_sent", "min(dsack_dups,retrans)/retrans"]);
    }

    #[test]
    fn ecn_is_a_hundredth_of_the_segments() {
        let marked = |delivered_ce| Counters { delivered_ce, ..busy() };
        assert_eq!(of(&marked(10)), [Network, Ecn]);
        assert_eq!(of(&marked(9)), [Network, Path]);
    }

    #[test]
    fn local_is_one_byte() {
        let dropped = |local_bytes| Counters { local_bytes, ..busy() };
        assert_eq!(of(&dropped(Some(1))), [Network, Local]);
        assert_eq!(of(&dropped(Some(0))), [Network, Path]);
        let unknown = verdict(&dropped(None), rtt(1, 1), SECOND);
        assert_eq!(
            (unknown.words.as_slice(), unknown.unknown().collect::<Vec<_>>()),
            (&[Network, Path][..], vec!["local_dropped_bytes"])
        );
    }

    #[test]
    fn a_queue_is_twice_the_least_round_trip_and_20_ms() {
        let queue = |srtt, min| words(&busy(), rtt(srtt, min), SECOND);
        assert_eq!(queue(40_000, 20_000), [Network, Queue]);
        assert_eq!(queue(39_999, 20_000), [Network, Path], "both limits");
        assert_eq!(queue(25_000, 5_001), [Network, Path], "20 ms");
        assert_eq!(queue(25_001, 5_001), [Network, Queue]);
        assert_eq!(queue(59_999, 30_000), [Network, Path], "twice");
        let below = verdict(&busy(), rtt(59_999, 30_000), SECOND);
        assert_eq!(below.because().count(), 1, "a half of the rule is no reason: {below:?}");
        let unknown = verdict(&busy(), Rtt::default(), SECOND);
        assert_eq!(unknown.unknown().collect::<Vec<_>>(), ["srtt_us/min_us", "srtt_us-min_us"]);
    }

    #[test]
    fn every_reason_that_holds_is_told() {
        let all = Counters { bytes_retrans: 100, retrans: 9, delivered_ce: 10, local_bytes: Some(5), ..busy() };
        let all = verdict(&all, rtt(100_000, 10_000), SECOND);
        assert_eq!(all.words, [Network, Loss, Ecn, Local, Queue]);
        assert_eq!(all.because().count(), 6);
    }
}
