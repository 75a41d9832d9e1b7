use super::report::{NOTHING_KNOWN, OTHER_KIND};
use super::*;
use crate::kernel::tcp_counters::OfLedger;
use crate::model::events::Kind;
use crate::model::lost::Lost;
use crate::verify::report::range;

const INUM: u32 = 4_026_531_840;
/// The namespace of every reading, unless the test says otherwise; and the next namespace of that number.
const NETNS: NetnsKey = NetnsKey { inum: INUM, rtnl: 7 };
const NEXT: NetnsKey = NetnsKey { inum: INUM, rtnl: 8 };

/// One network namespace or none, as two lists of readings: the last reading of each list is repeated.
#[derive(Default)]
struct Script {
    kernel: Vec<Option<Reading>>,
    xctl: Vec<Totals>,
    ledger: Vec<Result<Sums, String>>,
    settled: usize,
}

fn next<T: Clone>(list: &mut Vec<T>) -> T {
    if list.len() > 1 { list.remove(0) } else { list[0].clone() }
}

impl Source for Script {
    fn kernel(&mut self) -> Result<HashMap<u32, Reading>> {
        Ok(next(&mut self.kernel).map(|reading| (INUM, reading)).into_iter().collect())
    }
    fn xctl(&mut self) -> Result<HashMap<NetnsKey, Totals>> {
        Ok(HashMap::from([(NETNS, next(&mut self.xctl))]))
    }
    fn ledger(&mut self) -> Result<Option<Ledger>> {
        Ok(self.ledger.len().min(1).checked_sub(1).map(|_| HashMap::from([(NETNS, next(&mut self.ledger))])))
    }
    fn settle(&mut self) -> Result<()> {
        self.settled += 1;
        Ok(())
    }
}

/// Totals with `fast` segments of kind fast, and nothing else.
fn ours(fast: u64) -> Totals {
    let mut totals = Totals::default();
    totals.segs[Kind::Fast as usize] = fast;
    totals
}

/// Counters of a kernel that counted `fast` segments since an earlier state of its own.
fn theirs(fast: u64) -> Counters {
    Counters { retrans_segs: 1000 + fast, retrans_fail: 10, fast: 500 + fast, rtnl: NETNS.rtnl, ..Counters::default() }
}

fn script(kernel: &[Counters], xctl: &[Totals]) -> Script {
    Script {
        kernel: kernel.iter().map(|counters| Some(Ok(*counters))).collect(),
        xctl: xctl.to_vec(),
        ..Script::default()
    }
}

fn run(start: &mut Script, end: &mut Script) -> Report {
    run_where(start, end, true)
}

fn run_where(start: &mut Script, end: &mut Script, failures_are_shown: bool) -> Report {
    Verifier::begin(start, Shown { failures: failures_are_shown, recoveries: true, timeouts: true })
        .unwrap()
        .finish(end)
        .unwrap()
}

fn of(report: &Report, check: Check) -> &Comparison {
    report.records.iter().find(|record| record.check == check).unwrap()
}

#[test]
fn equal_growth_is_equal_whatever_was_before() {
    // Three of these segments were counted before the first reading.
    let mut end = script(&[theirs(20)], &[ours(20)]);
    let report = run(&mut script(&[theirs(3)], &[ours(3)]), &mut end);
    assert_eq!(report.records.len(), Check::ALL.len());
    assert!(report.records.iter().all(|record| record.verdict == Verdict::Equal), "{report:?}");
    let fast = of(&report, Check::Fast);
    assert_eq!((fast.kernel, fast.xctl, &fast.note), (Some([20, 20]), 20, &None));
    assert_eq!((report.verified(), report.difference()), (Some(true), None));
    assert_eq!(end.settled, 2, "once was exact");
}

#[test]
fn one_segment_is_a_difference() {
    for (counted, seen) in [(5, 4), (4, 5)] {
        let report = run(&mut script(&[theirs(0)], &[ours(0)]), &mut script(&[theirs(counted)], &[ours(seen)]));
        let segs = of(&report, Check::RetransSegs);
        assert_eq!((segs.verdict, of(&report, Check::Fast).verdict), (Verdict::Differs, Verdict::Differs));
        assert_eq!(of(&report, Check::Syn).verdict, Verdict::Equal);
        assert_eq!(report.verified(), Some(false));
        let said = report.difference().unwrap();
        assert!(said.starts_with(&format!("retrans_segs of network namespace {INUM}")), "{said}");
        assert!(said.contains(&format!("kernel counted {counted}, xctl {seen}")) && said.contains("1 more"), "{said}");
    }
}

