//! A filtered xctl prints exactly those records of an unfiltered one beside it that pass the filter.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use crate::counters::{Counters, unacknowledged, wait_until_grown};
use crate::host::Set;
use crate::link::{Link, Netns};
use crate::process::{PATIENCE, Process, poll};
use crate::workers::{NOBODY, Plan, Puppet, Receiver, Sender, send_all};
use crate::xctl::{Address, Kind, Owner, Retransmit, Trace, Xctl, command, refusal};
use crate::{Family, Outcome, Verdict};

const WRONG_USAGE: i32 = 2;

pub fn run(set: Set, _family: Family) -> Outcome {
    let link = Link::lossy()?;
    let mut receivers = vec![];
    let mut senders = vec![];
    for (family, comm) in [(Family::V4, "filter-4"), (Family::V6, "filter-6")] {
        let receiver = Receiver::new(&link.b, "receiver", link.address(&link.b, family), 0)?;
        // bulk with pauses provokes timeouts, fast retransmits and tail loss probes
        let plan = Plan {
            sizes: vec![3000],
            burst: 10,
            pause: std::time::Duration::from_millis(20),
            ..Plan::new(comm, receiver.at)
        };
        senders.push(Sender::new(&link.a, plan)?);
        receivers.push(receiver);
    }
    let pid = senders[0].who.pid;
    let port = receivers[1].at.port();
    let (inode_a, inode_b) = (link.a.inode, link.b.inode);
    let path_a = link.a.path().display().to_string();
    let address_b = link.address(&link.b, Family::V6);
    let (net_v4, of_b) = (format!("{}/24", link.address(&link.a, Family::V4)), address_b.to_string());

    let all = Xctl::start(set, &[])?;
    let filtered = [
        Filter::new(set, &["--pid", &pid.to_string()], move |record| record.at.pid == Some(pid))?,
        // of a filter with several values, one must fit
        Filter::new(set, &["--pid", "1,2", "--pid", &pid.to_string()], move |record| record.at.pid == Some(pid))?,
        Filter::new(set, &["--comm", "filter-6", "--comm", "none"], |record| {
            record.at.comm.as_deref() == Some("filter-6")
        })?,
        Filter::new(set, &["--port", &format!("1,2,3,{port},5,6,7,8")], move |record| {
            [record.at.sport, record.at.dport].contains(&port)
        })?,
        Filter::new(set, &["--netns", "1", "--netns", &path_a], move |record| record.at.netns == inode_a)?,
        Filter::new(set, &["--addr", &net_v4], |record| record.at.saddr.is_ipv4())?,
        Filter::new(set, &["--addr", "10.99.0.128/25,192.0.2.1,fd99::/126"], |record| record.at.saddr.is_ipv6())?,
        Filter::new(set, &["--addr", &of_b, "--addr", "192.0.2.0/24"], move |record| {
            [record.at.saddr, record.at.daddr].contains(&address_b)
        })?,
        Filter::new(set, &["--addr", "::/0"], |record| record.at.saddr.is_ipv6())?,
        Filter::new(set, &["--comm", "filter-6"], |record| record.at.comm.as_deref() == Some("filter-6"))?,
        Filter::new(set, &["--port", &port.to_string()], move |record| {
            [record.at.sport, record.at.dport].contains(&port)
        })?,
        Filter::new(set, &["--netns", &inode_b.to_string()], move |record| record.at.netns == inode_b)?,
        Filter::new(set, &["--netns", &path_a, "-4"], move |record| {
            record.at.netns == inode_a && record.at.saddr.is_ipv4()
        })?,
        Filter::new(set, &["-6"], |record| record.at.saddr.is_ipv6())?,
        Filter::new(set, &["--kind", "fast,tlp,synack"], |record| {
            matches!(record.kind, Kind::Fast | Kind::Tlp | Kind::Synack)
        })?,
    ];
    send_all(senders)?;
    same(&link, all, filtered)
}

