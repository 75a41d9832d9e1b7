//! Our counts beside the kernel's own, by network namespace: retransmitted segments of each kind, and the sums of what all
//! connections have counted (`ledger`).
//!
//! Neither side can be read at one moment for all namespaces, and both continue to count. So the kernel's counters are
//! read twice, with our counts in between. A pause before each later reading gives a retransmission time to pass from
//! one counter to the other. Then our counts hold every segment of the first reading, and the second reading holds
//! every segment of ours. If the kernel's two readings are equal, the comparison is exact. If not, the comparison is
//! repeated, and the result is an interval. At the start of the run, the difference between the two sides is noted, and
//! at the end it is subtracted. So the time at which the programs were attached does not matter.

mod ledger;
pub mod report;
pub mod sums;

use std::collections::{HashMap, HashSet};

use anyhow::Result;
use bpf_object::sort;

use crate::kernel::tcp_counters::{Counters, Reading};
use crate::model::events::{NetnsKey, Totals};
use ledger::{Start, State};
use report::{Check, Comparison, Range, Report, Verdict, add_note, int};
use sums::Sums;

/// The most attempts to make a comparison exact.
const TRIES: usize = 5;

/// The source of the numbers.
pub trait Source {
    /// The kernel's counters, by the inode number of the network namespace.
    ///
    /// # Errors
    /// If the counters cannot be read.
    fn kernel(&mut self) -> Result<HashMap<u32, Reading>>;
    /// Our totals, by namespace: one inode number may have named several namespaces.
    ///
    /// # Errors
    /// If the totals cannot be read.
    fn xctl(&mut self) -> Result<HashMap<NetnsKey, Totals>>;
    /// The sums of all connections, by namespace, or the reason why its sockets cannot be read. None: there is no ledger.
    ///
    /// # Errors
    /// If nothing can be read at all.
    fn ledger(&mut self) -> Result<Option<Ledger>>;
    /// Wait longer than a retransmission takes from one counter to the other.
    ///
    /// # Errors
    /// Those of the work that is done meanwhile.
    fn settle(&mut self) -> Result<()>;
}

/// The sums of each namespace. A namespace that cannot be entered has the key with the `rtnl` 0.
pub type Ledger = HashMap<NetnsKey, Result<Sums, String>>;

/// The state of a namespace's counters at the start.
#[derive(Clone, Debug)]
struct Baseline {
    counters: Counters,
    /// For each check, the kernel's count minus xctl's count at the start.
    ahead: [Range; Check::ALL.len()],
    /// Connections that xctl saw end by a timer, read after `counters`.
    timer_ends: u64,
}

impl Baseline {
    /// The baseline of a namespace that did not exist: all its counters were 0.
    const NOTHING: Self = Self {
        counters: Counters {
            retrans_segs: 0,
            retrans_fail: 0,
            fast: 0,
            slow_start: 0,
            syn: 0,
            loss_probes: 0,
            recoveries: 0,
            timeouts: 0,
            aborts: 0,
            fast_open_fail: 0,
            ledger: None,
            rtnl: 0,
        },
        ahead: [Range { low: 0, high: 0 }; Check::ALL.len()],
        timer_ends: 0,
    };
}

/// Both sides at about the same time.
struct Sample {
    first: HashMap<u32, Reading>,
    xctl: HashMap<NetnsKey, Totals>,
    ledger: Option<Ledger>,
    second: HashMap<u32, Reading>,
}

impl Sample {
    fn take(source: &mut impl Source) -> Result<Self> {
        let first = source.kernel()?;
        source.settle()?;
        let (xctl, ledger) = (source.xctl()?, source.ledger()?);
        source.settle()?;
        Ok(Self { first, xctl, ledger, second: source.kernel()? })
    }

