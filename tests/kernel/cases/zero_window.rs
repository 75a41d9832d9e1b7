//! Processes that read too slowly: the times at which their receive windows are shut, beside the kernel's counters.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use super::ledger::end;
use super::stats::{Stage, number};
use crate::counters::{Counters, wait_until_grown};
use crate::host::Set;
use crate::ways::Order;
use crate::xctl::{Trace, Xctl};
use crate::{Family, Outcome, Verdict};

/// How often and how long, microseconds.
fn told(trace: &Trace, pid: u32) -> Result<[Option<u64>; 2]> {
    let row = trace.summary.ledger.iter().find(|row| row.pid == Some(pid)).context("no row")?;
    ensure!(row.ledger["zero_window"].is_object(), "no zero_window: {row:?}");
    Ok(["times", "us"].map(|name| number(&row.ledger, &format!("zero_window.{name}"))))
}

/// A window that stays shut from before xctl on, one of a process that reads late and slowly until the connection ends, and one
/// that is shut meanwhile and stays so.
pub fn run(set: Set, family: Family) -> Outcome {
    const BYTES: u32 = 20_000_000;
    /// So often the process stops to read, after reading so much.
    const PAUSES: u32 = 10;
    const UNREAD: Duration = Duration::from_millis(700);
    let mut stage = Stage::new(family)?;
    let (older, slow, never) = (stage.connect()?, stage.connect()?, stage.connect()?);
    let first = Counters::of(&stage.link.b)?;
    stage.writer.done(Order::Pour(older.writes.0, BYTES, BYTES))?;
    wait_until_grown(&stage.link.b, &first, "TCPToZeroWindowAdv", 1)?;
    let before = Counters::of(&stage.link.b)?;
    let opened = |stage: &Stage| Counters::of(&stage.link.b)?.since(&before, "TCPFromZeroWindowAdv");
    let xctl = Xctl::start(set, &["--reader", "--events", "connection"])?;
    let began = Instant::now();

    stage.writer.done(Order::Pour(slow.writes.0, BYTES, BYTES))?;
    wait_until_grown(&stage.link.b, &before, "TCPToZeroWindowAdv", 1)?;
    thread::sleep(UNREAD);
    stage.reader.done(Order::Drain(slow.reads.0, BYTES / PAUSES, 200))?;
    stage.rest(&slow, BYTES.into())?;
    let times = opened(&stage)?;
    ensure!(times > 0, "its window was never shut");
    end(&mut stage, &slow)?;
    let slow_for = began.elapsed();

    stage.writer.done(Order::Pour(never.writes.0, BYTES, BYTES))?;
    wait_until_grown(&stage.link.b, &before, "TCPToZeroWindowAdv", times + 1)?;
    thread::sleep(UNREAD);
    let older_for = began.elapsed();
    let trace = xctl.stop(Signal::SIGINT)?;
    let all_for = 2 * began.elapsed();

    let (writer, reader) = (told(&trace, stage.writer.who.pid)?, told(&trace, stage.reader.who.pid)?);
    if set == Set::Kprobe {
        ensure!(writer == [None; 2] && reader == writer, "no hook shows reads: {reader:?}");
        return Ok(Verdict::Passed("not known".into()));
    }
    let within = |us: Option<u64>, least: Duration, most: Duration| {
        us.is_some_and(|us| (least.as_micros()..=most.as_micros()).contains(&us.into()))
    };
    let is_slow = |record: &&crate::xctl::Connection| record.at.flow() == slow.reads.1;
    let record = trace.connections.iter().find(is_slow).context("no end of the slow connection")?;
    let slow = ["times", "us"].map(|name| number(&record.ledger, &format!("zero_window.{name}")));
    ensure!(slow[0] == Some(times as u64), "{times} times, not {slow:?}");
    ensure!(within(slow[1], UNREAD, slow_for), "between {UNREAD:?} and {slow_for:?}: {slow:?}");
    ensure!(writer == [Some(0); 2], "the writer's window was open: {writer:?}");
    ensure!(opened(&stage)? == times, "the window opened, and nobody reads");
    // The oldest was shut before, so that it only adds its time.
    ensure!(reader[0] == Some(times as u64 + 1), "{times} times, and now: {reader:?}");
    let least = Duration::from_micros(slow[1].unwrap_or(0)) + UNREAD + older_for;
    // of the oldest, jiffies may be missing at both ends
    let least = least.saturating_sub(Duration::from_millis(50));
    ensure!(within(reader[1], least, all_for + slow_for), "at least {least:?}: {reader:?}");
    trace.nothing_lost()?;
    Ok(Verdict::Passed(format!("{} times, {} us", times + 1, reader[1].unwrap_or(0))))
}