/// Filters by `--cgroup`, by the cgroup's folder or by one above; and checks cgroup, user and thread in events.
pub fn cgroup(set: Set, family: Family) -> Outcome {
    let Some(root) = Cgroup::root()? else { return Ok(Verdict::Skipped("this host has no cgroup v2".into())) };
    let parent = Cgroup::new(root.join(format!("xctl-test-{}", std::process::id())))?;
    let [inner, other] = [Cgroup::new(parent.path.join("inner"))?, Cgroup::new(parent.path.join("other"))?];
    let link = Link::lossy()?;
    let receiver = Receiver::new(&link.b, "receiver", link.address(&link.b, family), 0)?;
    let plan = |comm| Plan { sizes: vec![700], burst: 4, ..Plan::new(comm, receiver.at) };
    let inside = Plan { as_nobody: true, second_thread: true, ..plan("inside") };
    let senders = vec![Sender::new(&link.a, inside)?, Sender::new(&link.a, plan("outside"))?];
    let pids: Vec<_> = senders.iter().map(|sender| sender.who.pid).collect();
    inner.take(pids[0])?;
    let paths = [path_of(pids[0])?, path_of(pids[1])?];
    let ids = [cgroup_id(&inner.path)?, cgroup_id(&root.join(paths[1].trim_start_matches('/')))?];

    let all = Xctl::start(set, &[])?;
    let of = |pid| move |record: &Retransmit| record.at.pid == Some(pid);
    let filtered = [
        Filter::new(set, &["--cgroup", &inner.path.to_string_lossy()], of(pids[0]))?,
        Filter::new(set, &["--cgroup", &parent.path.to_string_lossy()], of(pids[0]))?,
        Filter::new(set, &["--cgroup", &other.path.to_string_lossy()], |_| false)?,
        Filter::new(
            set,
            &["--cgroup", &other.path.to_string_lossy(), "--cgroup", &parent.path.to_string_lossy()],
            of(pids[0]),
        )?,
        Filter::new(set, &["--cgroup", &root.to_string_lossy()], |_| true)?,
    ];
    let truths = send_all(senders)?;
    link.quiet()?;
    let watched = all.stop(Signal::SIGINT)?;
    for ((truth, path), (uid, cgroup)) in truths.iter().zip(&paths).zip([NOBODY, 0].into_iter().zip(ids)) {
        let records: Vec<_> = watched.of(link.a.inode).filter(|record| of(truth.who.pid)(record)).collect();
        ensure!(!records.is_empty(), "no retransmits of {truth:?}");
        for record in records {
            record.at.is_of(&truth.who, truth.flow()?)?;
            let told = (record.at.uid, record.at.cgroup, record.at.tid.map(u32::cast_signed));
            let right = (Some(uid), Some(cgroup), Some(truth.sent[0].tid));
            ensure!(told == right, "of {truth:?} in cgroup {cgroup}: {record:?}");
            ensure!(record.at.cgroup_path.as_ref() == Some(path), "of {truth:?} in {path}: {record:?}");
        }
        let row = watched.summary.processes.iter().find(|row| row.pid == Some(truth.who.pid)).context("no row")?;
        ensure!(row.ledger["cgroup_path"] == path.as_str(), "of {truth:?} in {path}: {row:?}");
    }
    let threads = truths.iter().map(|truth| truth.sent[0].tid.cast_unsigned() == truth.who.pid);
    ensure!(threads.eq([false, true]), "not a second thread and a main one: {truths:?}");

    let no_cgroup = command(&["trace", "--cgroup", "/proc"])?;
    let said = refusal(Process::start("xctl --cgroup /proc", no_cgroup)?, WRONG_USAGE)?;
    let where_they_are = format!("/proc is not a cgroup v2 directory: these are below {}", root.display());
    ensure!(said.contains(&where_they_are), "it does not say {where_they_are:?}: {said:?}");
    same_as(&link, &watched, filtered)
}

