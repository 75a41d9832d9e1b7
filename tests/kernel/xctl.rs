//! Runs xctl and parses its output strictly. An unknown record, a missing field or a wrong sum is an error in every case.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde::{Deserialize, Deserializer, Serialize};

use crate::host::{Set, is_realtime};
use crate::process::{PATIENCE, Process, nameless_file, now};
use crate::schema;
use crate::workers::{Flow, Who};

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum OutputRecord {
    Ready(Ready),
    Retransmit(Retransmit),
    Send(Send),
    Cut(Cut),
    Drop(Drop),
    Connection(Connection),
    Summary(Summary),
}

#[derive(Deserialize)]
pub struct Ready {
    pub schema: u32,
    pub attach: String,
    pub hooks: Vec<Hook>,
    pub version: String,
    pub btf: String,
    pub object_sha256: String,
    pub max_sockets: u64,
    pub seeded: u64,
    pub proven: Option<bool>,
}

#[derive(Deserialize, Clone, Debug)]
pub struct Hook {
    pub hook: String,
    pub target: String,
    pub program: String,
}

#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Rto,
    Fast,
    SlowStart,
    Tlp,
    Syn,
    Synack,
    Other,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "snake_case")]
pub enum Owner {
    Send,
    Connect,
    Accept,
    Listen,
    Seed,
    Kernel,
    Read,
    Shared,
    Unknown,
}

/// The fields of a record about the connection and its owner.
#[derive(Deserialize, Clone, PartialEq, Debug)]
pub struct Address {
    pub family: String,
    pub saddr: IpAddr,
    pub sport: u16,
    pub daddr: IpAddr,
    pub dport: u16,
    pub netns: u64,
    #[serde(deserialize_with = "nullable")]
    pub netns_name: Option<String>,
    #[serde(deserialize_with = "nullable")]
    pub pid: Option<u32>,
    #[serde(deserialize_with = "nullable")]
    pub comm: Option<String>,
    #[serde(deserialize_with = "nullable")]
    pub tid: Option<u32>,
    #[serde(deserialize_with = "nullable")]
    pub uid: Option<u32>,
    #[serde(deserialize_with = "nullable")]
    pub cgroup: Option<u64>,
    #[serde(deserialize_with = "nullable")]
    pub cgroup_path: Option<String>,
    pub owner: Owner,
    /// The holders of a shared socket; empty for other sockets.
    #[serde(default)]
    pub holders: Vec<Who>,
    /// The number of holders that are not in `holders`.
    #[serde(default)]
    pub more: usize,
}

impl Address {
    pub fn flow(&self) -> Flow {
        Flow { local: SocketAddr::new(self.saddr, self.sport), remote: SocketAddr::new(self.daddr, self.dport) }
    }

    /// An error unless the record names this process and this connection.
    pub fn is_of(&self, who: &Who, flow: Flow) -> Result<()> {
        let right = self.pid == Some(who.pid) && self.comm.as_ref() == Some(&who.comm) && self.flow() == flow;
        ensure!(right, "this is of {who:?} on {flow:?}: {self:?}");
        Ok(())
    }
}

#[derive(Deserialize, Clone, PartialEq, Debug)]
pub struct Retransmit {
    pub time: String,
    pub mono_ns: u64,
    pub kind: Kind,
    pub segs: u64,
    pub bytes: u64,
    pub err: i64,
    pub fin: bool,
    pub state: String,
    #[serde(flatten)]
    pub at: Address,
    pub exited: bool,
    pub current: Current,
    #[serde(deserialize_with = "nullable")]
    pub srtt_us: Option<u64>,
    #[serde(deserialize_with = "nullable")]
    pub cwnd: Option<u64>,
    #[serde(deserialize_with = "nullable")]
    pub ssthresh: Option<u64>,
    #[serde(deserialize_with = "nullable")]
    pub mss: Option<u64>,
    pub cpu: u32,
    pub sk_retrans: u64,
}

