//! `xctl doctor` agrees with `xctl trace`, hook by hook, and names missing features in the same words.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde::Deserialize;

use crate::host::{KPROBE_PMU, Set, has_symbol, tool};
use crate::process::Process;
use crate::xctl::{Xctl, command};
use crate::{Family, Outcome, Verdict, tracefs};

/// The output of `xctl doctor --json`.
#[derive(Deserialize, Debug)]
pub struct Report {
    checks: Vec<Check>,
    attach: Option<String>,
}

#[derive(Deserialize, Debug)]
struct Check {
    check: String,
    ok: Option<bool>,
    found: String,
    remedy: Option<String>,
}

impl Report {
    /// The output of `command`, an `xctl doctor --json`, which must end with that exit code.
    fn of(command: Command, code: i32) -> Result<Report> {
        Report::by(Process::start("xctl doctor", command)?, code)
    }

    fn by(mut process: Process, code: i32) -> Result<Report> {
        let text = process.rest()?.join("\n");
        let (status, said) = (process.wait()?, process.errors());
        ensure!(status.code() == Some(code), "doctor ended with {status}, said {said:?} and printed {text}");
        let report: Report =
            serde_json::from_str(&text).with_context(|| format!("not a document of the contract: {text}"))?;
        let helpless = report.checks.iter().find(|check| check.ok == Some(false) && check.remedy.is_none());
        ensure!(helpless.is_none(), "no remedy: {helpless:?}");
        Ok(report)
    }

    fn get(&self, name: &str) -> Result<&Check> {
        self.checks.iter().find(|check| check.check == name).with_context(|| format!("no check {name}: {self:?}"))
    }

    /// Checks that doctor finds fault with `check` (a hook, for example) in these words.
    pub fn finds(&self, check: &str, words: &str) -> Result<()> {
        let check = self.get(check)?;
        let fault = check.ok == Some(false) && check.remedy.is_some() && check.found.contains(words);
        ensure!(fault, "it does not say {words:?}: {check:?}");
        Ok(())
    }
}

pub fn agrees_with_trace(_set: Set, _family: Family) -> Outcome {
    let report = Report::of(command(&["doctor", "--json"])?, 0)?;
    // doctor has found that the set of trace and each of its hooks work
    let xctl = Xctl::start(Set::Auto, &[])?;
    ensure!(report.attach.as_ref() == Some(&xctl.ready.attach), "trace takes {}: {report:?}", xctl.ready.attach);
    for (set, name) in [(Set::Lsm, "lsm+kprobe+tracepoint"), (Set::Mixed, "kprobe+tracepoint")] {
        ensure!(set.is_taken_by_auto() == (xctl.ready.attach == name), "auto takes {}", xctl.ready.attach);
    }
    for hook in &xctl.ready.hooks {
        let check = report.get(&format!("{} {}", hook.hook, hook.target))?;
        ensure!(check.ok == Some(true), "trace uses what does not work: {check:?}");
    }
    xctl.stop(Signal::SIGINT)?;
    // doctor says that a set works exactly if witnesses other than xctl say so
    for (name, set) in [
        ("kprobe", Set::Kprobe),
        ("kprobe+tracepoint", Set::Mixed),
        ("tracepoint", Set::Tracepoint),
        ("fentry", Set::Fentry),
        ("lsm", Set::Lsm),
    ] {
        let (check, absent) = (report.get(&format!("set {name}"))?, set.absent());
        ensure!(check.ok == Some(absent.is_none()), "{absent:?}, and yet {check:?}");
    }
    if std::path::Path::new(KPROBE_PMU).exists() {
        let once = report.get("kprobe inet_sk_state_store")?;
        ensure!(once.found.starts_with("1 in kallsyms"), "there is one function of that name: {once:?}");
    }
    for check in ["btf", "capabilities", "perf_rings", "pid_namespace", "trace"] {
        let check = report.get(check)?;
        ensure!(check.ok == Some(true), "here all is well: {check:?}");
    }
    of_the_host(&report)?;
    let hooks = report.checks.iter().filter(|check| check.ok == Some(true)).count();
    Ok(Verdict::Passed(format!("{hooks} of {} checks are well", report.checks.len())))
}

