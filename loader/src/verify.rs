//! Our counts beside the kernel's own, by network namespace and kind.
//!
//! Neither side can be read at one moment for all namespaces, and both run on meanwhile. So the kernel's counters are read
//! twice, with ours in between, each after a pause in which whatever was on its way from the one to the other arrives:
//! what the first reading holds ours hold, and what ours hold the second one holds. Where the kernel's two readings are
//! the same, the comparison is exact; where not, it is repeated, and what is left is an interval. What counts is how the
//! difference of the two sides changed between the start and the end of the run, so it does not matter when the programs
//! were attached.

use std::collections::{BTreeSet, HashMap};

use anyhow::Result;
use serde::Serialize;

use crate::events::{Kind, Totals};
use crate::kernel::tcp_counters::{Counters, Reading};
use crate::output::summary::Lost;

/// How often a comparison is made until it is exact.
const TRIES: usize = 5;

/// Where the numbers come from.
pub trait Source {
    /// The kernel's counters, by the inode number of the network namespace.
    ///
    /// # Errors
    /// If they cannot be read.
    fn kernel(&mut self) -> Result<HashMap<u32, Reading>>;
    /// Ours, likewise.
    ///
    /// # Errors
    /// If they cannot be read.
    fn xctl(&mut self) -> Result<HashMap<u32, Totals>>;
    /// Let pass more time than a retransmission needs from the one counter to the other.
    ///
    /// # Errors
    /// Those of what is done meanwhile.
    fn settle(&mut self) -> Result<()>;
}

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// All segments with RetransSegs - TCPRetransFail.
    RetransSegs,
    /// Those that could not be sent with TCPRetransFail.
    RetransFail,
    /// Kind fast with TCPFastRetrans.
    Fast,
    /// Kind slow_start with TCPSlowStartRetrans.
    SlowStart,
    /// Kinds syn and synack with TCPSynRetrans.
    Syn,
    /// Kind tlp, which is at most TCPLossProbes: a probe may carry new data.
    Tlp,
}

impl Check {
    /// All, in the order in which they are printed.
    pub const ALL: [Self; 6] =
        [Self::RetransSegs, Self::RetransFail, Self::Fast, Self::SlowStart, Self::Syn, Self::Tlp];

    /// Its name in the output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::RetransSegs => "retrans_segs",
            Self::RetransFail => "retrans_fail",
            Self::Fast => "fast",
            Self::SlowStart => "slow_start",
            Self::Syn => "syn",
            Self::Tlp => "tlp",
        }
    }

    /// What the kernel counted at some moment between these two.
    fn kernel(self, first: &Counters, second: &Counters) -> Range {
        let range = |of: fn(&Counters) -> u64| Range { low: int(of(first)), high: int(of(second)) };
        match self {
            Self::RetransSegs => Range {
                low: int(first.retrans_segs) - int(second.retrans_fail),
                high: int(second.retrans_segs) - int(first.retrans_fail),
            },
            Self::RetransFail => range(|counters| counters.retrans_fail),
            Self::Fast => range(|counters| counters.fast),
            Self::SlowStart => range(|counters| counters.slow_start),
            Self::Syn => range(|counters| counters.syn),
            Self::Tlp => range(|counters| counters.loss_probes),
        }
    }

    /// What we counted of it.
    fn xctl(self, totals: &Totals) -> i64 {
        let segs = |kind: Kind| int(totals.segs[kind as usize]);
        match self {
            Self::RetransSegs => totals.segs.iter().copied().map(int).sum(),
            Self::RetransFail => int(totals.failed),
            Self::Fast => segs(Kind::Fast),
            Self::SlowStart => segs(Kind::SlowStart),
            Self::Syn => segs(Kind::Syn) + segs(Kind::Synack),
            Self::Tlp => segs(Kind::Tlp),
        }
    }
}

fn int(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX / 4)
}

/// From `low` to `high`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    low: i64,
    high: i64,
}

impl Range {
    fn width(self) -> i64 {
        self.high - self.low
    }
}

/// What came of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it must be.
    Equal,
    /// Not so.
    Differs,
    /// The namespace is gone, and its counters with it.
    Gone,
    /// Its counters could not be read.
    Unreadable,
}

impl Verdict {
    /// Its name in the output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Equal => "equal",
            Self::Differs => "differs",
            Self::Gone => "gone",
            Self::Unreadable => "unreadable",
        }
    }
}

