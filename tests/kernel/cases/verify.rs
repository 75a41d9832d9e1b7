//! `--verify`: its records of the kernel's counters are compared with the test's own reading. One case shows that
//! `--verify` can find a difference.

use std::mem;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::signal::Signal;
use serde::Deserialize;

use crate::counters::{Counters, wait_until_grown};
use crate::host::{Set, tool};
use crate::link::{DEAD_V4, Link, Netns};
use crate::missed::Witness;
use crate::process::Process;
use crate::schema;
use crate::workers::{FAST, Plan, Puppet, Receiver, Sender, connect_fast, connect_in_vain, send_all};
use crate::xctl::{Hook, Kind, Owner, Retransmit, command, object_option};
use crate::{Family, Outcome, Verdict};

const CHECKS: [&str; 8] = ["retrans_segs", "retrans_fail", "fast", "slow_start", "syn", "tlp", "recovery", "timeouts"];
pub const DIFFERENCE: i32 = 5;

/// The most segments in one skb: 64 KiB of GSO payload by the smallest segment size here.
const MAX_SEGS: u64 = 65536 / 1428 + 1;

#[derive(Deserialize, Debug)]
pub struct Comparison {
    netns: u64,
    check: String,
    pub kernel: Option<(i64, i64)>,
    pub xctl: i64,
    pub verdict: String,
    pub note: Option<String>,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Line {
    Ready {
        hooks: Vec<Hook>,
    },
    Verify(Comparison),
    Retransmit(Box<Retransmit>),
    Summary {
        verified: Option<bool>,
    },
    #[serde(other)]
    Other,
}

/// An xctl that runs with --verify.
pub struct Run {
    process: Process,
    pub hooks: Vec<Hook>,
}

pub struct Verified {
    pub code: Option<i32>,
    records: Vec<Comparison>,
    pub retransmits: Vec<Retransmit>,
    pub said: String,
}

impl Verified {
    pub fn of<'a>(&'a self, ns: &Netns, check: &str) -> Result<&'a Comparison> {
        let mut found = self.records.iter().filter(|record| record.netns == ns.inode && record.check == check);
        match (found.next(), found.next()) {
            (Some(record), None) => Ok(record),
            _ => bail!("not one record of {check} for namespace {}: {:?}", ns.inode, self.records),
        }
    }

    /// Checks that every check of the namespace has this verdict.
    fn all_are(&self, ns: &Netns, verdict: &str) -> Result<()> {
        for check in CHECKS {
            let record = self.of(ns, check)?;
            ensure!(record.verdict == verdict, "not {verdict}: {record:?}");
        }
        Ok(())
    }

    /// Checks that the kernel's side of every check is exact, and equal to the test's own reading. xctl's side is equal,
    /// except for segments that `skipped` runs of programs may have hidden. The verdict says whether the sides are equal.
    /// Returns the number of segments on xctl's side.
    pub fn agrees(&self, ns: &Netns, before: &Counters, skipped: u64) -> Result<i64> {
        let after = Counters::of(ns)?;
        let grew = |name| after.since(before, name);
        for (check, kernel) in [
            ("retrans_segs", grew("RetransSegs")? - grew("TCPRetransFail")?),
            ("fast", grew("TCPFastRetrans")?),
            ("slow_start", grew("TCPSlowStartRetrans")?),
            ("syn", grew("TCPSynRetrans")?),
            ("recovery", grew("TCPSackRecovery")? + grew("TCPRenoRecovery")?),
            ("timeouts", grew("TCPTimeouts")?),
        ] {
            let record = self.of(ns, check)?;
            ensure!(record.kernel == Some((kernel, kernel)), "the kernel counted {kernel}: {record:?}");
            if record.note.as_ref().is_some_and(|note| note.contains("these hooks do not show")) {
                let may_miss = check == "timeouts" || (check == "recovery" && record.xctl == 0);
                ensure!(may_miss && record.verdict == "equal" && record.xctl <= kernel, "{record:?}");
                continue;
            }
            let verdict = if record.xctl == kernel { "equal" } else { "differs" };
            ensure!(record.verdict == verdict, "it {verdict}: {record:?}");
            let short = kernel - record.xctl;
            let possible = 0..=i64::try_from(skipped * MAX_SEGS)?;
            ensure!(possible.contains(&short), "{short} are missing, and {skipped} runs were skipped: {record:?}");
        }
        let (tlp, probes) = (self.of(ns, "tlp")?, grew("TCPLossProbes")?);
        ensure!(tlp.kernel == Some((0, probes)) && tlp.xctl <= probes, "{probes} loss probes: {tlp:?}");
        ensure!(tlp.verdict == "equal", "it is within what the kernel counted: {tlp:?}");
        Ok(self.of(ns, "retrans_segs")?.xctl)
    }
}