impl Retransmit {
    /// The number of segments that were sent.
    pub fn went_out(&self) -> u64 {
        if self.err == 0 { self.segs } else { 0 }
    }
}

#[derive(Deserialize, Clone, PartialEq, Debug)]
pub struct Current {
    pub pid: u32,
    pub comm: String,
}

#[derive(Deserialize, Debug)]
pub struct Send {
    pub time: String,
    pub mono_ns: u64,
    pub bytes: u64,
    #[serde(flatten)]
    pub at: Address,
}

/// A cut of a congestion window.
#[derive(Deserialize, Clone, Debug)]
pub struct Cut {
    pub time: String,
    pub mono_ns: u64,
    #[serde(deserialize_with = "nullable")]
    pub why: Option<String>,
    #[serde(deserialize_with = "nullable")]
    pub cwnd: Option<u64>,
    #[serde(deserialize_with = "nullable")]
    pub ssthresh: Option<u64>,
    #[serde(flatten)]
    pub at: Address,
}

/// A packet that this host dropped.
#[derive(Deserialize, Debug)]
pub struct Drop {
    pub time: String,
    pub mono_ns: u64,
    #[serde(deserialize_with = "nullable")]
    pub reason: Option<String>,
    pub segs: u64,
    #[serde(deserialize_with = "nullable")]
    pub bytes: Option<u64>,
    pub state: String,
    #[serde(flatten)]
    pub at: Address,
}

/// The end of a connection.
#[derive(Deserialize, Debug)]
pub struct Connection {
    pub time: String,
    pub mono_ns: u64,
    pub state: String,
    pub err: u32,
    #[serde(flatten)]
    pub at: Address,
    /// The fields of the ledger.
    #[serde(flatten)]
    pub ledger: serde_json::Value,
}

#[derive(Deserialize)]
pub struct Summary {
    pub retransmits: u64,
    pub segs: u64,
    pub failed: u64,
    pub kinds: BTreeMap<Kind, u64>,
    pub lost: Lost,
    /// The processes that retransmitted.
    pub processes: Vec<OfProcess>,
    /// All processes that had connections.
    #[serde(skip)]
    pub ledger: Vec<OfProcess>,
}

#[derive(Deserialize, Debug)]
pub struct Lost {
    pub perf: u64,
    pub output: u64,
    pub map_full: u64,
    pub unknown: u64,
    pub unattributed: u64,
    pub totals: u64,
    pub ledger: u64,
    #[serde(deserialize_with = "nullable")]
    pub missed: Option<u64>,
}

#[derive(Deserialize, Clone, Debug)]
pub struct OfProcess {
    #[serde(deserialize_with = "nullable")]
    pub pid: Option<u32>,
    #[serde(deserialize_with = "nullable")]
    pub comm: Option<String>,
    pub segs: u64,
    pub bytes: u64,
    pub retransmits: u64,
    pub kinds: BTreeMap<Kind, u64>,
    /// The number of exited processes whose sum this row is; only this row has the field.
    #[serde(default)]
    pub others: Option<u64>,
    /// The fields of the ledger.
    #[serde(flatten)]
    pub ledger: serde_json::Value,
}

/// The retransmits of the processes of a PID.
#[derive(Default, PartialEq, Debug)]
struct Sums {
    segs: u64,
    bytes: u64,
    retransmits: u64,
    /// Segments of each kind that has any.
    kinds: BTreeMap<Kind, u64>,
}

/// An `Option` that may be null but not absent.
fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Option<T>, D::Error> {
    Option::deserialize(from)
}

/// The path of the object that each started xctl loads. None: xctl loads its own object.
static OBJECT: Mutex<Option<String>> = Mutex::new(None);