    /// The kernel's two readings of a namespace. None: the namespace is gone.
    fn kernel(&self, netns: u32) -> Option<Result<(Counters, Counters), String>> {
        let second = match self.second.get(&netns)? {
            Ok(second) => second,
            Err(why) => return Some(Err(why.clone())),
        };
        match self.first.get(&netns) {
            // Another namespace had the number at first: the first reading says nothing about this one.
            Some(Ok(first)) if second.rtnl != first.rtnl => {
                Some(Ok((Counters { rtnl: second.rtnl, ..Counters::default() }, *second)))
            }
            Some(Ok(first)) => Some(Ok((*first, *second))),
            Some(Err(why)) => Some(Err(why.clone())),
            // The namespace is younger than the first reading.
            None => Some(Ok((Counters { rtnl: second.rtnl, ..Counters::default() }, *second))),
        }
    }

    /// Both sides of the ledger of a namespace. None: there is no ledger, or the kernel's counters are not known.
    fn ledger(&self, netns: NetnsKey) -> Option<Result<State, String>> {
        let all = self.ledger.as_ref()?;
        let sums = all.get(&netns).or_else(|| all.get(&NetnsKey { rtnl: 0, ..netns }));
        let (first, second) = self.kernel(netns.inum)?.ok()?;
        if second.rtnl != netns.rtnl || second.ledger.is_none() {
            return None;
        }
        let state = |sums: &Sums| State { counters: [first, second], sums: *sums };
        let unread = || Err("the namespace began or ended meanwhile, so its sockets could not be read".to_owned());
        Some(sums.map_or_else(unread, |sums| sums.as_ref().map(state).map_err(Clone::clone)))
    }

    /// The namespaces whose counters were read last.
    fn readable(&self) -> impl Iterator<Item = NetnsKey> {
        let key = |(&inum, reading): (&u32, &Reading)| Some(NetnsKey { inum, rtnl: reading.as_ref().ok()?.rtnl });
        self.second.iter().filter_map(key)
    }

    fn totals(&self, netns: NetnsKey) -> Totals {
        self.xctl.get(&netns).copied().unwrap_or_default()
    }
}

/// A comparison, from [`Verifier::begin`] to [`Verifier::finish`].
pub struct Verifier {
    baselines: HashMap<u32, Result<Baseline, String>>,
    /// The ledger at the start.
    ledgers: HashMap<NetnsKey, Result<Start, String>>,
    shown: Shown,
}

/// The events that not every set of hooks shows. Each field says whether the hooks of this run show them.
#[derive(Clone, Copy, Debug)]
pub struct Shown {
    /// Attempts that fail.
    pub failures: bool,
    /// Cuts of congestion windows after losses.
    pub recoveries: bool,
    /// All expirations of retransmission timers.
    pub timeouts: bool,
}

impl Verifier {
    /// Read both sides once the programs are attached.
    ///
    /// # Errors
    /// Those of the source.
    pub fn begin(source: &mut impl Source, shown: Shown) -> Result<Self> {
        let mut baselines: HashMap<u32, Result<Baseline, String>> = HashMap::new();
        let mut ledgers: HashMap<NetnsKey, Result<Start, String>> = HashMap::new();
        for _ in 0..TRIES {
            let sample = Sample::take(source)?;
            let mut exact = true;
            for &netns in sample.second.keys() {
                let Some(kernel) = sample.kernel(netns) else { continue };
                let fresh = kernel.map(|(first, second)| {
                    let totals = sample.totals(NetnsKey { inum: netns, rtnl: first.rtnl });
                    let ahead = Check::ALL.map(|check| {
                        let (kernel, xctl) = (check.kernel(&first, &second), check.xctl(&totals));
                        Range { low: kernel.low - xctl, high: kernel.high - xctl }
                    });
                    Baseline { counters: first, ahead, timer_ends: totals.timer_ends }
                });
                let baseline = match (baselines.remove(&netns), fresh) {
                    (Some(Ok(mut old)), Ok(fresh)) if fresh.counters.rtnl == old.counters.rtnl => {
                        for (old, fresh) in old.ahead.iter_mut().zip(fresh.ahead) {
                            if fresh.width() <= old.width() {
                                *old = fresh;
                            }
                        }
                        Ok(old)
                    }
                    (Some(Ok(old)), Err(_)) => Ok(old),
                    (_, fresh) => fresh,
                };
                exact &= baseline.as_ref().is_ok_and(|baseline| baseline.ahead.iter().all(|range| range.width() == 0))
                    || baseline.is_err();
                baselines.insert(netns, baseline);
            }
            exact &= begin_ledgers(&mut ledgers, &sample);
            if exact {
                break;
            }
        }
        Ok(Self { baselines, ledgers, shown })
    }

