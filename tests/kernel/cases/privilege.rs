//! The privilege that xctl needs, and the privilege that it gives up once it runs: by /proc, and by the kernel's reaction
//! to forbidden calls.

use std::collections::HashMap;
use std::os::unix::process::ExitStatusExt;

use anyhow::{Context, Result, bail, ensure};
use nix::libc;
use nix::sys::signal::Signal;

use super::{already_open, lossy_link};
use crate::host::{Set, has_symbol};
use crate::link::Link;
use crate::tracee;
use crate::workers::{self, Call, NOBODY};
use crate::xctl::{Xctl, command};
use crate::{Family, Outcome, Verdict};

const CAP_BPF: u64 = 1 << 39;
const CAP_SETPCAP: u64 = 1 << 8;

/// The capabilities for loading and attaching, as the README lists them.
pub fn needed() -> Vec<&'static str> {
    let mut needed = vec!["CAP_BPF", "CAP_PERFMON"];
    // kernels up to 5.10 count maps against RLIMIT_MEMLOCK, and have this function
    if has_symbol("bpf_map_charge_init") {
        needed.push("CAP_SYS_RESOURCE");
    }
    needed
}

/// The mission itself, run by a user who is not root.
pub fn as_nobody(set: Set, family: Family) -> Outcome {
    let needed = needed();
    let start = || -> Result<Xctl> {
        let args = ["trace", "--json", "--attach", &set.to_string(), "--max-sockets", "32768"];
        Xctl::start_command(set, workers::by_nobody(&needed, &command(&args)?)?)
    };
    // Debian's kernels have a third level, which only CAP_SYS_ADMIN passes
    if let Err(error) = start() {
        let said = format!("{error:#}");
        ensure!(said.contains("exit status: 3") && said.contains("perf_event_paranoid is 3"), "{said}");
    }
    let _paranoid = Paranoid::at_most_2()?;
    let start = || {
        let xctl = start()?;
        let status = status(&xctl)?;
        ensure!(status["Uid"].split_whitespace().all(|uid| uid == NOBODY.to_string()), "not nobody's: {status:?}");
        // xctl was started with these capabilities; a user `nobody` has no others, so none may be left
        capabilities_are_gone(&status)?;
        Ok(xctl)
    };
    match lossy_link::run_with(family, start)? {
        Verdict::Passed(note) => Ok(Verdict::Passed(format!("{}; {note}", needed.join(" ")))),
        skipped => Ok(skipped),
    }
}

/// xctl of one user learns an open connection of another user's from the iterator: the iterator sees the files of all
/// users.
pub fn seed_by_iterator(set: Set, family: Family) -> Outcome {
    let _paranoid = Paranoid::at_most_2()?;
    let attach = set.to_string();
    let args = ["trace", "--json", "--attach", &attach, "--max-sockets", "32768"];
    let start = || Xctl::start_command(set, workers::by_nobody(&needed(), &command(&args)?)?);
    already_open::seeded_by(family, true, start)
}

/// An xctl that may not enter namespaces nor see others' files learns from /proc as much as it can, and reports the rest.
pub fn seed_from_proc(set: Set, family: Family) -> Outcome {
    let _paranoid = Paranoid::at_most_2()?;
    // its namespaces are reachable through mounts alone
    let link = Link::up()?;
    let attach = set.to_string();
    let args = ["trace", "--json", "--attach", &attach, "--max-sockets", "32768", "--seed", "proc"];
    let xctl = Xctl::start_command(set, workers::by_nobody(&needed(), &command(&args)?)?)?;
    let (_receiver, sender) = workers::unanswered(&link, family, "sender")?;
    let truth = sender.truth.clone();
    link.lose(0)?;
    sender.exit()?;
    link.quiet()?;
    let trace = xctl.stop(Signal::SIGINT)?;
    let records = trace.all_of(link.a.inode, &truth.who, truth.flow()?)?;
    for words in ["processes may not be seen", "CAP_SYS_PTRACE", "namespaces may not be entered", "CAP_SYS_ADMIN"] {
        ensure!(trace.said.contains(words), "it does not say {words:?}: {:?}", trace.said);
    }
    Ok(Verdict::Passed(format!("{records} retransmits")))
}

/// Lowers kernel.perf_event_paranoid, and restores it when dropped.
pub struct Paranoid(Option<String>);

const PARANOID: &str = "/proc/sys/kernel/perf_event_paranoid";

impl Paranoid {
    pub fn at_most_2() -> Result<Paranoid> {
        let before = std::fs::read_to_string(PARANOID)?;
        if before.trim().parse::<i32>()? <= 2 {
            return Ok(Paranoid(None));
        }
        std::fs::write(PARANOID, "2").with_context(|| format!("writing {PARANOID}"))?;
        Ok(Paranoid(Some(before)))
    }
}

impl Drop for Paranoid {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = std::fs::write(PARANOID, before);
        }
    }
}

