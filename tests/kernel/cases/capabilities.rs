//! The loss without each of the capabilities that the README names, one at a time, and xctl's messages about it.

use std::fs::{self, File, Permissions};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;

use ::xctl::kernel::capability::{self, Capability};
use ::xctl::kernel::privilege;
use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::doctor;
use super::privilege::Paranoid;
use super::refusals::{CANNOT_RUN_HERE, memlock};
use crate::actors::{Actor, Protocols};
use crate::host::{Set, has_symbol};
use crate::link::{Link, Netns};
use crate::map::{self, Entry};
use crate::process::Process;
use crate::tracefs::with_private_mounts;
use crate::workers::{self, NOBODY};
use crate::xctl::{command, refusal};
use crate::{Family, Outcome, Verdict, schema};

/// A user who is neither root nor nobody.
const OTHER: &str = "65533";

/// The capabilities of the README's table that tracing can use, as far as this process has them.
fn all() -> Result<Vec<&'static str>> {
    use capability::{BPF, DAC_READ_SEARCH, IPC_LOCK, PERFMON, SYS_ADMIN, SYS_PTRACE, SYS_RESOURCE};
    const ALL: [Capability; 7] = [BPF, PERFMON, SYS_RESOURCE, SYS_ADMIN, SYS_PTRACE, DAC_READ_SEARCH, IPC_LOCK];
    let ours = privilege::effective()?;
    Ok(ALL.iter().filter(|one| ours.has(**one)).map(|one| one.name).collect())
}