#[test]
fn moving_counters_are_read_again_until_they_stand_still() {
    let mut end = script(&[theirs(5), theirs(8), theirs(8), theirs(9), theirs(9)], &[ours(6), ours(8), ours(9)]);
    let report = run(&mut script(&[theirs(0)], &[ours(0)]), &mut end);
    assert_eq!(of(&report, Check::Fast).kernel, Some([9, 9]));
    assert_eq!((of(&report, Check::Fast).verdict, end.settled), (Verdict::Equal, 6));
}

#[test]
fn counters_that_never_stand_still_are_shown_as_an_interval() {
    let mut end = script(&[], &[ours(12)]);
    end.kernel = (5..25).map(|fast| Some(Ok(theirs(fast * 2)))).collect();
    let report = run(&mut script(&[theirs(0)], &[ours(0)]), &mut end);
    let fast = of(&report, Check::Fast);
    assert_eq!((fast.kernel, fast.verdict), (Some([26, 28]), Verdict::Differs), "the last of equally exact ones");
    assert!(fast.note.as_ref().unwrap().starts_with("not exact"), "{fast:?}");
    assert_eq!(range(fast.kernel), "26 to 28");
    // Both ends of the window count: a change at the start is not known at the end.
    let mut start = script(&[], &[ours(0)]);
    start.kernel = (0..20).map(|fast| Some(Ok(theirs(fast)))).collect();
    let report = run(&mut start, &mut script(&[theirs(30)], &[ours(22)]));
    assert_eq!((of(&report, Check::Fast).kernel, report.verified()), (Some([21, 22]), Some(true)));
}

#[test]
fn failed_attempts_are_in_neither_sum() {
    let mut after = theirs(5);
    (after.retrans_segs, after.retrans_fail, after.syn) = (after.retrans_segs + 2, after.retrans_fail + 2, 2);
    let xctl = Totals { failed: 2, ..ours(5) };
    let report = run(&mut script(&[theirs(0)], &[ours(0)]), &mut script(&[after], &[xctl]));
    assert_eq!((of(&report, Check::RetransSegs).kernel, report.verified()), (Some([5, 5]), Some(true)));
    let note = of(&report, Check::Syn).note.as_ref().unwrap();
    assert!(note.starts_with("2 more segments that could not be sent"), "{note}");
    after.syn = 3;
    let report = run(&mut script(&[theirs(0)], &[ours(0)]), &mut script(&[after], &[xctl]));
    assert_eq!(of(&report, Check::Syn).verdict, Verdict::Differs);
}

#[test]
fn failed_attempts_are_compared_where_they_are_shown() {
    let mut after = theirs(0);
    (after.retrans_segs, after.retrans_fail) = (after.retrans_segs + 2, after.retrans_fail + 2);
    for (shown, seen, verdict) in [
        (true, 2, Verdict::Equal),
        (true, 1, Verdict::Differs),
        (true, 3, Verdict::Differs),
        (false, 0, Verdict::Equal),
    ] {
        let mut end = script(&[after], &[Totals { failed: seen, ..ours(0) }]);
        let report = run_where(&mut script(&[theirs(0)], &[ours(0)]), &mut end, shown);
        let record = of(&report, Check::RetransFail);
        assert_eq!((record.kernel, record.verdict), (Some([2, 2]), verdict), "{shown} {seen}");
        assert_eq!(record.note.is_some(), !shown, "{record:?}");
    }
}

#[test]
fn data_of_a_syn_may_be_uncounted_slow_start() {
    for (refused, verdict) in [(1, Verdict::Equal), (0, Verdict::Differs)] {
        let mut totals = Totals::default();
        totals.segs[Kind::SlowStart as usize] = 1;
        let after = Counters { retrans_segs: 1001, fast_open_fail: refused, ..theirs(0) };
        let report = run(&mut script(&[theirs(0)], &[ours(0)]), &mut script(&[after], &[totals]));
        let record = of(&report, Check::SlowStart);
        assert_eq!((record.verdict, record.note.is_some()), (verdict, refused > 0), "{record:?}");
    }
}

