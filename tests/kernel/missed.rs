//! A witness for probe runs that the kernel skipped, by tracefs, which has no part in how xctl works.
//!
//! A kprobe that fires while another runs on the same CPU is not run. The kernel counts that for every probe of the
//! address (kprobes_inc_nmissed_count), but tells it only of probes made through tracefs. So the test makes its own
//! on the functions that xctl hooked, and what those missed, xctl's missed too.
//!
//! Raw tracepoints are never skipped that way. But the kernel of the machine that xctl was developed on (6.18, a
//! sandbox's) runs no BPF program at all, and counts no miss, in a softirq that interrupts a thread of PID 1: of 27,233
//! retransmits that tracefs saw there, xctl saw all but those 54. So the test counts those as missed, too.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::tracefs::{self, write};
use crate::xctl::Hook;

pub struct Witness {
    /// The name of its group of kprobes, and of its trace instance.
    name: String,
    /// Name of the probe, and the function it is on.
    probes: BTreeMap<String, String>,
}

impl Witness {
    /// Watches what `hooks` are on.
    pub fn of(hooks: &[Hook]) -> Result<Witness> {
        let pid = std::process::id();
        let mut witness = Witness { name: format!("xctl_test_{pid}"), probes: BTreeMap::new() };
        tracefs::with(|tracing| {
            for hook in hooks {
                let kind = match hook.hook.as_str() {
                    "kprobe" => 'p',
                    "kretprobe" => 'r',
                    _ => continue,
                };
                // what a tracepoint shows as well is not lost with the kprobe
                if hook.target == "tcp_set_state" && hooks.iter().any(|other| other.target == "inet_sock_set_state") {
                    continue;
                }
                let probe = format!("{kind}_{pid}_{}", witness.probes.len());
                write(&tracing.join("kprobe_events"), &format!("{kind}:{}/{probe} {}", witness.name, hook.target))?;
                witness.probes.insert(probe, hook.target.clone());
            }
            if !witness.probes.is_empty() {
                write(&tracing.join(format!("events/{}/enable", witness.name)), "1")?;
            }
            let instance = witness.instance(tracing);
            std::fs::create_dir(&instance).with_context(|| format!("creating {}", instance.display()))?;
            for event in ["tcp_retransmit_skb", "tcp_retransmit_synack"] {
                write(&instance.join("events/tcp").join(event).join("enable"), "1")?;
            }
            Ok(())
        })?;
        Ok(witness)
    }

    /// How many runs kprobes skipped, summed over the functions. A function's entry and return probe share the skips of
    /// its address, so the larger of the two counts.
    pub fn skipped(&self) -> Result<u64> {
        if self.probes.is_empty() {
            return Ok(0);
        }
        let profile = tracefs::with(|tracing| read(&tracing.join("kprobe_profile")))?;
        let mut missed: BTreeMap<&str, u64> = BTreeMap::new();
        for line in profile.lines() {
            let mut words = line.split_whitespace();
            if let (Some(probe), Some(_hits), Some(skips)) = (words.next(), words.next(), words.next())
                && let Some(function) = self.probes.get(probe)
            {
                let most = missed.entry(function).or_default();
                *most = (*most).max(skips.parse().with_context(|| format!("kprobe_profile says {line}"))?);
            }
        }
        Ok(missed.values().sum())
    }

    /// How many retransmits happened in softirqs that interrupted PID 1. A line of the trace is
    /// `   comm-TID   [CPU] flags time: event: ...`.
    pub fn above_pid_1(&self) -> Result<u64> {
        let trace = tracefs::with(|tracing| read(&self.instance(tracing).join("trace")))?;
        let tasks = trace.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split(" [").next());
        let tids = tasks.filter_map(|task| task.trim_end().rsplit('-').next());
        Ok(tids.filter(|tid| Path::new("/proc/1/task").join(tid).exists()).count() as u64)
    }

    /// Why a case that needs every single event cannot tell anything: some were hidden. None: none were.
    pub fn hidden(&self) -> Result<Option<String>> {
        let hidden = self.above_pid_1()?;
        Ok((hidden > 0)
            .then(|| format!("{hidden} retransmits interrupted PID 1, where this kernel runs no BPF program")))
    }

    fn instance(&self, tracing: &Path) -> PathBuf {
        tracing.join("instances").join(&self.name)
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        let _ = tracefs::with(|tracing| {
            let _ = std::fs::remove_dir(self.instance(tracing));
            let _ = write(&tracing.join(format!("events/{}/enable", self.name)), "0");
            for probe in self.probes.keys() {
                let _ = write(&tracing.join("kprobe_events"), &format!("-:{}/{probe}", self.name));
            }
            Ok(())
        });
    }
}

fn read(file: &Path) -> Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))
}