    /// Compare, while the programs are still attached.
    ///
    /// # Errors
    /// Those of the source.
    pub fn finish(&self, source: &mut impl Source) -> Result<Report> {
        let mut report: Vec<Comparison> = Vec::new();
        for _ in 0..TRIES {
            let latest = self.compare(&Sample::take(source)?);
            report = merge(report, latest);
            let settled = |record: &Comparison| record.verdict != Verdict::Differs && is_exact(record);
            if report.iter().all(settled) {
                break;
            }
        }
        for record in report.iter_mut().filter(|record| !is_exact(record)) {
            add_note(&mut record.note, "not exact: the kernel's counters changed during the comparison");
        }
        Ok(Report { records: report })
    }

    fn compare(&self, sample: &Sample) -> Vec<Comparison> {
        let baselines = self.baselines.iter().map(|(&inum, baseline)| (inum, baseline.as_ref().map(|of| of.counters)));
        let now = sample.second.iter().map(|(&inum, reading)| (inum, reading.as_ref().copied()));
        let read = baselines.chain(now).map(|(inum, of)| NetnsKey { inum, rtnl: of.map_or(0, |of| of.rtnl) });
        let mut all = sort::set(sample.xctl.keys().copied().chain(read));
        // A namespace that could not be read is known only by its number. It may be any namespace that had this number.
        let known: HashSet<u32> = all.iter().filter(|netns| netns.rtnl != 0).map(|netns| netns.inum).collect();
        all.retain(|netns| netns.rtnl != 0 || !known.contains(&netns.inum) || sample.xctl.contains_key(netns));
        let both = |netns| self.compare_one(netns, sample).into_iter().chain(self.compare_ledger(netns, sample));
        all.into_iter().flat_map(both).collect()
    }

    /// Makes one record for each check of the ledger. None if there is no ledger, or if the namespace's counters are not known:
    /// the other records tell why.
    fn compare_ledger(&self, netns: NetnsKey, sample: &Sample) -> Vec<Comparison> {
        let was_there = self.baselines.get(&netns.inum).is_some_and(|baseline| match baseline {
            Ok(baseline) => baseline.counters.rtnl == netns.rtnl,
            Err(_) => true,
        });
        match (sample.ledger(netns), self.ledgers.get(&netns)) {
            (None, _) => Vec::new(),
            (Some(Err(why)), _) => ledger::unreadable(netns, &why),
            (Some(Ok(_)), Some(Err(why))) => ledger::unreadable(netns, why),
            (Some(Ok(now)), Some(Ok(start))) => ledger::compare(netns, Some(start), &now, &sample.totals(netns)),
            (Some(Ok(_)), None) if was_there => ledger::unreadable(netns, "its sockets could not be read at the start"),
            (Some(Ok(now)), None) => ledger::compare(netns, None, &now, &sample.totals(netns)),
        }
    }