#[test]
fn kind_other_counts_only_in_the_total() {
    let mut totals = ours(4);
    totals.segs[Kind::Other as usize] = 1;
    let report = run(&mut script(&[theirs(0)], &[ours(0)]), &mut script(&[theirs(5)], &[totals]));
    assert_eq!(
        (of(&report, Check::RetransSegs).verdict, of(&report, Check::Fast).verdict),
        (Verdict::Equal, Verdict::Differs)
    );
}

#[test]
fn probes_may_carry_new_data_but_not_be_fewer() {
    for (probes, verdict) in [(9, Verdict::Equal), (2, Verdict::Equal), (1, Verdict::Differs)] {
        let mut totals = Totals::default();
        totals.segs[Kind::Tlp as usize] = 2;
        let after = Counters { retrans_segs: 1002, loss_probes: probes, ..theirs(0) };
        let report = run(&mut script(&[theirs(0)], &[ours(0)]), &mut script(&[after], &[totals]));
        assert_eq!(
            (of(&report, Check::Tlp).verdict, of(&report, Check::RetransSegs).verdict),
            (verdict, Verdict::Equal)
        );
        assert_eq!(of(&report, Check::Tlp).kernel, Some([0, i64::try_from(probes).unwrap()]));
    }
}

#[test]
fn a_new_namespace_begins_at_zero() {
    let mut none = Script { kernel: vec![None], xctl: vec![Totals::default()], ..Script::default() };
    let after = Counters { retrans_segs: 4, fast: 4, rtnl: NETNS.rtnl, ..Counters::default() };
    let report = run(&mut none, &mut script(&[after], &[ours(4)]));
    assert_eq!((of(&report, Check::Fast).kernel, report.verified()), (Some([4, 4]), Some(true)));
    assert!(of(&report, Check::Fast).note.as_ref().unwrap().contains("from zero"));
    assert_eq!(run(&mut none, &mut script(&[after], &[ours(3)])).verified(), Some(false));
}

/// A namespace is idle at the start, then used, then deleted. The next one of its number counts from zero.
#[test]
fn namespaces_of_one_number_are_told_apart() {
    let idle = Counters { rtnl: NETNS.rtnl, ..Counters::default() };
    for next in [Counters { rtnl: NEXT.rtnl, ..idle }, Counters { rtnl: NEXT.rtnl, ..theirs(9) }] {
        let report = run(&mut script(&[idle], &[ours(0)]), &mut script(&[next], &[ours(5)]));
        let (old, new): (Vec<_>, Vec<_>) = report.records.iter().partition(|record| record.netns == NETNS);
        assert_eq!((old.len(), new.len()), (Check::ALL.len(), Check::ALL.len()));
        assert!(old.iter().all(|record| record.verdict == Verdict::Gone && record.kernel.is_none()), "{old:?}");
        assert_eq!(of(&report, Check::Fast).xctl, 5);
        assert!(new.iter().all(|record| record.netns == NEXT && record.xctl == 0), "{new:?}");
        let differs = next.retrans_segs > 0;
        assert_eq!(report.verified(), differs.then_some(false), "the next one's own counters count");
    }
}

#[test]
fn a_namespace_that_is_gone_is_no_difference() {
    let mut none = Script { kernel: vec![None], xctl: vec![ours(6)], ..Script::default() };
    let report = run(&mut script(&[theirs(0)], &[ours(0)]), &mut none);
    assert_eq!((of(&report, Check::Fast).verdict, of(&report, Check::Fast).xctl), (Verdict::Gone, 6));
    assert_eq!((report.verified(), report.difference()), (None, None));
    // If nothing was counted, nothing is missing. Equal records do not make up for the others.
    let equal = run(&mut script(&[theirs(3)], &[ours(3)]), &mut script(&[theirs(20)], &[ours(20)])).records;
    let with = |xctl| {
        let gone =
            Comparison { netns: NetnsKey { inum: 1, rtnl: 1 }, xctl, verdict: Verdict::Gone, ..equal[0].clone() };
        Report { records: [vec![gone], equal.clone()].concat() }
    };
    assert_eq!((with(0).verified(), with(0).uncompared()), (Some(true), 0));
    assert_eq!((with(6).verified(), with(6).uncompared()), (None, 1));
}