/// Compares the report on the host with the host's own files.
fn of_the_host(report: &Report) -> Result<()> {
    let says = |check: &str, ok: Option<bool>, found: &str| {
        let check = report.get(check)?;
        ensure!(check.ok == ok && check.found.starts_with(found), "not {ok:?}, {found:?}: {check:?}");
        Ok(())
    };
    // the test is root, which depends on none of them
    for name in ["unprivileged_bpf_disabled", "perf_event_paranoid"] {
        match fs::read_to_string(format!("/proc/sys/kernel/{name}")) {
            Ok(value) => says(name, Some(true), &format!("{},", value.trim()))?,
            Err(_) => says(name, None, "")?,
        }
    }
    match fs::read_to_string("/proc/sys/net/core/bpf_jit_enable") {
        Ok(value) => says("jit", (value.trim() != "0").then_some(true), value.trim())?,
        Err(_) => says("jit", None, "")?,
    }
    match fs::read_to_string("/sys/kernel/security/lockdown") {
        Ok(modes) => {
            let mode = modes.split(['[', ']']).nth(1).context("no mode is in force")?;
            says("lockdown", Some(true), mode)?;
        }
        Err(_) => says("lockdown", None, "the kernel does not tell")?,
    }
    let limit = tool("sh").args(["-c", "ulimit -l"]).output().context("asking for the limit")?;
    let limit = String::from_utf8(limit.stdout)?;
    let limit = limit.trim().parse::<u64>().map_or("unlimited".to_owned(), |kib| format!("{kib} KiB"));
    let counts = if has_symbol("bpf_map_charge_init") { ", and may be raised" } else { "; this kernel does not count" };
    says("memlock", Some(true), &format!("{limit}{counts}"))?;
    // since 6.17 the tracepoint shows failed attempts too, to programs and in its text
    let format = tracefs::with(|tracing| {
        fs::read_to_string(tracing.join("events/tcp/tcp_retransmit_skb/format")).context("what a tracepoint tells")
    })?;
    let arguments = if format.contains(" err;") { 3 } else { 2 };
    says("raw_tracepoint tcp_retransmit_skb", Some(true), &format!("arguments: {arguments}"))?;
    let inode = |kind: &str| -> Result<u64> { Ok(fs::metadata(format!("/proc/self/ns/{kind}"))?.ino()) };
    const FIRST_OF_PIDS: u64 = 0xefff_fffc;
    ensure!(inode("pid")? == FIRST_OF_PIDS, "the test itself is not in the initial PID namespace");
    says("pid_namespace", Some(true), "the initial one")?;
    says("network_namespace", Some(true), &format!("{}, and ", inode("net")?))
}

/// The report of a doctor with any exit code.
pub fn report(command: Command) -> Result<Report> {
    let text = Process::start("xctl doctor", command)?.rest()?.join("\n");
    serde_json::from_str(&text).with_context(|| format!("not a document: {text}"))
}

/// Checks that doctor ends with the same exit code as the trace that refused with `said`, and finds fault with `culprit` in
/// the same words. Returns doctor's report.
pub fn agrees_with_refusal(doctor: Command, culprit: &str, said: &str) -> Result<Report> {
    let report = Report::of(doctor, 3)?;
    finds_fault(&report, culprit, said)?;
    ensure!(report.attach.is_none(), "it cannot run, and yet takes {:?}", report.attach);
    Ok(report)
}

/// Like [`agrees_with_refusal`], if only one set cannot be used here. Returns the set that doctor says `auto` takes
/// instead.
pub fn agrees_on_set(doctor: Command, culprit: &str, said: &str) -> Result<String> {
    let report = Report::of(doctor, 0)?;
    finds_fault(&report, culprit, said)?;
    report.attach.context("it can run, and takes nothing")
}

fn finds_fault(report: &Report, culprit: &str, said: &str) -> Result<()> {
    let check = report.get(culprit)?;
    let remedy = check.remedy.as_deref().context("no remedy")?;
    ensure!(check.ok == Some(false), "doctor finds no fault: {check:?}");
    // trace puts the remedy before the kernel's answer
    let same = check.found.split(": ").chain([remedy]).all(|words| said.contains(words));
    ensure!(same, "trace said {said:?}, and doctor {check:?}");
    Ok(())
}

/// Checks that the check found this, and that it decides nothing; doctor ends with that exit code.
pub fn notes(doctor: Process, exit_code: i32, check: &str, found: &str) -> Result<()> {
    let report = Report::by(doctor, exit_code)?;
    let check = report.get(check)?;
    ensure!(check.ok.is_none() && check.found.contains(found), "it does not say {found:?}: {check:?}");
    Ok(())
}

/// Checks that doctor says, for each of these capabilities, whether xctl would have it, and names its purposes in these
/// words.
pub fn says(command: Command, capabilities: &[(&str, bool, &[&str])]) -> Result<()> {
    let report = Report::of(command, 0)?;
    for (capability, held, words) in capabilities {
        let check = report.get(capability)?;
        let begins = if *held { "held; " } else { "not held; " };
        let right = check.ok.is_none()
            && check.found.starts_with(begins)
            && words.iter().all(|words| check.found.contains(words));
        ensure!(right, "not {begins:?} and {words:?}: {check:?}");
    }
    Ok(())
}