impl Run {
    pub fn start(set: Set, args: &[&str]) -> Result<Run> {
        let attach = set.to_string();
        let object = object_option();
        let object: Vec<_> = object.iter().map(String::as_str).collect();
        let args = [&["trace", "--json", "--verify", "--attach", &attach], &object[..], args].concat();
        let mut process = Process::start("xctl", command(&args)?)?;
        let line = process.line()?;
        let Line::Ready { hooks } = schema::record(&line)? else { bail!("the first record is not `ready`: {line}") };
        Ok(Run { process, hooks })
    }

    /// Stops xctl, and reads its records of the counters. They come once, after all other records except the summary.
    pub fn stop(mut self) -> Result<Verified> {
        self.process.signal(Signal::SIGINT)?;
        let lines = self.process.rest()?;
        let code = self.process.wait()?.code();
        let said = self.process.errors();
        let (mut records, mut retransmits, mut summary) = (vec![], vec![], None);
        for line in &lines {
            ensure!(summary.is_none(), "a record after the summary: {line}");
            match schema::record(line)? {
                Line::Verify(record) => records.push(record),
                Line::Summary { verified } => summary = Some(verified),
                Line::Retransmit(record) => {
                    ensure!(records.is_empty(), "an event after the verdicts: {line}");
                    retransmits.push(*record);
                }
                Line::Ready { .. } => bail!("a second `ready`: {line}"),
                Line::Other => ensure!(records.is_empty(), "an event after the verdicts: {line}"),
            }
        }
        let verified = summary.with_context(|| format!("no summary; it said {said:?}"))?;
        let differs = records.iter().any(|record: &Comparison| record.verdict == "differs");
        let right = if differs { Some(DIFFERENCE) } else { Some(0) };
        ensure!(code == right, "it ended with {code:?}, not {right:?}; it said {said:?}");
        let lacks = |record: &Comparison| match record.verdict.as_str() {
            "unreadable" => true,
            "gone" => record.xctl > 0,
            _ => false,
        };
        let whole = (!records.iter().any(lacks)).then_some(true);
        let expected = if differs { Some(false) } else { whole };
        ensure!(verified == expected, "verified is {verified:?}, not {expected:?}: {records:?}");
        Ok(Verified { code, records, retransmits, said })
    }
}

