//! The ledger: counters of what is lost that no other case makes move.

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;

use crate::counters::Counters;
use crate::host::Set;
use crate::link::Link;
use crate::process::nameless_file;
use crate::without;
use crate::workers::unanswered;
use crate::xctl::Xctl;
use crate::{Family, Outcome, Verdict};

/// No ring takes a record, for no reason that a ring has: each is counted, and the totals know of all.
pub fn output(set: Set, family: Family) -> Outcome {
    let (_file, object) = nameless_file(&without::output())?;
    let link = Link::up()?;
    let before = Counters::of(&link.a)?;
    let xctl = Xctl::start(set, &["--object", &object, "--netns", &link.a.path().to_string_lossy()])?;
    let (_receiver, sender) = unanswered(&link, family, "sender")?;
    link.lose(0)?;
    let who = sender.truth.who.clone();
    sender.exit()?;
    link.quiet()?;
    let after = Counters::of(&link.a)?;
    let trace = xctl.stop(Signal::SIGINT)?;

    let lost = &trace.summary.lost;
    ensure!(trace.retransmits.is_empty(), "it printed {:?}", trace.retransmits);
    ensure!(lost.output >= trace.summary.retransmits && lost.output > 0, "lost: {lost:?}");
    ensure!(lost.perf == 0 && lost.unknown == 0, "lost: {lost:?}");
    let counted = after.since(&before, "RetransSegs")? - after.since(&before, "TCPRetransFail")?;
    let own = trace.summary.processes.iter().find(|process| process.pid == Some(who.pid));
    let segs = own.with_context(|| format!("{who:?} is not in the summary"))?.segs;
    ensure!(i64::try_from(segs)? == counted, "the kernel counted {counted} segments, the summary {segs}");
    Ok(Verdict::Passed(format!("{} records lost, {segs} segments in the totals", lost.output)))
}
