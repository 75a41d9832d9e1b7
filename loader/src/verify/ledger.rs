//! The sums of all connections beside the kernel's counters. docs/congestion.md names the exceptions of each identity.

use super::report::{Check, Comparison, Range, Verdict, add_note, int};
use super::sums::Sums;
use super::{Slack, judge};
use crate::kernel::tcp_counters::{Counters, OfLedger};
use crate::model::events::{Kind, NetnsKey, Totals};

/// The note on a difference in a namespace that was not there when xctl began.
const MAY_BE_OLDER: &str =
    "the namespace was unknown when xctl began: if /proc did not lead to it then, the kernel has older counts";

/// The kernel's counters and our sums, read at nearly the same time.
#[derive(Clone, Copy, Debug)]
pub(super) struct State {
    /// The kernel's two readings, and our sums between them.
    pub(super) counters: [Counters; 2],
    pub(super) sums: Sums,
}

/// The state at the start of the run.
#[derive(Clone, Debug)]
pub(super) struct Start {
    /// The first state.
    state: State,
    /// For each check, the kernel's count minus ours, and our count.
    ahead: [(Range, i64); Check::LEDGER.len()],
}

impl Start {
    /// None: the kernel lacks a counter.
    pub(super) fn new(state: State) -> Option<Self> {
        let [first, second] = [state.counters[0].ledger?, state.counters[1].ledger?];
        let ahead = Check::LEDGER.map(|check| {
            let (kernel, ours) = (range(check, &state.counters, [&first, &second]), xctl(check, &state.sums));
            (Range { low: kernel.low - ours, high: kernel.high - ours }, ours)
        });
        Some(Self { state, ahead })
    }

    /// A namespace that began during the run.
    fn nothing(rtnl: u32) -> Self {
        let counters = [Counters { rtnl, ..Counters::default() }; 2];
        let ahead = [(Range { low: 0, high: 0 }, 0); Check::LEDGER.len()];
        Self { state: State { counters, sums: Sums::default() }, ahead }
    }

    /// Take the more exact difference of each check.
    pub(super) fn improve(&mut self, later: &Self) {
        for (old, fresh) in self.ahead.iter_mut().zip(later.ahead) {
            if fresh.0.width() < old.0.width() {
                *old = fresh;
            }
        }
    }

    pub(super) fn is_exact(&self) -> bool {
        self.ahead.iter().all(|(ahead, _)| ahead.width() == 0)
    }
}

/// The range of the kernel's count at a moment between its two readings.
fn range(check: Check, counters: &[Counters; 2], of: [&OfLedger; 2]) -> Range {
    let [low, high] = [0, 1].map(|at| {
        let (all, of) = (&counters[at], of[at]);
        int(match check {
            Check::Retrans => all.retrans_segs,
            Check::Delivered => of.delivered + of.passive_opens,
            Check::DeliveredCe => of.delivered_ce,
            Check::EstabResets => of.estab_resets,
            Check::AbortOnTimeout => of.aborts_on_timeout,
            Check::Dsack => of.dsack_segs,
            Check::Reordering => of.reorderings,
            Check::ListenDrops => of.listen_drops,
            _ => 0,
        })
    });
    Range { low, high }
}

/// Our count.
fn xctl(check: Check, sums: &Sums) -> i64 {
    match check {
        Check::Retrans => sums.retrans,
        Check::Delivered => sums.delivered,
        Check::DeliveredCe => sums.delivered_ce,
        Check::EstabResets => sums.resets,
        Check::AbortOnTimeout => sums.timed_out,
        Check::Dsack => sums.dsack_dups,
        Check::Reordering => sums.reord_seen,
        Check::ListenDrops => sums.listen_drops,
        _ => 0,
    }
}

/// A connection's counter has 32 bits, and the kernel's has 64. So a sum that differs from the kernel's count by a multiple of
/// 2^32 lacks nothing. A counter exceeds 32 bits only if its connection runs at 10 Gbit/s for an hour.
fn unwrapped(ours: i64, kernel: i64) -> i64 {
    const ALL: i64 = 1 << 32;
    ours + (kernel - ours + ALL / 2).div_euclid(ALL) * ALL
}

