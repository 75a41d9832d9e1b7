//! `--metrics` and `--metrics-file`: every scrape of a lossy run only grows, and the last has exactly what the summary has,
//! which the kernel's counters confirm. Clients that are slow, many or wrong change nothing.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::Signal;

use super::lossy_link::{nothing_is_missing, plans};
use super::stats::number;
use crate::counters::Counters;
use crate::folder::Folder;
use crate::host::{Set, is_full};
use crate::link::{DEAD_V4, Link};
use crate::missed::Witness;
use crate::process::{PATIENCE, Process};
use crate::workers::{Receiver, Sender, crowd_in_vain, send_all};
use crate::xctl::{Trace, Xctl, command};
use crate::{Family, Outcome, Verdict};

const GET: &[u8] = b"GET /metrics HTTP/1.1\r\nHost: test\r\nUser-Agent: test\r\n\r\n";

/// The age up to which xctl tells the same figures again.
const FRESH: Duration = Duration::from_millis(1100);

/// The path of a file in the folder.
fn path(folder: &Folder, name: &str) -> String {
    folder.file(name).1
}

/// The value of each series, by its name with its labels.
type Series = BTreeMap<String, f64>;

fn parse(text: &str) -> Result<Series> {
    let mut series = Series::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').with_context(|| format!("no value: {line}"))?;
        let before = series.insert(name.into(), value.parse().with_context(|| line.to_owned())?);
        ensure!(before.is_none(), "twice: {name}");
    }
    Ok(series)
}

/// The sums of a metric by the labels `comm` and `cgroup`.
fn by_owner(series: &Series, metric: &str) -> BTreeMap<String, u64> {
    let mut sums = BTreeMap::new();
    for (name, value) in series {
        let Some(labels) = name.strip_prefix(metric).and_then(|rest| rest.strip_prefix('{')) else { continue };
        let owner = labels.split(",kind=").next().unwrap_or_default().trim_end_matches('}');
        *sums.entry(owner.to_owned()).or_default() += *value as u64;
    }
    sums.retain(|_, sum| *sum > 0);
    sums
}

fn sum(series: &Series, metric: &str) -> u64 {
    by_owner(series, metric).values().sum()
}

const SEGMENTS: &str = "xctl_tcp_retransmitted_segments_total";
const AGAIN: &str = "xctl_tcp_retransmitted_bytes_total";
const SENT: &str = "xctl_tcp_sent_bytes_total";

/// The answer to a request: its first line, and its content.
fn ask(at: &str, request: &[u8]) -> Result<(String, String)> {
    let mut client = UnixStream::connect(at)?;
    client.set_read_timeout(Some(PATIENCE))?;
    client.write_all(request)?;
    read(client)
}

fn read(mut client: impl Read) -> Result<(String, String)> {
    let mut answer = String::new();
    client.read_to_string(&mut answer).context("reading the answer")?;
    let (head, content) = answer.split_once("\r\n\r\n").with_context(|| format!("no head: {answer:?}"))?;
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).context("no length")?;
    ensure!(length.parse() == Ok(content.len()), "{length} is not the length of {content:?}");
    Ok((head.lines().next().unwrap_or_default().to_owned(), content.to_owned()))
}

fn scrape(at: &str) -> Result<Series> {
    let (status, content) = ask(at, GET)?;
    ensure!(status == "HTTP/1.1 200 OK", "{status}");
    parse(&content)
}

