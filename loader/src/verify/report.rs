//! The report of a comparison: the kernel's count and ours, by network namespace and kind.

use anyhow::Result;
use serde::Serialize;

use crate::kernel::tcp_counters::Counters;
use crate::model::events::{CutWhy, Kind, NetnsKey, Totals};
use crate::model::lost::Lost;

/// One of the kernel's counters, and those of our segments that are compared with the counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// All segments with RetransSegs - TCPRetransFail.
    RetransSegs,
    /// Segments that could not be sent with TCPRetransFail.
    RetransFail,
    /// Kind fast with TCPFastRetrans.
    Fast,
    /// Kind slow_start with TCPSlowStartRetrans.
    SlowStart,
    /// Kinds syn and synack with TCPSynRetrans.
    Syn,
    /// Kind tlp, which is at most TCPLossProbes: a loss probe may carry new data.
    Tlp,
    /// Cuts of congestion windows by recovery with TCPSackRecovery and TCPRenoRecovery.
    Recovery,
    /// Expirations of retransmission timers with TCPTimeouts.
    Timeouts,
    /// Retransmitted segments of all connections with RetransSegs.
    Retrans,
    /// Delivered segments of all connections with TCPDelivered and PassiveOpens.
    Delivered,
    /// Segments acknowledged with ECE with TCPDeliveredCE.
    DeliveredCe,
    /// Connections that ended from ESTABLISHED or CLOSE_WAIT with EstabResets.
    EstabResets,
    /// Connections that ended with ETIMEDOUT with TCPAbortOnTimeout.
    AbortOnTimeout,
    /// Duplicates that peers reported, which are at least TCPDSACKRecvSegs.
    Dsack,
    /// Reorderings, which are at least TCPSACKReorder, TCPTSReorder and TCPRenoReorder.
    Reordering,
    /// Drops of listeners, which are at least ListenDrops.
    ListenDrops,
}

impl Check {
    /// The checks of the ledger: of the sums of all connections.
    pub const LEDGER: [Self; 8] = [
        Self::Retrans,
        Self::Delivered,
        Self::DeliveredCe,
        Self::EstabResets,
        Self::AbortOnTimeout,
        Self::Dsack,
        Self::Reordering,
        Self::ListenDrops,
    ];

    /// The checks of retransmits, cuts and timers, in the order in which they are printed.
    pub const ALL: [Self; 8] = [
        Self::RetransSegs,
        Self::RetransFail,
        Self::Fast,
        Self::SlowStart,
        Self::Syn,
        Self::Tlp,
        Self::Recovery,
        Self::Timeouts,
    ];

    /// The check's name in the output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::RetransSegs => "retrans_segs",
            Self::RetransFail => "retrans_fail",
            Self::Fast => "fast",
            Self::SlowStart => "slow_start",
            Self::Syn => "syn",
            Self::Tlp => "tlp",
            Self::Recovery => "recovery",
            Self::Timeouts => "timeouts",
            Self::Retrans => "retrans",
            Self::Delivered => "delivered",
            Self::DeliveredCe => "delivered_ce",
            Self::EstabResets => "estab_resets",
            Self::AbortOnTimeout => "abort_on_timeout",
            Self::Dsack => "dsack",
            Self::Reordering => "reordering",
            Self::ListenDrops => "listen_drops",
        }
    }

    /// What the check counts.
    pub(super) fn what(self) -> &'static str {
        match self {
            Self::EstabResets | Self::AbortOnTimeout => "connections",
            Self::Reordering => "reorderings",
            Self::ListenDrops => "drops",
            Self::Recovery => "recoveries",
            Self::Timeouts => "timeouts",
            _ => "segments",
        }
    }

    /// The range of the kernel's count at a moment between these two readings.
    pub(super) fn kernel(self, first: &Counters, second: &Counters) -> Range {
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
            Self::Recovery => range(|counters| counters.recoveries),
            Self::Timeouts => range(|counters| counters.timeouts),
            _ => Range { low: 0, high: 0 },
        }
    }

    /// Our count for this check.
    pub(super) fn xctl(self, totals: &Totals) -> i64 {
        let segs = |kind: Kind| int(totals.segs[kind as usize]);
        match self {
            Self::RetransSegs => totals.segs.iter().copied().map(int).sum(),
            Self::RetransFail => int(totals.failed),
            Self::Fast => segs(Kind::Fast),
            Self::SlowStart => segs(Kind::SlowStart),
            Self::Syn => segs(Kind::Syn) + segs(Kind::Synack),
            Self::Tlp => segs(Kind::Tlp),
            Self::Recovery => totals.cuts[CutWhy::Recovery as usize].into(),
            Self::Timeouts => int(totals.timeouts),
            _ => 0,
        }
    }
}

pub(super) fn int(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX / 4)
}

/// A range from `low` to `high`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) low: i64,
    pub(super) high: i64,
}

impl Range {
    pub(super) fn width(self) -> i64 {
        self.high - self.low
    }
}

/// The result of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Both sides agree.
    Equal,
    /// The sides differ.
    Differs,
    /// The namespace is gone, and so are its counters.
    Gone,
    /// The namespace's counters could not be read.
    Unreadable,
}

impl Verdict {
    /// The verdict's name in the output.
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
pub struct Comparison {
    /// The network namespace. The output shows its inode number, which another namespace may have had before.
    #[serde(serialize_with = "inum")]
    pub netns: NetnsKey,
    /// The name of the namespace (`ip netns`); none: it has no name, or nobody has looked.
    pub netns_name: Option<String>,
    /// The counter that is compared.
    pub check: Check,
    /// The growth of the kernel's counter, at least and at most; for `tlp` the permitted range. None: not known.
    pub kernel: Option<[i64; 2]>,
    /// Our count.
    pub xctl: i64,
    /// The result.
    pub verdict: Verdict,
    /// A remark for the reader.
    pub note: Option<String>,
}

fn inum<S: serde::Serializer>(netns: &NetnsKey, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u32(netns.inum)
}

/// All comparisons of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The comparisons, by namespace. Each namespace has every [`Check`].
    pub records: Vec<Comparison>,
}

