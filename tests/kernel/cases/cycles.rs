//! xctl starts and ends repeatedly under load, in every way and at any moment: nothing is left over.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use super::ends::{bpf_objects, held, kprobes};
use crate::folder::Folder;
use crate::host::{Set, is_full, is_guest};
use crate::link::Link;
use crate::process::{Process, now, poll};
use crate::workers::{Plan, Receiver, Sender};
use crate::xctl::{Xctl, command};
use crate::{Family, Outcome, Verdict};

const FEW: u32 = 5;
const MANY: u32 = 1000;
/// The least duration of the case, if it makes many cycles.
const LONG: Duration = Duration::from_secs(600);

/// The way in which a cycle ends.
#[derive(Clone, Copy, Debug)]
enum End {
    Interrupted,
    Terminated,
    Killed,
    /// Killed at any moment from its start on.
    KilledEarly,
    Unread,
}

pub fn run(set: Set, family: Family) -> Outcome {
    let (least, shortest) = if is_full() { (MANY, LONG) } else { (FEW, Duration::ZERO) };
    let link = Link::lossy()?;
    let receiver = Receiver::new(&link.b, "receiver", link.address(&link.b, family), 0)?;
    let day = Duration::from_secs(24 * 3600);
    let plan = Plan { time: day, sizes: vec![2000], sends_a_connection: 50, ..Plan::new("load", receiver.at) };
    let mut senders = [Sender::new(&link.a, plan.clone())?, Sender::new(&link.a, plan)?];
    senders.iter_mut().try_for_each(Sender::go)?;

    // one xctl that runs all the time
    let long = Xctl::start(set, &[])?;
    // without files of /proc, which xctl opens for a moment at each event
    let lasts = |fd: &std::fs::DirEntry| std::fs::read_link(fd.path()).is_ok_and(|to| !to.starts_with("/proc"));
    let descriptors = || {
        let all = std::fs::read_dir(format!("/proc/{}/fd", long.process.pid()))?;
        Ok::<_, anyhow::Error>(all.flatten().filter(lasts).count())
    };
    let held_first = descriptors()?;
    let folder = Folder::new("cycles")?;
    let before = bpf_objects()?;
    let probes = kprobes("list")?;
    // the changes of these numbers under this load alone
    let mut quiet = Range::of(kernel_memory()?);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(2) {
        thread::sleep(Duration::from_millis(100));
        quiet.add(kernel_memory()?);
    }
    cycle(set, &folder, End::Interrupted)?;
    let first = kernel_memory()?;
    let began = Instant::now();
    let ends = [End::Interrupted, End::KilledEarly, End::Terminated, End::Killed, End::Unread];
    let mut cycles = 0;
    for end in ends.into_iter().cycle() {
        if cycles >= least && began.elapsed() >= shortest {
            break;
        }
        cycle(set, &folder, end).with_context(|| format!("cycle {cycles}, {end:?}"))?;
        cycles += 1;
    }
    let took = began.elapsed();

    let left = || -> Result<BTreeSet<_>> {
        let others = held()?;
        Ok(bpf_objects()?.into_iter().filter(|one| !before.contains(one) && !others.contains(one)).collect())
    };
    ensure!(poll(Duration::from_secs(10), || Ok(left()?.is_empty()))?, "left in the kernel: {:?}", left()?);
    let files: Vec<_> = std::fs::read_dir(&folder.0)?.flatten().map(|file| file.file_name()).collect();
    ensure!(files.is_empty(), "files left over: {files:?}");
    let more = || -> Result<BTreeSet<_>> { Ok(kprobes("list")?.difference(&probes).cloned().collect()) };
    // on other hosts other processes have probes, too
    ensure!(!is_guest() || more()?.is_empty(), "probes left over: {:?}", more()?);
    let allowed = quiet.width() + 1024;
    let grown = || Ok::<_, anyhow::Error>(kernel_memory()?.saturating_sub(first));
    let settled = !is_guest() || poll(Duration::from_secs(10), || Ok(grown()? <= allowed))?;
    ensure!(settled, "the kernel holds {} KiB more, and {allowed} would be noise", grown()?);
    let held_last = descriptors()?;
    ensure!(held_last == held_first, "one that ran all the time had {held_first} descriptors, and has {held_last}");
    drop(senders);
    long.stop(Signal::SIGINT)?;
    Ok(Verdict::Passed(format!(
        "{cycles} cycles in {:.0} s; the kernel holds {} KiB more",
        took.as_secs_f64(),
        grown()?
    )))
}