/// The exceptions of a check.
fn slack(check: Check, start: &State, now: &State, totals: &Totals) -> Slack {
    const ANY: i64 = i64::MAX / 4;
    match check {
        Check::Retrans => Slack {
            missing: start.sums.of_requests + int(totals.segs[Kind::Synack as usize]),
            what: "in SYN-ACKs of requests that no connection came from",
            ..Slack::default()
        },
        Check::Delivered => {
            let fast = |state: &State, at: usize| state.counters[at].ledger.map_or(0, |of| int(of.fast_open));
            Slack {
                missing: fast(now, 1) - fast(start, 0),
                more: now.sums.to_itself - start.sums.to_itself.min(now.sums.to_itself),
                what: "in SYNs with data (TCP Fast Open), or of connections from an address to itself",
            }
        }
        Check::AbortOnTimeout => Slack {
            missing: now.sums.other_errors - start.sums.other_errors,
            what: "that may have timed out, but have the error of an ICMP message, or none",
            ..Slack::default()
        },
        Check::Dsack => Slack {
            more: ANY,
            what: "that the kernel does not count: it had sent fewer segments again",
            ..Slack::default()
        },
        Check::Reordering => {
            Slack { more: ANY, what: "that the kernel counted in the connection only", ..Slack::default() }
        }
        Check::ListenDrops => Slack {
            // The program reads a listener that ends; a packet may come after that.
            missing: now.sums.listeners_ended - start.sums.listeners_ended,
            more: ANY,
            what: "of repeated SYNs and ACKs, or while a listener ended",
        },
        _ => Slack::default(),
    }
}

/// Make one record for each check. `start` is none for a namespace that began during the run.
pub(super) fn compare(netns: NetnsKey, start: Option<&Start>, now: &State, totals: &Totals) -> Vec<Comparison> {
    let [Some(first), Some(second)] = now.counters.map(|counters| counters.ledger) else { return Vec::new() };
    let (is_new, nothing) = (start.is_none(), Start::nothing(netns.rtnl));
    let start = start.unwrap_or(&nothing);
    let one = |(check, (ahead, base)): (Check, (Range, i64))| {
        let now_kernel = range(check, &now.counters, [&first, &second]);
        let kernel = Range { low: now_kernel.low - ahead.high - base, high: now_kernel.high - ahead.low - base };
        let ours = unwrapped(xctl(check, &now.sums) - base, kernel.low);
        let mut record = judge(netns, check, kernel, ours, &slack(check, &start.state, now, totals));
        if is_new && record.verdict == Verdict::Differs {
            record.verdict = Verdict::Unreadable;
            add_note(&mut record.note, MAY_BE_OLDER);
        }
        record
    };
    Check::LEDGER.into_iter().zip(start.ahead).map(one).collect()
}