/// One comparison.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Record {
    /// Inode number of the network namespace.
    pub netns: u32,
    /// Of what.
    pub check: Check,
    /// How much the kernel's counter grew, at least and at most; for `tlp` what is allowed. None: not known.
    pub kernel: Option<[i64; 2]>,
    /// What we counted.
    pub xctl: i64,
    /// What came of it.
    pub verdict: Verdict,
    /// What there is to say besides.
    pub note: Option<String>,
}

/// All comparisons of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// By namespace, each with every [`Check`].
    pub records: Vec<Record>,
}

impl Report {
    /// False: something differs. None: there was nothing that could be compared, or what could not be might differ.
    #[must_use]
    pub fn verified(&self) -> Option<bool> {
        let some = |verdict| self.records.iter().any(|record| record.verdict == verdict);
        if some(Verdict::Differs) {
            return Some(false);
        }
        (some(Verdict::Equal) && self.uncompared() == 0).then_some(true)
    }

    /// How many network namespaces could not be read, or are gone with what was counted there.
    #[must_use]
    pub fn uncompared(&self) -> usize {
        let uncompared = |record: &Record| match record.verdict {
            Verdict::Unreadable => true,
            Verdict::Gone => record.xctl > 0,
            Verdict::Equal | Verdict::Differs => false,
        };
        self.records.chunk_by(|one, next| one.netns == next.netns).filter(|of| of.iter().any(uncompared)).count()
    }

    /// One line about what differs; none if nothing does.
    #[must_use]
    pub fn difference(&self) -> Option<String> {
        let differ: Vec<_> = self.records.iter().filter(|record| record.verdict == Verdict::Differs).collect();
        let worst = differ.first()?;
        let (&Record { netns, check, xctl, .. }, kernel) = (worst, range(worst.kernel));
        let more = if differ.len() > 1 { format!(", and {} more differ", differ.len() - 1) } else { String::new() };
        let why = worst.note.as_ref().map_or_else(String::new, |note| format!(" ({note})"));
        Some(format!(
            "{} of network namespace {netns}: the kernel counted {kernel}, xctl {xctl}{why}{more}",
            check.name()
        ))
    }

    /// Say of what is short in our counts which losses may be why.
    pub fn explain(&mut self, lost: &Lost) {
        let mut losses = Vec::new();
        for (name, count) in [("totals", lost.totals), ("output", lost.output)] {
            if count > 0 {
                losses.push(format!("lost.{name} is {count}"));
            }
        }
        match lost.missed {
            None => losses.push("probe runs may have been skipped, which this kernel does not tell".into()),
            Some(0) => {}
            Some(missed) => losses.push(format!("lost.missed is {missed}")),
        }
        if losses.is_empty() {
            return;
        }
        let losses = losses.join("; ");
        for record in &mut self.records {
            if record.verdict == Verdict::Differs && record.kernel.is_some_and(|[low, _]| record.xctl < low) {
                add_note(&mut record.note, &losses);
            }
        }
    }
}

/// What the kernel counted, as text.
#[must_use]
pub fn range(kernel: Option<[i64; 2]>) -> String {
    match kernel {
        None => "?".into(),
        Some([low, high]) if low == high => low.to_string(),
        Some([low, high]) => format!("{low} to {high}"),
    }
}

fn add_note(note: &mut Option<String>, text: &str) {
    match note {
        Some(note) => {
            note.push_str("; ");
            note.push_str(text);
        }
        None => *note = Some(text.into()),
    }
}

/// What a namespace's counters were at the start.
#[derive(Clone, Debug)]
struct Baseline {
    counters: Counters,
    /// What the kernel had counted and we had not, by check.
    ahead: [Range; Check::ALL.len()],
}

impl Baseline {
    /// A namespace that was not there: all its counters were 0.
    const NOTHING: Self = Self {
        counters: Counters {
            retrans_segs: 0,
            retrans_fail: 0,
            fast: 0,
            slow_start: 0,
            syn: 0,
            loss_probes: 0,
            fast_open_fail: 0,
            life: [0; 4],
        },
        ahead: [Range { low: 0, high: 0 }; Check::ALL.len()],
    };
}

/// Both sides at about the same time.
struct Sample {
    first: HashMap<u32, Reading>,
    xctl: HashMap<u32, Totals>,
    second: HashMap<u32, Reading>,
}