/// Namespaces that existed before, that appear, and that disappear.
pub fn run(set: Set, family: Family) -> Outcome {
    let link = Link::lossy()?;
    let doomed = Link::up()?;
    let before = (Counters::of(&link.a)?, Counters::of(&link.b)?);
    // A filter selects events; `--verify` checks all of them.
    let xctl = Run::start(set, &["--port", "1"])?;
    let witness = Witness::of(&xctl.hooks)?;
    let fresh = Link::lossy()?;
    let zero = (Counters::of(&fresh.a)?, Counters::of(&fresh.b)?);
    let mut senders = vec![];
    let mut receivers = vec![];
    for link in [&link, &fresh] {
        let receiver = Receiver::new(&link.b, "receiver", link.address(&link.b, family), 0)?;
        let plan = Plan::new("verified", receiver.at);
        let short = Plan { sizes: vec![2000], sends_a_connection: 3, ..plan.clone() };
        let bulk = Plan { sizes: vec![1 << 16], burst: 8, sends: 64, pause: Duration::from_millis(10), ..plan.clone() };
        for plan in [plan, short, bulk] {
            senders.push(Sender::new(&link.a, plan)?);
        }
        receivers.push(receiver);
    }
    // one namespace that existed before, and one that appears and disappears meanwhile
    let mayfly = Link::up()?;
    let vain = thread::scope(|scope| {
        let ask = |ns: &Netns| connect_in_vain(ns, "in-vain", (DEAD_V4, 443).into(), 1);
        let asking = [&doomed.a, &mayfly.a].map(|ns| scope.spawn(move || ask(ns)));
        asking.map(|one| one.join().unwrap_or_else(|_| Err(anyhow!("a thread panicked"))))
    });
    let vain = vain.into_iter().collect::<Result<Vec<_>>>()?;
    send_all(senders)?;
    link.quiet()?;
    fresh.quiet()?;
    // xctl does not know a new namespace without retransmits
    let (inodes, retransmitted) = ([doomed.a.inode, doomed.b.inode, mayfly.a.inode], [doomed.a.inode, mayfly.a.inode]);
    drop((doomed, mayfly));
    let skipped = witness.skipped()? + witness.above_pid_1()?;
    let verified = xctl.stop()?;

    let old = [verified.agrees(&link.a, &before.0, skipped)?, verified.agrees(&link.b, &before.1, skipped)?];
    let new = [verified.agrees(&fresh.a, &zero.0, skipped)?, verified.agrees(&fresh.b, &zero.1, skipped)?];
    ensure!(old[0] > 0 && new[0] > 0, "nothing was sent again, so nothing was compared: {old:?} {new:?}");
    for inode in inodes {
        let gone = verified.records.iter().filter(|record| record.netns == inode && record.verdict == "gone").count();
        // The only retransmit of the mayfly may be one that the kernel did not show.
        let unseen = inode == retransmitted[1] && skipped > 0 && gone == 0;
        ensure!(gone == CHECKS.len() || unseen, "namespace {inode} was deleted: {:?}", verified.records);
    }
    for (inode, vain) in retransmitted.iter().zip(&vain) {
        let syns = verified.records.iter().find(|record| record.netns == *inode && record.check == "syn");
        let syns = syns.map_or(0, |record| record.xctl);
        ensure!(syns >= 1 || skipped > 0, "{syns} SYNs sent again by {vain:?} in the namespace that is gone");
    }
    let skipped = if skipped > 0 { format!(", {skipped} runs skipped") } else { String::new() };
    Ok(Verdict::Passed(format!("{old:?} segments, {new:?} in new namespaces{skipped}")))
}

