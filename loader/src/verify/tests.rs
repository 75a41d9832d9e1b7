#![allow(clippy::unwrap_used)]
use super::*;

const NETNS: u32 = 4_026_531_840;

/// One network namespace or none, as two lists of readings: the last one of each is there to stay.
#[derive(Default)]
struct Script {
    kernel: Vec<Option<Reading>>,
    xctl: Vec<Totals>,
    settled: usize,
}

fn next<T: Clone>(list: &mut Vec<T>) -> T {
    if list.len() > 1 { list.remove(0) } else { list[0].clone() }
}

impl Source for Script {
    fn kernel(&mut self) -> Result<HashMap<u32, Reading>> {
        Ok(next(&mut self.kernel).map(|reading| (NETNS, reading)).into_iter().collect())
    }
    fn xctl(&mut self) -> Result<HashMap<u32, Totals>> {
        Ok(HashMap::from([(NETNS, next(&mut self.xctl))]))
    }
    fn settle(&mut self) -> Result<()> {
        self.settled += 1;
        Ok(())
    }
}

/// `fast` segments of kind fast, and nothing else.
fn ours(fast: u64) -> Totals {
    let mut totals = Totals::default();
    totals.segs[Kind::Fast as usize] = fast;
    totals
}

/// A kernel that counted just that since a past of its own.
fn theirs(fast: u64) -> Counters {
    Counters { retrans_segs: 1000 + fast, retrans_fail: 10, fast: 500 + fast, life: [7; 4], ..Counters::default() }
}

fn script(kernel: &[Counters], xctl: &[Totals]) -> Script {
    Script { kernel: kernel.iter().map(|counters| Some(Ok(*counters))).collect(), xctl: xctl.to_vec(), settled: 0 }
}

fn run(start: &mut Script, end: &mut Script) -> Report {
    run_where(start, end, true)
}

fn run_where(start: &mut Script, end: &mut Script, failures_are_shown: bool) -> Report {
    Verifier::begin(start, failures_are_shown).unwrap().finish(end).unwrap()
}

fn of(report: &Report, check: Check) -> &Record {
    report.records.iter().find(|record| record.check == check).unwrap()
}

#[test]
fn equal_growth_is_equal_whatever_was_before() {
    // Three of them were counted before the first reading.
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
        assert!(said.starts_with(&format!("retrans_segs of network namespace {NETNS}")), "{said}");
        assert!(said.contains(&format!("kernel counted {counted}, xctl {seen}")) && said.contains("1 more"), "{said}");
    }
}

#[test]
fn what_moves_is_read_again_until_it_stands() {
    let mut end = script(&[theirs(5), theirs(8), theirs(8), theirs(9), theirs(9)], &[ours(6), ours(8), ours(9)]);
    let report = run(&mut script(&[theirs(0)], &[ours(0)]), &mut end);
    assert_eq!(of(&report, Check::Fast).kernel, Some([9, 9]));
    assert_eq!((of(&report, Check::Fast).verdict, end.settled), (Verdict::Equal, 6));
}

