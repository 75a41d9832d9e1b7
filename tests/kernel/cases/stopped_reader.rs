//! xctl is stopped while more happens than its rings hold. The printed and the lost records together are all events, and
//! the totals by process, which the kernel counts, include all of them.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use crate::counters::{Counters, unacknowledged};
use crate::crowd::{Job, Member};
use crate::host::Set;
use crate::link::{Link, Netns};
use crate::missed::Witness;
use crate::process::{PATIENCE, poll};
use crate::workers::{Flow, Receiver, Who};
use crate::xctl::{Kind, Trace, Xctl};
use crate::{Family, Outcome, Verdict};

/// Only connections to this port pass the filter, and no other process has any.
const PORT: u16 = 5790;
const CONNECTIONS: usize = 30;
/// Far more sends than two rings of one page hold.
const BURST: u64 = 1000;

/// One process on each side: the counters of its namespace are its own.
struct Side {
    link: Link,
    receiver: Receiver,
    holder: Member,
    flows: Vec<Flow>,
    before: [Counters; 2],
}

pub fn run(set: Set, family: Family) -> Outcome {
    let xctl = Xctl::start(set, &["--events", "retransmit,send", "--perf-pages", "1", "--port", &PORT.to_string()])?;
    let witness = Witness::of(&[])?;
    let mut sides = vec![];
    for comm in ["holder-0", "holder-1"] {
        let link = Link::up()?;
        let before = [Counters::of(&link.a)?, Counters::of(&link.b)?];
        let receiver = Receiver::new(&link.b, "receiver", link.address(&link.b, family), PORT)?;
        let mut holder = hold(&link, comm, receiver.at)?;
        let flows = holder.said()?;
        sides.push(Side { link, receiver, holder, flows, before });
    }

    xctl.process.signal(Signal::SIGSTOP)?;
    ensure!(poll(PATIENCE, || stopped(xctl.process.pid()))?, "xctl does not stop");
    for side in &mut sides {
        side.holder.order(&format!("burst {BURST}"))?;
        ensure!(poll(PATIENCE, || Ok(unacknowledged(&side.link.a)?.is_empty()))?, "not acknowledged");
    }
    for side in &mut sides {
        side.link.lose(100)?;
        let earlier = Counters::of(&side.link.a)?;
        side.holder.order("each 1")?;
        // every connection has data to retransmit
        let enough = || Ok(Counters::of(&side.link.a)?.since(&earlier, "RetransSegs")? >= CONNECTIONS as i64);
        ensure!(poll(PATIENCE, enough)?, "not sent again");
        side.link.lose(0)?;
    }
    let mut of_sides = vec![];
    for Side { link, receiver, holder, flows, before } in sides {
        let who = holder.who.clone();
        holder.kill()?;
        link.quiet()?;
        of_sides.push((who, receiver.who.clone(), flows, before, link));
    }
    xctl.process.signal(Signal::SIGCONT)?;
    let trace = xctl.stop(Signal::SIGINT)?;
    if let Some(why) = witness.hidden()? {
        return Ok(Verdict::Skipped(why));
    }

    let lost = &trace.summary.lost;
    ensure!(lost.perf > 0, "nothing was lost: the rings were not full");
    ensure!(lost.output == 0 && lost.map_full == 0 && lost.unknown == 0, "lost: {lost:?}");
    let mut failed = 0;
    for (who, receiver, flows, before, link) in &of_sides {
        for (ns, who, before) in [(&link.a, who, &before[0]), (&link.b, receiver, &before[1])] {
            failed += totals_are_exact(&trace, ns, who, before).with_context(|| format!("of {who:?}"))?;
        }
        for record in trace.sends.iter().filter(|record| record.at.netns == link.a.inode) {
            let flow = record.at.flow();
            ensure!(flows.contains(&flow), "nobody made the flow of {record:?}");
            record.at.is_of(who, flow)?;
        }
    }
    let sent = of_sides.len() as u64 * (BURST + CONNECTIONS as u64);
    let happened = sent + trace.summary.retransmits;
    let printed = (trace.sends.len() + trace.retransmits.len()) as u64;
    // newer kernels also show attempts that sent nothing: no total includes them
    let failed = if trace.failures_are_told() { failed } else { 0 };
    let told = printed + lost.perf;
    ensure!(
        (happened..=happened + failed).contains(&told),
        "{sent} sends and {} retransmits happened, {failed} attempts failed; printed: {printed}, lost: {lost:?}",
        trace.summary.retransmits
    );
    let failed = trace.summary.failed;
    ensure!(told == happened + failed, "{happened} happened and {failed} failed; printed {printed}, lost: {lost:?}");
    Ok(Verdict::Passed(format!("{happened} events: {printed} printed, {} lost", lost.perf)))
}

fn hold(link: &Link, comm: &str, to: SocketAddr) -> Result<Member> {
    Member::new(&link.a, comm, &Job::Hold { to, connections: CONNECTIONS })
}

/// The namespace has only this process: its kernel counters equal the summary of the process. Returns the number of failed
/// attempts.
fn totals_are_exact(trace: &Trace, ns: &Netns, who: &Who, before: &Counters) -> Result<u64> {
    let after = Counters::of(ns)?;
    let failed = after.since(before, "TCPRetransFail")?;
    let kernel = after.since(before, "RetransSegs")? - failed;
    let own: Vec<_> = trace.summary.processes.iter().filter(|process| process.pid == Some(who.pid)).collect();
    let segs: u64 = own.iter().map(|process| process.segs).sum();
    ensure!(i64::try_from(segs)? == kernel, "the kernel counted {kernel} segments, the summary {segs}");
    let of_kinds = |kinds: &[Kind]| {
        let all = own.iter().flat_map(|process| &process.kinds);
        i64::try_from(all.filter(|(kind, _)| kinds.contains(kind)).map(|(_, segs)| segs).sum::<u64>())
    };
    for (kinds, counter) in [
        (&[Kind::Fast][..], "TCPFastRetrans"),
        (&[Kind::SlowStart], "TCPSlowStartRetrans"),
        (&[Kind::Syn, Kind::Synack], "TCPSynRetrans"),
    ] {
        let (kernel, summary) = (after.since(before, counter)?, of_kinds(kinds)?);
        ensure!(kernel == summary, "{counter}: the kernel counted {kernel} segments, the summary {summary}: {own:?}");
    }
    // a probe may send new data
    let (probes, told) = (after.since(before, "TCPLossProbes")?, of_kinds(&[Kind::Tlp])?);
    ensure!(told <= probes, "the kernel counted {probes} probes, the summary {told}");
    Ok(u64::try_from(failed + after.since(before, "TCPSpuriousRtxHostQueues")?)?)
}

/// Whether each thread of the process is stopped.
pub fn stopped(pid: u32) -> Result<bool> {
    for thread in std::fs::read_dir(format!("/proc/{pid}/task")).context("listing xctl's threads")? {
        let stat = std::fs::read_to_string(thread?.path().join("stat"))?;
        if !stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T')) {
            return Ok(false);
        }
    }
    Ok(true)
}