impl Report {
    /// False: a comparison differs. None: nothing could be compared, or a namespace that could not be compared might differ.
    #[must_use]
    pub fn verified(&self) -> Option<bool> {
        let some = |verdict| self.records.iter().any(|record| record.verdict == verdict);
        if some(Verdict::Differs) {
            return Some(false);
        }
        (some(Verdict::Equal) && self.uncompared() == 0).then_some(true)
    }

    /// The number of network namespaces that could not be read, or are gone with their counts.
    #[must_use]
    pub fn uncompared(&self) -> usize {
        let uncompared = |record: &Comparison| match record.verdict {
            Verdict::Unreadable => true,
            Verdict::Gone => record.xctl > 0,
            Verdict::Equal | Verdict::Differs => false,
        };
        self.records.chunk_by(|one, next| one.netns == next.netns).filter(|of| of.iter().any(uncompared)).count()
    }

    /// One line about the differences; none if there are none.
    #[must_use]
    pub fn difference(&self) -> Option<String> {
        let differ: Vec<_> = self.records.iter().filter(|record| record.verdict == Verdict::Differs).collect();
        let worst = differ.first()?;
        let (&Comparison { netns, check, xctl, .. }, kernel) = (worst, range(worst.kernel));
        let name = worst.netns_name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
        let more = if differ.len() > 1 { format!(", and {} more differ", differ.len() - 1) } else { String::new() };
        let why = worst.note.as_ref().map_or_else(String::new, |note| format!(" ({note})"));
        Some(format!(
            "{} of network namespace {}{name}: the kernel counted {kernel}, xctl {xctl}{why}{more}",
            check.name(),
            netns.inum
        ))
    }

    /// Adds the names of network namespaces. One that is gone has none: another may have its number by now.
    pub fn name(&mut self, mut name_of: impl FnMut(u32) -> Option<String>) {
        for of_netns in self.records.chunk_by_mut(|one, next| one.netns == next.netns) {
            let is_gone = of_netns.iter().any(|record| record.verdict == Verdict::Gone);
            let name = if is_gone { None } else { name_of(of_netns[0].netns.inum) };
            of_netns.iter_mut().for_each(|record| record.netns_name.clone_from(&name));
        }
    }

    /// Adds to each difference its likely cause.
    pub fn explain(&mut self, lost: &Lost) {
        let losses = losses(&[("totals", lost.totals), ("output", lost.output)], lost.missed, NOT_SHOWN);
        let of_ledger = self::losses(&[("ledger", lost.ledger), ("output", lost.output)], lost.missed, NOT_ENDED);
        let of_timers = self::losses(&[("totals", lost.totals)], lost.missed, NO_TIMER);
        for of_netns in self.records.chunk_by_mut(|one, next| one.netns == next.netns) {
            let all_seen =
                of_netns.iter().any(|record| record.check == Check::RetransSegs && record.verdict == Verdict::Equal);
            for record in of_netns.iter_mut().filter(|record| record.verdict == Verdict::Differs) {
                let is_short = record.kernel.is_some_and(|[low, _]| record.xctl < low);
                let cause = match record.check {
                    Check::Fast | Check::SlowStart | Check::Syn | Check::Tlp if all_seen => OTHER_KIND,
                    check if is_short && Check::LEDGER.contains(&check) => &of_ledger,
                    Check::Timeouts if is_short => &of_timers,
                    _ if is_short => &losses,
                    Check::Delivered => OPENED_AT_ONCE,
                    _ => NOTHING_KNOWN,
                };
                add_note(&mut record.note, cause);
            }
        }
    }
}

pub(super) const OTHER_KIND: &str = "every segment was seen, some under another kind than the kernel's";
pub(super) const NOTHING_KNOWN: &str = "no known cause makes xctl count more: please report it";
/// The note on a difference that no loss explains. docs/troubleshooting.md says how often this was seen.
pub(super) const NOT_SHOWN: &str =
    "no total was lost and no run was skipped: the kernel did not show every retransmit to its tracepoint";

const OPENED_AT_ONCE: &str = "if two sockets connect to each other at the same time, xctl counts one more for each";

const NO_TIMER: &str = "no total was lost and no run was skipped: please report it";

const NOT_ENDED: &str = "no account was lost and no run was skipped: please report it";

/// The reasons why xctl may have counted too little.
fn losses(counts: &[(&str, u64)], missed: Option<u64>, otherwise: &str) -> String {
    let some = counts.iter().filter(|(_, count)| *count > 0);
    let mut losses: Vec<_> = some.map(|(name, count)| format!("lost.{name} is {count}")).collect();
    match missed {
        None => losses.push("this kernel does not report skipped probe runs".into()),
        Some(0) => {}
        Some(missed) => losses.push(format!("lost.missed is {missed}")),
    }
    if losses.is_empty() { otherwise.into() } else { losses.join("; ") }
}

/// The range of the kernel's count, as text.
#[must_use]
pub fn range(kernel: Option<[i64; 2]>) -> String {
    match kernel {
        None => "?".into(),
        Some([low, high]) if low == high => low.to_string(),
        Some([low, high]) => format!("{low} to {high}"),
    }
}

pub(super) fn add_note(note: &mut Option<String>, text: &str) {
    match note {
        Some(note) => {
            note.push_str("; ");
            note.push_str(text);
        }
        None => *note = Some(text.into()),
    }
}
