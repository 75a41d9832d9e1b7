//! xctl sleeps while there are no events: it is not woken even once.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use crate::host::Set;
use crate::link::Netns;
use crate::xctl::Xctl;
use crate::{Family, Outcome, Verdict};

pub fn run(set: Set, _family: Family) -> Outcome {
    // an empty namespace of its own excludes the host's other traffic
    let empty = Netns::new("idle")?;
    let xctl = Xctl::start(set, &["--netns", &empty.inode.to_string()])?;
    thread::sleep(Duration::from_secs(1));
    let before = switches(xctl.process.pid())?;
    thread::sleep(Duration::from_secs(10));
    let after = switches(xctl.process.pid())?;
    ensure!(before == after, "it was woken {} times in 10 s", after - before);
    xctl.stop(Signal::SIGINT)?;
    Ok(Verdict::Passed("asleep for 10 s".into()))
}

/// How often the threads of the process have gone to sleep so far.
pub fn switches(pid: u32) -> Result<u64> {
    let mut sum = 0;
    for thread in std::fs::read_dir(format!("/proc/{pid}/task")).context("listing xctl's threads")? {
        let status = std::fs::read_to_string(thread?.path().join("status"))?;
        let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        sum += count.context("no voluntary_ctxt_switches")?.trim().parse::<u64>()?;
    }
    Ok(sum)
}