impl Sample {
    fn take(source: &mut impl Source) -> Result<Self> {
        let first = source.kernel()?;
        source.settle()?;
        let xctl = source.xctl()?;
        source.settle()?;
        Ok(Self { first, xctl, second: source.kernel()? })
    }

    /// The kernel's two readings of a namespace. None: it is gone.
    fn kernel(&self, netns: u32) -> Option<Result<(Counters, Counters), String>> {
        let second = match self.second.get(&netns)? {
            Ok(second) => second,
            Err(why) => return Some(Err(why.clone())),
        };
        match self.first.get(&netns) {
            // Its number was another's at first: of this one, the first reading knows nothing.
            Some(Ok(first)) if second.went_back_since(first) => Some(Ok((Counters::default(), *second))),
            Some(Ok(first)) => Some(Ok((*first, *second))),
            Some(Err(why)) => Some(Err(why.clone())),
            // It is younger than the first reading.
            None => Some(Ok((Counters::default(), *second))),
        }
    }

    fn totals(&self, netns: u32) -> Totals {
        self.xctl.get(&netns).copied().unwrap_or_default()
    }
}

/// Compares from when it is made until it is finished.
pub struct Verifier {
    baselines: HashMap<u32, Result<Baseline, String>>,
    /// The programs see attempts that fail.
    failures_are_shown: bool,
}

