//! CPUs go offline and online: xctl loses no retransmit on them, and says that they came or went.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::Signal;

use super::hosts::by_shell;
use super::idle::switches;
use super::lossy_link;
use crate::counters::Counters;
use crate::host::{Set, is_guest};
use crate::link::{Link, Netns};
use crate::process::{PATIENCE, Process, poll};
use crate::tracefs::with_private_mounts;
use crate::workers::{Puppet, Receiver, keep_cpus_busy, move_to, send_all};
use crate::xctl::{Trace, Xctl};
use crate::{Family, Outcome, Verdict};

/// The number of retransmits before the next step: after 0.2 s, 0.4 s, 0.8 s, ...
const TIMES: i64 = 2;

/// A CPU that is set online again when dropped.
struct Switch(usize);

impl Switch {
    /// None: this machine cannot set the CPU offline.
    fn of(cpu: usize) -> Option<Switch> {
        let switch = Switch(cpu);
        switch.file().exists().then_some(switch)
    }

    fn file(&self) -> PathBuf {
        format!("/sys/devices/system/cpu/cpu{}/online", self.0).into()
    }

    fn set(&self, on: bool) -> Result<()> {
        let (file, value) = (self.file(), if on { "1" } else { "0" });
        std::fs::write(&file, value).with_context(|| format!("writing {value} to {}", file.display()))
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        let _ = self.set(true);
    }
}

/// Why hotplug cannot be tried here; none if it can. The CPUs of a developer's machine are left alone.
fn not_here() -> Option<Verdict> {
    (!is_guest()).then(|| Verdict::Skipped("takes a CPU offline: only in a virtual machine of tests/vm".into()))
}

/// A CPU is offline when xctl starts, and comes online.
pub fn came_online(set: Set, family: Family) -> Outcome {
    with_cpu_on_off(set, family, false)
}

/// A CPU has a ring when xctl starts, and is offline for a while.
pub fn came_back(set: Set, family: Family) -> Outcome {
    with_cpu_on_off(set, family, true)
}