/// xctl starts and ends while segments are retransmitted all the time. While only some of the hooks are attached, xctl
/// prints no record that it would not print with all of them.
pub fn under_load(set: Set, family: Family) -> Outcome {
    let link = Link::up()?;
    link.lose(10)?;
    let receiver = Receiver::new(&link.b, "receiver", link.address(&link.b, family), 0)?;
    let plan = Plan {
        time: Duration::from_secs(24 * 3600),
        sizes: vec![2000],
        pause: Duration::from_micros(500),
        sends_a_connection: 20,
        ..Plan::new("load", receiver.at)
    };
    let mut senders = (0..4).map(|_| Sender::new(&link.a, plan.clone())).collect::<Result<Vec<_>>>()?;
    senders.iter_mut().try_for_each(Sender::go)?;
    let mut count = 0;
    for _ in 0..2 {
        let xctl = Xctl::start(set, &[])?;
        thread::sleep(Duration::from_millis(500));
        let trace = xctl.stop(Signal::SIGINT)?;
        trace.nothing_lost()?;
        for record in trace.of(link.a.inode) {
            let pid = record.at.pid;
            let named = pid.is_some_and(|pid| senders.iter().any(|sender| sender.who.pid == pid));
            // A closed socket has no process: xctl cannot know the owner of a socket that was closed before xctl started.
            let may_be_unknown = record.state != "ESTABLISHED" && record.state != "SYN_SENT";
            ensure!(named || (pid.is_none() && may_be_unknown), "not a sender's: {record:?}");
            count += usize::from(named);
        }
    }
    ensure!(count > 0, "no retransmits: the link was not lossy enough to tell anything");
    Ok(Verdict::Passed(format!("{count} retransmits")))
}

fn cycle(set: Set, folder: &Folder, end: End) -> Result<()> {
    let attach = set.to_string();
    let mut command = command(&["trace", "--json", "--attach", &attach, "--max-sockets", "32768"])?;
    command.current_dir(&folder.0).env("TMPDIR", &folder.0);
    // no two moments are alike: the clock is random enough
    let moment = Duration::from_micros(now()? / 1000 % 50_000);
    if let End::KilledEarly = end {
        let mut process = Process::start("xctl", command)?;
        thread::sleep(moment);
        process.signal(Signal::SIGKILL)?;
        return process.wait().map(drop);
    }
    let mut xctl = Xctl::start_command(set, command)?;
    thread::sleep(moment);
    match end {
        End::Interrupted => xctl.stop(Signal::SIGINT).map(drop),
        End::Terminated => xctl.stop(Signal::SIGTERM).map(drop),
        End::Killed | End::KilledEarly => {
            xctl.process.signal(Signal::SIGKILL)?;
            xctl.process.wait().map(drop)
        }
        End::Unread => {
            xctl.process.close_output();
            let status = xctl.process.wait()?;
            ensure!(status.code() == Some(0), "it ended with {status} and said {:?}", xctl.process.errors());
            Ok(())
        }
    }
}

/// Memory that the kernel uses itself, and could hold for xctl, in KiB.
fn kernel_memory() -> Result<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
    let mut sum = 0;
    for name in ["Percpu:", "SUnreclaim:", "VmallocUsed:"] {
        let value = meminfo.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
        sum += value.trim().trim_end_matches(" kB").parse::<u64>()?;
    }
    Ok(sum)
}

struct Range {
    low: u64,
    high: u64,
}

impl Range {
    fn of(value: u64) -> Range {
        Range { low: value, high: value }
    }

    fn add(&mut self, value: u64) {
        (self.low, self.high) = (self.low.min(value), self.high.max(value));
    }

    fn width(&self) -> u64 {
        self.high - self.low
    }
}