/// Attempts that fail before they leave are in RetransSegs and TCPRetransFail; SYNs are in TCPSynRetrans too. If the kernel
/// shows failed attempts, they are events with their owner and kind.
pub fn failed(set: Set, family: Family) -> Outcome {
    let link = Link::up()?;
    let receiver = Receiver::new(&link.b, "receiver", link.address(&link.b, family), 0)?;
    let mut puppet = Puppet::new(&link.a, "puppet", receiver.at)?;
    let before = Counters::of(&link.a)?;
    let witness = Witness::of(&[])?;
    let xctl = Run::start(set, &[])?;
    // Data must be sent once before they can be retransmitted.
    link.lose(100)?;
    puppet.send()?;
    wait_until_grown(&link.a, &before, "RetransSegs", 1)?;
    // A queue with no room: each send into it fails at once, and TCP learns of the failure.
    let full = link.a.enter(|| {
        let done = tool("tc").args("qdisc replace dev veth0 root pfifo limit 0".split(' ')).output();
        done.context("running tc")
    })?;
    if !full.status.success() {
        return Ok(Verdict::Skipped(format!("tc: {}", String::from_utf8_lossy(&full.stderr).trim())));
    }
    let in_vain = connect_in_vain(&link.a, "in-vain", (DEAD_V4, 443).into(), 1)?;
    wait_until_grown(&link.a, &before, "TCPRetransFail", 2)?; // the SYN and the data
    let open =
        link.a.enter(|| tool("tc").args("qdisc del dev veth0 root".split(' ')).output().context("running tc"))?;
    ensure!(open.status.success(), "tc: {}", String::from_utf8_lossy(&open.stderr));
    link.lose(0)?;
    let sender = puppet.truth.clone();
    puppet.exit()?;
    link.quiet()?;
    let shown = ["tp_retransmit_err", "kp_retransmit"];
    let shown = xctl.hooks.iter().any(|hook| shown.contains(&hook.program.as_str()));
    let verified = xctl.stop()?;
    if let Some(why) = witness.hidden()? {
        return Ok(Verdict::Skipped(why));
    }

    let after = Counters::of(&link.a)?;
    let (tried, failed) = (after.since(&before, "RetransSegs")?, after.since(&before, "TCPRetransFail")?);
    verified.all_are(&link.a, "equal")?;
    let segs = verified.of(&link.a, "retrans_segs")?;
    ensure!(segs.xctl == tried - failed, "{failed} of {tried} failed: {segs:?}");
    let (syn, tried_syns) = (verified.of(&link.a, "syn")?, after.since(&before, "TCPSynRetrans")?);
    ensure!(syn.kernel == Some((tried_syns, tried_syns)) && syn.xctl < tried_syns, "{tried_syns} SYNs: {syn:?}");
    ensure!(syn.note.as_ref().is_some_and(|note| note.contains("could not be sent")), "it does not say why: {syn:?}");

    let fail = verified.of(&link.a, "retrans_fail")?;
    ensure!(fail.kernel == Some((failed, failed)), "{failed} failed: {fail:?}");
    let events: Vec<_> =
        verified.retransmits.iter().filter(|record| record.err != 0 && record.at.netns == link.a.inode).collect();
    if !shown {
        ensure!(events.is_empty() && fail.xctl == 0, "not shown, and yet: {fail:?} {events:?}");
        ensure!(fail.note.as_ref().is_some_and(|note| note.contains("does not show")), "it does not say why: {fail:?}");
        return Ok(Verdict::Passed(format!("{failed} of {tried} segments failed, {tried_syns} SYNs; not shown")));
    }
    ensure!(fail.xctl == failed && fail.note.is_none(), "{failed} failed: {fail:?}");
    for (truth, kind, owner) in [(&in_vain, Kind::Syn, Owner::Connect), (&sender, Kind::Rto, Owner::Send)] {
        let own: Vec<_> = events.iter().filter(|record| record.at.pid == Some(truth.who.pid)).collect();
        ensure!(!own.is_empty(), "no failed attempt of {:?} among {events:?}", truth.who);
        for record in own {
            record.at.is_of(&truth.who, truth.flow()?)?;
            ensure!(record.kind == kind && record.at.owner == owner, "not {kind:?} by {owner:?}: {record:?}");
            ensure!(record.err < 0 && record.segs == 1, "not an errno, or not one segment: {record:?}");
        }
    }
    // the kernel does not count a segment that is still in the host's own queue as failed, but separately
    let busy = |record: &&&Retransmit| record.err == -i64::from(libc::EBUSY);
    let still_queued = after.since(&before, "TCPSpuriousRtxHostQueues")?;
    let (queued, others) = (events.iter().filter(busy).count(), events.iter().filter(|record| !busy(record)).count());
    ensure!(
        i64::try_from(queued)? == still_queued && i64::try_from(others)? == failed,
        "{failed} failed, {still_queued} were still queued: {events:?}"
    );
    Ok(Verdict::Passed(format!("{failed} of {tried} segments failed, {tried_syns} SYNs; {} events", events.len())))
}

