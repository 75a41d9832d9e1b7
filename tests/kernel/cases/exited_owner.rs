//! A process writes and is gone; its kernel socket goes on retransmitting, and is still its own.

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;

use crate::counters::{Counters, wait_until_grown};
use crate::host::Set;
use crate::link::Link;
use crate::process::{Process, now};
use crate::workers::{Puppet, Receiver};
use crate::xctl::Xctl;
use crate::{Family, Outcome, Verdict};

pub fn run(set: Set, family: Family) -> Outcome {
    run_with(family, || Xctl::start(set, &[]))
}

/// The same with an xctl that is started otherwise.
pub fn run_with(family: Family, start: impl FnOnce() -> Result<Xctl>) -> Outcome {
    leave(family, start, |leaver| leaver.exit().map(|()| None))
}

/// Nobody waits for the process: it stays in /proc as a zombie.
pub fn unreaped(set: Set, family: Family) -> Outcome {
    leave(family, || Xctl::start(set, &[]), |leaver| leaver.exit_unreaped().map(Some))
}

/// `exit` ends the sender, and may keep what is left of it until all is printed.
fn leave(
    family: Family,
    start: impl FnOnce() -> Result<Xctl>,
    exit: impl FnOnce(Puppet) -> Result<Option<Process>>,
) -> Outcome {
    let link = Link::up()?;
    let receiver = Receiver::new(&link.b, "receiver", link.address(&link.b, family), 0)?;
    let mut leaver = Puppet::new(&link.a, "leaver", receiver.at)?;
    let truth = leaver.truth.clone();
    let xctl = start()?;
    link.lose(100)?;
    leaver.send()?;
    let left = exit(leaver)?;
    let gone_ns = now()?;
    wait_until_grown(&link.a, &Counters::of(&link.a)?, "RetransSegs", 3)?;
    link.lose(0)?;
    link.quiet()?;
    let trace = xctl.stop(Signal::SIGINT)?;
    drop(left);

    trace.nothing_lost()?;
    trace.all_of(link.a.inode, &truth.who, truth.flow()?)?;
    for record in trace.of(link.a.inode) {
        ensure!(record.exited || record.mono_ns < gone_ns, "it had exited: {record:?}");
    }
    let after = trace.of(link.a.inode).filter(|record| record.exited).count();
    ensure!(after >= 2, "only {after} retransmits after the process had exited");
    Ok(Verdict::Passed(format!("{after} retransmits after its end")))
}
