//! The mission itself: on a lossy link with busy CPUs, every retransmit names its process, and none is missing.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use crate::counters::{self, Counters};
use crate::host::Set;
use crate::link::{Link, Netns};
use crate::missed::{Witness, program_misses};
use crate::workers::{Plan, Receiver, Sender, Truth, keep_cpus_busy, send_all};
use crate::xctl::{Kind, Owner, Trace, Xctl};
use crate::{Family, Outcome, Verdict};

/// The most segments in one skb: 64 KiB of GSO payload by the smallest segment size here (IPv6 with timestamps).
const MAX_SEGS: u64 = 65536 / 1428 + 1;

pub fn run(set: Set, family: Family) -> Outcome {
    run_with(family, || Xctl::start(set, &[]))
}

/// Like [`run`], with another way to start xctl.
pub fn run_with(family: Family, start: impl FnOnce() -> Result<Xctl>) -> Outcome {
    run_while(family, start, send_all)
}

/// Like [`run_with`], with another event while senders send: `traffic` calls [`send_all`] and causes the event.
pub fn run_while(
    family: Family,
    start: impl FnOnce() -> Result<Xctl>,
    traffic: impl FnOnce(Vec<Sender>) -> Result<Vec<Truth>>,
) -> Outcome {
    let link = Link::lossy()?;
    let xctl = start()?;
    let witness = Witness::of(&xctl.ready.hooks)?;
    let receiver = Receiver::new(&link.b, "receiver", link.address(&link.b, family), 0)?;
    let senders = plans(&receiver).into_iter().map(|plan| Sender::new(&link.a, plan)).collect::<Result<Vec<_>>>()?;
    let busy = keep_cpus_busy(&link.a)?;

    let before = (Counters::of(&link.a)?, Counters::of(&link.b)?);
    let truths = traffic(senders).or_else(|error| {
        // a conversation that stands still: what does either end wait for?
        let (a, b) = (counters::connections(&link.a)?, counters::connections(&link.b)?);
        Err(error.context(format!("open in a: {a:?}; in b: {b:?}")))
    })?;
    link.quiet()?;
    let after = (Counters::of(&link.a)?, Counters::of(&link.b)?);
    let (skipped, hidden) = (witness.skipped()?, witness.above_pid_1()?);
    let owners_skipped = witness.owners_skipped()?;
    drop(busy);
    let programs = program_misses(xctl.process.pid())?;
    let to_be_told = witness.told(&programs)?;
    let trace = xctl.stop(Signal::SIGINT)?;

    let missed = trace.summary.lost.missed;
    ensure!(missed.is_none_or(|missed| to_be_told.contains(&missed)), "it must tell {to_be_told:?}, not {missed:?}");
    // A softirq that interrupts a program, or a task that preempts it, may have its own run skipped on any kernel.
    let told = missed.unwrap_or(0);
    senders_are_named(&trace, &link.a, &truths, owners_skipped + told)?;
    receiver_is_named(&trace, &link.b, &receiver, &truths, owners_skipped + told)?;
    let unseen = skipped + hidden + trace.events_told_missed();
    nothing_is_missing(&trace, &link.a, &before.0, &after.0, unseen).context("namespace a")?;
    nothing_is_missing(&trace, &link.b, &before.1, &after.1, unseen).context("namespace b")?;
    trace.nothing_lost_but_missed()?;

    let of_senders = trace.of(link.a.inode).count();
    let total = of_senders + trace.of(link.b.inode).count();
    ensure!(total >= 20, "only {total} retransmits: the link was not lossy enough to tell anything");
    let wrong = trace.of(link.a.inode).filter(|record| Some(record.current.pid) != record.at.pid).count();
    let note = if skipped + owners_skipped + hidden + told > 0 {
        let programs: Vec<_> = programs.iter().filter(|(_, misses)| **misses > 0).collect();
        format!(", {skipped} + {owners_skipped} runs skipped, {hidden} above PID 1, {told} told of {programs:?}")
    } else {
        String::new()
    };
    Ok(Verdict::Passed(format!("{total} retransmits, current wrong in {wrong} of {of_senders}{note}")))
}