pub fn run(set: Set, family: Family) -> Outcome {
    let link = Link::lossy()?;
    let folder = Folder::new("metrics")?;
    let (socket, file, few) = (path(&folder, "socket"), path(&folder, "all.prom"), path(&folder, "few.prom"));
    let xctl = Xctl::start(set, &["--metrics", &format!("unix:{socket}"), "--metrics-file", &file])?;
    // Retransmits count also if none is printed.
    let mut few_owners = command(&["trace", "--json", "--attach", &set.to_string(), "--events", "connection"])?;
    few_owners.args(["--metrics-file", &few, "--metrics-owners", "2"]);
    let mut crowded = Process::start("xctl of few owners", few_owners)?;
    crowded.line().context("its record `ready`")?;
    let first = parse(&fs::read_to_string(&file)?)?;
    ensure!(sum(&first, SEGMENTS) == 0 && first.contains_key("xctl_proven"), "at the start: {first:?}");
    let witness = Witness::of(&xctl.ready.hooks)?;
    let receiver = Receiver::new(&link.b, "receiver", link.address(&link.b, family), 0)?;
    let senders = plans(&receiver).into_iter().map(|plan| Sender::new(&link.a, plan)).collect::<Result<Vec<_>>>()?;
    let before = (Counters::of(&link.a)?, Counters::of(&link.b)?);

    // One says nothing, one does not end its request, and one does not read.
    let silent = UnixStream::connect(&socket)?;
    let mut slow = UnixStream::connect(&socket)?;
    slow.write_all(b"GET /metrics HTT")?;
    let mut deaf = UnixStream::connect(&socket)?;
    deaf.write_all(GET)?;
    let scrapes = thread::scope(|scope| -> Result<Vec<Series>> {
        let sending = scope.spawn(|| send_all(senders));
        let mut scrapes = vec![];
        while !sending.is_finished() {
            scrapes.push(scrape(&socket)?);
            thread::sleep(Duration::from_millis(200));
        }
        sending.join().map_err(|_| anyhow::anyhow!("a sender panicked"))??;
        Ok(scrapes)
    })?;
    link.quiet()?;
    let after = (Counters::of(&link.a)?, Counters::of(&link.b)?);
    let unseen = witness.skipped()? + witness.above_pid_1()?;
    thread::sleep(FRESH);
    let last = scrape(&socket)?;
    only_grow(scrapes.iter().chain([&last]))?;
    wrong_requests(&socket)?;
    crowd(&socket, &last)?;
    // More silent clients than there may be: the next one is served.
    let crowd = (0..200).map(|_| UnixStream::connect(&socket)).collect::<Result<Vec<_>, _>>()?;
    scrape(&socket)?;
    drop((silent, slow, deaf, crowd));

    let trace = xctl.stop(Signal::SIGINT)?;
    let unseen = unseen + trace.events_told_missed();
    nothing_is_missing(&trace, &link.a, &before.0, &after.0, unseen).context("namespace a")?;
    nothing_is_missing(&trace, &link.b, &before.1, &after.1, unseen).context("namespace b")?;
    trace.nothing_lost()?;
    ensure!(trace.summary.segs >= 20, "only {} segments: the link was not lossy enough", trace.summary.segs);
    let at_end = parse(&fs::read_to_string(&file)?)?;
    same_as_summary(&at_end, &trace, |_| true)?;
    same_sums(&at_end, &trace)?;
    // Other processes of this host go on after the last scrape.
    same_as_summary(&last, &trace, |owner| owner.contains("\"send-") || owner.contains("\"receiver\""))?;
    let of_all = trace.summary.segs;
    crowded.signal(Signal::SIGINT)?;
    crowded.rest()?;
    crowded.succeed()?;
    let at_end = parse(&fs::read_to_string(&few)?)?;
    let (owners, segs) = (by_owner(&at_end, SENT).len(), sum(&at_end, SEGMENTS));
    ensure!(owners == 3, "two owners and the others: {at_end:?}");
    ensure!(segs == of_all, "of few owners: {segs}, not {of_all}");
    let left: Vec<_> = fs::read_dir(&folder.0)?.map(|entry| Ok(entry?.file_name())).collect::<Result<_>>()?;
    ensure!(left.len() == 2, "files are left: {left:?}");
    Ok(Verdict::Passed(format!("{segs} segments, {} scrapes", scrapes.len())))
}

/// More short-lived processes, each with a name of its own, than there may be owners. At most so many owners have series, and the sums
/// are the kernel's.
pub fn many_owners(set: Set, _family: Family) -> Outcome {
    const OWNERS: usize = 200;
    let (processes, at_once) = if is_full() { (10_000, 200) } else { (280, 40) };
    let link = Link::up()?;
    let folder = Folder::new("owners")?;
    let file = path(&folder, "all.prom");
    let before = Counters::of(&link.a)?;
    let witness = Witness::of(&[])?;
    let netns = link.a.inode.to_string();
    let xctl = Xctl::start(set, &["--netns", &netns, "--metrics-file", &file])?;
    link.lose(100)?;
    for first in (0..processes).step_by(at_once) {
        crowd_in_vain(&link.a, (DEAD_V4, 443).into(), (first..first + at_once).map(|number| format!("p{number}")))?;
    }
    link.lose(0)?;
    let again = Counters::of(&link.a)?.since(&before, "RetransSegs")?.cast_unsigned();
    let trace = xctl.stop(Signal::SIGINT)?;
    if let Some(why) = witness.hidden()? {
        return Ok(Verdict::Skipped(why));
    }
    trace.nothing_lost()?;
    let at_end = parse(&fs::read_to_string(&file)?)?;
    let (segs, owners) = (sum(&at_end, SEGMENTS), by_owner(&at_end, SEGMENTS).len());
    ensure!(again >= processes as u64, "of {processes} processes the kernel has {again} retransmitted SYNs");
    ensure!(
        segs == again && trace.summary.segs == again,
        "{segs} segments, {} in the summary, and the kernel has {again}",
        trace.summary.segs
    );
    ensure!(owners == OWNERS + 1, "{owners} owners: {OWNERS} and the others were to have series");
    Ok(Verdict::Passed(format!("{segs} segments of {processes} processes, {owners} owners")))
}

