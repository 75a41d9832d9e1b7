//! How xctl ends: by signals, by its own limits, by a reader that went away. Nothing stays behind in the kernel.

use std::collections::BTreeSet;
use std::path::PathBuf;
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
        // the kernel frees asynchronously; what another process holds is that one's
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

/// Programs, maps and links in the kernel, as `prog_id 17`.
pub fn bpf_objects() -> Result<BTreeSet<String>> {
    Ok([numbered("prog")?, numbered("map")?, numbered("link")?].concat().into_iter().collect())
}

/// Those of one kind.
fn numbered(kind: &str) -> Result<Vec<String>> {
    let output = tool("bpftool").args(["-j", kind, "show"]).output().context("starting bpftool")?;
    let said = String::from_utf8_lossy(&output.stdout);
    let list: Vec<serde_json::Value> = serde_json::from_str(&said).with_context(|| format!("bpftool said {said}"))?;
    Ok(list.iter().map(|object| format!("{kind}_id {}", object["id"])).collect())
}

/// Those that living processes hold by a file descriptor.
pub fn held() -> Result<BTreeSet<String>> {
    let mut held = BTreeSet::new();
    for process in std::fs::read_dir("/proc").context("listing /proc")?.flatten() {
        let fdinfo: PathBuf = process.path().join("fdinfo");
        for fd in std::fs::read_dir(fdinfo).into_iter().flatten().flatten() {
            let text = std::fs::read_to_string(fd.path()).unwrap_or_default();
            let ids =
                text.lines().filter(|line| ["prog_id:", "map_id:", "link_id:"].iter().any(|id| line.starts_with(id)));
            held.extend(ids.map(|line| line.replace(":\t", " ")));
        }
    }
    Ok(held)
}

/// The functions that one of debugfs's lists of kprobes names: `list`, those that have one; `blacklist`, those that may not.
/// None where the kernel has no kprobes.
pub fn kprobes(list: &str) -> Result<BTreeSet<String>> {
    const DEBUG: &str = "/sys/kernel/debug";
    // address, kind, function+offset; range, function
    let field = if list == "list" { 2 } else { 1 };
    with_private_mounts(|| {
        mount(Some("none"), DEBUG, Some("debugfs"), MsFlags::empty(), None::<&str>).context("mounting debugfs")?;
        let text = std::fs::read_to_string(format!("{DEBUG}/kprobes/{list}")).unwrap_or_default();
        Ok(text.lines().filter_map(|line| line.split_whitespace().nth(field).map(str::to_owned)).collect())
    })
}

/// What there is of what xctl makes: in the kernel, and where temporary files are.
fn everything() -> Result<BTreeSet<String>> {
    let mut all = bpf_objects()?;
    // others make these too, where there are others
    if is_guest() {
        all.extend(kprobes("list")?);
        all.extend(numbered("btf")?);
        let files = std::fs::read_dir(std::env::temp_dir()).context("listing temporary files")?;
        all.extend(files.flatten().map(|file| file.path().display().to_string()));
    }
    Ok(all)
}

/// Of what this is about nothing is left: no program, map or link, no probe, no types, no file.
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