fn without(all: &[&'static str], missing: &[&str]) -> Vec<&'static str> {
    all.iter().copied().filter(|name| !missing.contains(name)).collect()
}

/// The things that xctl sees: a connection of root's that `--seed proc` must find, and three network namespaces. One
/// process of root's leads to the first, a mount in a folder of root's to the second, and both to the third.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Seen {
    seeded: bool,
    /// The verdicts of `--verify`. None: `--verify` gives no verdict on the namespace.
    by_process: Option<&'static str>,
    by_mount: Option<&'static str>,
    by_both: Option<&'static str>,
    /// Whether `xctl sockets` lists the sockets there. None: `xctl sockets` refuses.
    listed: Option<[bool; 2]>,
}

const EVERYTHING: Seen = Seen {
    seeded: true,
    by_process: Some("equal"),
    by_mount: Some("equal"),
    by_both: Some("equal"),
    listed: Some([true, true]),
};

/// A capability, the things that xctl sees without it, and the purposes that doctor names for the capability.
const LOST: [(&str, Seen, &[&str]); 6] = [
    // CAP_SYS_ADMIN replaces these two, and doctor has one check for all capabilities of loading
    ("CAP_BPF", EVERYTHING, &[]),
    ("CAP_PERFMON", EVERYTHING, &[]),
    ("CAP_IPC_LOCK", EVERYTHING, &["kernel.perf_event_mlock_kb", "RLIMIT_MEMLOCK", "--perf-pages"]),
    (
        "CAP_SYS_PTRACE",
        Seen { seeded: false, by_process: None, listed: Some([false, true]), ..EVERYTHING },
        &["processes", "--seed proc", "--verify", "xctl sockets"],
    ),
    (
        "CAP_DAC_READ_SEARCH",
        Seen { seeded: false, by_mount: None, listed: Some([true, false]), ..EVERYTHING },
        &["open files", "--seed proc", "--verify", "xctl sockets"],
    ),
    (
        "CAP_SYS_ADMIN",
        Seen { by_mount: Some("unreadable"), listed: None, ..EVERYTHING },
        &["network namespaces", "xctl sockets", "--seed proc", "--verify", "kernel.perf_event_paranoid"],
    ),
];

/// A host on which each capability makes a difference.
struct Stage {
    link: Link,
    client: Actor,
    _server: Actor,
    connection: Entry,
    by_process: u64,
    _in_process: Actor,
    by_mount: u64,
    /// The listener in the namespace that only a mount leads to.
    _in_mount: TcpListener,
}

impl Stage {
    /// The calling thread must have its own mounts.
    fn set() -> Result<Stage> {
        let link = Link::up()?;
        let (mut server, mut client) = (Actor::new(&link.b, "server")?, Actor::new(&link.a, "client")?);
        let (_, at) = server.listen((link.address(&link.b, Family::V4), 0).into())?;
        let (_, flow) = client.connect(at, Protocols::Tcp)?;
        let (netns, pid) = (link.a.inode, client.who.pid);
        let connection = Entry { netns, sport: flow.local.port(), dport: flow.remote.port(), pid };

        let process = Netns::new("process")?;
        let mut in_process = Actor::new(&process, "inside")?;
        in_process.listen((Ipv4Addr::UNSPECIFIED, 0).into())?;

        let folder = folder();
        fs::create_dir_all(&folder)?;
        mount(None::<&str>, &folder, Some("tmpfs"), MsFlags::empty(), Some("mode=700")).context("mounting a tmpfs")?;
        let (netns, place) = (Netns::new("mount")?, folder.join("netns"));
        File::create(&place)?;
        mount(Some(&netns.path()), &place, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .context("mounting a namespace")?;
        let in_mount = netns.enter(|| Ok(TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?))?;
        Ok(Stage {
            link,
            client,
            _server: server,
            connection,
            by_process: process.inode,
            _in_process: in_process,
            by_mount: netns.inode,
            _in_mount: in_mount,
        })
    }

    /// The things that xctl sees as user nobody with these capabilities, and all its messages.
    fn seen(&self, capabilities: &[&str]) -> Result<(Seen, String)> {
        let args = ["trace", "--json", "--max-sockets", "32768", "--seed", "proc", "--verify"];
        let mut xctl = Process::start("xctl", workers::by_nobody(capabilities, &command(&args)?)?)?;
        xctl.line()?;
        let seeded = map::entries(xctl.pid())?.contains(&self.connection);
        xctl.signal(Signal::SIGINT)?;
        let lines = xctl.rest()?;
        let (status, mut said) = (xctl.wait()?, xctl.errors());
        ensure!(status.code() == Some(0), "it ended with {status} and said {said:?}");
        let records = lines.iter().map(|line| schema::record(line)).collect::<Result<Vec<Value>>>()?;
        let verdict = |netns: u64| {
            let of_it = |record: &&Value| record["netns"] == netns && record["check"] == "retrans_segs";
            let record = records.iter().find(of_it)?;
            ["equal", "unreadable"].into_iter().find(|verdict| record["verdict"] == *verdict)
        };
        let verdicts = [self.by_process, self.by_mount, self.link.a.inode].map(verdict);
        let notes = records.iter().filter(|record| record["verdict"] == "unreadable");
        said.extend(notes.filter_map(|record| record["note"].as_str()));

        let sockets = workers::by_nobody(capabilities, &command(&["sockets", "--json"])?)?;
        let mut sockets = Process::start("xctl sockets", sockets)?;
        let lines = sockets.rest()?;
        let status = sockets.wait()?;
        said += &sockets.errors();
        let listed = match status.code() {
            Some(0) => {
                let sockets = lines.iter().map(|line| schema::record(line)).collect::<Result<Vec<Value>>>()?;
                Some([self.by_process, self.by_mount].map(|netns| sockets.iter().any(|one| one["netns"] == netns)))
            }
            Some(CANNOT_RUN_HERE) => None,
            _ => anyhow::bail!("xctl sockets ended with {status} and said {said:?}"),
        };
        let [by_process, by_mount, by_both] = verdicts;
        Ok((Seen { seeded, by_process, by_mount, by_both, listed }, said))
    }
}

fn folder() -> PathBuf {
    std::env::temp_dir().join(format!("xctl-capabilities-{}", std::process::id()))
}

/// The README's table: without each of these capabilities xctl runs, and does not see certain things.
pub fn each(_set: Set, _family: Family) -> Outcome {
    let _paranoid = Paranoid::at_most_2()?;
    let all = all()?;
    let seen = with_private_mounts(|| {
        let stage = Stage::set()?;
        ensure!(fs::metadata(format!("/proc/{}", stage.client.who.pid)).is_ok(), "the client is gone");
        let (seen, said) = stage.seen(&all)?;
        ensure!(seen == EVERYTHING && !said.contains("give CAP_"), "with {all:?} it sees {seen:?} and says {said:?}");
        for (missing, expected, words) in LOST {
            let rest = without(&all, &[missing]);
            let (seen, said) = stage.seen(&rest)?;
            ensure!(seen == expected, "without {missing} it sees {seen:?}, not {expected:?}, and says {said:?}");
            let named = |name: &&str| said.contains(*name);
            let right = if expected == EVERYTHING { !said.contains("CAP_") } else { said.contains(missing) };
            ensure!(right && !rest.iter().any(named), "without {missing} it says {said:?}");
            let unseen = |line: &str| line.contains("the open files of ") && line.contains(missing);
            ensure!(seen.seeded || said.lines().any(unseen), "without {missing} it says nothing of files: {said:?}");
            if !words.is_empty() {
                doctor::says(workers::by_nobody(&rest, &command(&["doctor", "--json"])?)?, &[(missing, false, words)])?;
            }
        }
        let optional = LOST.iter().filter(|(_, _, words)| !words.is_empty());
        let held: Vec<_> = optional.map(|(name, _, words)| (*name, true, *words)).collect();
        doctor::says(workers::by_nobody(&all, &command(&["doctor", "--json"])?)?, &held)?;
        Ok(LOST.len())
    });
    let _ = fs::remove_dir(folder());
    Ok(Verdict::Passed(format!("{} that are only missed", seen?)))
}

/// The capabilities that xctl needs, if no other capability replaces them.
pub fn needed(_set: Set, _family: Family) -> Outcome {
    let _paranoid = Paranoid::at_most_2()?;
    let all = all()?;
    let counts = has_symbol("bpf_map_charge_init");
    // on kernels that count maps against RLIMIT_MEMLOCK, enough for the maps and not for the rings
    let pages = ["trace", "--json", "--perf-pages", "4096", "--duration", "0.1"];
    let (kib, trace, report) = (if counts { 24 << 10 } else { 64 }, ["trace", "--json"], ["doctor", "--json"]);
    for (missing, stand_in) in [("CAP_BPF", "CAP_SYS_ADMIN"), ("CAP_PERFMON", "CAP_SYS_ADMIN")] {
        let rest = without(&all, &[missing, stand_in]);
        let said = refused(missing, &rest, Process::start("xctl", workers::by_nobody(&rest, &command(&trace)?)?)?)?;
        doctor::agrees_with_refusal(workers::by_nobody(&rest, &command(&report)?)?, "capabilities", &said)?;
    }
    let rest = without(&all, &["CAP_IPC_LOCK", "CAP_SYS_RESOURCE"]);
    refused("CAP_IPC_LOCK", &rest, Process::start("xctl", memlock(kib, &rest, &pages)?)?)?;
    let mut with = Process::start("xctl", memlock(kib, &without(&all, &["CAP_SYS_RESOURCE"]), &pages)?)?;
    with.rest()?;
    with.succeed()?;
    let both = [&all[..], &["CAP_SETUID", "CAP_SETGID"]].concat();
    let user = ["trace", "--json", "--duration", "0.1", "--user", OTHER];
    for missing in ["CAP_SETUID", "CAP_SETGID"] {
        let rest = without(&both, &[missing]);
        let mut xctl = Process::start("xctl", workers::by_nobody(&rest, &command(&user)?)?)?;
        xctl.rest()?;
        let (status, said) = (xctl.wait()?, xctl.errors());
        let right = said.contains(&format!("cannot become user {OTHER}: give xctl")) && said.contains(missing);
        ensure!(status.code() == Some(CANNOT_RUN_HERE) && right, "without {missing}: {status}, {said:?}");
    }
    let neither = [("CAP_SETUID", false, &["--user"][..]), ("CAP_SETGID", false, &["--user"])];
    doctor::says(workers::by_nobody(&all, &command(&report)?)?, &neither)?;
    let mut with = Process::start("xctl", workers::by_nobody(&both, &command(&user)?)?)?;
    with.rest()?;
    with.succeed()?;
    Ok(Verdict::Passed("names the one that is missing".into()))
}

/// Maps count against RLIMIT_MEMLOCK, and xctl may not raise this low limit.
pub fn no_memlock(_set: Set, _family: Family) -> Outcome {
    if !has_symbol("bpf_map_charge_init") {
        return Ok(Verdict::Skipped("this kernel does not count maps against RLIMIT_MEMLOCK".into()));
    }
    let _paranoid = Paranoid::at_most_2()?;
    let rest = without(&all()?, &["CAP_SYS_RESOURCE"]);
    let trace = Process::start("xctl", memlock(64, &rest, &["trace", "--json"])?)?;
    let said = refused("CAP_SYS_RESOURCE", &rest, trace)?;
    for words in ["RLIMIT_MEMLOCK is 64 KiB", "ulimit"] {
        ensure!(said.contains(words), "it does not name the limit: {said:?}");
    }
    doctor::agrees_with_refusal(memlock(64, &rest, &["doctor", "--json"])?, "trace", &said)?;
    Ok(Verdict::Passed("names RLIMIT_MEMLOCK and CAP_SYS_RESOURCE".into()))
}

/// Checks that xctl refuses and names the missing capability, but none of those that it has.
fn refused(missing: &str, held: &[&str], process: Process) -> Result<String> {
    let said = refusal(process, CANNOT_RUN_HERE)?;
    ensure!(said.contains(missing), "it does not name {missing}: {said:?}");
    ensure!(!held.iter().any(|name| said.contains(name)), "it names what is there: {said:?}");
    Ok(said)
}

/// The capabilities for `--record`: to rename the file with `--user`, and to know addresses.
pub fn of_record(_set: Set, _family: Family) -> Outcome {
    let _paranoid = Paranoid::at_most_2()?;
    let folder = folder();
    fs::create_dir(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let outcome = record(&folder);
    fs::remove_dir_all(&folder)?;
    outcome
}

fn record(folder: &std::path::Path) -> Outcome {
    const TAKEN: [&str; 5] = ["CAP_SETUID", "CAP_SETGID", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_SYSLOG"];
    let all = [&all()?[..], &TAKEN].concat();
    let file = folder.join("record.json");
    let path = file.to_str().context("not UTF-8")?;
    let args = ["trace", "--json", "--duration", "0.1", "--record", path, "--user", OTHER];
    let run = |capabilities: &[&str]| -> Result<(Option<i32>, String)> {
        let mut xctl = Process::start("xctl", workers::by_nobody(capabilities, &command(&args)?)?)?;
        xctl.rest()?;
        Ok((xctl.wait()?.code(), xctl.errors()))
    };
    for (missing, owner, mode) in [("CAP_DAC_OVERRIDE", NOBODY, 0o700), ("CAP_FOWNER", 0, 0o1777)] {
        chown(folder, Some(owner), Some(owner))?;
        fs::set_permissions(folder, Permissions::from_mode(mode))?;
        let (code, said) = run(&all)?;
        ensure!(code == Some(0) && file.exists(), "with {all:?} it ended with {code:?} and said {said:?}");
        fs::remove_file(&file)?;
        let rest = without(&all, &[missing]);
        let (code, said) = run(&rest)?;
        ensure!(code == Some(1) && !file.exists(), "without {missing} it ended with {code:?} and said {said:?}");
        let words = format!("cannot write the record {path}: ");
        ensure!(said.contains(&words) && said.contains(missing), "it does not name {missing}: {said:?}");
        let report = workers::by_nobody(&rest, &command(&["doctor", "--json"])?)?;
        doctor::says(report, &[(missing, false, &["to rename and remove files"])])?;
        fs::remove_file(folder.join("record.json.partial")).context("what it could not rename")?;
    }
    let level = |name: &str| fs::read_to_string(format!("/proc/sys/kernel/{name}")).unwrap_or_default();
    if level("kptr_restrict").trim() != "2" && level("perf_event_paranoid").trim().parse::<i32>()? > 1 {
        for (capabilities, known) in [(all.clone(), true), (without(&all, &["CAP_SYSLOG"]), false)] {
            let (code, said) = run(&capabilities)?;
            ensure!(code == Some(0), "with {capabilities:?} it ended with {code:?} and said {said:?}");
            let record: Value = serde_json::from_slice(&fs::read(&file)?)?;
            let hooks = record["hooks"].as_array().context("no hooks")?;
            let shown = hooks.iter().any(|hook| !hook["address"].is_null());
            ensure!(record["proven"] == true && shown == known, "with {capabilities:?}: {hooks:?}");
            let report = workers::by_nobody(&capabilities, &command(&["doctor", "--json"])?)?;
            doctor::says(report, &[("CAP_SYSLOG", known, &["addresses of hooks (--record)"])])?;
        }
    }
    Ok(Verdict::Passed("names what renaming takes; addresses by CAP_SYSLOG".into()))
}