/// Every filter has as many values as it takes. The kernel must accept the programs, and one value of each filter is the right one.
pub fn full(set: Set, family: Family) -> Outcome {
    let Some(root) = Cgroup::root()? else { return Ok(Verdict::Skipped("this host has no cgroup v2".into())) };
    let parent = Cgroup::new(root.join(format!("xctl-test-{}", std::process::id())))?;
    let inner = (0..7).map(|number| Cgroup::new(parent.path.join(number.to_string()))).collect::<Result<Vec<_>>>()?;
    let other = Cgroup::new(parent.path.join("other"))?;
    let link = Link::lossy()?;
    let receiver = Receiver::new(&link.b, "receiver", link.address(&link.b, family), 0)?;
    let plan = |comm| Plan { sizes: vec![700], burst: 4, ..Plan::new(comm, receiver.at) };
    let senders = vec![Sender::new(&link.a, plan("inside"))?, Sender::new(&link.a, plan("outside"))?];
    let pids: Vec<_> = senders.iter().map(|sender| sender.who.pid).collect();
    inner[6].take(pids[0])?;
    let seven = |of: &dyn Fn(u32) -> String| (1..8).map(of).collect::<Vec<_>>();
    let port = receiver.at.port().to_string();
    let right = [pids[0].to_string(), port, link.address(&link.b, family).to_string(), link.a.inode.to_string()];
    let wrong = [
        seven(&|number| (4_000_000 + number).to_string()),
        seven(&|number| number.to_string()),
        seven(&|number| format!("192.0.2.{number}/32")),
        seven(&|number| number.to_string()),
    ];
    let mut args = vec![];
    for (option, (right, wrong)) in
        ["--pid", "--port", "--addr", "--netns"].into_iter().zip(right.into_iter().zip(wrong))
    {
        args.extend(wrong.into_iter().chain([right]).flat_map(|value| [option.to_owned(), value]));
    }
    let comms = seven(&|number| format!("none-{number}")).into_iter().chain(["inside".to_owned()]);
    args.extend(comms.flat_map(|comm| ["--comm".to_owned(), comm]));
    let cgroups = [&other].into_iter().chain(&inner).map(|one| one.path.display().to_string());
    args.extend(cgroups.flat_map(|cgroup| ["--cgroup".to_owned(), cgroup]));
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let all = Xctl::start(set, &[])?;
    let inside = pids[0];
    let filtered = [Filter::new(set, &args, move |record| record.at.pid == Some(inside))?];
    send_all(senders)?;
    link.quiet()?;
    let all = all.stop(Signal::SIGINT)?;
    ensure!(all.of(link.a.inode).any(|record| record.at.pid == Some(inside)), "no retransmit to compare");
    same_as(&link, &all, filtered)
}