/// Each series that is there in one scrape is there in the next, and not smaller.
fn only_grow<'a>(scrapes: impl Iterator<Item = &'a Series>) -> Result<()> {
    let mut before = &Series::new();
    for series in scrapes {
        for (name, value) in before {
            let now = series.get(name);
            ensure!(now.is_some_and(|now| now >= value), "{name} was {value} and is {now:?}");
        }
        before = series;
    }
    Ok(())
}

/// The figures of these owners are those of the summary.
fn same_as_summary(series: &Series, trace: &Trace, compares: impl Fn(&str) -> bool) -> Result<()> {
    let mut expected: BTreeMap<&str, BTreeMap<String, u64>> = BTreeMap::new();
    for row in &trace.summary.ledger {
        let nobody = match &row.ledger {
            of if of["kernel"] == true => "(kernel)",
            of if of["shared"] == true => "(shared)",
            _ => "(unknown)",
        };
        let cgroup = number(&row.ledger, "cgroup").map(|cgroup| cgroup.to_string()).unwrap_or_default();
        let owner = format!("comm=\"{}\",cgroup=\"{cgroup}\"", row.comm.as_deref().unwrap_or(nobody));
        if let Some(path) = row.ledger["cgroup_path"].as_str().filter(|_| compares(&owner)) {
            let info = format!("xctl_cgroup_info{{cgroup=\"{cgroup}\",path=\"{path}\"}}");
            ensure!(series.get(&info) == Some(&1.0), "no {info}: {series:?}");
        }
        let sent = number(&row.ledger, "tcp.bytes_sent").unwrap_or(0);
        for (metric, more) in [(SEGMENTS, row.segs), (AGAIN, row.bytes), (SENT, sent)] {
            *expected.entry(metric).or_default().entry(owner.clone()).or_default() += more;
        }
    }
    for (metric, mut sums) in expected {
        sums.retain(|owner, sum| *sum > 0 && compares(owner));
        let mut told = by_owner(series, metric);
        told.retain(|owner, _| compares(owner));
        ensure!(told == sums, "{metric}: {told:?}, and the summary has {sums:?}");
    }
    Ok(())
}

/// The figures that no owner has are those of the summary, and so are the sums over all owners.
fn same_sums(series: &Series, trace: &Trace) -> Result<()> {
    for (kind, segs) in &trace.summary.kinds {
        let name = serde_json::to_value(kind)?;
        let of_kind = |labels: &str| labels.starts_with(SEGMENTS) && labels.ends_with(&format!("kind={name}}}"));
        let told: f64 = series.iter().filter(|(labels, _)| of_kind(labels)).map(|(_, value)| value).sum();
        ensure!(told as u64 == *segs, "{told} segments of {kind:?}, not {segs}");
    }
    let failed = series.get("xctl_tcp_retransmit_failures_total").map(|count| *count as u64);
    ensure!(failed == Some(trace.summary.failed), "{failed:?} failures, not {}", trace.summary.failed);
    let lost = &trace.summary.lost;
    for (reason, count) in [("perf", Some(lost.perf)), ("unknown", Some(lost.unknown)), ("missed", lost.missed)] {
        let told = series.get(&format!("xctl_lost_total{{reason=\"{reason}\"}}")).map(|count| *count as u64);
        ensure!(told == count, "{reason} lost: {told:?}, not {count:?}");
    }
    Ok(())
}