#[test]
fn what_never_stands_is_an_interval_and_says_so() {
    let mut end = script(&[], &[ours(12)]);
    end.kernel = (5..25).map(|fast| Some(Ok(theirs(fast * 2)))).collect();
    let report = run(&mut script(&[theirs(0)], &[ours(0)]), &mut end);
    let fast = of(&report, Check::Fast);
    assert_eq!((fast.kernel, fast.verdict), (Some([26, 28]), Verdict::Differs), "the last of equally exact ones");
    assert!(fast.note.as_ref().unwrap().starts_with("not exact"), "{fast:?}");
    assert_eq!(range(fast.kernel), "26 to 28");
    // Both ends of the window count: what moved at the start is not known at the end.
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
    assert!(note.starts_with("2 more that could not be sent"), "{note}");
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
fn what_a_syn_carried_may_be_slow_start_that_the_kernel_does_not_count() {
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
fn what_is_of_no_kind_is_nowhere_else() {
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
    let mut none = Script { kernel: vec![None], xctl: vec![Totals::default()], settled: 0 };
    let after = Counters { retrans_segs: 4, fast: 4, ..Counters::default() };
    let report = run(&mut none, &mut script(&[after], &[ours(4)]));
    assert_eq!((of(&report, Check::Fast).kernel, report.verified()), (Some([4, 4]), Some(true)));
    assert!(of(&report, Check::Fast).note.as_ref().unwrap().contains("from zero"));
    assert_eq!(run(&mut none, &mut script(&[after], &[ours(3)])).verified(), Some(false));
    // An earlier one of the same number came and went.
    let report = run(&mut none, &mut script(&[after], &[ours(5)]));
    assert!(report.records.iter().all(|record| record.verdict == Verdict::Gone && record.kernel.is_none()));
    assert_eq!(of(&report, Check::Fast).xctl, 5);
}

#[test]
fn a_namespace_that_is_gone_fails_nothing() {
    let mut none = Script { kernel: vec![None], xctl: vec![ours(6)], settled: 0 };
    let report = run(&mut script(&[theirs(0)], &[ours(0)]), &mut none);
    assert_eq!((of(&report, Check::Fast).verdict, of(&report, Check::Fast).xctl), (Verdict::Gone, 6));
    assert_eq!((report.verified(), report.difference()), (None, None));
    // Where nothing was counted, nothing is missing; what else is equal does not make up for the rest.
    let equal = run(&mut script(&[theirs(3)], &[ours(3)]), &mut script(&[theirs(20)], &[ours(20)])).records;
    let with = |xctl| {
        let gone = Record { netns: 1, xctl, verdict: Verdict::Gone, ..equal[0].clone() };
        Report { records: [vec![gone], equal.clone()].concat() }
    };
    assert_eq!((with(0).verified(), with(0).uncompared()), (Some(true), 0));
    assert_eq!((with(6).verified(), with(6).uncompared()), (None, 1));
    // Its number now names another one.
    let young = Counters { fast: 501, retrans_segs: 1001, retrans_fail: 10, life: [7, 7, 7, 6], ..Counters::default() };
    let report = run(&mut script(&[theirs(0)], &[ours(0)]), &mut script(&[young], &[ours(1)]));
    assert!(report.records.iter().all(|record| record.verdict == Verdict::Gone), "{report:?}");
}

#[test]
fn what_cannot_be_read_is_named_and_fails_nothing() {
    let closed = || Script { kernel: vec![Some(Err("no".into()))], xctl: vec![ours(1)], settled: 0 };
    let mut open = script(&[theirs(0)], &[ours(0)]);
    for report in [run(&mut open, &mut closed()), run(&mut closed(), &mut script(&[theirs(0)], &[ours(0)]))] {
        assert!(report.records.iter().all(|record| record.verdict == Verdict::Unreadable), "{report:?}");
        assert_eq!((report.records[0].note.as_deref(), report.verified()), (Some("no"), None));
    }
}

#[test]
fn only_what_is_short_is_explained_by_losses() {
    let difference = |counted, lost: Lost| {
        let mut report = run(&mut script(&[theirs(0)], &[ours(0)]), &mut script(&[theirs(counted)], &[ours(3)]));
        report.explain(&lost);
        of(&report, Check::Fast).note.clone()
    };
    let none = Lost { missed: Some(0), ..Lost::default() };
    assert_eq!(difference(4, none), None);
    assert_eq!(difference(4, Lost { totals: 1, ..none }).as_deref(), Some("lost.totals is 1"));
    assert_eq!(difference(4, Lost { missed: Some(2), ..none }).as_deref(), Some("lost.missed is 2"));
    assert!(difference(4, Lost { missed: None, ..none }).unwrap().contains("skipped"));
    assert_eq!(difference(2, Lost { totals: 1, ..none }), None, "no loss makes us count more");
    assert_eq!(difference(3, Lost { totals: 1, ..none }), None, "nothing differs");
}
