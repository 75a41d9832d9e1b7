//! Records that come together are read together: xctl makes no system call for each of them.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use super::stopped_reader::stopped;
use crate::counters::unacknowledged;
use crate::crowd::{Job, Member};
use crate::host::Set;
use crate::link::Link;
use crate::process::{PATIENCE, poll};
use crate::workers::{Flow, Receiver};
use crate::xctl::Xctl;
use crate::{Family, Outcome, Verdict};

/// Only connections to this port pass the filter.
const PORT: u16 = 5791;
/// Fewer than the output pipe has room for.
const SENDS: usize = 100;

pub fn run(set: Set, family: Family) -> Outcome {
    let link = Link::up()?;
    let receiver = Receiver::new(&link.b, "receiver", link.address(&link.b, family), PORT)?;
    let xctl = Xctl::start(set, &["--events", "send", "--port", &PORT.to_string()])?;
    let job = Job::Hold { to: receiver.at, connections: 1 };
    let mut holder = Member::new(&link.a, "holder", &job)?;
    let flows: Vec<Flow> = holder.said()?;
    let [flow] = flows[..] else { anyhow::bail!("one connection expected: {flows:?}") };

    // while xctl is stopped, all records gather
    let pid = xctl.process.pid();
    xctl.process.signal(Signal::SIGSTOP)?;
    ensure!(poll(PATIENCE, || stopped(pid))?, "xctl does not stop");
    holder.order(&format!("burst {SENDS}"))?;
    ensure!(poll(PATIENCE, || Ok(unacknowledged(&link.a)?.is_empty()))?, "not acknowledged");
    let before = calls(pid)?;
    xctl.process.signal(Signal::SIGCONT)?;
    ensure!(poll(PATIENCE, || settled(pid))?, "xctl does not come to rest");
    let calls = calls(pid)? - before;
    let trace = xctl.stop(Signal::SIGINT)?;

    trace.nothing_lost()?;
    ensure!(trace.sends.len() == SENDS, "{SENDS} sends made, {} seen", trace.sends.len());
    for send in &trace.sends {
        send.at.is_of(&holder.who, flow)?;
    }
    ensure!(calls < SENDS as u64 / 2, "{calls} calls of read and write for {SENDS} records");
    Ok(Verdict::Passed(format!("{calls} calls of read and write for {SENDS} records")))
}

/// A record of an idle connection is printed within milliseconds, and not after a margin for records of other CPUs.
pub fn soon(set: Set, family: Family) -> Outcome {
    const RECORDS: usize = 51;
    /// Half of the records take less, also on a busy machine.
    const MEDIAN: Duration = Duration::from_millis(10);

    let link = Link::up()?;
    let receiver = Receiver::new(&link.b, "receiver", link.address(&link.b, family), PORT)?;
    let mut xctl = Xctl::start(set, &["--events", "send", "--port", &PORT.to_string()])?;
    let job = Job::Hold { to: receiver.at, connections: 1 };
    let mut holder = Member::new(&link.a, "holder", &job)?;
    let _: Vec<Flow> = holder.said()?;
    let mut took = Vec::new();
    for _ in 0..RECORDS {
        holder.order("burst 1")?;
        took.push(xctl.next_send_took()?);
        thread::sleep(Duration::from_millis(20));
    }
    let trace = xctl.stop(Signal::SIGINT)?;
    trace.nothing_lost()?;
    took.sort_unstable();
    let median = Duration::from_nanos(took[RECORDS / 2]);
    ensure!(median < MEDIAN, "the median is {median:?}, all times in ns are {took:?}");
    Ok(Verdict::Passed(format!("median {median:?}, longest {:?}", Duration::from_nanos(took[RECORDS - 1]))))
}

/// The number of system calls with which the process has read and written so far, as the kernel counts them.
fn calls(pid: u32) -> Result<u64> {
    let io = std::fs::read_to_string(format!("/proc/{pid}/io")).context("reading its counters")?;
    let count =
        |name| io.lines().find_map(|line| line.strip_prefix(name)).and_then(|count| count.trim().parse::<u64>().ok());
    count("syscr:").zip(count("syscw:")).map(|(reads, writes)| reads + writes).context("no syscr and syscw")
}

/// Whether the process does nothing for a while.
fn settled(pid: u32) -> Result<bool> {
    let before = super::idle::switches(pid)?;
    thread::sleep(Duration::from_millis(300));
    Ok(super::idle::switches(pid)? == before)
}
