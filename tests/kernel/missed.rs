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
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::host::is_guest;
use crate::map;
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
                if hook.target == "inet_sk_state_store"
                    && hooks.iter().any(|other| other.target == "inet_sock_set_state")
                {
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

    /// How many runs were skipped of the probes that see what goes out again.
    pub fn skipped(&self) -> Result<u64> {
        self.skips(sees_what_goes_out)
    }

    /// How many of those that learn who owns a socket.
    pub fn owners_skipped(&self) -> Result<u64> {
        self.skips(|function| !sees_what_goes_out(function))
    }

    /// How many runs were skipped of what learns who owns a socket: those probes', and of xctl's `programs`
    /// ([`program_misses`]), which the newest kernels preempt in process context, and skip for others meanwhile.
    pub fn owners_missed(&self, programs: &BTreeMap<String, u64>) -> Result<u64> {
        let learning = programs.iter().filter(|(name, _)| !name.contains("state") && !sees_what_goes_out(name));
        Ok(self.owners_skipped()? + learning.map(|(_, misses)| misses).sum::<u64>())
    }

    /// How many of those that see a socket's end, where no tracepoint shows that.
    pub fn ends_skipped(&self) -> Result<u64> {
        self.skips(|function| function == "inet_sk_state_store")
    }

    /// Summed over the functions. A function's entry and return probe share the skips of its address, so the larger of the
    /// two counts.
    fn skips(&self, which: impl Fn(&str) -> bool) -> Result<u64> {
        let mut missed: BTreeMap<&str, u64> = BTreeMap::new();
        for (function, skips) in self.profile()?.into_iter().filter(|(function, _)| which(function)) {
            let most = missed.entry(function).or_default();
            *most = (*most).max(skips);
        }
        Ok(missed.values().sum())
    }

    /// Each probe by itself: its function, and how many runs of it were skipped.
    fn profile(&self) -> Result<Vec<(&str, u64)>> {
        if self.probes.is_empty() {
            return Ok(vec![]);
        }
        let profile = tracefs::with(|tracing| read(&tracing.join("kprobe_profile")))?;
        let mut found = vec![];
        for line in profile.lines() {
            let mut words = line.split_whitespace();
            if let (Some(probe), Some(_hits), Some(skips)) = (words.next(), words.next(), words.next())
                && let Some(function) = self.probes.get(probe)
            {
                found.push((function.as_str(), skips.parse().with_context(|| format!("kprobe_profile says {line}"))?));
            }
        }
        Ok(found)
    }

    /// What xctl's `missed` must be, of the xctl that runs as `pid`: no less than what its kprobes missed, and no more than
    /// that and what bpftool says its programs missed. To be asked when nothing happens any more.
    pub fn told(&self, pid: u32) -> Result<RangeInclusive<u64>> {
        let probes = self.profile()?.iter().map(|(_, skips)| skips).sum::<u64>();
        Ok(probes..=probes + program_misses(pid)?.values().sum::<u64>())
    }

    /// How many retransmits happened in softirqs that interrupted PID 1. A line of the trace is
    /// `   comm-TID   [CPU] flags time: event: ...`.
    pub fn above_pid_1(&self) -> Result<u64> {
        // the kernels of the virtual machines are not that one
        if is_guest() {
            return Ok(0);
        }
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

/// Functions (tcp_retransmit_skb, __tcp_retransmit_skb, tcp_rtx_synack) and programs.
fn sees_what_goes_out(function: &str) -> bool {
    ["retransmit", "inner", "rtx", "synack"].iter().any(|part| function.contains(part))
}

/// The programs that a process holds, each with its runs that the kernel skipped, as bpftool tells them; kernels before 5.12
/// do not count them.
pub fn program_misses(pid: u32) -> Result<BTreeMap<String, u64>> {
    let held = map::held(pid, "prog_id:")?;
    let programs: Vec<Program> = map::bpftool(&["prog", "show"])?;
    Ok(programs.into_iter().filter(|program| held.contains(&program.id)).map(|one| (one.name, one.misses)).collect())
}

#[derive(Deserialize)]
struct Program {
    id: u32,
    #[serde(default)]
    name: String,
    #[serde(default, rename = "recursion_misses")]
    misses: u64,
}

fn read(file: &Path) -> Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))
}