pub fn given_up(set: Set, _family: Family) -> Outcome {
    let xctl = Xctl::start(set, &[])?;
    let first = status(&xctl)?;
    let left = capabilities_are_gone(&first)?;
    none_come_back(&first, left)?;
    xctl.stop(Signal::SIGINT)?;

    let xctl = Xctl::start(set, &["--user", "nobody"])?;
    let status_of_nobody = status(&xctl)?;
    none_come_back(&status_of_nobody, capabilities_are_gone(&status_of_nobody)?)?;
    for name in ["Uid", "Gid"] {
        let ids = &status_of_nobody[name];
        ensure!(ids.split_whitespace().all(|id| id == NOBODY.to_string()), "{name} {ids}");
    }
    ensure!(status_of_nobody["Groups"].trim().is_empty(), "groups {:?}", status_of_nobody["Groups"]);
    xctl.stop(Signal::SIGTERM)?;

    // shows that the checks above can fail
    let xctl = Xctl::start(set, &["--no-sandbox"])?;
    let status = status(&xctl)?;
    ensure!(hex(&status, "CapEff")? != 0 && status["Seccomp"].trim() == "0", "--no-sandbox, and yet {status:?}");
    xctl.stop(Signal::SIGINT)?;
    Ok(Verdict::Passed(format!("capabilities left: {left:#x}")))
}

/// Checks that no capability is left, or only the one that this kernel makes xctl keep. Returns that one.
fn capabilities_are_gone(status: &HashMap<String, String>) -> Result<u64> {
    let left = hex(status, "CapEff")?;
    let disabled = std::fs::read_to_string("/proc/sys/kernel/unprivileged_bpf_disabled").unwrap_or_default();
    // until 5.18 unprivileged_bpf_disabled forbids every bpf(2) call; 5.19 split the check
    let allowed = if disabled.trim() != "0" && before_5_19()? { CAP_BPF } else { 0 };
    ensure!(left == allowed && hex(status, "CapPrm")? == allowed, "capabilities are left: {status:?}");
    const NONE: &str = "0000000000000000";
    for (name, value) in [("CapInh", NONE), ("CapAmb", NONE), ("NoNewPrivs", "1"), ("Seccomp", "2")] {
        ensure!(status[name].trim() == value, "{name} is {:?}", status[name]);
    }
    Ok(left)
}

/// Checks that the bounding set holds only the remaining capability. A process that may not drop the bounding set keeps all
/// of it.
fn none_come_back(status: &HashMap<String, String>, left: u64) -> Result<()> {
    let own = std::fs::read_to_string("/proc/self/status").context("reading our own status")?;
    let may_drop = hex(&by_name(&own), "CapEff")? & CAP_SETPCAP != 0;
    ensure!(!may_drop || hex(status, "CapBnd")? == left, "the bounding set is {:?}", status["CapBnd"]);
    Ok(())
}

fn before_5_19() -> Result<bool> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else { bail!("release {release:?}") };
    Ok((major, minor) < (5, 19))
}

/// The lines of `/proc/PID/status`, by name.
fn status(xctl: &Xctl) -> Result<HashMap<String, String>> {
    let text = std::fs::read_to_string(format!("/proc/{}/status", xctl.process.pid())).context("reading its status")?;
    Ok(by_name(&text))
}

fn by_name(status: &str) -> HashMap<String, String> {
    let fields = status.lines().filter_map(|line| line.split_once(':'));
    fields.map(|(name, value)| (name.into(), value.into())).collect()
}

fn hex(status: &HashMap<String, String>, name: &str) -> Result<u64> {
    u64::from_str_radix(status[name].trim(), 16).with_context(|| format!("{name} is {:?}", status[name]))
}

/// The kernel kills a confined process at its first forbidden call.
pub fn confined(set: Set, _family: Family) -> Outcome {
    for call in [Call::Write, Call::Socket, Call::Execute, Call::Signal] {
        let mut process = workers::confined(call)?;
        let status = process.wait()?;
        ensure!(status.signal() == Some(Signal::SIGSYS as i32), "{call:?}, and yet {status}");
    }
    let mut process = workers::confined(Call::Read)?;
    ensure!(process.rest()? == ["done"], "a call that is allowed was not made: {}", process.errors());
    process.succeed()?;

    // xctl itself, with all hooks attached
    for (name, number) in FORBIDDEN {
        let mut xctl = Xctl::start(set, &[])?;
        tracee::call_instead(xctl.process.pid(), number)?;
        let status = xctl.process.wait()?;
        ensure!(status.signal() == Some(Signal::SIGSYS as i32), "{name} in xctl, and yet {status}");
    }
    // the same with an allowed call, which returns EINTR: this proves that the altered call alone does not kill xctl
    let xctl = Xctl::start(set, &[])?;
    tracee::call_instead(xctl.process.pid(), libc::SYS_restart_syscall)?;
    xctl.stop(Signal::SIGINT)?;
    Ok(Verdict::Passed("ended by SIGSYS".into()))
}

/// Calls that a running xctl does not need.
const FORBIDDEN: [(&str, libc::c_long); 4] = [
    ("execve", libc::SYS_execve),
    ("socket", libc::SYS_socket),
    ("ptrace", libc::SYS_ptrace),
    ("perf_event_open", libc::SYS_perf_event_open),
];
