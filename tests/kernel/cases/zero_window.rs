//! Who does not read: how often and how long a process keeps its own receive window shut, beside the kernel's counters.

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

/// Reads late and slowly on one connection, which then ends, and not at all on another.
pub fn run(set: Set, family: Family) -> Outcome {
    const BYTES: u32 = 20_000_000;
    /// So often the process stops to read, after reading so much.
    const PAUSES: u32 = 10;
    const UNREAD: Duration = Duration::from_millis(700);
    let mut stage = Stage::new(family)?;
    let (slow, never) = (stage.connect()?, stage.connect()?);
    let before = Counters::of(&stage.link.b)?;
    let began = Instant::now();
    let xctl = Xctl::start(set, &["--reader"])?;

    stage.writer.done(Order::Pour(slow.writes.0, BYTES, BYTES))?;
    wait_until_grown(&stage.link.b, &before, "TCPToZeroWindowAdv", 1)?;
    stage.reader.done(Order::Drain(slow.reads.0, BYTES / PAUSES, 200))?;
    stage.rest(&slow, BYTES.into())?;
    let opened = |stage: &Stage| Counters::of(&stage.link.b)?.since(&before, "TCPFromZeroWindowAdv");
    let times = opened(&stage)?;
    ensure!(times > 0, "its window was never shut");
    end(&mut stage, &slow)?;

    stage.writer.done(Order::Pour(never.writes.0, BYTES, BYTES))?;
    wait_until_grown(&stage.link.b, &before, "TCPToZeroWindowAdv", times + 1)?;
    let shut = Instant::now();
    thread::sleep(UNREAD);
    let trace = xctl.stop(Signal::SIGINT)?;
    let elapsed = (shut.elapsed(), began.elapsed());

    let (writer, reader) = (told(&trace, stage.writer.who.pid)?, told(&trace, stage.reader.who.pid)?);
    if set == Set::Kprobe {
        ensure!(writer == [None; 2] && reader == writer, "no hook shows reads: {reader:?}");
        return Ok(Verdict::Passed("not known".into()));
    }
    ensure!(writer == [Some(0); 2], "the writer's window was open: {writer:?}");
    ensure!(opened(&stage)? == times, "the window opened, and nobody reads");
    ensure!(reader[0] == Some(times as u64 + 1), "{times} times, and now: {reader:?}");
    let range = UNREAD.as_micros() as u64..2 * elapsed.1.as_micros() as u64;
    ensure!(reader[1].is_some_and(|us| range.contains(&us)), "shut for {elapsed:?}: {reader:?}");
    trace.nothing_lost()?;
    Ok(Verdict::Passed(format!("{} times, {} us", times + 1, reader[1].unwrap_or(0))))
}
