//! Where xctl cannot run it says so, with what is missing and the remedy, and exit code 3.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use nix::mount::{MsFlags, mount};

use super::doctor;
use crate::host::{KPROBE_PMU, Set, has_symbol, tool};
use crate::process::Process;
use crate::tracefs::private_mounts;
use crate::workers;
use crate::xctl::{command, refusal};
use crate::{Family, Outcome, Verdict};

const CANNOT_RUN_HERE: i32 = 3;

pub fn no_privilege(_set: Set, _family: Family) -> Outcome {
    let mut nobody = command(&["trace", "--json"])?;
    // a root process that becomes another user loses every capability
    nobody.uid(65534).gid(65534);
    let said = refusal(Process::start("xctl without privilege", nobody)?, CANNOT_RUN_HERE)?;
    for capability in ["cap_bpf", "cap_perfmon"] {
        ensure!(said.to_lowercase().contains(capability), "it does not name {capability}: {said:?}");
    }
    let mut nobody = command(&["doctor", "--json"])?;
    nobody.uid(65534).gid(65534);
    doctor::agrees_with_refusal(nobody, "capabilities", &said)?;
    Ok(Verdict::Passed("names the capabilities".into()))
}

/// One of the capabilities is missing, and only that one is named.
pub fn one_capability(_set: Set, _family: Family) -> Outcome {
    let all = ["CAP_BPF", "CAP_PERFMON"];
    for missing in all {
        let held: Vec<_> = all.into_iter().filter(|&name| name != missing).collect();
        let by_nobody = |args: &[&str]| workers::by_nobody(&held, &command(args)?);
        let said = refusal(Process::start("xctl", by_nobody(&["trace", "--json"])?)?, CANNOT_RUN_HERE)?;
        ensure!(said.contains(missing), "it does not name {missing}: {said:?}");
        ensure!(!held.iter().any(|name| said.contains(name)), "it names what is there: {said:?}");
        doctor::agrees_with_refusal(by_nobody(&["doctor", "--json"])?, "capabilities", &said)?;
    }
    Ok(Verdict::Passed("names the one that is missing".into()))
}

/// Maps count against RLIMIT_MEMLOCK, which is low and may not be raised.
pub fn no_memlock(_set: Set, _family: Family) -> Outcome {
    if !has_symbol("bpf_map_charge_init") {
        return Ok(Verdict::Skipped("this kernel does not count maps against RLIMIT_MEMLOCK".into()));
    }
    let by_nobody = |args: &[&str]| -> Result<Process> {
        let xctl = workers::by_nobody(&["CAP_BPF", "CAP_PERFMON"], &command(args)?)?;
        // ulimit counts in KiB
        let mut limited = tool("sh");
        limited.args(["-c", "ulimit -l 64 && exec \"$0\" \"$@\""]).arg(xctl.get_program()).args(xctl.get_args());
        Process::start("xctl with little memory", limited)
    };
    let said = refusal(by_nobody(&["trace", "--json"])?, CANNOT_RUN_HERE)?;
    ensure!(said.contains("RLIMIT_MEMLOCK") && said.contains("ulimit"), "it does not name the limit: {said:?}");
    Ok(Verdict::Passed("names RLIMIT_MEMLOCK".into()))
}

pub fn no_btf(_set: Set, _family: Family) -> Outcome {
    const BTF: &str = "/sys/kernel/btf";
    let hidden = || {
        private_mounts()?;
        mount(Some("none"), BTF, Some("tmpfs"), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("hiding {BTF}"))?;
        let said = refusal(Process::start("xctl without BTF", command(&["trace", "--json"])?)?, CANNOT_RUN_HERE)?;
        ensure!(said.contains("--btf"), "it does not mention --btf: {said:?}");
        doctor::agrees_with_refusal(command(&["doctor", "--json"])?, "btf", &said)
    };
    // a thread of its own: only it, and what it starts, sees the changed mounts
    thread::spawn(hidden).join().map_err(|_| anyhow!("the thread panicked"))??;
    Ok(Verdict::Passed("names --btf".into()))
}

pub fn no_kprobes(_set: Set, _family: Family) -> Outcome {
    if Path::new(KPROBE_PMU).exists() {
        return Ok(Verdict::Skipped("this kernel has kprobes".into()));
    }
    let process = Process::start("xctl without kprobes", command(&["trace", "--json", "--attach", "kprobe"])?)?;
    let said = refusal(process, CANNOT_RUN_HERE)?;
    ensure!(said.to_lowercase().contains("kprobe"), "it does not say what is missing: {said:?}");
    Ok(Verdict::Passed("names what is missing".into()))
}
