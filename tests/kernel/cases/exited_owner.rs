//! The processes at both ends of a connection write and exit. Their sockets stay in the kernel, go on retransmitting, and
//! still belong to these processes.

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;

use crate::actors::Actor;
use crate::counters::{Counters, wait_until_grown};
use crate::host::Set;
use crate::link::Link;
use crate::process::{Process, now};
use crate::workers::Puppet;
use crate::xctl::{Kind, Owner, Xctl};
use crate::{Family, Outcome, Verdict};

pub fn run(set: Set, family: Family) -> Outcome {
    run_with(family, || Xctl::start(set, &[]))
}

/// Like [`run`], with another way to start xctl.
pub fn run_with(family: Family, start: impl FnOnce() -> Result<Xctl>) -> Outcome {
    leave(family, start, |leaver| leaver.exit().map(|()| None))
}

/// No process reaps the sender: the sender stays in /proc as a zombie.
pub fn unreaped(set: Set, family: Family) -> Outcome {
    leave(family, || Xctl::start(set, &[]), |leaver| leaver.exit_unreaped().map(Some))
}

/// `exit` ends the sender, and may return the zombie, which is kept until xctl has printed all records.
fn leave(
    family: Family,
    start: impl FnOnce() -> Result<Xctl>,
    exit: impl FnOnce(Puppet) -> Result<Option<Process>>,
) -> Outcome {
    let link = Link::up()?;
    let mut server = Actor::new(&link.b, "left-server")?;
    let (listener, at) = server.listen((link.address(&link.b, family), 0).into())?;
    let mut leaver = Puppet::new(&link.a, "leaver", at)?;
    let (theirs, back) = server.accept(listener)?;
    let truth = leaver.truth.clone();
    let ends = [(&link.a, truth.who.clone(), truth.flow()?), (&link.b, server.who.clone(), back)];
    let xctl = start()?;
    link.lose(100)?;
    leaver.send()?;
    server.send(theirs)?;
    let left = exit(leaver)?;
    drop(server);
    let gone_ns = now()?;
    let before = [Counters::of(&link.a)?, Counters::of(&link.b)?];
    wait_until_grown(&link.a, &before[0], "RetransSegs", 3)?;
    wait_until_grown(&link.b, &before[1], "RetransSegs", 3)?;
    link.lose(0)?;
    link.quiet()?;
    let trace = xctl.stop(Signal::SIGINT)?;
    drop(left);

    trace.nothing_lost()?;
    let mut counts = vec![];
    for (ns, who, flow) in ends {
        trace.all_of(ns.inode, &who, flow)?;
        for record in trace.of(ns.inode) {
            ensure!(record.exited || record.mono_ns < gone_ns, "it had exited: {record:?}");
            ensure!(record.at.owner == Owner::Send, "it has sent: {record:?}");
            ensure!(matches!(record.kind, Kind::Rto | Kind::Tlp), "nothing was acknowledged: {record:?}");
        }
        let after = trace.of(ns.inode).filter(|record| record.exited).count();
        ensure!(after >= 2, "only {after} retransmits after {who:?} had exited");
        counts.push(after);
    }
    Ok(Verdict::Passed(format!("{} and {} retransmits after their end", counts[0], counts[1])))
}
