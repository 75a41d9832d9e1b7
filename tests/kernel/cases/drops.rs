//! Packets that this host drops are compared with the counters of its queues, and with the process's own TCP_INFO.

use std::path::Path;
use std::time::Duration;
use std::{panic, thread};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::cuts::{NO_ROOM, tc};
use super::stats::{Connection, Stage, number};
use crate::host::{Set, tool};
use crate::link::Netns;
use crate::process::now;
use crate::tracefs;
use crate::ways::{How, Order};
use crate::workers::Who;
use crate::xctl::{Drop, Trace, Xctl};
use crate::{Family, Outcome, Verdict};

/// Gives the namespace a queue without room while `work` runs. Returns the packets that the queue has dropped. The queue stays, with
/// room: a queue that is removed takes its count along, and TCP sends again at any time.
fn without_room(ns: &Netns, work: impl FnOnce() -> Result<()>) -> Result<u64> {
    tc(ns, NO_ROOM)?;
    work()?;
    tc(ns, "qdisc change dev veth0 root pfifo limit 1000")?;
    dropped_by_queue(ns)
}

/// The packets that the queue of the link has dropped, as tc tells them.
fn dropped_by_queue(ns: &Netns) -> Result<u64> {
    let show = || tool("tc").args(["-s", "-j", "qdisc", "show", "dev", "veth0"]).output().context("starting tc");
    let queues: Value = serde_json::from_slice(&ns.enter(show)?.stdout)?;
    let drops = queues.as_array().context("no list of queues")?.iter().map(|queue| queue["drops"].as_u64());
    drops.sum::<Option<u64>>().with_context(|| format!("a queue without `drops`: {queues}"))
}

/// The names of the reasons of drops, as the kernel's own trace event has them; none: the event has no reason.
fn reasons() -> Result<Option<String>> {
    tracefs::with(|tracing: &Path| {
        let format = std::fs::read_to_string(tracing.join("events/skb/kfree_skb/format"))?;
        Ok(format.contains(" reason;").then_some(format))
    })
}

/// All packets of a namespace: each record names this process, and a reason that the kernel knows.
fn of<'a>(trace: &'a Trace, ns: &Netns, who: &Who, reasons: Option<&str>) -> Result<Vec<&'a Drop>> {
    let drops: Vec<_> = trace.drops.iter().filter(|drop| drop.at.netns == ns.inode).collect();
    for drop in &drops {
        ensure!(drop.at.pid == Some(who.pid) && drop.at.comm.as_ref() == Some(&who.comm), "not {who:?}: {drop:?}");
        let known = match (reasons, &drop.reason) {
            (None, None) => true,
            (Some(all), Some(reason)) => reason.starts_with("QDISC_") && all.contains(&format!("\"{reason}\"")),
            _ => false,
        };
        ensure!(known, "an odd reason: {drop:?}");
    }
    Ok(drops)
}

/// The row of a process has the sums of its records.
fn row_adds_up(trace: &Trace, who: &Who, drops: &[&Drop]) -> Result<()> {
    let row = trace.summary.ledger.iter().find(|row| row.pid == Some(who.pid)).context("no row of the process")?;
    let sums = [
        drops.len() as u64,
        drops.iter().map(|drop| drop.segs).sum(),
        drops.iter().filter_map(|drop| drop.bytes).sum(),
    ];
    let told = ["packets", "segs", "bytes"].map(|name| number(&row.ledger, &format!("drops.{name}")));
    ensure!(told == sums.map(Some), "{sums:?} in its records, and {told:?} in its row");
    Ok(())
}

/// Data that a full queue drops, a SYN-ACK, and loss that is not this host's.
pub fn run(set: Set, family: Family) -> Outcome {
    let mut stage = Stage::new(family)?;
    let Connection { writes, reads } = stage.connect()?;
    stage.reader.done(Order::Drain(reads.0, 1 << 16, 0))?;
    let reasons = reasons()?;
    if family == Family::V4 {
        for ns in [&stage.link.a, &stage.link.b] {
            ns.set("../ipv6/conf/veth0/disable_ipv6", "1")?;
        }
    }
    let xctl = Xctl::start(set, &["--drops"])?;

    // netem drops in the sender's own queue, and nft at the receiver
    stage.link.lose(10)?;
    stage.writer.done(Order::Pour(writes.0, 300_000, 20_000))?;
    stage.rest(&Connection { writes, reads }, 300_000)?;
    stage.link.lose(0)?;
    let mut expected = [dropped_by_queue(&stage.link.a)?, dropped_by_queue(&stage.link.b)?];
    let earlier = stage.settled(&Connection { writes, reads })?[0].counter("bytes_sent");

    // the kernel tries again and again to send the first data
    let began = now()?;
    expected[0] += {
        let Stage { link, writer, .. } = &mut stage;
        without_room(&link.a, || {
            writer.done(Order::Pour(writes.0, 20_000, 20_000))?;
            thread::sleep(Duration::from_millis(50));
            Ok(())
        })?
    };
    let lossless = (began, now()?);
    stage.rest(&Connection { writes, reads }, earlier + 20_000)?;
    let [told, _] = stage.settled(&Connection { writes, reads })?;
    // every byte has arrived, so what was sent beyond that was sent again, or was dropped at once
    let never_left = told.counter("bytes_sent") - told.counter("bytes_retrans") - 320_000;

    // the first SYN-ACK is dropped, and a later one is not
    let Stage { link, writer, reader, listener } = &mut stage;
    expected[1] += thread::scope(|scope| {
        let mut connecting = None;
        let dropped = without_room(&link.b, || {
            connecting = Some(scope.spawn(|| writer.socket(Order::Connect(listener.1))));
            thread::sleep(Duration::from_millis(300));
            Ok(())
        });
        let connected = connecting.context("no queue")?.join().unwrap_or_else(|panic| panic::resume_unwind(panic));
        connected.and(dropped)
    })?;
    reader.socket(Order::Accept(listener.0, How::Call))?;
    let trace = xctl.stop(Signal::SIGINT)?;
    trace.nothing_lost()?;
    let (a, b) = (&stage.link.a, &stage.link.b);
    let sent = of(&trace, a, &stage.writer.who, reasons.as_deref())?;
    let received = of(&trace, b, &stage.reader.who, reasons.as_deref())?;
    let told = [sent.len() as u64, received.len() as u64];
    // where there is IPv6, the kernel's own messages to neighbours and routers are dropped too
    let fits = if family == Family::V4 { told == expected } else { told[0] <= expected[0] && told[1] <= expected[1] };
    ensure!(fits, "the queues dropped {expected:?} packets, and xctl says {told:?}");
    row_adds_up(&trace, &stage.writer.who, &sent)?;
    row_adds_up(&trace, &stage.reader.who, &received)?;
    let refused = |drop: &&&Drop| drop.mono_ns > lossless.0 && drop.mono_ns < lossless.1;
    let refused: u64 = sent.iter().filter(refused).filter_map(|drop| drop.bytes).sum();
    ensure!(refused > 0 && never_left == refused, "{refused} bytes dropped, and {never_left} never left");
    let synacks: Vec<_> = received.iter().filter(|drop| drop.state == "NEW_SYN_RECV").collect();
    let are_bare = synacks.iter().all(|drop| drop.segs == 1 && drop.bytes == Some(0));
    ensure!(!synacks.is_empty() && are_bare, "the SYN-ACKs: {synacks:?}");
    Ok(Verdict::Passed(format!("{told:?} packets, {refused} bytes, {} SYN-ACKs", synacks.len())))
}