/// A SYN carries data that the peer does not take (TCP Fast Open). The data are retransmitted when the SYN-ACK comes, while
/// the timer for a loss probe is set. If the SYN was lost, the data are retransmitted in the state Loss. Kernels count
/// these retransmits as one kind or another, or as none.
pub fn fast_open(set: Set, family: Family) -> Outcome {
    let link = Link::up()?;
    link.b.set("tcp_fastopen", "0")?;
    let receiver = Receiver::new(&link.b, "receiver", link.address(&link.b, family), 0)?;
    let mut seen = vec![];
    for syn_is_lost in [false, true] {
        let before = Counters::of(&link.a)?;
        let witness = Witness::of(&[])?;
        let xctl = Run::start(set, &[])?;
        link.lose_from(&link.a, if syn_is_lost { 100 } else { 0 })?;
        let (client, flow) = connect_fast(&link.a, receiver.at)?;
        if syn_is_lost {
            wait_until_grown(&link.a, &before, "TCPSynRetrans", 1)?;
            link.lose_from(&link.a, 0)?;
        }
        wait_until_grown(&link.a, &before, "TCPFastOpenActiveFail", 1)?;
        // when the call begins there is no connection yet; but a tracepoint may show the call's return
        let by_return = xctl.hooks.iter().any(|hook| hook.program == "tp_send_length");
        let owner = if by_return && syn_is_lost { Owner::Send } else { Owner::Connect };
        drop(client);
        link.quiet()?;
        let verified = xctl.stop()?;
        if let Some(why) = witness.hidden()? {
            return Ok(Verdict::Skipped(why));
        }

        let after = Counters::of(&link.a)?;
        verified.all_are(&link.a, "equal")?;
        let data = |record: &&Retransmit| record.at.flow() == flow && record.kind != Kind::Syn;
        let records: Vec<_> = verified.retransmits.iter().filter(data).collect();
        ensure!(!records.is_empty(), "nothing was sent again but SYNs: {:?}", verified.retransmits);
        ensure!(records[0].bytes == FAST as u64 && records[0].at.owner == owner, "not {owner:?}: {:?}", records[0]);
        ensure!(records[0].at.pid == Some(std::process::id()), "not of this process: {:?}", records[0]);
        for (check, counter) in
            [("fast", "TCPFastRetrans"), ("slow_start", "TCPSlowStartRetrans"), ("tlp", "TCPLossProbes")]
        {
            let (record, kernel) = (verified.of(&link.a, check)?, after.since(&before, counter)?);
            // kernels before 5.12 have no counter for this kind of retransmit
            let besides = if check == "slow_start" && syn_is_lost && record.note.is_some() { 1 } else { 0 };
            ensure!(
                record.xctl == kernel + besides || (check == "tlp" && record.xctl <= kernel),
                "{kernel}: {record:?}"
            );
        }
        seen.push(format!("{:?}", records.iter().map(|record| record.kind).collect::<Vec<_>>()));
    }
    Ok(Verdict::Passed(seen.join(", SYN lost: ")))
}

/// A namespace that was idle when xctl started is used and deleted, and another namespace gets its number. Each has its own
/// counts.
pub fn number_again(set: Set, _family: Family) -> Outcome {
    const TRIES: usize = 20;
    // The kernel assigns the lowest free number, and every file of a namespace's /proc/net takes one, too. So a number
    // comes again only when the namespaces of earlier cases are gone, which takes the kernel a while.
    let number_of_a_new_one = || {
        thread::sleep(Duration::from_millis(100));
        Netns::new("probe").map(|probe| probe.inode)
    };
    let mut last = number_of_a_new_one()?;
    for _ in 0..TRIES {
        let before = mem::replace(&mut last, number_of_a_new_one()?);
        if before == last {
            break;
        }
    }
    thread::sleep(Duration::from_millis(100));
    let link = Link::up()?;
    let (number, before) = (link.a.inode, Counters::of(&link.a)?);
    let witness = Witness::of(&[])?;
    let xctl = Run::start(set, &[])?;
    connect_in_vain(&link.a, "in-vain", (DEAD_V4, 443).into(), 1)?;
    let first = Counters::of(&link.a)?.since(&before, "TCPSynRetrans")?;
    drop(link);
    // The kernel frees the number a little later.
    let mut others = vec![];
    let _next = loop {
        ensure!(others.len() < TRIES, "none of {TRIES} new namespaces got the number {number}");
        thread::sleep(Duration::from_millis(100));
        match Netns::new("next")? {
            next if next.inode == number => break next,
            other => others.push(other),
        }
    };
    let verified = xctl.stop()?;
    if let Some(why) = witness.hidden()? {
        return Ok(Verdict::Skipped(why));
    }
    let all: Vec<_> =
        verified.records.iter().filter(|record| record.netns == number && record.check == "syn").collect();
    let [gone, now] = all[..] else { bail!("not two namespaces of the number {number}: {all:?}") };
    let (gone, now) = if gone.verdict == "gone" { (gone, now) } else { (now, gone) };
    ensure!(gone.verdict == "gone" && gone.kernel.is_none() && gone.xctl == first, "{first} SYNs: {gone:?}");
    ensure!(now.verdict == "equal" && now.kernel == Some((0, 0)) && now.xctl == 0, "it sent nothing: {now:?}");
    ensure!(verified.code == Some(0), "it ended with {:?}", verified.code);
    Ok(Verdict::Passed(format!("{first} SYNs of the first, none of the next; {} others between", others.len())))
}

