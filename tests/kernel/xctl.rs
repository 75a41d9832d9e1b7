//! Runs xctl and reads what it prints, strictly: an unknown record, a missing field or a sum that does not add up
//! is an error in every case.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde::{Deserialize, Deserializer};

use crate::host::Set;
use crate::process::{PATIENCE, Process};
use crate::workers::{Flow, Who};

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Record {
    Ready(Ready),
    Retransmit(Retransmit),
    Send(Send),
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

#[derive(Deserialize, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
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
    Unknown,
}

/// The owner fields of a record.
#[derive(Deserialize, Clone, PartialEq, Debug)]
pub struct Address {
    pub family: String,
    pub saddr: IpAddr,
    pub sport: u16,
    pub daddr: IpAddr,
    pub dport: u16,
    pub netns: u64,
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
    pub owner: Owner,
}

impl Address {
    pub fn flow(&self) -> Flow {
        Flow { local: SocketAddr::new(self.saddr, self.sport), remote: SocketAddr::new(self.daddr, self.dport) }
    }

    /// An error unless the record names that process and that connection.
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
    /// Segments that really went out.
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

#[derive(Deserialize)]
pub struct Summary {
    pub retransmits: u64,
    pub segs: u64,
    pub kinds: BTreeMap<Kind, u64>,
    pub lost: Lost,
    pub processes: Vec<OfProcess>,
}

#[derive(Deserialize, Debug)]
pub struct Lost {
    pub perf: u64,
    pub output: u64,
    pub map_full: u64,
    pub unknown: u64,
    pub totals: u64,
    #[serde(deserialize_with = "nullable")]
    pub missed: Option<u64>,
}

#[derive(Deserialize, Debug)]
pub struct OfProcess {
    #[serde(deserialize_with = "nullable")]
    pub pid: Option<u32>,
    #[serde(deserialize_with = "nullable")]
    pub comm: Option<String>,
    pub segs: u64,
    pub bytes: u64,
    pub retransmits: u64,
    pub kinds: BTreeMap<Kind, u64>,
}

/// What the processes of a PID sent again.
#[derive(Default, PartialEq, Debug)]
struct Sums {
    segs: u64,
    bytes: u64,
    retransmits: u64,
    /// Segments of each kind that there were any of.
    kinds: BTreeMap<Kind, u64>,
}

/// An Option that may be null but not absent.
fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Option<T>, D::Error> {
    Option::deserialize(from)
}

/// The object that every xctl loads that [`Xctl::start`] starts, if it is not xctl's own.
static OBJECT: Mutex<Option<String>> = Mutex::new(None);

/// From now on they load the object of this path, or their own again.
pub fn load(object: Option<String>) {
    *OBJECT.lock().unwrap_or_else(PoisonError::into_inner) = object;
}

/// The xctl under test, with these arguments.
pub fn command(args: &[&str]) -> Result<Command> {
    let path = std::env::var("XCTL").ok().or(option_env!("CARGO_BIN_EXE_xctl").map(Into::into));
    let mut command = Command::new(path.context("which xctl? set XCTL to its path")?);
    command.args(args);
    Ok(command)
}

/// Runs xctl where it must refuse, and gives back what it said on standard error.
pub fn refusal(mut process: Process, code: i32) -> Result<String> {
    let printed = process.rest()?;
    let status = process.wait()?;
    let said = process.errors();
    ensure!(status.code() == Some(code), "expected exit code {code}, but: {status}, and it said {said:?}");
    ensure!(printed.is_empty(), "it refused, and yet printed {printed:?}");
    Ok(said)
}

/// An xctl that runs and has said that it is ready.
pub struct Xctl {
    pub process: Process,
    pub ready: Ready,
    /// What was read of its output while it ran.
    lines: Vec<String>,
    /// It prints but one owner's events, and counts those of unknown owner nevertheless.
    of_one_owner: bool,
}

/// All that an xctl has said, once it has ended with exit code 0.
pub struct Trace {
    pub retransmits: Vec<Retransmit>,
    pub sends: Vec<Send>,
    pub summary: Summary,
    /// What it said on standard error.
    pub said: String,
    hooks: Vec<Hook>,
    of_one_owner: bool,
}

impl Xctl {
    /// Whether a hook shows who accepts: one does in every set but this.
    pub fn sees_accept(&self) -> bool {
        self.ready.attach != "tracepoint"
    }

