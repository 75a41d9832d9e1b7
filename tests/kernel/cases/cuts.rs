//! Cuts of congestion windows are compared with the kernel's counters of recoveries and timeouts, and with the process's own
//! TCP_INFO.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

use super::refusals::CANNOT_RUN_HERE;
use super::stats::{Connection, Stage, number};
use super::verify_ledger::mark;
use crate::counters::{Counters, wait_until_grown};
use crate::host::{Set, tool};
use crate::link::{Netns, run as run_tool};
use crate::process::{Process, now};
use crate::tracefs::has_event;
use crate::ways::Order;
use crate::xctl::{Cut, Trace, Xctl, command, refusal};
use crate::{Family, Outcome, Verdict};

/// The reasons that the summary counts, as `why` names them; none: not known.
const REASONS: [(&str, Option<&str>); 7] = [
    ("recovery", Some("recovery")),
    ("timeout", Some("timeout")),
    ("ecn", Some("ecn")),
    ("local", Some("local")),
    ("pmtu", Some("pmtu")),
    ("probe", Some("probe")),
    ("unknown", None),
];

/// A qdisc without room: each send into it fails at once, and TCP learns of the failure.
pub const NO_ROOM: &str = "qdisc replace dev veth0 root pfifo limit 0";

/// Runs tc in the namespace, with these words.
pub fn tc(ns: &Netns, order: &str) -> Result<()> {
    ns.enter(|| run_tool(tool("tc").args(order.split(' ')), ""))
}

/// Sends, and waits until all of it has arrived.
fn pour(stage: &mut Stage, connection: &Connection, bytes: u32, all: u64) -> Result<()> {
    stage.writer.done(Order::Pour(connection.writes.0, bytes, 20_000))?;
    stage.rest(connection, all)
}

/// Loses the last segment of a connection, until a loss probe repairs that. TCP knows of the loss when later data are acknowledged.
fn repaired_by_probe(stage: &mut Stage, before: &Counters) -> Result<()> {
    let tail = stage.connect()?;
    stage.reader.done(Order::Drain(tail.reads.0, 1 << 16, 0))?;
    let mut all = 0;
    for _ in 0..20 {
        pour(stage, &tail, 1000, all + 1000)?;
        stage.link.lose(100)?;
        stage.writer.done(Order::Pour(tail.writes.0, 1000, 1000))?;
        std::thread::sleep(Duration::from_millis(30));
        stage.link.lose(0)?;
        stage.rest(&tail, all + 2000)?;
        pour(stage, &tail, 1000, all + 3000)?;
        all += 3000;
        if Counters::of(&stage.link.a)?.since(before, "TCPLossProbeRecovery")? > 0 {
            return Ok(());
        }
    }
    bail!("no loss probe repaired a loss")
}

/// The kernel's counters agree with the cuts of the namespace, and the summary with all cuts of the process.
fn compare(trace: &Trace, stage: &Stage, before: &Counters, sees_all: bool) -> Result<BTreeMap<&'static str, i64>> {
    let after = Counters::of(&stage.link.a)?;
    let pid = stage.writer.who.pid;
    let cuts: Vec<&Cut> = trace.cuts.iter().filter(|cut| cut.at.netns == stage.link.a.inode).collect();
    let row = trace.summary.ledger.iter().find(|row| row.pid == Some(pid)).context("no row of the writer")?;
    let mut counts = BTreeMap::new();
    for (name, why) in REASONS {
        let count = cuts.iter().filter(|cut| cut.why.as_deref() == why).count();
        let told = number(&row.ledger, &format!("cuts.{name}"));
        let unknown = match name {
            "recovery" | "timeout" => false,
            // each is known only if no cut may be any of them
            "ecn" | "local" | "probe" => !sees_all || cuts.iter().any(|cut| cut.why.is_none()),
            _ => !sees_all,
        };
        ensure!(told == (!unknown).then_some(count as u64), "{count} cuts by {name}: {:?}", row.ledger["cuts"]);
        counts.insert(name, count as i64);
    }
    let kernel = after.since(before, "TCPSackRecovery")? + after.since(before, "TCPRenoRecovery")?;
    ensure!(counts["recovery"] == kernel, "{kernel} recoveries: {counts:?}");
    let kernel = after.since(before, "TCPTimeouts")?;
    ensure!(counts["timeout"] == kernel, "{kernel} timeouts: {counts:?}");
    let kernel = after.since(before, "TCPLossProbeRecovery")?;
    ensure!(!sees_all || counts["probe"] == kernel, "{kernel} losses that probes repaired: {counts:?}");
    for cut in cuts {
        let known = [stage.writer.who.pid == cut.at.pid.unwrap_or(0), sees_all == cut.ssthresh.is_some()];
        ensure!(known == [true; 2] && (cut.cwnd > Some(0) || cut.why.as_deref() == Some("timeout")), "{cut:?}");
    }
    Ok(counts)
}