/// An event of unknown owner may belong to the requested process. xctl counts it apart if the event passes all other
/// filters.
pub fn unknown(set: Set, family: Family) -> Outcome {
    let link = Link::up()?;
    let receiver = Receiver::new(&link.b, "receiver", link.address(&link.b, family), 0)?;
    // the map has room for one socket, and this room is taken
    let early = Puppet::new(&link.a, "early", receiver.at)?;
    let start_in = |netns: &Netns, more: &[&str]| {
        let netns = netns.path().display().to_string();
        Xctl::start(set, &[&["--max-sockets", "1", "--netns", &netns], more].concat())
    };
    let start = |more: &[&str]| start_in(&link.a, more);
    let (pid, port) = (early.truth.who.pid.to_string(), receiver.at.port());
    let (here, elsewhere) = (port.to_string(), (port - 1).to_string());
    let all = start(&[])?;
    let counted = [start(&["--pid", &pid])?, start(&["--comm", "early", "--port", &here])?];
    let uncounted = [
        start(&["--pid", &pid, "--port", &elsewhere])?,
        start(&["--pid", &pid, "--kind", "fast"])?,
        start(&["--pid", &pid, if family == Family::V4 { "-6" } else { "-4" }])?,
        start_in(&link.b, &["--pid", &pid])?,
    ];
    let not_of_owners = [start(&["--port", &elsewhere])?, start(&["--kind", "fast"])?, start_in(&link.b, &[])?];
    let mut late = Puppet::new(&link.a, "late", receiver.at)?;
    let before = Counters::of(&link.a)?;
    link.lose(100)?;
    late.send()?;
    wait_until_grown(&link.a, &before, "RetransSegs", 3)?;
    link.lose(0)?;
    ensure!(poll(PATIENCE, || Ok(unacknowledged(&link.a)?.is_empty()))?, "not acknowledged");
    let all = all.stop(Signal::SIGINT)?;
    let flow = late.truth.flow()?;
    let unknown = all.retransmits.iter().filter(|record| record.at.owner == Owner::Unknown);
    ensure!(unknown.clone().all(|record| record.at.flow() == flow), "not of {flow:?}: {:?}", all.retransmits);
    let unknown = unknown.count() as u64;
    ensure!(unknown >= 3, "only {unknown} of unknown owner: {:?}", all.retransmits);
    let fast = all.retransmits.iter().filter(|record| record.kind == Kind::Fast).count();
    ensure!(fast == 0, "where no ACK came: {:?}", all.retransmits);
    for xctl in not_of_owners {
        let trace = xctl.stop(Signal::SIGINT)?;
        let (printed, lost) = (&trace.retransmits, &trace.summary.lost);
        ensure!(printed.is_empty() && lost.unknown == 0, "it passes no filter: {printed:?}, {lost:?}");
    }
    for (xctls, expected) in [(Vec::from(counted), unknown), (Vec::from(uncounted), 0)] {
        for xctl in xctls {
            let trace = xctl.stop(Signal::SIGINT)?;
            ensure!(trace.retransmits.is_empty(), "that is not of {pid}: {:?}", trace.retransmits);
            let lost = trace.summary.lost;
            let told = lost.unattributed;
            ensure!(lost.unknown == 0, "none was printed: {lost:?}");
            ensure!(told == expected, "{told} of unknown owner, without the filter {expected}");
        }
    }
    Ok(Verdict::Passed(format!("{unknown} of unknown owner")))
}

/// Filters by a network namespace that does not exist, and by one that does.
pub fn absent(set: Set, _family: Family) -> Outcome {
    const ABSENT: &str = "no visible process is in such a network namespace";
    let link = Link::up()?;
    for (netns, absent) in [(1, true), (link.a.inode, false)] {
        let said = Xctl::start(set, &["--netns", &netns.to_string()])?.stop(Signal::SIGINT)?.said;
        ensure!(said.contains(ABSENT) == absent, "of {netns} it says {said:?}");
    }
    Ok(Verdict::Passed("says that nothing leads there".into()))
}

/// A folder of cgroup v2 that the test made. When dropped, the folder is removed. Its processes move to the folder above.
pub(super) struct Cgroup {
    pub(super) path: PathBuf,
}

impl Cgroup {
    /// The mount point of cgroup v2.
    pub(super) fn root() -> Result<Option<PathBuf>> {
        let mounts = std::fs::read_to_string("/proc/mounts").context("reading /proc/mounts")?;
        let place = |line: &str| {
            let mut words = line.split(' ').skip(1);
            words.next().filter(|_| words.next() == Some("cgroup2")).map(PathBuf::from)
        };
        Ok(mounts.lines().find_map(place))
    }

    pub(super) fn new(path: PathBuf) -> Result<Cgroup> {
        std::fs::create_dir(&path).with_context(|| format!("creating {}", path.display()))?;
        Ok(Cgroup { path })
    }

    pub(super) fn take(&self, pid: u32) -> Result<()> {
        std::fs::write(self.path.join("cgroup.procs"), pid.to_string()).context("moving a process to a cgroup")
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let pids = std::fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
        for pid in pids.lines() {
            let _ = std::fs::write(self.path.join("../cgroup.procs"), pid); // it may have exited
        }
        if let Err(error) = std::fs::remove_dir(&self.path) {
            eprintln!("{} stays behind: {error}", self.path.display());
        }
    }
}