/// Runs a case whose xctls load this object in place of their own.
pub fn with_object<T>(object: &[u8], case: impl FnOnce() -> Result<T>) -> Result<T> {
    /// The next case has xctl's own object again, also if this one panics.
    struct Reset;
    impl std::ops::Drop for Reset {
        fn drop(&mut self) {
            *OBJECT.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }
    let (_file, path) = nameless_file(object)?;
    *OBJECT.lock().unwrap_or_else(PoisonError::into_inner) = Some(path);
    let _reset = Reset;
    case()
}

/// The option that names the object, if there is one.
pub fn object_option() -> Vec<String> {
    let object = OBJECT.lock().unwrap_or_else(PoisonError::into_inner).clone();
    object.map_or(vec![], |path| vec!["--object".into(), path])
}

/// The command of the xctl under test, with these arguments.
pub fn command(args: &[&str]) -> Result<Command> {
    let path = std::env::var("XCTL").ok().or(option_env!("CARGO_BIN_EXE_xctl").map(Into::into));
    let mut command = Command::new(path.context("which xctl? set XCTL to its path")?);
    command.args(args);
    Ok(command)
}

/// Waits for an xctl that must refuse to run, and returns its standard error.
pub fn refusal(mut process: Process, code: i32) -> Result<String> {
    let printed = process.rest()?;
    let status = process.wait()?;
    let said = process.errors();
    ensure!(status.code() == Some(code), "expected exit code {code}, but: {status}, and it said {said:?}");
    ensure!(printed.is_empty(), "it refused, and yet printed {printed:?}");
    Ok(said)
}

/// A running xctl that has said that it is ready.
pub struct Xctl {
    pub process: Process,
    pub ready: Ready,
    /// The lines that were read while it ran.
    lines: Vec<String>,
    /// xctl prints only the events of one owner. It counts events of unknown owner nevertheless.
    of_one_owner: bool,
}

/// The output of an xctl that has ended with exit code 0.
pub struct Trace {
    pub retransmits: Vec<Retransmit>,
    pub sends: Vec<Send>,
    pub cuts: Vec<Cut>,
    pub drops: Vec<Drop>,
    pub connections: Vec<Connection>,
    pub summary: Summary,
    /// The standard error of xctl.
    pub said: String,
    hooks: Vec<Hook>,
    of_one_owner: bool,
}

impl Xctl {
    /// Whether a hook shows accept(): one does in every set except `tracepoint`.
    pub fn sees_accept(&self) -> bool {
        self.ready.attach != "tracepoint"
    }

    /// Whether a sender is seen before its bytes are sent. If only `sock_send_length` shows senders, it is seen afterwards.
    pub fn sees_senders_first(&self) -> bool {
        let first = ["tcp_sendmsg", "tcp_sendmsg_locked", "socket_sendmsg"];
        self.ready.hooks.iter().any(|hook| first.contains(&hook.target.as_str()))
    }

    /// Starts `xctl trace --json --attach SET` and waits until it is attached.
    pub fn start(set: Set, args: &[&str]) -> Result<Xctl> {
        let attach = set.to_string();
        // other processes on the host may have more connections than the default has room for
        let room: &[&str] = if args.contains(&"--max-sockets") { &[] } else { &["--max-sockets", "32768"] };
        // the rings hold a burst even while the reader waits for a CPU; the case stopped_reader tests lost records
        let pages: &[&str] = if args.contains(&"--perf-pages") { &[] } else { &["--perf-pages", "512"] };
        let object = object_option();
        let object: Vec<_> = object.iter().map(String::as_str).collect();
        let args = [&["trace", "--json", "--attach", &attach], room, pages, &object, args].concat();
        Xctl::start_command(set, command(&args)?)
    }

    /// Starts a command that runs such an xctl, and waits until xctl is attached.
    pub fn start_command(set: Set, command: Command) -> Result<Xctl> {
        let of_one_owner = command.get_args().any(|arg| ["--pid", "--comm", "--cgroup"].iter().any(|one| arg == *one));
        let xctl = Xctl::attached(set, Process::start("xctl", command)?)?;
        Ok(Xctl { of_one_owner, ..xctl })
    }

    /// Waits until an xctl that has been started is attached.
    pub fn attached(set: Set, mut process: Process) -> Result<Xctl> {
        let attach = set.to_string();
        let line = process.line()?;
        let OutputRecord::Ready(ready) = schema::record(&line)? else {
            bail!("the first record is not `ready`: {line}")
        };
        ensure!(ready.schema == 1, "schema {} instead of 1", ready.schema);
        // a set that uses hooks of another set for some purposes names both: fentry+tracepoint
        let took = ready.attach == attach || ready.attach.split('+').any(|took| took == attach);
        ensure!(set == Set::Auto || took, "asked for {attach}, took {}", ready.attach);
        ensure!(!ready.hooks.is_empty(), "ready without hooks");
        ensure!(ready.object_sha256.len() == 64, "object_sha256 is {:?}", ready.object_sha256);
        let named = ready.hooks.iter().all(|hook| !hook.target.is_empty() && !hook.program.is_empty());
        ensure!(named && !ready.version.is_empty() && !ready.btf.is_empty(), "something is not named: {line}");
        ensure!(ready.seeded <= ready.max_sockets, "more sockets seeded than there is room for: {line}");
        ensure!(ready.proven == Some(true), "what it loaded is not proven: {line}");
        Ok(Xctl { process, ready, lines: vec![], of_one_owner: false })
    }

    /// Waits for the first retransmit that `wanted` accepts. None if xctl does not print one within [`PATIENCE`].
    pub fn wait_for(&mut self, wanted: impl Fn(&Retransmit) -> bool) -> Result<Option<Retransmit>> {
        let pick = |line: &str| match schema::record(line)? {
            OutputRecord::Retransmit(record) if wanted(&record) => Ok::<_, anyhow::Error>(Some(record)),
            _ => Ok(None),
        };
        for line in &self.lines {
            if let Some(record) = pick(line)? {
                return Ok(Some(record));
            }
        }
        let end = Instant::now() + PATIENCE;
        while let Some(line) = self.process.line_until(end)? {
            let found = pick(&line)?;
            self.lines.push(line);
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// Waits for the next line, which must be of a send. Returns how long ago the kernel saw the send, in nanoseconds.
    pub fn next_send_took(&mut self) -> Result<u64> {
        let line = self.process.line()?;
        let read = now()?;
        let OutputRecord::Send(record) = schema::record(&line)? else { bail!("not a send: {line}") };
        self.lines.push(line);
        read.checked_sub(record.mono_ns).with_context(|| format!("a send in the future: {record:?}"))
    }

    /// Stops xctl by a signal, and reads all its output.
    pub fn stop(self, signal: Signal) -> Result<Trace> {
        self.process.signal(signal)?;
        self.finish()
    }

    /// Waits until xctl ends by itself, and reads all its output.
    pub fn finish(mut self) -> Result<Trace> {
        let mut lines = std::mem::take(&mut self.lines);
        lines.extend(self.process.rest()?);
        let status = self.process.wait()?;
        let said = self.process.errors();
        ensure!(status.code() == Some(0), "xctl ended with {status} and said {said:?}");
        ensure!(!said.contains("panicked"), "xctl panicked: {said:?}");
        let context = format!("in xctl's output; it said {said:?}");
        let trace = Trace::read(&lines, self.ready.hooks, said, self.of_one_owner);
        trace.context(context)
    }
}

impl Trace {
    fn read(lines: &[String], hooks: Vec<Hook>, said: String, of_one_owner: bool) -> Result<Trace> {
        let (mut retransmits, mut sends, mut cuts, mut drops) = (vec![], vec![], vec![], vec![]);
        let (mut connections, mut last) = (vec![], None);
        let mut clock = 0;
        for line in lines {
            ensure!(last.is_none(), "a record after the summary: {line}");
            let (time, mono_ns, at) = match schema::record(line)? {
                OutputRecord::Ready(_) => bail!("a second `ready`: {line}"),
                OutputRecord::Summary(mut summary) => {
                    let was_cut = |row: &OfProcess| {
                        let counts = row.ledger["cuts"].as_object();
                        counts.is_some_and(|counts| counts.values().any(|count| count.as_u64() > Some(0)))
                    };
                    let counted = |row: &OfProcess| row.retransmits > 0 || row.ledger["connections"].is_object();
                    let dropped = |row: &OfProcess| row.ledger["drops"]["packets"].as_u64() > Some(0);
                    let of_something = |row: &OfProcess| counted(row) || was_cut(row) || dropped(row);
                    ensure!(summary.processes.iter().all(of_something), "a row of nothing: {line}");
                    summary.ledger = summary.processes.extract_if(.., |row| row.retransmits == 0).collect();
                    summary.ledger.extend(summary.processes.iter().cloned());
                    last = Some(summary);
                    continue;
                }
                OutputRecord::Retransmit(record) => {
                    let common = (record.time.clone(), record.mono_ns, record.at.clone());
                    ensure!((record.kind == Kind::Synack) == record.mss.is_none(), "mss and kind disagree: {line}");
                    retransmits.push(record);
                    common
                }
                OutputRecord::Send(record) => {
                    let common = (record.time.clone(), record.mono_ns, record.at.clone());
                    sends.push(record);
                    common
                }
                OutputRecord::Cut(record) => {
                    let common = (record.time.clone(), record.mono_ns, record.at.clone());
                    cuts.push(record);
                    common
                }
                OutputRecord::Drop(record) => {
                    let common = (record.time.clone(), record.mono_ns, record.at.clone());
                    drops.push(record);
                    common
                }
                OutputRecord::Connection(record) => {
                    let common = (record.time.clone(), record.mono_ns, record.at.clone());
                    connections.push(record);
                    common
                }
            };
            // A record may be late only if its program was stopped for a second (docs/output.md).
            ensure!(
                mono_ns >= clock,
                "a record with a time {} ns before that of an earlier record: {line}",
                clock - mono_ns
            );
            clock = mono_ns;
            ensure!(time.len() == "2026-01-01T00:00:00.000000000Z".len() && time.ends_with('Z'), "odd time: {line}");
            let family = if at.saddr.is_ipv4() { "ipv4" } else { "ipv6" };
            ensure!(
                at.family == family && at.saddr.is_ipv4() == at.daddr.is_ipv4(),
                "family and addresses disagree: {line}"
            );
            // the holders of a shared socket may all have the same name
            let named = at.pid.is_some() == at.comm.is_some() || at.owner == Owner::Shared;
            ensure!(named, "pid without comm, or comm without pid: {line}");
            ensure!(at.owner == Owner::Shared || (at.holders.is_empty() && at.more == 0), "not shared: {line}");
            ensure!(at.owner != Owner::Unknown || at.pid.is_none(), "unknown, and yet a pid: {line}");
        }
        let summary = last.context("no summary at the end")?;
        let trace = Trace { retransmits, sends, cuts, drops, connections, summary, said, hooks, of_one_owner };
        trace.adds_up()?;
        Ok(trace)
    }

    /// The summary is exactly the sum of the records, printed and lost. An attempt that failed sent nothing, and is not in
    /// the summary.
    fn adds_up(&self) -> Result<()> {
        let Summary { retransmits, segs, failed, kinds, processes, lost, .. } = &self.summary;
        let (mut told, mut all): (BTreeMap<_, Sums>, _) = (BTreeMap::new(), Sums::default());
        // Exited processes without a row of their own are summed in one row without a PID. There were so many that some can have had
        // the same PID: their names distinguish them.
        let folded = processes.iter().filter(|process| process.others.is_some()).count();
        ensure!(folded <= 1, "{folded} rows of processes without a row of their own");
        let has_folded = folded > 0;
        let who = |pid: Option<u32>, comm: &Option<String>| (pid, comm.clone().filter(|_| has_folded));
        for process in processes {
            ensure!(
                process.pid.is_some() == process.comm.is_some(),
                "pid without comm, or comm without pid: {process:?}"
            );
            let &OfProcess { segs, bytes, retransmits, .. } = process;
            ensure!(segs == process.kinds.values().sum::<u64>(), "its segments by kind are others: {process:?}");
            for sums in [told.entry(who(process.pid, &process.comm)).or_default(), &mut all] {
                let kinds = process.kinds.iter().filter(|(_, segs)| **segs > 0);
                kinds.for_each(|(kind, segs)| *sums.kinds.entry(*kind).or_default() += segs);
                (sums.segs, sums.bytes) = (sums.segs + segs, sums.bytes + bytes);
                sums.retransmits += retransmits;
            }
        }
        let worse = |pair: &[OfProcess]| (pair[0].segs, pair[0].bytes) >= (pair[1].segs, pair[1].bytes);
        ensure!(processes.windows(2).all(worse), "not the worst first: {processes:?}");
        let mut printed: BTreeMap<_, Sums> = BTreeMap::new();
        // retransmits of processes for which the totals had no room are counted separately
        let (counted, uncounted): (Vec<_>, Vec<_>) = self
            .retransmits
            .iter()
            .filter(|record| record.err == 0)
            .partition(|record| lost.totals == 0 || told.contains_key(&who(record.at.pid, &record.at.comm)));
        ensure!(uncounted.len() as u64 <= lost.totals, "{} are not in the totals, {lost:?}", uncounted.len());
        let count = counted.len() as u64;
        for record in counted {
            let own = who(record.at.pid, &record.at.comm);
            let row = if has_folded && !told.contains_key(&own) { (None, None) } else { own };
            let sums = printed.entry(row).or_default();
            *sums.kinds.entry(record.kind).or_default() += record.segs;
            (sums.segs, sums.bytes) = (sums.segs + record.segs, sums.bytes + record.bytes);
            sums.retransmits += 1;
        }
        let kinds: BTreeMap<_, _> =
            kinds.iter().filter(|(_, segs)| **segs > 0).map(|(kind, segs)| (*kind, *segs)).collect();
        let of_all = (all.segs, all.retransmits, &all.kinds);
        ensure!(of_all == (*segs, *retransmits, &kinds), "summary: {segs} in {retransmits}, {kinds:?}; sums: {all:?}");
        let unknown = self.retransmits.iter().filter(|record| record.at.owner == Owner::Unknown).count() as u64
            + self.sends.iter().filter(|record| record.at.owner == Owner::Unknown).count() as u64
            + self.cuts.iter().filter(|record| record.at.owner == Owner::Unknown).count() as u64
            + self.drops.iter().filter(|record| record.at.owner == Owner::Unknown).count() as u64;

        let unprinted = lost.perf + lost.output;
        let counted = unknown..=unknown + unprinted;
        ensure!(counted.contains(&lost.unknown), "{lost:?}, printed unknown: {unknown}");
        ensure!(lost.unattributed == 0 || self.of_one_owner, "{lost:?}, and no owner was asked for");
        let has_others = !(self.sends.is_empty() && self.cuts.is_empty() && self.drops.is_empty());
        let lists_all = lost.output == 0 && lost.totals == 0 && (lost.perf == 0 || !has_others);
        let attempts = self.retransmits.len() as u64 + lost.perf;
        let adds_up = !lists_all || attempts == retransmits + failed;
        ensure!(adds_up, "{retransmits} retransmits and {failed} failed, printed or lost.perf: {attempts}");
        if unprinted > 0 {
            // the kernel counts the totals: they include retransmits that were not printed
            ensure!((count..=count + unprinted).contains(retransmits), "{retransmits} retransmits, printed: {count}");
            for (who, printed) in &printed {
                let told = told.get(who).with_context(|| format!("{who:?} is not in the summary"))?;
                let kinds = |(kind, segs): (&Kind, &u64)| told.kinds.get(kind).is_some_and(|told| told >= segs);
                let holds = told.retransmits >= printed.retransmits && printed.kinds.iter().all(kinds);
                ensure!(holds && told.segs >= printed.segs, "of {who:?} {told:?}, printed: {printed:?}");
            }
            return Ok(());
        }
        ensure!(*retransmits == count, "summary: {retransmits} retransmits, printed: {count}");
        let differs = told.iter().find(|(who, sums)| printed.get(who) != Some(sums));
        ensure!(
            differs.is_none(),
            "summary: {differs:?}, printed: {:?}",
            differs.and_then(|(who, _)| printed.get(who))
        );
        ensure!(told.len() == printed.len(), "summary: {:?}, printed: {:?}", told.keys(), printed.keys());
        Ok(())
    }

    /// The number of sent segments in the records that `which` accepts.
    pub fn segs(&self, which: impl Fn(&Retransmit) -> bool) -> u64 {
        self.retransmits.iter().filter(|record| which(record)).map(Retransmit::went_out).sum()
    }

    /// The records of one network namespace.
    pub fn of(&self, netns: u64) -> impl Iterator<Item = &Retransmit> {
        self.retransmits.iter().filter(move |record| record.at.netns == netns)
    }

    /// The number of retransmits of the namespace. An error unless every record names this process and this connection.
    pub fn all_of(&self, netns: u64, who: &Who, flow: Flow) -> Result<usize> {
        self.of(netns).try_for_each(|record| record.at.is_of(who, flow))?;
        Ok(self.of(netns).count())
    }

    /// Nothing was lost, except runs that this set cannot help missing and the kernel counts.
    pub fn nothing_lost(&self) -> Result<()> {
        let lost = &self.summary.lost;
        let allowed = match lost.missed {
            Some(0) => true,
            // A kernel that preempts programs of a set skips any number of runs, and counts each.
            Some(_) => self.failures_are_told() || self.events_can_be_missed() || self.owners_can_be_missed(),
            None => self.hooks.iter().any(|hook| hook.hook.contains("probe")),
        };
        ensure!(allowed, "lost: {lost:?}");
        self.nothing_lost_but_missed()
    }

    /// Nothing was lost, except runs that the kernel skipped. The caller has compared `lost.missed` with the kernel's own
    /// counts.
    pub fn nothing_lost_but_missed(&self) -> Result<()> {
        let lost = &self.summary.lost;
        ensure!(lost.perf == 0 && lost.output == 0 && lost.map_full == 0 && lost.totals == 0, "lost: {lost:?}");
        Ok(())
    }

    /// Skipped runs on retransmits, by the kernel's count, on kernels that can skip programs of tracepoints, too. The
    /// newest kernels preempt programs in process context. They skip both programs of a pair when two tasks are in one
    /// each. The argument that the tracepoint of these kernels has identifies them.
    pub fn events_told_missed(&self) -> u64 {
        if self.failures_are_told() { self.summary.lost.missed.unwrap_or(0) } else { 0 }
    }

    /// Whether this kernel's tracepoint also shows failed attempts.
    pub fn failures_are_told(&self) -> bool {
        self.hooks.iter().any(|hook| hook.program == "tp_retransmit_err")
    }

    /// Whether kprobes see the retransmits: a kprobe that fires in a softirq while another runs on that CPU is skipped.
    pub fn events_can_be_missed(&self) -> bool {
        self.hooks.iter().any(|hook| hook.hook.contains("probe") && hook.target == "tcp_retransmit_skb")
    }

    /// Whether programs that learn owners can be preempted, and then skipped for another task on their CPU. This applies to
    /// programs of fentry, and on newer kernels to those of a tracepoint in the sender's path. The kernel counts such
    /// skips.
    pub fn owners_can_be_missed(&self) -> bool {
        let preempted = |hook: &Hook| match hook.target.as_str() {
            "tcp_sendmsg_locked" => hook.hook == "raw_tracepoint",
            // PREEMPT_RT preempts the programs that see readers, too.
            "tcp_rcv_space_adjust" => hook.hook == "raw_tracepoint" && is_realtime(),
            _ => false,
        };
        self.hooks.iter().any(|hook| hook.hook == "fentry" || preempted(hook))
    }
}