#[test]
fn an_unreadable_counter_is_named_and_is_no_difference() {
    let closed = || Script { kernel: vec![Some(Err("no".into()))], xctl: vec![ours(1)], ..Script::default() };
    let mut open = script(&[theirs(0)], &[ours(0)]);
    for report in [run(&mut open, &mut closed()), run(&mut closed(), &mut script(&[theirs(0)], &[ours(0)]))] {
        assert!(report.records.iter().all(|record| record.verdict == Verdict::Unreadable), "{report:?}");
        assert_eq!((report.records[0].note.as_deref(), report.verified()), (Some("no"), None));
    }
}

#[test]
fn losses_explain_only_shortfalls() {
    let difference = |counted, lost: Lost| {
        let mut report = run(&mut script(&[theirs(0)], &[ours(0)]), &mut script(&[theirs(counted)], &[ours(3)]));
        report.explain(&lost);
        of(&report, Check::Fast).note.clone()
    };
    let none = Lost { missed: Some(0), ..Lost::default() };
    assert!(difference(4, none).unwrap().contains("the kernel did not show every retransmit"));
    assert_eq!(difference(4, Lost { totals: 1, ..none }).as_deref(), Some("lost.totals is 1"));
    assert_eq!(difference(4, Lost { missed: Some(2), ..none }).as_deref(), Some("lost.missed is 2"));
    assert!(difference(4, Lost { missed: None, ..none }).unwrap().contains("skipped"));
    assert_eq!(
        difference(2, Lost { totals: 1, ..none }).as_deref(),
        Some(NOTHING_KNOWN),
        "no loss makes us count more"
    );
    assert_eq!(difference(3, Lost { totals: 1, ..none }), None, "nothing differs");
}

#[test]
fn a_difference_with_all_segments_seen_is_about_kinds() {
    let mut slow_start = Totals::default();
    slow_start.segs[Kind::SlowStart as usize] = 3;
    let mut report = run(&mut script(&[theirs(0)], &[ours(0)]), &mut script(&[theirs(3)], &[slow_start]));
    report.explain(&Lost { totals: 1, missed: Some(0), ..Lost::default() });
    assert_eq!(of(&report, Check::RetransSegs).verdict, Verdict::Equal);
    for check in [Check::Fast, Check::SlowStart] {
        let record = of(&report, check);
        assert_eq!((record.verdict, record.note.as_deref()), (Verdict::Differs, Some(OTHER_KIND)));
    }
}

#[test]
fn a_difference_in_a_new_namespace_may_be_older() {
    let mut start = Script { kernel: vec![None], xctl: vec![ours(0)], ..Script::default() };
    let report = run(&mut start, &mut script(&[theirs(0)], &[ours(0)]));
    let note = of(&report, Check::Fast).note.clone().unwrap();
    assert!(note.contains("new: compared from zero") && note.contains("older counts"), "{note}");
    assert_eq!(of(&report, Check::Syn).note.as_deref(), Some("new: compared from zero"));
}

#[test]
fn a_namespace_that_ends_after_it_differed_is_not_verified() {
    for totals in [Totals::default(), ours(2)] {
        let mut start = script(&[theirs(0)], &[Totals::default()]);
        let mut end = script(&[theirs(3)], &[totals]);
        end.kernel = vec![Some(Ok(theirs(3))), Some(Ok(theirs(3))), None];
        let report = run(&mut start, &mut end);
        assert_eq!(report.verified(), None, "{report:?}");
        let fast = report.records.iter().find(|record| record.check == Check::Fast).unwrap();
        assert_eq!(fast.verdict, Verdict::Unreadable);
        assert!(fast.note.as_ref().unwrap().contains("the kernel had counted 3"), "{fast:?}");
    }
}

/// Counters of a kernel that delivered so many segments.
fn delivered(segs: u64) -> Counters {
    let ledger = OfLedger { delivered: 900 + segs, ..OfLedger::default() };
    Counters { ledger: Some(ledger), ..theirs(0) }
}

