//! A connection that never comes about: its process never sends, and yet it is the one behind the retransmitted SYNs.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::ensure;
use nix::sys::signal::Signal;

use crate::counters::Counters;
use crate::host::Set;
use crate::link::{DEAD_V4, DEAD_V6, Link};
use crate::missed::Witness;
use crate::workers::connect_in_vain;
use crate::xctl::{Kind, Owner, Xctl};
use crate::{Family, Outcome, Verdict};

pub fn run(set: Set, family: Family) -> Outcome {
    let link = Link::up()?;
    let to = SocketAddr::new(if family == Family::V4 { DEAD_V4 } else { DEAD_V6 }, 443);
    let witness = Witness::of(&[])?;
    let xctl = Xctl::start(set, &[])?;
    let before = Counters::of(&link.a)?;
    // SYNs go again after 1 s and 3 s
    let truth = connect_in_vain(&link.a, "in-vain", to, Duration::from_millis(3600))?;
    let after = Counters::of(&link.a)?;
    let trace = xctl.stop(Signal::SIGINT)?;
    if let Some(why) = witness.hidden()? {
        return Ok(Verdict::Skipped(why));
    }

    trace.nothing_lost()?;
    let syns = trace.all_of(link.a.inode, &truth.who, truth.flow()?)?;
    ensure!(syns >= 2, "only {syns} retransmits in 3.6 s");
    for record in trace.of(link.a.inode) {
        ensure!(record.kind == Kind::Syn && record.state == "SYN_SENT" && !record.fin, "not a SYN: {record:?}");
        ensure!(record.at.owner == Owner::Connect, "known by something else than connect(): {record:?}");
    }
    let kernel = after.since(&before, "TCPSynRetrans")?;
    let seen = trace.segs(|record| record.at.netns == link.a.inode);
    ensure!(i64::try_from(seen)? == kernel, "TCPSynRetrans: the kernel counted {kernel}, xctl {seen}");
    Ok(Verdict::Passed(format!("{syns} SYNs")))
}
