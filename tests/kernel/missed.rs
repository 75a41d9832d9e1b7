//! A witness of skipped probe runs, by tracefs. xctl itself does not use tracefs.
//!
//! A kprobe that fires while another runs on the same CPU is not run. The kernel counts that for every probe of the address
//! (kprobes_inc_nmissed_count), but shows the count only for probes made through tracefs. So the test makes its own probes
//! on the functions that xctl hooked. xctl's probes missed the same runs as the test's probes.
//!
//! Raw tracepoints are never skipped that way. But the kernel of the machine that xctl was developed on (6.18, in a
//! sandbox) hides events. It runs no BPF program in a softirq that interrupts a thread of PID 1, and counts no miss. Of
//! 27,233 retransmits that tracefs saw there, xctl saw all except the 54 in such softirqs. So the test counts such
//! retransmits as missed, too.

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
    /// The name of the witness's group of kprobes, and of its trace instance.
    name: String,
    /// The name of each probe, and its function.
    probes: BTreeMap<String, String>,
}

impl Witness {
    /// Without probes. It also sees changes of state, and so the ends of connections.
    pub fn of_ends() -> Result<Witness> {
        let witness = Witness::of(&[])?;
        tracefs::with(|tracing| write(&witness.instance(tracing).join("events/sock/inet_sock_set_state/enable"), "1"))?;
        Ok(witness)
    }

    /// Puts probes on the functions of `hooks`.
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
                // if a tracepoint shows the same event, a skipped kprobe loses nothing
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

    /// The number of skipped runs of the probes that see retransmits.
    pub fn skipped(&self) -> Result<u64> {
        self.skips(sees_what_goes_out)
    }

    /// The number of skipped runs of the probes that learn who owns a socket.
    pub fn owners_skipped(&self) -> Result<u64> {
        self.skips(|function| !sees_what_goes_out(function))
    }

    /// The number of skipped runs of all that learns who owns a socket: these probes, and xctl's `programs`
    /// ([`program_misses`]). The newest kernels preempt such programs in process context, and skip them for other tasks
    /// meanwhile.
    pub fn owners_missed(&self, programs: &BTreeMap<String, u64>) -> Result<u64> {
        let learning = programs.iter().filter(|(name, _)| !name.contains("state") && !sees_what_goes_out(name));
        Ok(self.owners_skipped()? + learning.map(|(_, misses)| misses).sum::<u64>())
    }

    /// The number of skipped runs of the probes that see a socket's end, if no tracepoint shows the end.
    pub fn ends_skipped(&self) -> Result<u64> {
        self.skips(|function| function == "inet_sk_state_store")
    }

    /// The skipped runs, summed over the functions. A function's entry and return probe share the skips of its address, so
    /// the larger of the two counts.
    fn skips(&self, which: impl Fn(&str) -> bool) -> Result<u64> {
        let mut missed: BTreeMap<&str, u64> = BTreeMap::new();
        for (function, skips) in self.profile()?.into_iter().filter(|(function, _)| which(function)) {
            let most = missed.entry(function).or_default();
            *most = (*most).max(skips);
        }
        Ok(missed.values().sum())
    }

    /// Each probe's function, and the number of its skipped runs.
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

    /// The range in which xctl's `missed` must be. The least is the misses of its kprobes; the most also includes the misses
    /// of its `programs` ([`program_misses`]). The caller must ask after all traffic has ended.
    pub fn told(&self, programs: &BTreeMap<String, u64>) -> Result<RangeInclusive<u64>> {
        let probes = self.profile()?.iter().map(|(_, skips)| skips).sum::<u64>();
        Ok(probes..=probes + programs.values().sum::<u64>())
    }

    /// The number of retransmits, or of changes of state, in softirqs that interrupted PID 1. A line of the trace is `   comm-TID   [CPU] flags
    /// time: event: ...`.
    pub fn above_pid_1(&self) -> Result<u64> {
        // the kernels of the virtual machines do not have this defect
        if is_guest() {
            return Ok(0);
        }
        let trace = self.trace()?;
        let tasks = trace.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split(" [").next());
        let tids = tasks.filter_map(|task| task.trim_end().rsplit('-').next());
        Ok(tids.filter(|tid| Path::new("/proc/1/task").join(tid).exists()).count() as u64)
    }

    /// The number of sockets with this local port that went from a state to the end ([`Witness::of_ends`]).
    pub fn ends_from(&self, state: &str, port: u16) -> Result<usize> {
        let trace = self.trace()?;
        let (port, change) = (format!(" sport={port} "), format!(" oldstate={state} newstate=TCP_CLOSE"));
        Ok(trace.lines().filter(|line| line.contains(&port) && line.contains(&change)).count())
    }

    /// Why a case that needs every single event proves nothing: some events were hidden. None if no event was hidden.
    pub fn hidden(&self) -> Result<Option<String>> {
        let hidden = self.above_pid_1()?;
        Ok((hidden > 0)
            .then(|| format!("{hidden} retransmits interrupted PID 1, where this kernel runs no BPF program")))
    }

    /// The events that the trace instance has recorded.
    fn trace(&self) -> Result<String> {
        tracefs::with(|tracing| read(&self.instance(tracing).join("trace")))
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

/// Whether the name is a function (tcp_retransmit_skb, __tcp_retransmit_skb, tcp_rtx_synack) or a program that sees
/// retransmits.
fn sees_what_goes_out(function: &str) -> bool {
    ["retransmit", "inner", "rtx", "synack"].iter().any(|part| function.contains(part))
}

/// The programs that a process holds, each with the number of runs that the kernel skipped, as bpftool shows them. Kernels
/// before 5.12 do not count skipped runs.
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