/// The number of the cgroup in events.
fn cgroup_id(path: &Path) -> Result<u64> {
    Ok(path.metadata().with_context(|| format!("looking at {}", path.display()))?.ino())
}

/// The cgroup v2 of a process, as a path below the root.
pub(super) fn path_of(pid: u32) -> Result<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).context("reading a process's cgroups")?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::"));
    Ok(path.with_context(|| format!("no cgroup v2 in {text:?}"))?.to_owned())
}

/// Checks that each filtered xctl has printed exactly the link's records of the unfiltered one that pass its filter. Ends
/// all of them.
fn same(link: &Link, all: Xctl, filtered: impl IntoIterator<Item = Filter>) -> Outcome {
    link.quiet()?;
    same_as(link, &all.stop(Signal::SIGINT)?, filtered)
}

/// Like [`same`], for an unfiltered xctl that has ended.
pub(super) fn same_as(link: &Link, all: &Trace, filtered: impl IntoIterator<Item = Filter>) -> Outcome {
    // others may use TCP on this host too; only events of the link all happened while every xctl was running
    let of_link = |trace: &Trace| -> Vec<Retransmit> {
        trace
            .retransmits
            .iter()
            .filter(|record| [link.a.inode, link.b.inode].contains(&record.at.netns))
            .cloned()
            .collect()
    };
    let everything = of_link(all);
    for record in &everything {
        ensure!(record.at.pid.is_some(), "owner unknown: {record:?}");
    }
    let (mut counts, mut wrong) = (vec![], vec![]);
    for Filter { args, xctl, passes } in filtered {
        let trace = xctl.stop(Signal::SIGINT).with_context(|| format!("with {args:?}"))?;
        for record in &trace.retransmits {
            ensure!(passes(record), "{args:?} let through {record:?}");
        }
        let expected: Vec<_> = everything.iter().filter(|record| passes(record)).map(identity).collect();
        let got: Vec<_> = of_link(&trace).iter().map(identity).collect();
        let (expected, got) = (sorted(expected), sorted(got));
        if expected != got {
            wrong.push(format!("{args:?}: without it {} such records, with it {}", expected.len(), got.len()));
        }
        counts.push(format!("{} {}", args[0], got.len()));
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    // each list of filters has one that lets nothing through
    let nothing = counts.iter().filter(|count| count.ends_with(" 0")).count();
    ensure!(nothing <= 1, "filters that compared nothing: {counts:?}");
    ensure!(everything.len() >= 5, "only {} retransmits: too few to tell anything", everything.len());
    Ok(Verdict::Passed(format!("of {}: {}", everything.len(), counts.join(", "))))
}

pub(super) struct Filter {
    args: Vec<String>,
    xctl: Xctl,
    passes: Box<dyn Fn(&Retransmit) -> bool>,
}

impl Filter {
    pub(super) fn new(set: Set, args: &[&str], passes: impl Fn(&Retransmit) -> bool + 'static) -> Result<Filter> {
        let xctl = Xctl::start(set, args).with_context(|| format!("with {args:?}"))?;
        Ok(Filter { args: args.iter().map(ToString::to_string).collect(), xctl, passes: Box::new(passes) })
    }
}

/// The part of a retransmit that two xctls must print alike. Each xctl reads the clock for itself, and looks up the path of a cgroup
/// when it prints: perhaps after the process has exited. So times and paths are left out.
fn identity(record: &Retransmit) -> String {
    let Retransmit { kind, segs, bytes, err, fin, state, sk_retrans, at, .. } = record;
    let at = Address { cgroup_path: None, ..at.clone() };
    format!("{at:?} {kind:?} {segs} {bytes} {err} {fin} {state} {sk_retrans}")
}

fn sorted(mut list: Vec<String>) -> Vec<String> {
    list.sort();
    list
}