fn with_cpu_on_off(set: Set, family: Family, at_start: bool) -> Outcome {
    const CPU: usize = 1;
    if let Some(skipped) = not_here() {
        return Ok(skipped);
    }
    let Some(switch) = Switch::of(CPU) else {
        return Ok(Verdict::Skipped(format!("CPU {CPU} cannot go offline here")));
    };
    let link = Link::up()?;
    let receiver = Receiver::new(&link.b, "receiver", link.address(&link.b, family), 0)?;
    switch.set(at_start)?;
    let xctl = Xctl::start(set, &[])?;
    let before = Counters::of(&link.a)?;
    if at_start {
        ring_is_let_go(&xctl.process, || switch.set(false))?;
    }
    switch.set(true)?;

    // a socket's timers run on the CPU that sends, as long as that CPU is not idle
    let (mut sender, busy) = on_cpu(CPU, || {
        let busy = keep_cpus_busy(&link.b)?;
        Ok((Puppet::new(&link.a, "pinned", receiver.at)?, busy))
    })?;
    link.lose(100)?;
    sender.send()?;
    let seen = sent_again(&link.a, &before, TIMES)?;
    // from now on the timers run on another CPU
    switch.set(false)?;
    sent_again(&link.a, &before, seen + TIMES)?;
    switch.set(true)?;
    link.lose(0)?;
    drop(busy);
    let truth = sender.truth.clone();
    sender.exit()?;
    link.quiet()?;
    let after = Counters::of(&link.a)?;
    drop(switch);
    let trace = xctl.stop(Signal::SIGINT)?;

    let (online, offline) = if at_start { (2, 2) } else { (2, 1) };
    said_so(&trace, &format!("CPU {CPU} came online: its records come through the shared ring"), online)?;
    said_so(&trace, &format!("CPU {CPU} went offline"), offline)?;
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

/// xctl cannot print that a CPU came or went; this is no reason to end.
pub fn unheard(set: Set, _family: Family) -> Outcome {
    if let Some(skipped) = not_here() {
        return Ok(skipped);
    }
    let Some(switch) = Switch::of(1) else { return Ok(Verdict::Skipped("CPU 1 cannot go offline here".into())) };
    let args = ["trace", "--json", "--attach", &set.to_string()];
    let xctl = Xctl::start_command(set, by_shell("", &args, "2> /dev/full")?)?;
    ring_is_let_go(&xctl.process, || switch.set(false))?;
    switch.set(true)?;
    xctl.stop(Signal::SIGINT)?;
    Ok(Verdict::Passed("goes on".into()))
}

/// The lossy link, while CPUs go offline and online all the time. Two of the CPUs are offline when xctl starts, which
/// leaves a gap in the numbers, and a third is online.
pub fn come_and_go(set: Set, family: Family) -> Outcome {
    if let Some(skipped) = not_here() {
        return Ok(skipped);
    }
    let (Some(one), Some(two), Some(three)) = (Switch::of(1), Switch::of(2), Switch::of(3)) else {
        return Ok(Verdict::Skipped("it takes 4 CPUs (VM_CPUS=4)".into()));
    };
    let (changes, ended) = (AtomicU32::new(0), AtomicBool::new(false));
    let come_and_go = || -> Result<()> {
        while !ended.load(Ordering::Relaxed) {
            for (switch, on) in
                [(&three, true), (&one, true), (&two, false), (&one, false), (&three, false), (&two, true)]
            {
                switch.set(on)?;
                changes.fetch_add(1, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(50));
            }
        }
        Ok(())
    };
    one.set(false)?;
    three.set(false)?;
    let outcome = lossy_link::run_while(
        family,
        || Xctl::start(set, &[]),
        |senders| {
            thread::scope(|scope| {
                let switching = scope.spawn(come_and_go);
                let truths = send_all(senders);
                ended.store(true, Ordering::Relaxed);
                switching.join().map_err(|_| anyhow!("the thread panicked"))??;
                truths
            })
        },
    );
    let changes = changes.into_inner();
    match outcome? {
        Verdict::Passed(note) => {
            ensure!(changes >= 6, "CPUs came and went {changes} times only");
            Ok(Verdict::Passed(format!("{changes} changes; {note}")))
        }
        skipped => Ok(skipped),
    }
}

/// CPU 0 is offline when xctl starts, so xctl opens probes on another CPU. Then this CPU goes offline.
pub fn first_offline(set: Set, family: Family) -> Outcome {
    if let Some(skipped) = not_here() {
        return Ok(skipped);
    }
    let (Some(zero), Some(one)) = (Switch::of(0), Switch::of(1)) else {
        return Ok(Verdict::Skipped("CPU 0 cannot go offline here".into()));
    };
    zero.set(false)?;
    lossy_link::run_with(family, || {
        let xctl = Xctl::start(set, &[])?;
        zero.set(true)?;
        ring_is_let_go(&xctl.process, || one.set(false))?;
        Ok(xctl)
    })
}

/// A CPU goes offline just after xctl has read that it is online. A file with the old list simulates this.
pub fn left_meanwhile(set: Set, _family: Family) -> Outcome {
    if let Some(skipped) = not_here() {
        return Ok(skipped);
    }
    let Some(switch) = Switch::of(1) else { return Ok(Verdict::Skipped("CPU 1 cannot go offline here".into())) };
    let said = std::env::temp_dir().join(format!("xctl-cpus-{}", std::process::id()));
    // xctl opens probes on the first CPU of the list
    std::fs::write(&said, "1,0\n").context("writing a list of CPUs")?;
    let nothing = None::<&str>;
    let xctl = with_private_mounts(|| {
        mount(Some(&said), "/sys/devices/system/cpu/online", nothing, MsFlags::MS_BIND, nothing)
            .context("hiding which CPUs are online")?;
        switch.set(false)?;
        Xctl::start(set, &[])
    });
    let _ = std::fs::remove_file(&said);
    let xctl = xctl?;
    ensure!(rings(&xctl.process)?.0 == 1, "{:?} (mappings, descriptors) for one CPU", rings(&xctl.process)?);
    xctl.stop(Signal::SIGINT)?;
    Ok(Verdict::Passed("does without its ring".into()))
}

/// Takes a CPU with a ring offline, and checks that xctl frees the ring: its memory, its descriptor, and its wakeups.
fn ring_is_let_go(xctl: &Process, take: impl Fn() -> Result<()>) -> Result<()> {
    let before = rings(xctl)?;
    take()?;
    // a ring has two events
    let less = (before.0 - 1, before.1 - 2);
    ensure!(poll(PATIENCE, || Ok(rings(xctl)? == less))?, "(mappings, descriptors) {:?}, not {less:?}", rings(xctl)?);
    let before = switches(xctl.pid())?;
    thread::sleep(Duration::from_secs(1));
    let woken = switches(xctl.pid())? - before;
    ensure!(woken < 10, "woken {woken} times in a second, when the ring was gone");
    Ok(())
}

/// The number of perf events that xctl has mapped, and the number that it has open.
fn rings(xctl: &Process) -> Result<(usize, usize)> {
    const NAME: &str = "anon_inode:[perf_event]";
    let folder = format!("/proc/{}", xctl.pid());
    let maps = std::fs::read_to_string(format!("{folder}/maps")).context("reading its mappings")?;
    let mapped = maps.lines().filter(|line| line.ends_with(NAME)).count();
    let links = std::fs::read_dir(format!("{folder}/fd")).context("listing its descriptors")?;
    let links = links.flatten().filter_map(|fd| std::fs::read_link(fd.path()).ok());
    Ok((mapped, links.filter(|link| link.as_os_str() == NAME).count()))
}

fn said_so(trace: &Trace, line: &str, times: usize) -> Result<()> {
    let said = trace.said.lines().filter(|said| said.strip_prefix("xctl: ") == Some(line)).count();
    ensure!(said == times, "{line:?} said {said} times, not {times}: {:?}", trace.said);
    Ok(())
}

/// Waits until the namespace has retransmitted `count` segments since `before`. Returns the number of segments.
fn sent_again(ns: &Netns, before: &Counters, count: i64) -> Result<i64> {
    let sent = || Counters::of(ns)?.since(before, "RetransSegs");
    ensure!(poll(PATIENCE, || Ok(sent()? >= count))?, "only {} of {count} segments were sent again", sent()?);
    sent()
}

/// Runs `work`, and all that it starts, on that CPU.
fn on_cpu<T: Send>(cpu: usize, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let there = || {
        move_to(cpu)?;
        work()
    };
    thread::scope(|scope| scope.spawn(there).join()).map_err(|_| anyhow!("the thread panicked"))?
}