/// Six ways to send, so that every kind of retransmit has its chance.
pub fn plans(receiver: &Receiver) -> Vec<Plan> {
    let plan = |number: usize| Plan::new(&format!("send-{number}"), receiver.at);
    let ms = Duration::from_millis;
    vec![
        plan(0),
        Plan { sizes: vec![1448, 3000, 10, 700], pause: ms(5), ..plan(1) },
        Plan { sizes: vec![1 << 16], pause: ms(10), burst: 8, sends: 128, ..plan(2) },
        Plan { sizes: vec![500], second_thread: true, ..plan(3) },
        Plan { sizes: vec![2000], sends_a_connection: 3, pause: ms(1), ..plan(4) },
        Plan { sizes: vec![1000], burst: 20, pause: ms(40), ..plan(5) },
    ]
}

fn senders_are_named(trace: &Trace, a: &Netns, truths: &[Truth], missed: u64) -> Result<()> {
    let mut unknown = 0;
    for record in trace.of(a.inode) {
        let flow = record.at.flow();
        let truth = truths.iter().find(|truth| truth.flows().any(|own| own == flow));
        let truth = truth.with_context(|| format!("nobody made the flow of {record:?}"))?;
        if record.at.owner == Owner::Unknown {
            unknown += 1;
            ensure!(unknown <= missed, "owner unknown: {record:?}");
            continue;
        }
        record.at.is_of(&truth.who, flow)?;
        ensure!(matches!(record.at.owner, Owner::Send | Owner::Connect), "a sender known by other means: {record:?}");
    }
    Ok(())
}

/// The receiver never sends data. The listener retransmits SYN-ACKs. The process that accepted retransmits FINs; if no hook
/// shows accept(), xctl knows this process by its reads.
fn receiver_is_named(trace: &Trace, b: &Netns, receiver: &Receiver, truths: &[Truth], missed: u64) -> Result<()> {
    let mut unknown = 0;
    for record in trace.of(b.inode) {
        let flow = record.at.flow();
        let known = truths.iter().flat_map(Truth::flows).any(|made| made.reversed() == flow);
        ensure!(known, "nobody made the flow of {record:?}");
        let owner = record.at.owner;
        if owner == Owner::Unknown {
            unknown += 1;
            ensure!(unknown <= missed, "owner unknown: {record:?}");
            continue;
        }
        record.at.is_of(&receiver.who, flow)?;
        ensure!(record.kind != Kind::Synack || owner == Owner::Listen, "a SYN-ACK is the listener's: {record:?}");
        ensure!(
            matches!(owner, Owner::Listen | Owner::Accept | Owner::Read),
            "the receiver known by other means: {record:?}"
        );
    }
    Ok(())
}

/// The kernel's counters and xctl agree to the segment, except for segments that skipped kprobes may have hidden from xctl.
pub fn nothing_is_missing(trace: &Trace, ns: &Netns, before: &Counters, after: &Counters, missed: u64) -> Result<()> {
    let grew = |name| after.since(before, name);
    let seen = |kinds: &[Kind]| {
        trace.segs(|record| record.at.netns == ns.inode && (kinds.is_empty() || kinds.contains(&record.kind)))
    };
    let mut wrong = vec![];
    for (what, seen, kernel) in [
        ("RetransSegs - TCPRetransFail", seen(&[]), grew("RetransSegs")? - grew("TCPRetransFail")?),
        ("TCPFastRetrans", seen(&[Kind::Fast]), grew("TCPFastRetrans")?),
        ("TCPSlowStartRetrans", seen(&[Kind::SlowStart]), grew("TCPSlowStartRetrans")?),
        ("TCPSynRetrans", seen(&[Kind::Syn, Kind::Synack]), grew("TCPSynRetrans")?),
    ] {
        let short = kernel - i64::try_from(seen)?;
        if !(0..=i64::try_from(missed * MAX_SEGS)?).contains(&short) {
            wrong.push(format!("{what}: the kernel counted {kernel}, xctl {seen}"));
        }
    }
    ensure!(wrong.is_empty(), "{} ({missed} probe runs missed, {:?})", wrong.join("; "), trace.summary.lost);
    let (tlp, probes) = (seen(&[Kind::Tlp]), grew("TCPLossProbes")?);
    ensure!(i64::try_from(tlp)? <= probes, "{tlp} tail loss probes, the kernel counted only {probes}");
    Ok(())
}