/// A real difference: the object's totals have room for one namespace, and two namespaces retransmit.
pub fn difference(set: Set, _family: Family) -> Outcome {
    let object = Object::with_room_for_one()?;
    let link = Link::up()?;
    let before = [Counters::of(&link.a)?, Counters::of(&link.b)?];
    let witness = Witness::of(&[])?;
    let xctl = Run::start(set, &["--object", &object.path.to_string_lossy()])?;
    for ns in [&link.a, &link.b] {
        connect_in_vain(ns, "in-vain", (DEAD_V4, 443).into(), 1)?;
    }
    let verified = xctl.stop()?;
    if let Some(why) = witness.hidden()? {
        return Ok(Verdict::Skipped(why));
    }

    ensure!(verified.code == Some(DIFFERENCE), "it ended with {:?}", verified.code);
    let mut differ = 0;
    for (ns, before) in [&link.a, &link.b].into_iter().zip(&before) {
        let syns = Counters::of(ns)?.since(before, "TCPSynRetrans")?;
        for check in ["retrans_segs", "syn"] {
            let record = verified.of(ns, check)?;
            ensure!(record.kernel == Some((syns, syns)), "{syns} SYNs went again: {record:?}");
            if record.verdict == "differs" {
                differ += 1;
                let says_why = record.note.as_ref().is_some_and(|note| note.contains("lost.totals"));
                ensure!(record.xctl == 0 && says_why, "it does not say that this was lost: {record:?}");
            }
        }
        ensure!(verified.of(ns, "fast")?.verdict == "equal", "nothing was of kind fast");
    }
    let unexplained = |record: &&Comparison| record.verdict == "differs" && record.note.is_none();
    ensure!(!verified.records.iter().any(|record| unexplained(&record)), "no cause: {:?}", verified.records);
    // The one place may belong to another namespace, if this machine has more.
    ensure!(differ >= 2, "a difference in one namespace at least: {:?}", verified.records);
    let said: Vec<_> = verified.said.lines().filter(|line| line.contains("--verify found a difference")).collect();
    ensure!(said.len() == 1 && said[0].contains("lost.totals"), "not one line about it: {:?}", verified.said);
    Ok(Verdict::Passed(said[0].into()))
}

/// An object file that the test makes. It is removed when dropped.
pub struct Object {
    pub path: PathBuf,
}

impl Object {
    /// The object inside xctl, with another size of NETNS_TOTALS.
    fn with_room_for_one() -> Result<Object> {
        Object::with_less_room(1024, 1)
    }

    /// The object inside xctl. Each map with `usual` entries has `fewer`: the length of the array type that gives the size in
    /// the BTF.
    pub fn with_less_room(usual: u32, fewer: u32) -> Result<Object> {
        let mut bytes = ::xctl::model::embedded::object()?;
        // struct btf_type of a BTF_KIND_ARRAY has no name and no size; then struct btf_array: type, index type, length
        let array = [0, 3 << 24, 0].map(u32::to_ne_bytes).concat();
        let places: Vec<_> = (0..bytes.len().saturating_sub(24))
            .filter(|&at| bytes[at..].starts_with(&array) && bytes[at + 20..].starts_with(&usual.to_ne_bytes()))
            .collect();
        ensure!(!places.is_empty(), "no map of the object has {usual} entries: it has another size by now");
        for at in places {
            bytes[at + 20..at + 24].copy_from_slice(&fewer.to_ne_bytes());
        }
        let path = std::env::temp_dir().join(format!("xctl-room-for-{fewer}-{}.o", std::process::id()));
        std::fs::write(&path, bytes).with_context(|| format!("writing {}", path.display()))?;
        Ok(Object { path })
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
