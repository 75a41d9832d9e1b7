//! xctl runs in a time namespace with clocks that are days ahead. The times and the process data that xctl prints are the
//! host's.

use std::time::{Duration, SystemTime};

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;

use crate::counters::{Counters, wait_until_grown};
use crate::host::{Set, tool};
use crate::link::Link;
use crate::process::now;
use crate::workers::{Puppet, Receiver, unanswered};
use crate::xctl::{Owner, Xctl, command};
use crate::{Family, Outcome, Verdict};

const INSIDE: [&str; 5] = ["--time", "--boottime", "100000", "--monotonic", "200000"];

pub fn run(set: Set, family: Family) -> Outcome {
    if !tool("unshare").args(INSIDE).arg("true").output().is_ok_and(|output| output.status.success()) {
        return Ok(Verdict::Skipped("no way to make a time namespace".into()));
    }
    let (link, wire) = (Link::up()?, Link::up()?);
    // xctl learns one process from /proc, and the other from its calls
    let (_listens, stays) = unanswered(&wire, family, "stays")?;
    let receiver = Receiver::new(&link.b, "receiver", link.address(&link.b, family), 0)?;
    let mut leaver = Puppet::new(&link.a, "leaver", receiver.at)?;
    let (alive, dead) = (stays.truth.clone(), leaver.truth.clone());

    let xctl = command(&["trace", "--json", "--attach", &set.to_string(), "--max-sockets", "32768", "--seed", "proc"])?;
    let mut inside = tool("unshare");
    inside.args(INSIDE).arg(xctl.get_program()).args(xctl.get_args());
    let mut xctl = Xctl::start_command(set, inside)?;
    let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/time")).context("reading a namespace");
    if namespace("self")? == namespace(&xctl.process.pid().to_string())? {
        return Ok(Verdict::Skipped("this kernel puts only children into a time namespace".into()));
    }
    link.lose(100)?;
    leaver.send()?;
    leaver.exit()?;
    let gone_ns = now()?;
    wait_until_grown(&link.a, &Counters::of(&link.a)?, "RetransSegs", 3)?;
    // a record is printed while xctl runs: xctl holds no record back for days
    let seen = xctl.wait_for(|record| record.at.netns == wire.a.inode)?.context("nothing of the one that stays")?;
    ensure!(seen.at.owner == Owner::Seed, "not known from /proc: {seen:?}");
    let (wall, mono) = (SystemTime::now(), now()?);
    link.lose(0)?;
    wire.lose(0)?;
    link.quiet()?;
    let trace = xctl.stop(Signal::SIGINT)?;
    drop(stays);

    trace.nothing_lost()?;
    trace.all_of(link.a.inode, &dead.who, dead.flow()?)?;
    trace.all_of(wire.a.inode, &alive.who, alive.flow()?)?;
    let mut counts = (0, 0);
    for record in trace.of(wire.a.inode) {
        ensure!(!record.exited, "it lives: {record:?}");
        counts.0 += 1;
    }
    for record in trace.of(link.a.inode) {
        ensure!(record.exited || record.mono_ns < gone_ns, "it had exited: {record:?}");
        counts.1 += usize::from(record.exited);
    }
    ensure!(counts.0 >= 1 && counts.1 >= 2, "{counts:?} retransmits");
    for record in &trace.retransmits {
        let time = humantime::parse_rfc3339(&record.time).with_context(|| format!("not a time: {record:?}"))?;
        let expected = if record.mono_ns < mono {
            wall - Duration::from_nanos(mono - record.mono_ns)
        } else {
            wall + Duration::from_nanos(record.mono_ns - mono)
        };
        let off = time.duration_since(expected).unwrap_or_else(|error| error.duration());
        ensure!(off < Duration::from_secs(1), "{off:?} off: {record:?}");
    }
    Ok(Verdict::Passed(format!("{} retransmits of the living, {} of the dead", counts.0, counts.1)))
}
