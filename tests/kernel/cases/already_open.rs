//! What was open before xctl came: a connection whose process does nothing more, and a listener.

use anyhow::ensure;
use nix::sys::signal::Signal;

use crate::counters::{Counters, wait_until_grown};
use crate::host::Set;
use crate::link::Link;
use crate::workers::unanswered;
use crate::xctl::{Owner, Xctl};
use crate::{Family, Outcome, Verdict};

pub fn run(set: Set, family: Family) -> Outcome {
    let link = Link::up()?;
    let (receiver, sender) = unanswered(&link, family, "was-here")?;
    let xctl = Xctl::start(set, &[])?;
    ensure!(xctl.ready.seeded >= 2, "seeded {} sockets; there are a connection and a listener", xctl.ready.seeded);
    wait_until_grown(&link.a, &Counters::of(&link.a)?, "RetransSegs", 1)?;
    link.lose(0)?;
    let truth = sender.truth.clone();
    sender.exit()?;
    link.quiet()?;
    let trace = xctl.stop(Signal::SIGINT)?;

    trace.nothing_lost()?;
    let seen = trace.all_of(link.a.inode, &truth.who, truth.flow()?)?;
    ensure!(seen > 0, "no retransmits");
    for record in trace.of(link.a.inode) {
        ensure!(record.at.owner == Owner::Seed, "known by something that happened later: {record:?}");
    }
    trace.all_of(link.b.inode, &receiver.who, truth.flow()?.reversed())?;
    Ok(Verdict::Passed(format!("{seen} retransmits")))
}