impl Verifier {
    /// Note how things stand. To be called when the programs are attached; `failures_are_shown`: they see attempts that fail.
    ///
    /// # Errors
    /// Those of the source.
    pub fn begin(source: &mut impl Source, failures_are_shown: bool) -> Result<Self> {
        let mut baselines: HashMap<u32, Result<Baseline, String>> = HashMap::new();
        for _ in 0..TRIES {
            let sample = Sample::take(source)?;
            let mut exact = true;
            for &netns in sample.second.keys() {
                let Some(kernel) = sample.kernel(netns) else { continue };
                let fresh = kernel.map(|(first, second)| {
                    let totals = sample.totals(netns);
                    let ahead = Check::ALL.map(|check| {
                        let (kernel, xctl) = (check.kernel(&first, &second), check.xctl(&totals));
                        Range { low: kernel.low - xctl, high: kernel.high - xctl }
                    });
                    Baseline { counters: first, ahead }
                });
                let baseline = match (baselines.remove(&netns), fresh) {
                    (Some(Ok(mut old)), Ok(fresh)) if !fresh.counters.went_back_since(&old.counters) => {
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
            if exact {
                break;
            }
        }
        Ok(Self { baselines, failures_are_shown })
    }

    /// Compare. To be called while the programs are still attached.
    ///
    /// # Errors
    /// Those of the source.
    pub fn finish(&self, source: &mut impl Source) -> Result<Report> {
        let mut report: Vec<Record> = Vec::new();
        for _ in 0..TRIES {
            let latest = self.compare(&Sample::take(source)?);
            report = merge(report, latest);
            let settled = |record: &Record| record.verdict != Verdict::Differs && is_exact(record);
            if report.iter().all(settled) {
                break;
            }
        }
        for record in report.iter_mut().filter(|record| !is_exact(record)) {
            add_note(&mut record.note, "not exact: the kernel counted on meanwhile");
        }
        Ok(Report { records: report })
    }

    fn compare(&self, sample: &Sample) -> Vec<Record> {
        let all: BTreeSet<u32> =
            self.baselines.keys().chain(sample.second.keys()).chain(sample.xctl.keys()).copied().collect();
        all.into_iter().flat_map(|netns| self.compare_one(netns, sample)).collect()
    }

    /// `grew` tells by how much a counter did.
    fn slack(&self, check: Check, grew: impl Fn(fn(&Counters) -> u64) -> i64) -> Slack {
        let failed = grew(|counters| counters.retrans_fail);
        match check {
            // SYNs are counted before they are sent, and also when that fails.
            Check::Syn => {
                let what = "that could not be sent, which the kernel counts all the same";
                Slack { missing: failed, what, ..Slack::default() }
            }
            Check::RetransFail if !self.failures_are_shown => {
                Slack { missing: failed, what: "that this kernel's tracepoint does not show", ..Slack::default() }
            }
            // Data that a SYN carried and the peer did not take go again at once, one segment; after a timeout that is part
            // of the slow start, which kernels before 5.12 do not count (tcp_rcv_fastopen_synack).
            Check::SlowStart => {
                let what = "that a SYN had carried (TCP Fast Open), which older kernels do not count";
                Slack { more: grew(|counters| counters.fast_open_fail), what, ..Slack::default() }
            }
            _ => Slack::default(),
        }
    }

    /// One record for each check of a namespace.
    fn compare_one(&self, netns: u32, sample: &Sample) -> [Record; Check::ALL.len()] {
        let totals = sample.totals(netns);
        let cannot = |verdict: Verdict, note: &str| {
            let record = |check: Check| Record {
                netns,
                check,
                kernel: None,
                xctl: check.xctl(&totals),
                verdict,
                note: Some(note.into()),
            };
            Check::ALL.map(record)
        };
        let baseline = match self.baselines.get(&netns) {
            Some(Ok(baseline)) => Some(baseline),
            Some(Err(why)) => return cannot(Verdict::Unreadable, why),
            None => None,
        };
        let (first, second) = match sample.kernel(netns) {
            Some(Ok(counters)) => counters,
            Some(Err(why)) => return cannot(Verdict::Unreadable, &why),
            None if baseline.is_some() => return cannot(Verdict::Gone, "it ended while xctl ran"),
            None => return cannot(Verdict::Gone, "it came and ended while xctl ran, or nothing in /proc leads to it"),
        };
        if baseline.is_some_and(|baseline| second.went_back_since(&baseline.counters)) {
            return cannot(Verdict::Gone, "its counters went back: the number is another namespace's by now");
        }
        let is_new = baseline.is_none();
        let baseline = baseline.unwrap_or(&Baseline::NOTHING);
        let records = Check::ALL.map(|check| {
            let (now, ahead) = (check.kernel(&first, &second), baseline.ahead[check as usize]);
            let kernel = Range { low: now.low - ahead.high, high: now.high - ahead.low };
            let grew = |of: fn(&Counters) -> u64| int(of(&second)) - int(of(&baseline.counters));
            let slack = self.slack(check, grew);
            let mut record = judge(netns, check, kernel, &totals, &slack);
            if is_new {
                add_note(&mut record.note, "new: compared from zero");
            }
            record
        });
        let over = |record: &Record| record.kernel.is_some_and(|[_, high]| record.xctl > high);
        if is_new && records.iter().any(over) {
            return cannot(
                Verdict::Gone,
                "more was counted under this number than this namespace ever sent: it was another's before, which ended",
            );
        }
        records
    }
}

/// Nothing moved while it was read.
fn is_exact(record: &Record) -> bool {
    record.check == Check::Tlp || record.kernel.is_none_or(|[low, high]| low == high)
}

/// By how much the two sides may differ, and why.
#[derive(Default)]
struct Slack {
    /// What the kernel may have counted and we not.
    missing: i64,
    /// What we may have counted and the kernel not.
    more: i64,
    /// What these are.
    what: &'static str,
}

/// Hold our totals against how much the kernel's counter grew.
fn judge(netns: u32, check: Check, kernel: Range, totals: &Totals, slack: &Slack) -> Record {
    let xctl = check.xctl(totals);
    let kernel = if check == Check::Tlp { Range { low: 0, ..kernel } } else { kernel };
    let equal = xctl - slack.more <= kernel.high && xctl + slack.missing >= kernel.low;
    let (missing, more) = (kernel.low - xctl, xctl - kernel.high);
    let differ = missing.max(more);
    Record {
        netns,
        check,
        kernel: Some([kernel.low.max(0), kernel.high]),
        xctl,
        verdict: if equal { Verdict::Equal } else { Verdict::Differs },
        note: (equal && differ > 0).then(|| format!("{differ} more {}", slack.what)),
    }
}

/// Of two reports the better record for each check: the exacter one, else the later one.
fn merge(earlier: Vec<Record>, later: Vec<Record>) -> Vec<Record> {
    let width = |record: &Record| record.kernel.map_or(0, |[low, high]| high - low);
    let old: HashMap<_, _> = earlier.into_iter().map(|record| ((record.netns, record.check), record)).collect();
    let better = |fresh: Record| match old.get(&(fresh.netns, fresh.check)) {
        Some(old) if old.kernel.is_some() && fresh.kernel.is_some() && width(old) < width(&fresh) => old.clone(),
        _ => fresh,
    };
    later.into_iter().map(better).collect()
}

#[cfg(test)]
mod tests;