    /// `grew` gives the growth of a counter. `timer_ends` is the number of connections that xctl saw end by a timer.
    fn slack(&self, check: Check, grew: impl Fn(fn(&Counters) -> u64) -> i64, timer_ends: i64) -> Slack {
        let failed = grew(|counters| counters.retrans_fail);
        match check {
            // The kernel counts a SYN before it sends it, even if sending fails.
            Check::Syn => {
                let what = "that could not be sent, which the kernel counts all the same";
                Slack { missing: failed, what, ..Slack::default() }
            }
            Check::RetransFail if !self.shown.failures => {
                Slack { missing: failed, what: "that this kernel's tracepoint does not show", ..Slack::default() }
            }
            Check::Recovery if !self.shown.recoveries => {
                let missing = grew(|counters| counters.recoveries);
                Slack { missing, what: "that these hooks do not show", ..Slack::default() }
            }
            Check::Timeouts if !self.shown.timeouts => {
                let missing = grew(|counters| counters.timeouts);
                Slack { missing, what: "that these hooks do not show", ..Slack::default() }
            }
            // A process that asks for SO_ERROR takes the error away, perhaps before the connection ends. Want of memory ends a
            // connection without an error. xctl has already counted the timeout of each end that it saw.
            Check::Timeouts => {
                let what = "that ended connections whose error was taken, for want of memory, or after an ICMP error";
                Slack { missing: grew(|counters| counters.aborts) - timer_ends, what, ..Slack::default() }
            }
            // Data that a SYN carried and the peer did not take is sent again at once, as one segment. Kernels before 5.12
            // count this segment as no kind (tcp_rcv_fastopen_synack). kind_of() could call it slow start only if a SYN's
            // timeout left a hint.
            Check::SlowStart => {
                let what = "that a SYN had carried (TCP Fast Open), which older kernels do not count";
                Slack { more: grew(|counters| counters.fast_open_fail), what, ..Slack::default() }
            }
            _ => Slack::default(),
        }
    }

    /// Makes one record for each check of a namespace.
    fn compare_one(&self, netns: NetnsKey, sample: &Sample) -> [Comparison; Check::ALL.len()] {
        let totals = sample.totals(netns);
        let cannot = |verdict: Verdict, note: &str| {
            let record = |check: Check| Comparison {
                netns,
                netns_name: None,
                check,
                kernel: None,
                xctl: check.xctl(&totals),
                verdict,
                note: Some(note.into()),
            };
            Check::ALL.map(record)
        };
        let baseline = match self.baselines.get(&netns.inum) {
            Some(Err(why)) => return cannot(Verdict::Unreadable, why),
            Some(Ok(baseline)) => Some(baseline).filter(|baseline| baseline.counters.rtnl == netns.rtnl),
            None => None,
        };
        let (first, second) = match sample.kernel(netns.inum) {
            Some(Err(why)) => return cannot(Verdict::Unreadable, &why),
            Some(Ok((first, second))) if second.rtnl == netns.rtnl => (first, second),
            Some(Ok(_)) => {
                return cannot(Verdict::Gone, "it ended while xctl ran, and another namespace has its number now");
            }
            None if baseline.is_some() => return cannot(Verdict::Gone, "it ended while xctl ran"),
            None => return cannot(Verdict::Gone, "it began and ended while xctl ran, or /proc does not lead to it"),
        };
        let is_new = baseline.is_none();
        let baseline = baseline.unwrap_or(&Baseline::NOTHING);
        Check::ALL.map(|check| {
            let (now, ahead) = (check.kernel(&first, &second), baseline.ahead[check as usize]);
            let kernel = Range { low: now.low - ahead.high, high: now.high - ahead.low };
            let grew = |of: fn(&Counters) -> u64| int(of(&second)) - int(of(&baseline.counters));
            let timer_ends = int(totals.timer_ends) - int(baseline.timer_ends);
            let slack = self.slack(check, grew, timer_ends);
            let mut record = judge(netns, check, kernel, check.xctl(&totals), &slack);
            if is_new {
                add_note(&mut record.note, "new: compared from zero");
                if record.verdict == Verdict::Differs {
                    add_note(
                        &mut record.note,
                        "if it existed before and /proc did not lead to it, the difference includes older counts",
                    );
                }
            }
            record
        })
    }
}