/// The records of a namespace whose sockets could not be read.
pub(super) fn unreadable(netns: NetnsKey, why: &str) -> Vec<Comparison> {
    let (kernel, verdict, note) = (None, Verdict::Unreadable, Some(why.to_owned()));
    let record = |check| Comparison { netns, netns_name: None, check, kernel, xctl: 0, verdict, note: note.clone() };
    Check::LEDGER.map(record).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NETNS: NetnsKey = NetnsKey { inum: 5, rtnl: 7 };

    fn state(ledger: OfLedger, retrans_segs: u64, sums: Sums) -> State {
        let counters = Counters { retrans_segs, ledger: Some(ledger), rtnl: NETNS.rtnl, ..Counters::default() };
        State { counters: [counters; 2], sums }
    }

    /// A host whose counters and sums differ from the beginning, by connections that ended long ago.
    fn start() -> State {
        let ledger = OfLedger { delivered: 1000, passive_opens: 30, estab_resets: 4, ..OfLedger::default() };
        state(ledger, 77, Sums { delivered: 12, of_requests: 2, retrans: 2, ..Sums::default() })
    }

    /// Compare after the start, with changes on both sides.
    fn after(kernel: impl Fn(&mut Counters, &mut OfLedger), ours: impl Fn(&mut Sums), synacks: u64) -> Vec<Comparison> {
        let (start, mut now) = (start(), start());
        for counters in &mut now.counters {
            let mut ledger = counters.ledger.unwrap();
            kernel(counters, &mut ledger);
            counters.ledger = Some(ledger);
        }
        ours(&mut now.sums);
        let mut totals = Totals::default();
        totals.segs[Kind::Synack as usize] = synacks;
        compare(NETNS, Start::new(start).as_ref(), &now, &totals)
    }

    fn of(records: &[Comparison], check: Check) -> (Option<[i64; 2]>, i64, Verdict, bool) {
        let record = records.iter().find(|record| record.check == check).unwrap();
        (record.kernel, record.xctl, record.verdict, record.note.is_some())
    }

    #[test]
    fn only_growth_counts_and_one_segment_is_a_difference() {
        for (ours, verdict) in [(8, Verdict::Equal), (7, Verdict::Differs), (9, Verdict::Differs)] {
            let kernel = |_: &mut Counters, ledger: &mut OfLedger| {
                (ledger.delivered, ledger.passive_opens) = (ledger.delivered + 6, ledger.passive_opens + 2);
            };
            let records = after(kernel, |sums| sums.delivered += ours, 0);
            assert_eq!(records.len(), Check::LEDGER.len());
            assert_eq!(of(&records, Check::Delivered), (Some([8, 8]), ours, verdict, false));
            assert_eq!(of(&records, Check::EstabResets), (Some([0, 0]), 0, Verdict::Equal, false));
        }
    }

    #[test]
    fn a_counter_of_32_bits_that_began_again_is_no_difference() {
        for (wrapped, segment, verdict) in
            [(0, 0, Verdict::Equal), (1, 0, Verdict::Equal), (2, 0, Verdict::Equal), (1, 1, Verdict::Differs)]
        {
            let kernel = |_: &mut Counters, ledger: &mut OfLedger| ledger.delivered += (2 << 32) + 5;
            let records = after(kernel, |sums| sums.delivered += ((2 - wrapped) << 32) + 5 - segment, 0);
            assert_eq!(of(&records, Check::Delivered).2, verdict);
        }
        assert_eq!([unwrapped(5, 9), unwrapped(9, 5), unwrapped(-7, 0)], [5, 9, -7]);
    }

    #[test]
    fn syn_acks_of_requests_without_a_connection_are_named() {
        // Two of these SYN-ACKs were sent again before the run, and their request is gone.
        for (segs, verdict, named) in
            [(1, Verdict::Equal, true), (3, Verdict::Equal, true), (4, Verdict::Differs, false)]
        {
            let records = after(|all, _| all.retrans_segs += segs, |sums| sums.of_requests = 0, 1);
            let found = of(&records, Check::Retrans);
            assert_eq!((found.2, found.3), (verdict, named), "{records:?}");
        }
        let records = after(|all, _| all.retrans_segs += 1, |sums| sums.retrans += 2, 9);
        assert_eq!(of(&records, Check::Retrans).2, Verdict::Differs, "SYN-ACKs make no connection count more");
    }

    #[test]
    fn exceptions_go_in_one_direction() {
        let fast = |_: &mut Counters, ledger: &mut OfLedger| (ledger.fast_open, ledger.delivered) = (1, 1001);
        assert_eq!(of(&after(fast, |_| {}, 0), Check::Delivered).2, Verdict::Equal);
        assert_eq!(of(&after(fast, |sums| sums.delivered += 2, 0), Check::Delivered).2, Verdict::Differs);
        let own = |sums: &mut Sums| (sums.delivered, sums.to_itself) = (13, 1);
        assert_eq!(of(&after(|_, _| {}, own, 0), Check::Delivered).2, Verdict::Equal);
        let aborts = |_: &mut Counters, ledger: &mut OfLedger| ledger.aborts_on_timeout = 2;
        assert_eq!(of(&after(aborts, |sums| sums.timed_out = 2, 0), Check::AbortOnTimeout).2, Verdict::Equal);
        let soft = |sums: &mut Sums| (sums.timed_out, sums.other_errors) = (1, 5);
        assert_eq!(of(&after(aborts, soft, 0), Check::AbortOnTimeout).2, Verdict::Equal);
        assert_eq!(of(&after(aborts, |sums| sums.timed_out = 1, 0), Check::AbortOnTimeout).2, Verdict::Differs);
        let dsack = |_: &mut Counters, ledger: &mut OfLedger| ledger.dsack_segs = 3;
        for (seen, verdict, named) in
            [(2, Verdict::Differs, false), (3, Verdict::Equal, false), (90, Verdict::Equal, true)]
        {
            let found = of(&after(dsack, |sums| sums.dsack_dups = seen, 0), Check::Dsack);
            assert_eq!((found.2, found.3), (verdict, named));
        }
    }

    #[test]
    fn a_new_namespace_that_differs_cannot_be_compared() {
        let now =
            state(OfLedger { delivered_ce: 3, ..OfLedger::default() }, 0, Sums { delivered_ce: 3, ..Sums::default() });
        let records = compare(NETNS, None, &now, &Totals::default());
        assert!(records.iter().all(|record| record.verdict == Verdict::Equal), "{records:?}");
        let older = State { sums: Sums::default(), ..now };
        let records = compare(NETNS, None, &older, &Totals::default());
        assert_eq!(of(&records, Check::DeliveredCe).2, Verdict::Unreadable);
    }

    #[test]
    fn the_more_exact_start_counts_for_each_check() {
        let mut moving = start();
        moving.counters[1].ledger.as_mut().unwrap().delivered += 5;
        let mut from = Start::new(moving).unwrap();
        assert!(!from.is_exact());
        from.improve(&Start::new(start()).unwrap());
        assert!(from.is_exact());
        let mut lacks = start();
        lacks.counters[0].ledger = None;
        assert!(Start::new(lacks).is_none() && compare(NETNS, None, &lacks, &Totals::default()).is_empty());
    }
}