/// Losses, a timeout, a queue of this host that drops, and marks of the network.
pub fn run(set: Set, family: Family) -> Outcome {
    if set == Set::Kprobe {
        let attach = ["trace", "--attach", "kprobe", "--events", "cut"];
        let said = refusal(Process::start("xctl", command(&attach)?)?, CANNOT_RUN_HERE)?;
        ensure!(said.contains("do not show cuts") && said.contains("5.19"), "it says {said:?}");
        return Ok(Verdict::Passed("refused: no hook shows cuts".into()));
    }
    let sees_all = has_event("tcp_cong_state_set")?;
    let mut stage = Stage::new(family)?;
    // BBR sets ssthresh without a cut (`bbr_check_drain()`).
    if std::fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control")?.trim() == "bbr" {
        stage.link.a.set("tcp_congestion_control", "reno")?;
    }
    let plain = stage.connect()?;
    for ns in [&stage.link.a, &stage.link.b] {
        ns.set("tcp_ecn", "1")?;
    }
    let marked = stage.connect()?;
    for connection in [&plain, &marked] {
        stage.reader.done(Order::Drain(connection.reads.0, 1 << 16, 0))?;
    }
    let before = Counters::of(&stage.link.a)?;
    let xctl = Xctl::start(set, &["--events", "cut"])?;

    stage.link.lose(5)?;
    let mut all = 0_u64;
    // offload makes few segments of many bytes
    for _ in 0..20 {
        if Counters::of(&stage.link.a)?.since(&before, "TCPSackRecovery")? == 0 {
            all += 600_000;
            pour(&mut stage, &plain, 600_000, all)?;
        }
    }
    stage.link.lose(100)?;
    stage.writer.done(Order::Pour(plain.writes.0, 1000, 1000))?;
    wait_until_grown(&stage.link.a, &before, "TCPTimeouts", 1)?;
    stage.link.lose(0)?;
    stage.rest(&plain, all + 1000)?;
    // The window must be open again.
    pour(&mut stage, &plain, 300_000, all + 301_000)?;

    repaired_by_probe(&mut stage, &before)?;

    let full_from = now()?;
    tc(&stage.link.a, NO_ROOM)?;
    for connection in [&plain, &marked] {
        stage.writer.done(Order::Pour(connection.writes.0, 20_000, 20_000))?;
    }
    std::thread::sleep(Duration::from_millis(50));
    tc(&stage.link.a, "qdisc del dev veth0 root")?;
    let full = full_from..now()?;
    stage.rest(&plain, all + 321_000)?;
    stage.rest(&marked, 20_000)?;
    let told = stage.settled(&plain)?[0].gauges["now.ssthresh"];
    // From here on the network marks segments, and no queue of this host refuses one.
    let marks_from = now()?;
    mark(&stage.link)?;
    all = 20_000;
    for _ in 0..20 {
        if Counters::of(&stage.link.a)?.since(&before, "TCPDeliveredCE")? == 0 {
            all += 400_000;
            pour(&mut stage, &marked, 400_000, all)?;
        }
    }
    stage.link.lose(0)?;
    ensure!(Counters::of(&stage.link.a)?.since(&before, "TCPDeliveredCE")? > 0, "no mark was delivered");
    let trace = xctl.stop(Signal::SIGINT)?;
    trace.nothing_lost()?;
    let counts = compare(&trace, &stage, &before, sees_all)?;
    ensure!(counts["recovery"] > 0 && counts["timeout"] > 0, "something did not happen: {counts:?}");
    if sees_all {
        let of = |connection: &Connection, why: &str| -> Vec<u64> {
            let cuts = trace.cuts.iter().filter(|cut| cut.at.flow() == connection.writes.1);
            cuts.filter(|cut| cut.why.as_deref() == Some(why)).map(|cut| cut.mono_ns).collect()
        };
        let all_in = |times: Vec<u64>, when: &dyn Fn(&u64) -> bool| !times.is_empty() && times.iter().all(when);
        ensure!(counts["unknown"] == 0, "a cut without a reason: {counts:?}");
        for connection in [&plain, &marked] {
            ensure!(all_in(of(connection, "local"), &|time| full.contains(time)), "the full queue: {counts:?}");
        }
        ensure!(of(&plain, "ecn").is_empty(), "without ECN: {counts:?}");
        ensure!(all_in(of(&marked, "ecn"), &|time| *time > marks_from), "marks of the network: {counts:?}");
        let last = trace.cuts.iter().rfind(|cut| cut.at.flow() == plain.writes.1).context("no cut")?;
        ensure!(last.ssthresh == Some(told), "the process was told {told}: {last:?}");
    }
    Ok(Verdict::Passed(format!("{counts:?}")))
}