/// Note the ledger at the start; true if it is exact.
fn begin_ledgers(ledgers: &mut HashMap<NetnsKey, Result<Start, String>>, sample: &Sample) -> bool {
    let mut exact = true;
    for netns in sample.readable() {
        let start = match sample.ledger(netns) {
            None => continue,
            Some(Err(why)) => Err(why),
            Some(Ok(state)) => match Start::new(state) {
                Some(start) => Ok(start),
                None => continue,
            },
        };
        match (ledgers.get_mut(&netns), start) {
            (Some(Ok(old)), Ok(fresh)) => old.improve(&fresh),
            (Some(Ok(_)), Err(_)) => {}
            (_, start) => drop(ledgers.insert(netns, start)),
        }
        exact &= ledgers.get(&netns).is_none_or(|start| start.as_ref().map_or(true, Start::is_exact));
    }
    exact
}

/// True if the kernel's counters did not change between the readings.
fn is_exact(record: &Comparison) -> bool {
    record.check == Check::Tlp || record.kernel.is_none_or(|[low, high]| low == high)
}

/// The permitted difference of the two sides, and its reason.
#[derive(Default)]
struct Slack {
    /// Segments that only the kernel may have counted.
    missing: i64,
    /// Segments that only we may have counted.
    more: i64,
    /// A description of these segments.
    what: &'static str,
}

/// Compare our count with the growth of the kernel's counter.
fn judge(netns: NetnsKey, check: Check, kernel: Range, xctl: i64, slack: &Slack) -> Comparison {
    let kernel = if check == Check::Tlp { Range { low: 0, ..kernel } } else { kernel };
    let equal = xctl - slack.more.max(0) <= kernel.high && xctl + slack.missing.max(0) >= kernel.low;
    let (missing, more) = (kernel.low - xctl, xctl - kernel.high);
    let differ = missing.max(more);
    Comparison {
        netns,
        netns_name: None,
        check,
        kernel: Some([kernel.low.max(0), kernel.high]),
        xctl,
        verdict: if equal { Verdict::Equal } else { Verdict::Differs },
        note: (equal && differ > 0).then(|| format!("{differ} more {} {}", check.what(), slack.what)),
    }
}

/// The better record of two reports for each check: the more exact record, else the later one. A namespace that ended after
/// it differed stays uncompared: the difference may have been real.
fn merge(earlier: Vec<Comparison>, later: Vec<Comparison>) -> Vec<Comparison> {
    let width = |record: &Comparison| record.kernel.map_or(0, |[low, high]| high - low);
    let mut old: HashMap<_, _> = earlier.into_iter().map(|record| ((record.netns, record.check), record)).collect();
    let better = |fresh: Comparison| match old.remove(&(fresh.netns, fresh.check)) {
        Some(old) if old.kernel.is_some() && fresh.kernel.is_some() && width(&old) < width(&fresh) => old,
        Some(old) if fresh.verdict == Verdict::Gone => ended(old).unwrap_or(fresh),
        _ => fresh,
    };
    let mut all: Vec<_> = later.into_iter().map(better).collect();
    all.extend(old.into_values().filter_map(ended));
    sort::by_key(&mut all, |record| (record.netns, record.check as usize));
    all
}

/// The last record of a namespace that ended before it could be compared again. None: it did not differ.
fn ended(last: Comparison) -> Option<Comparison> {
    match last.verdict {
        Verdict::Equal | Verdict::Gone => None,
        Verdict::Unreadable => Some(last),
        Verdict::Differs => {
            let counted = report::range(last.kernel);
            let note = format!("it ended when the kernel had counted {counted}, and could not be compared again");
            Some(Comparison { kernel: None, verdict: Verdict::Unreadable, note: Some(note), ..last })
        }
    }
}

#[cfg(test)]
mod tests;