fn with_ledger(kernel: &[Counters], ledger: &[Result<i64, &str>]) -> Script {
    let sums =
        |of: &Result<i64, &str>| of.map(|delivered| Sums { delivered, ..Sums::default() }).map_err(str::to_owned);
    Script { ledger: ledger.iter().map(sums).collect(), ..script(kernel, &[ours(0)]) }
}

#[test]
fn sums_of_connections_are_compared_and_a_loss_explains_a_difference() {
    let mut start = with_ledger(&[delivered(1)], &[Ok(5)]);
    let report = run(&mut start, &mut with_ledger(&[delivered(4)], &[Ok(8)]));
    assert_eq!(report.records.len(), Check::ALL.len() + Check::LEDGER.len());
    assert_eq!((of(&report, Check::Delivered).kernel, of(&report, Check::Delivered).xctl), (Some([3, 3]), 3));
    assert_eq!((of(&report, Check::EstabResets).verdict, report.verified()), (Verdict::Equal, Some(true)));

    let mut report = run(&mut start, &mut with_ledger(&[delivered(4)], &[Ok(7)]));
    report.explain(&Lost { ledger: 2, totals: 9, missed: Some(0), ..Lost::default() });
    let record = of(&report, Check::Delivered);
    assert_eq!((record.verdict, record.note.as_deref()), (Verdict::Differs, Some("lost.ledger is 2")));
    assert_eq!(report.verified(), Some(false));
}

#[test]
fn a_wrong_sum_that_is_right_at_the_next_reading_is_no_difference() {
    let mut end = with_ledger(&[delivered(4)], &[Ok(6), Ok(8)]);
    let report = run(&mut with_ledger(&[delivered(1)], &[Ok(5)]), &mut end);
    assert_eq!((report.verified(), end.settled), (Some(true), 4));
}

#[test]
fn sockets_that_cannot_be_read_are_no_difference() {
    let closed = || with_ledger(&[delivered(1)], &[Err("no")]);
    let open = || with_ledger(&[delivered(1)], &[Ok(0)]);
    for (mut start, mut end) in [(closed(), open()), (open(), closed()), (script(&[delivered(0)], &[ours(0)]), open())]
    {
        let report = run(&mut start, &mut end);
        assert_eq!(of(&report, Check::Delivered).verdict, Verdict::Unreadable, "{report:?}");
        assert_eq!((of(&report, Check::Fast).verdict, report.verified()), (Verdict::Equal, None));
    }
}

#[test]
fn a_namespace_that_is_gone_or_has_no_such_counters_has_no_ledger() {
    let mut start = with_ledger(&[delivered(1)], &[Ok(5)]);
    let mut gone = Script { kernel: vec![None], ..with_ledger(&[], &[Ok(9)]) };
    assert_eq!(run(&mut start, &mut gone).records.len(), Check::ALL.len());
    let report = run(&mut with_ledger(&[theirs(0)], &[Ok(5)]), &mut with_ledger(&[theirs(0)], &[Ok(9)]));
    assert_eq!((report.records.len(), report.verified()), (Check::ALL.len(), Some(true)));
}

#[test]
fn a_timeout_may_be_missing_only_for_an_end_that_was_not_seen() {
    let kernel = |timeouts, aborts| Counters { timeouts, aborts, ..theirs(0) };
    let seen = |timeouts, timer_ends| Totals { timeouts, timer_ends, ..ours(0) };
    for (timeouts, timer_ends, verdict) in [
        (9, 2, Verdict::Equal),
        (8, 1, Verdict::Equal), // one end was not seen
        (8, 2, Verdict::Differs),
        (7, 1, Verdict::Differs),
    ] {
        // one end was seen before the start
        let mut start = script(&[kernel(100, 31)], &[seen(1, 1)]);
        let mut end = script(&[kernel(109, 33)], &[seen(1 + timeouts, 1 + timer_ends)]);
        let report = run(&mut start, &mut end);
        let record = report.records.iter().find(|record| record.check == Check::Timeouts).unwrap();
        assert_eq!((record.kernel, record.verdict), (Some([10, 10]), verdict), "{timeouts} {timer_ends}");
    }
}
