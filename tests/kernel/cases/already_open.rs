//! What was open before xctl came: a connection whose process does nothing more, and a listener.

use std::thread;
use std::time::Duration;

use anyhow::ensure;
use nix::sys::signal::Signal;

use crate::host::Set;
use crate::link::Link;
use crate::workers::{Puppet, Receiver};
use crate::xctl::{Owner, Xctl};
use crate::{Family, Outcome, Verdict};

pub fn run(set: Set, family: Family) -> Outcome {
    let link = Link::up()?;
    let receiver = Receiver::new(&link.b, "receiver", link.address(&link.b, family), 0)?;
    let mut sender = Puppet::new(&link.a, "was-here", receiver.at)?;
    link.lose(100)?;
    sender.send()?;
    // it has sent by then, and the next retransmits are still to come: after 0.6, 1.4 and 3 s
    thread::sleep(Duration::from_millis(300));
    let xctl = Xctl::start(set, &[])?;
    ensure!(xctl.ready.seeded >= 2, "seeded {} sockets; there are a connection and a listener", xctl.ready.seeded);
    thread::sleep(Duration::from_millis(3500));
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
