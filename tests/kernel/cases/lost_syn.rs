//! A connection that is never established. Its process never sends data, and yet owns the retransmitted SYNs.

use std::net::SocketAddr;

use anyhow::ensure;
use nix::sys::signal::Signal;

use crate::counters::Counters;
use crate::host::Set;
use crate::link::{Link, dead};
use crate::missed::Witness;
use crate::workers::connect_in_vain;
use crate::xctl::{Kind, Owner, Xctl};
use crate::{Family, Outcome, Verdict};

pub fn run(set: Set, family: Family) -> Outcome {
    let link = Link::up()?;
    let to = SocketAddr::new(dead(family), 443);
    let xctl = Xctl::start(set, &[])?;
    let witness = Witness::of(&xctl.ready.hooks)?;
    let before = Counters::of(&link.a)?;
    let truth = connect_in_vain(&link.a, "in-vain", to, 2)?;
    let after = Counters::of(&link.a)?;
    let skipped = witness.skipped()?;
    let trace = xctl.stop(Signal::SIGINT)?;
    if let Some(why) = witness.hidden()? {
        return Ok(Verdict::Skipped(why));
    }

    trace.nothing_lost()?;
    let syns = trace.all_of(link.a.inode, &truth.who, truth.flow()?)?;
    for record in trace.of(link.a.inode) {
        ensure!(record.kind == Kind::Syn && record.state == "SYN_SENT" && !record.fin, "not a SYN: {record:?}");
        ensure!(record.at.owner == Owner::Connect, "known by something else than connect(): {record:?}");
    }
    let kernel = after.since(&before, "TCPSynRetrans")?;
    let seen = trace.segs(|record| record.at.netns == link.a.inode);
    let short = kernel - i64::try_from(seen)?;
    ensure!(
        (0..=i64::try_from(skipped)?).contains(&short),
        "TCPSynRetrans: the kernel counted {kernel}, xctl {seen}; probes skipped {skipped} runs"
    );
    Ok(Verdict::Passed(format!("{syns} SYNs")))
}
