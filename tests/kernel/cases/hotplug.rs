//! CPUs that come and go: nothing of what TCP sends again on them is lost.

use std::path::PathBuf;
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::counters::Counters;
use crate::host::Set;
use crate::link::{Link, Netns};
use crate::process::{PATIENCE, poll};
use crate::workers::{Puppet, Receiver, keep_cpus_busy};
use crate::xctl::Xctl;
use crate::{Family, Outcome, Verdict};

/// The CPU that comes and goes; CPU 0 stays, on most machines for good.
const CPU: usize = 1;

/// How often TCP sends again before the next thing happens: after 0.2 s, 0.4 s, 0.8 s, ...
const TIMES: i64 = 2;

/// A CPU, online again when dropped.
struct Switch;

impl Switch {
    fn file() -> PathBuf {
        format!("/sys/devices/system/cpu/cpu{CPU}/online").into()
    }

    /// Why this machine cannot do that; none if it can. Somebody's own machine keeps its CPUs.
    fn absent() -> Option<String> {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        if host.trim() != "guest" {
            return Some("takes a CPU offline: only in a virtual machine of tests/vm".into());
        }
        (!Self::file().exists()).then(|| format!("CPU {CPU} cannot go offline here"))
    }

    fn set(on: bool) -> Result<()> {
        let (file, value) = (Self::file(), if on { "1" } else { "0" });
        std::fs::write(&file, value).with_context(|| format!("writing {value} to {}", file.display()))
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        let _ = Self::set(true);
    }
}

/// A CPU that is offline when xctl starts.
pub fn came_online(set: Set, family: Family) -> Outcome {
    with_cpu_on_off(set, family, false)
}

/// A CPU that has a ring when xctl starts, and is offline for a while.
pub fn came_back(set: Set, family: Family) -> Outcome {
    with_cpu_on_off(set, family, true)
}

fn with_cpu_on_off(set: Set, family: Family, at_start: bool) -> Outcome {
    if let Some(why) = Switch::absent() {
        return Ok(Verdict::Skipped(why));
    }
    let link = Link::up()?;
    let receiver = Receiver::new(&link.b, "receiver", link.address(&link.b, family), 0)?;
    let switch = Switch;
    Switch::set(at_start)?;
    let xctl = Xctl::start(set, &[])?;
    let before = Counters::of(&link.a)?;
    Switch::set(false)?;
    Switch::set(true)?;

    // its timers run where it sends, as long as that CPU is not idle
    let (mut sender, busy) = on_cpu(|| {
        let busy = keep_cpus_busy(&link.b)?;
        Ok((Puppet::new(&link.a, "pinned", receiver.at)?, busy))
    })?;
    link.lose(100)?;
    sender.send()?;
    let seen = sent_again(&link.a, &before, TIMES)?;
    // ... and on another CPU from now on
    Switch::set(false)?;
    sent_again(&link.a, &before, seen + TIMES)?;
    Switch::set(true)?;
    link.lose(0)?;
    drop(busy);
    let truth = sender.truth.clone();
    sender.exit()?;
    link.quiet()?;
    let after = Counters::of(&link.a)?;
    drop(switch);
    let trace = xctl.stop(Signal::SIGINT)?;

    trace.nothing_lost()?;
    let records = trace.all_of(link.a.inode, &truth.who, truth.flow()?)?;
    let segs = i64::try_from(trace.segs(|record| record.at.netns == link.a.inode))?;
    let counted = after.since(&before, "RetransSegs")? - after.since(&before, "TCPRetransFail")?;
    ensure!(segs == counted, "the kernel counted {counted} segments, xctl {segs}");
    let there = trace.of(link.a.inode).filter(|record| record.cpu as usize == CPU).count();
    ensure!(there > 0, "nothing was sent again on CPU {CPU}: {:?}", trace.retransmits);
    ensure!(there < records, "everything was sent again on CPU {CPU}, also while it was offline");
    Ok(Verdict::Passed(format!("{there} of {records} retransmits on CPU {CPU}")))
}

/// Waits until the namespace has sent again so many segments since `before`, and says how many they are.
fn sent_again(ns: &Netns, before: &Counters, count: i64) -> Result<i64> {
    let sent = || Counters::of(ns)?.since(before, "RetransSegs");
    ensure!(poll(PATIENCE, || Ok(sent()? >= count))?, "only {} of {count} segments were sent again", sent()?);
    sent()
}

/// Does `work`, and all that it starts, on [`CPU`].
fn on_cpu<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let there = || {
        let mut only = CpuSet::new();
        only.set(CPU)?;
        sched_setaffinity(Pid::from_raw(0), &only).context("moving there")?;
        work()
    };
    thread::scope(|scope| scope.spawn(there).join()).map_err(|_| anyhow!("the thread panicked"))?
}
