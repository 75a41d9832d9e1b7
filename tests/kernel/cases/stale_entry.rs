//! An entry of `SOCKET_TO_PID` that an earlier socket with the same address has left. The kernel leaves one if it skips every
//! program that would have seen the earlier socket's end, and skips them again when the next socket calls connect(). No test
//! can order the kernel to do that, so this one writes such an entry. It must name nobody.

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;

use crate::host::Set;
use crate::link::Link;
use crate::map;
use crate::process::now;
use crate::workers::{Puppet, Receiver};
use crate::xctl::{Owner, Retransmit, Xctl};
use crate::{Family, Outcome, Verdict};

pub fn run(set: Set, family: Family) -> Outcome {
    let link = Link::up()?;
    let receiver = Receiver::new(&link.b, "receiver", link.address(&link.b, family), 0)?;
    let mut xctl = Xctl::start(set, &[])?;
    let mut earlier = Puppet::new(&link.a, "earlier", receiver.at)?;
    let mut later = Puppet::new(&link.a, "later", receiver.at)?;
    let flow = later.truth.flow()?;
    earlier.send()?;
    link.lose(100)?;
    later.send()?;
    let first = xctl.wait_for(|record| record.at.flow() == flow)?.context("no retransmit")?;
    first.at.is_of(&later.truth.who, flow)?;

    map::leave_to(xctl.process.pid(), earlier.truth.flow()?, flow)?;
    let left = now()?;
    let seen = xctl.wait_for(|record| record.at.flow() == flow && record.mono_ns > left)?.context("no retransmit")?;
    ensure!(seen.at.owner == Owner::Unknown && seen.at.pid.is_none(), "the owner of an earlier socket: {seen:?}");
    later.send()?;
    let sent = now()?;
    let seen = xctl.wait_for(|record| record.at.flow() == flow && record.mono_ns > sent)?.context("no retransmit")?;
    ensure!(seen.at.owner == Owner::Send, "it has sent: {seen:?}");
    seen.at.is_of(&later.truth.who, flow)?;
    link.lose(0)?;
    let who = earlier.truth.who.clone();
    drop((earlier, later));
    link.quiet()?;
    let trace = xctl.stop(Signal::SIGINT)?;
    let after = |record: &&Retransmit| record.at.flow() == flow && record.mono_ns > left;
    let unknown: Vec<_> = trace.of(link.a.inode).filter(after).collect();
    let wrong = unknown.iter().find(|record| record.at.pid == Some(who.pid));
    ensure!(wrong.is_none(), "the owner of an earlier socket: {wrong:?}");
    Ok(Verdict::Passed(format!("{} retransmits", unknown.len())))
}