fn wrong_requests(at: &str) -> Result<()> {
    for (request, expected) in [
        (&b"GET / HTTP/1.1\r\n\r\n"[..], "HTTP/1.1 404 Not Found"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", "HTTP/1.1 405 Method Not Allowed"),
        (b"\x16\x03\x01\x02\x00\x01\x00\n\n", "HTTP/1.1 400 Bad Request"),
        (&[b'x'; 4096], "HTTP/1.1 400 Bad Request"),
    ] {
        let (status, _) = ask(at, request)?;
        ensure!(status == expected, "{:?} was answered by {status}", String::from_utf8_lossy(request));
    }
    Ok(())
}

/// As many clients at once as there may be: each gets the whole answer.
fn crowd(at: &str, last: &Series) -> Result<()> {
    let mut clients = vec![];
    for _ in 0..100 {
        let mut client = UnixStream::connect(at)?;
        client.set_read_timeout(Some(PATIENCE))?;
        client.write_all(GET)?;
        clients.push(client);
    }
    for client in clients {
        let (_, content) = read(client)?;
        let told = sum(&parse(&content)?, SEGMENTS);
        ensure!(told >= sum(last, SEGMENTS), "one of many clients was told {told}");
    }
    Ok(())
}

/// A socket of TCP, an inherited one, and a Unix socket that a killed run has left.
pub fn sockets(set: Set, _family: Family) -> Outcome {
    let folder = Folder::new("metrics")?;
    let socket = path(&folder, "socket");
    let at = format!("unix:{socket}");
    let mut killed = Xctl::start(set, &["--metrics", &at])?;
    killed.process.signal(Signal::SIGKILL)?;
    killed.process.wait()?;
    ensure!(Path::new(&socket).exists(), "a killed run leaves its socket");
    let again = Xctl::start(set, &["--metrics", &at])?;
    scrape(&socket)?;
    again.stop(Signal::SIGINT)?;
    ensure!(!Path::new(&socket).exists(), "the socket is left behind");

    let ns = Link::up()?;
    let told = ns.a.enter(|| {
        ns.a.ip("link set lo up")?;
        // The port is free for now.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let by_name = Xctl::start(set, &["--metrics", &address.to_string()])?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        fcntl(&listener, FcntlArg::F_SETFD(FdFlag::empty()))?;
        let inherits = Xctl::start(set, &["--metrics", &format!("fd:{}", listener.as_raw_fd())])?;
        let inherited = listener.local_addr()?;
        drop(listener);
        for at in [address, inherited] {
            let mut client = std::net::TcpStream::connect(at)?;
            client.set_read_timeout(Some(PATIENCE))?;
            client.write_all(GET)?;
            let (status, content) = read(client)?;
            ensure!(status == "HTTP/1.1 200 OK" && content.contains("xctl_build_info"), "{at}: {status}");
        }
        by_name.stop(Signal::SIGINT)?;
        inherits.stop(Signal::SIGINT)?;
        Ok(2)
    })?;
    Ok(Verdict::Passed(format!("{told} sockets of TCP, one left behind")))
}

/// xctl refuses what it cannot serve before it loads anything, and writes a file again as soon as it can.
pub fn refused(set: Set, _family: Family) -> Outcome {
    let folder = Folder::new("metrics")?;
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let (taken, in_use) = (taken.local_addr().map(|at| (at.to_string(), taken))?, path(&folder, "in-use"));
    let _in_use = UnixListener::bind(&in_use)?;
    let plain = path(&folder, "plain");
    fs::write(&plain, "mine")?;
    let set_name = set.to_string();
    for (option, value, reason) in [
        ("--metrics", taken.0.clone(), "cannot listen at"),
        ("--metrics", format!("unix:{in_use}"), "cannot listen at"),
        ("--metrics", format!("unix:{plain}"), "cannot listen at"),
        ("--metrics", "fd:33".into(), "it must be a listening socket"),
        ("--metrics-file", path(&folder, "none/x.prom"), "(--metrics-file): No such file"),
    ] {
        let mut process = Process::start("xctl", command(&["trace", "--attach", &set_name, option, &value])?)?;
        process.rest()?;
        let (status, said) = (process.wait()?, process.errors());
        ensure!(status.code() == Some(1) && said.contains(reason), "{option} {value}: {status}, it said {said:?}");
        ensure!(said.lines().count() <= 2, "one message: {said:?}");
    }
    ensure!(fs::read_to_string(&plain)? == "mine", "a file of somebody else was removed");

    // A folder that goes away while xctl runs.
    let (inside, file) = (path(&folder, "inside"), path(&folder, "inside/x.prom"));
    fs::create_dir(&inside)?;
    let xctl = Xctl::start(set, &["--metrics-file", &file])?;
    fs::remove_dir_all(&inside)?;
    let trace = xctl.stop(Signal::SIGINT)?;
    ensure!(trace.said.contains("the file keeps its old figures"), "it said {:?}", trace.said);
    Ok(Verdict::Passed("five refusals, one failure that was told".into()))
}
