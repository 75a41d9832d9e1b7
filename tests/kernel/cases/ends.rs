//! The ways in which xctl ends: by signals, by its own limits, by a reader that went away. Nothing stays behind in the
//! kernel.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::Signal;

use crate::host::{Set, is_guest, tool};
use crate::link::Link;
use crate::process::{PATIENCE, poll};
use crate::tracefs::with_private_mounts;
use crate::workers::{Plan, Receiver, Sender, send_all};
use crate::xctl::Xctl;
use crate::{Family, Outcome, Verdict};

pub fn signals(set: Set, _family: Family) -> Outcome {
    let mut objects = 0;
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGKILL] {
        let before = bpf_objects()?;
        let mut xctl = Xctl::start(set, &[])?;
        let during: Vec<_> = bpf_objects()?.difference(&before).cloned().collect();
        ensure!(!during.is_empty(), "bpftool shows nothing of a running xctl");
        objects = objects.max(during.len());
        if signal == Signal::SIGKILL {
            xctl.process.signal(signal)?;
            xctl.process.wait()?;
        } else {
            xctl.stop(signal).with_context(|| format!("after {signal}"))?;
        }
        // the kernel frees asynchronously; objects that another process holds are not left behind
        let left = || -> Result<BTreeSet<_>> {
            let others = held()?;
            Ok(bpf_objects()?
                .into_iter()
                .filter(|object| during.contains(object) && !others.contains(object))
                .collect())
        };
        ensure!(poll(Duration::from_secs(3), || Ok(left()?.is_empty()))?, "left behind after {signal}: {:?}", left()?);
    }
    Ok(Verdict::Passed(format!("{objects} programs, maps and links, none left")))
}

/// Programs, maps and links in the kernel, such as `prog_id 17`.
pub fn bpf_objects() -> Result<BTreeSet<String>> {
    Ok([numbered("prog")?, numbered("map")?, numbered("link")?].concat().into_iter().collect())
}

/// The objects of one kind.
fn numbered(kind: &str) -> Result<Vec<String>> {
    let output = tool("bpftool").args(["-j", kind, "show"]).output().context("starting bpftool")?;
    let said = String::from_utf8_lossy(&output.stdout);
    let list: Vec<serde_json::Value> = serde_json::from_str(&said).with_context(|| format!("bpftool said {said}"))?;
    Ok(list.iter().map(|object| format!("{kind}_id {}", object["id"])).collect())
}

/// The objects that living processes hold by file descriptors.
pub fn held() -> Result<BTreeSet<String>> {
    let processes = std::fs::read_dir("/proc").context("listing /proc")?.flatten();
    Ok(processes.flat_map(|process| held_by(&process.path())).collect())
}

/// The objects that a process holds, by its folder in /proc. None if it has ended.
pub fn held_by(process: &Path) -> BTreeSet<String> {
    let mut held = BTreeSet::new();
    for fd in std::fs::read_dir(process.join("fdinfo")).into_iter().flatten().flatten() {
        let text = std::fs::read_to_string(fd.path()).unwrap_or_default();
        let ids = text.lines().filter(|line| ["prog_id:", "map_id:", "link_id:"].iter().any(|id| line.starts_with(id)));
        held.extend(ids.map(|line| line.replace(":\t", " ")));
    }
    held
}

/// The functions in one of debugfs's lists of kprobes: `list` has those with a kprobe, `blacklist` those that may not have
/// one. Empty if the kernel has no kprobes.
pub fn kprobes(list: &str) -> Result<BTreeSet<String>> {
    const DEBUG: &str = "/sys/kernel/debug";
    // a line is "address, kind, function+offset" in `list`, and "range, function" in `blacklist`
    let field = if list == "list" { 2 } else { 1 };
    with_private_mounts(|| {
        mount(Some("none"), DEBUG, Some("debugfs"), MsFlags::empty(), None::<&str>).context("mounting debugfs")?;
        let text = match std::fs::read_to_string(format!("{DEBUG}/kprobes/{list}")) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            text => text.context("reading the kernel's list of kprobes")?,
        };
        Ok(text.lines().filter_map(|line| line.split_whitespace().nth(field).map(str::to_owned)).collect())
    })
}

/// All existing things of the kinds that xctl makes: in the kernel, and in the folder of temporary files.
fn everything() -> Result<BTreeSet<String>> {
    let mut all = bpf_objects()?;
    // other processes of a host make these too; a guest has no others
    if is_guest() {
        all.extend(kprobes("list")?);
        all.extend(numbered("btf")?);
        let files = std::fs::read_dir(std::env::temp_dir()).context("listing temporary files")?;
        all.extend(files.flatten().map(|file| file.path().display().to_string()));
    }
    Ok(all)
}

/// Checks that the case leaves nothing: no program, map or link, no probe, no BTF, no file.
pub fn leaves_nothing(case: impl FnOnce() -> Outcome) -> Outcome {
    let before = everything()?;
    let verdict = case()?;
    let left = || -> Result<BTreeSet<_>> {
        let others = held()?;
        Ok(everything()?.into_iter().filter(|one| !before.contains(one) && !others.contains(one)).collect())
    };
    ensure!(poll(PATIENCE, || Ok(left()?.is_empty()))?, "left behind: {:?}", left()?);
    Ok(verdict)
}

pub fn closed_pipe(set: Set, family: Family) -> Outcome {
    let (link, receiver, sender) = one_sender(family)?;
    let mut xctl = Xctl::start(set, &["--netns", &link.a.path().display().to_string()])?;
    xctl.process.close_output();
    send_all(vec![sender])?;
    let began = Instant::now();
    let status = xctl.process.wait()?;
    let took = began.elapsed();
    link.quiet()?;
    let said = xctl.process.errors();
    ensure!(status.code() == Some(0), "it ended with {status} and said {said:?}");
    ensure!(!said.contains("panicked"), "it panicked: {said:?}");
    ensure!(took < Duration::from_secs(5), "it noticed only after {took:?}");
    drop(receiver);
    Ok(Verdict::Passed("ended by itself".into()))
}

pub fn count(set: Set, family: Family) -> Outcome {
    let (link, receiver, sender) = one_sender(family)?;
    let xctl = Xctl::start(set, &["--count", "3", "--netns", &link.a.path().display().to_string()])?;
    send_all(vec![sender])?;
    let trace = xctl.finish()?;
    link.quiet()?;
    ensure!(trace.retransmits.len() == 3, "printed {} retransmits", trace.retransmits.len());
    drop(receiver);
    Ok(Verdict::Passed("3 retransmits, then the summary".into()))
}

pub fn duration(set: Set, _family: Family) -> Outcome {
    let xctl = Xctl::start(set, &["--duration", "1"])?;
    let began = Instant::now();
    xctl.finish()?;
    let took = began.elapsed();
    ensure!(took > Duration::from_millis(500) && took < Duration::from_secs(10), "it took {took:?}");
    Ok(Verdict::Passed(format!("{:.1} s", took.as_secs_f64())))
}

pub fn one_sender(family: Family) -> Result<(Link, Receiver, Sender)> {
    let link = Link::lossy()?;
    let receiver = Receiver::new(&link.b, "receiver", link.address(&link.b, family), 0)?;
    let sender = Sender::new(&link.a, Plan { sizes: vec![700], burst: 4, ..Plan::new("sender", receiver.at) })?;
    Ok((link, receiver, sender))
}