    /// Starts `xctl trace --json --attach SET` and waits until it is attached.
    pub fn start(set: Set, args: &[&str]) -> Result<Xctl> {
        let attach = set.to_string();
        // others on the host may have more connections than there is room for by default
        let room: &[&str] = if args.contains(&"--max-sockets") { &[] } else { &["--max-sockets", "32768"] };
        // a burst has room even where the reader waits for a CPU: what is lost then is stopped_reader's business
        let pages: &[&str] = if args.contains(&"--perf-pages") { &[] } else { &["--perf-pages", "512"] };
        let object = OBJECT.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let object = object.as_ref().map_or(vec![], |path| vec!["--object", path.as_str()]);
        let args = [&["trace", "--json", "--attach", &attach], room, pages, &object, args].concat();
        Xctl::start_command(set, command(&args)?)
    }

    /// Starts a command that comes to the same, and waits until it is attached.
    pub fn start_command(set: Set, command: Command) -> Result<Xctl> {
        let of_one_owner = command.get_args().any(|arg| ["--pid", "--comm", "--cgroup"].iter().any(|one| arg == *one));
        let xctl = Xctl::attached(set, Process::start("xctl", command)?)?;
        Ok(Xctl { of_one_owner, ..xctl })
    }

    /// Waits until such a process is attached.
    pub fn attached(set: Set, mut process: Process) -> Result<Xctl> {
        let attach = set.to_string();
        let line = process.line()?;
        let Record::Ready(ready) = parse(&line)? else { bail!("the first record is not `ready`: {line}") };
        ensure!(ready.schema == 1, "schema {} instead of 1", ready.schema);
        // a set that serves some purposes by another's hooks says so: fentry+tracepoint
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

    /// The first retransmit like that, once it is printed; none if it is not within the patience that all waits have.
    pub fn wait_for(&mut self, wanted: impl Fn(&Retransmit) -> bool) -> Result<Option<Retransmit>> {
        let pick = |line: &str| match parse(line)? {
            Record::Retransmit(record) if wanted(&record) => Ok::<_, anyhow::Error>(Some(record)),
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

    /// Ends it by a signal, and reads all.
    pub fn stop(self, signal: Signal) -> Result<Trace> {
        self.process.signal(signal)?;
        self.finish()
    }

    /// Waits for its own end, and reads all.
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

fn parse(line: &str) -> Result<Record> {
    serde_json::from_str(line).with_context(|| format!("not a record of the contract: {line}"))
}

impl Trace {
    fn read(lines: &[String], hooks: Vec<Hook>, said: String, of_one_owner: bool) -> Result<Trace> {
        let (mut retransmits, mut sends, mut last) = (vec![], vec![], None);
        let mut clock = 0;
        for line in lines {
            ensure!(last.is_none(), "a record after the summary: {line}");
            let (time, mono_ns, at) = match parse(line)? {
                Record::Ready(_) => bail!("a second `ready`: {line}"),
                Record::Summary(summary) => {
                    last = Some(summary);
                    continue;
                }
                Record::Retransmit(record) => {
                    let common = (record.time.clone(), record.mono_ns, record.at.clone());
                    ensure!((record.kind == Kind::Synack) == record.mss.is_none(), "mss and kind disagree: {line}");
                    retransmits.push(record);
                    common
                }
                Record::Send(record) => {
                    let common = (record.time.clone(), record.mono_ns, record.at.clone());
                    sends.push(record);
                    common
                }
            };
            ensure!(mono_ns >= clock, "earlier than the record before it: {line}");
            clock = mono_ns;
            ensure!(time.len() == "2026-01-01T00:00:00.000000000Z".len() && time.ends_with('Z'), "odd time: {line}");
            let family = if at.saddr.is_ipv4() { "ipv4" } else { "ipv6" };
            ensure!(
                at.family == family && at.saddr.is_ipv4() == at.daddr.is_ipv4(),
                "family and addresses disagree: {line}"
            );
            ensure!(at.pid.is_some() == at.comm.is_some(), "pid without comm, or comm without pid: {line}");
            ensure!(at.owner != Owner::Unknown || at.pid.is_none(), "unknown, and yet a pid: {line}");
        }
        let summary = last.context("no summary at the end")?;
        let trace = Trace { retransmits, sends, summary, said, hooks, of_one_owner };
        trace.adds_up()?;
        Ok(trace)
    }

    /// The summary is nothing but the sum of the records, printed and lost. An attempt that failed sent nothing, and is
    /// not in it.
    fn adds_up(&self) -> Result<()> {
        let Summary { retransmits, segs, kinds, processes, lost } = &self.summary;
        let (mut told, mut all): (BTreeMap<_, Sums>, _) = (BTreeMap::new(), Sums::default());
        for process in processes {
            ensure!(
                process.pid.is_some() == process.comm.is_some(),
                "pid without comm, or comm without pid: {process:?}"
            );
            let OfProcess { segs, bytes, retransmits, .. } = *process;
            ensure!(segs == process.kinds.values().sum::<u64>(), "its segments by kind are others: {process:?}");
            for sums in [told.entry(process.pid).or_default(), &mut all] {
                let kinds = process.kinds.iter().filter(|(_, segs)| **segs > 0);
                kinds.for_each(|(kind, segs)| *sums.kinds.entry(*kind).or_default() += segs);
                (sums.segs, sums.bytes) = (sums.segs + segs, sums.bytes + bytes);
                sums.retransmits += retransmits;
            }
        }
        let worse = |pair: &[OfProcess]| (pair[0].segs, pair[0].bytes) >= (pair[1].segs, pair[1].bytes);
        ensure!(processes.windows(2).all(worse), "not the worst first: {processes:?}");
        let mut printed: BTreeMap<_, Sums> = BTreeMap::new();
        // those of processes that the totals had no room for are counted apart
        let (counted, uncounted): (Vec<_>, Vec<_>) = self
            .retransmits
            .iter()
            .filter(|record| record.err == 0)
            .partition(|record| lost.totals == 0 || told.contains_key(&record.at.pid));
        ensure!(uncounted.len() as u64 <= lost.totals, "{} are not in the totals, {lost:?}", uncounted.len());
        let count = counted.len() as u64;
        for record in counted {
            let sums = printed.entry(record.at.pid).or_default();
            *sums.kinds.entry(record.kind).or_default() += record.segs;
            (sums.segs, sums.bytes) = (sums.segs + record.segs, sums.bytes + record.bytes);
            sums.retransmits += 1;
        }
        let kinds: BTreeMap<_, _> =
            kinds.iter().filter(|(_, segs)| **segs > 0).map(|(kind, segs)| (*kind, *segs)).collect();
        let of_all = (all.segs, all.retransmits, &all.kinds);
        ensure!(of_all == (*segs, *retransmits, &kinds), "summary: {segs} in {retransmits}, {kinds:?}; sums: {all:?}");
        let unknown = self.retransmits.iter().filter(|record| record.at.owner == Owner::Unknown).count() as u64
            + self.sends.iter().filter(|record| record.at.owner == Owner::Unknown).count() as u64;

        let unprinted = lost.perf + lost.output;
        let most = if self.of_one_owner { u64::MAX } else { unknown + unprinted };
        ensure!((unknown..=most).contains(&lost.unknown), "{lost:?}, printed unknown: {unknown}");
        if unprinted > 0 {
            // the totals are the kernel's: they hold what was not printed, too
            ensure!((count..=count + unprinted).contains(retransmits), "{retransmits} retransmits, printed: {count}");
            for (pid, printed) in &printed {
                let told = told.get(pid).with_context(|| format!("{pid:?} is not in the summary"))?;
                let kinds = |(kind, segs): (&Kind, &u64)| told.kinds.get(kind).is_some_and(|told| told >= segs);
                let holds = told.retransmits >= printed.retransmits && printed.kinds.iter().all(kinds);
                ensure!(holds && told.segs >= printed.segs, "of {pid:?} {told:?}, printed: {printed:?}");
            }
            return Ok(());
        }
        ensure!(*retransmits == count, "summary: {retransmits} retransmits, printed: {count}");
        ensure!(told == printed, "by pid; summary: {told:?}, printed: {printed:?}");
        Ok(())
    }

    /// Segments that went out in the records that `which` picks.
    pub fn segs(&self, which: impl Fn(&Retransmit) -> bool) -> u64 {
        self.retransmits.iter().filter(|record| which(record)).map(Retransmit::went_out).sum()
    }

    /// The records of one network namespace.
    pub fn of(&self, netns: u64) -> impl Iterator<Item = &Retransmit> {
        self.retransmits.iter().filter(move |record| record.at.netns == netns)
    }

    /// How many retransmits the namespace had; an error unless every one names that process and that connection.
    pub fn all_of(&self, netns: u64, who: &Who, flow: Flow) -> Result<usize> {
        self.of(netns).try_for_each(|record| record.at.is_of(who, flow))?;
        Ok(self.of(netns).count())
    }

    /// Nothing got lost on the way, but for what the set in use cannot help missing, and tells where the kernel does.
    pub fn nothing_lost(&self) -> Result<()> {
        let lost = &self.summary.lost;
        ensure!(lost.perf == 0 && lost.output == 0 && lost.map_full == 0 && lost.totals == 0, "lost: {lost:?}");
        let allowed = match lost.missed {
            Some(missed) => {
                missed <= self.events_told_missed() || self.events_can_be_missed() || self.owners_can_be_missed()
            }
            None => self.hooks.iter().any(|hook| hook.hook.contains("probe")),
        };
        ensure!(allowed, "lost: {lost:?}");
        Ok(())
    }

    /// Runs on retransmits that the kernel skipped, by its own account, where tracepoints can be missed too: in process
    /// context the newest kernels preempt their programs, and skip both of a pair when two tasks are in one each. Those
    /// kernels are told by the argument that their tracepoint has.
    pub fn events_told_missed(&self) -> u64 {
        if self.failures_are_told() { self.summary.lost.missed.unwrap_or(0) } else { 0 }
    }

    /// Whether this kernel's tracepoint shows attempts that failed, too.
    pub fn failures_are_told(&self) -> bool {
        self.hooks.iter().any(|hook| hook.program == "tp_retransmit_err")
    }

    /// Whether retransmits are seen by kprobes: one that fires in a softirq while another runs on that CPU is skipped.
    pub fn events_can_be_missed(&self) -> bool {
        self.hooks.iter().any(|hook| hook.hook.contains("probe") && hook.target == "tcp_retransmit_skb")
    }

    /// Whether programs that learn owners can be preempted, and then be skipped for another task on their CPU: those of
    /// fentry, and on newer kernels those of a tracepoint that senders pass. The kernel counts it.
    pub fn owners_can_be_missed(&self) -> bool {
        let on_senders = |hook: &Hook| hook.hook == "raw_tracepoint" && hook.target == "tcp_sendmsg_locked";
        self.hooks.iter().any(|hook| hook.hook == "fentry" || on_senders(hook))
    }
}
