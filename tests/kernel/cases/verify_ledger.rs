//! `--verify` compares the sums of all connections. Its records are compared with the test's own reading of the kernel's
//! counters, after losses, marks, resets, timeouts and requests that become no connection.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{setsockopt, sockopt};

use super::accept_queue::{drop_some, fill, short_queues};
use super::fates::resets;
use super::ledger::without_first;
use super::verify::{DIFFERENCE, Object, Run, Verified};
use crate::actors::Actor;
use crate::counters::{Counters, connections, wait_until_grown};
use crate::host::{Set, crowd, is_guest, tool};
use crate::link::{Link, Netns, run as run_tool};
use crate::missed::Witness;
use crate::process::{PATIENCE, poll};
use crate::workers::{Plan, Puppet, Receiver, Sender, connect_in_vain, send_all};
use crate::xctl::with_object;
use crate::{Family, Outcome, Verdict};

/// Each check, and the counters whose sum it is compared with.
const CHECKS: [(&str, &[&str]); 8] = [
    ("retrans", &["RetransSegs"]),
    ("delivered", &["TCPDelivered", "PassiveOpens"]),
    ("delivered_ce", &["TCPDeliveredCE"]),
    ("estab_resets", &["EstabResets"]),
    ("abort_on_timeout", &["TCPAbortOnTimeout"]),
    ("dsack", &["TCPDSACKRecvSegs"]),
    ("reordering", &["TCPSACKReorder", "TCPTSReorder", "TCPRenoReorder"]),
    ("listen_drops", &["ListenDrops"]),
];
/// Checks in which xctl may count more.
const AT_LEAST: [&str; 3] = ["dsack", "reordering", "listen_drops"];

/// Size of the ring of the ledger, and of the smallest one.
const RING: u32 = 1 << 20;
const PAGE: u32 = 1 << 12;

/// Compare with the counters' growth. A request that gave up takes its retransmitted SYN-ACKs along; `note` says so. Returns
/// the growth of each check.
fn agrees(verified: &Verified, ns: &Netns, before: &Counters, ns_listens: bool) -> Result<[i64; CHECKS.len()]> {
    let after = Counters::of(ns)?;
    let mut grew = [0; CHECKS.len()];
    for ((check, names), grew) in CHECKS.into_iter().zip(&mut grew) {
        *grew = names.iter().map(|name| after.since(before, name)).sum::<Result<_>>()?;
        let record = verified.of(ns, check)?;
        ensure!(record.kernel == Some((*grew, *grew)), "the kernel counted {grew}: {record:?}");
        ensure!(record.verdict == "equal", "it differs: {record:?}");
        let (more, short) = (record.xctl - *grew, *grew - record.xctl);
        let synacks = if ns_listens { after.since(before, "TCPSynRetrans")? } else { 0 };
        let excepted = match check {
            "retrans" => short <= synacks && more <= 0,
            _ => more >= 0 && AT_LEAST.contains(&check),
        };
        ensure!(more == 0 || excepted, "it is not {grew}, with {synacks} SYN-ACKs: {record:?}");
        ensure!(record.note.is_some() == (more != 0), "its note is wrong: {record:?}");
    }
    Ok(grew)
}

/// Timers of data expired in `a`, one of which ended a connection, and timers of SYN-ACKs in `b`. Sets that do not see all of them
/// say so, and count at most as many as the kernel.
fn timeouts_agree(verified: &Verified, both: [&Netns; 2], before: &[Counters; 2], all: bool) -> Result<()> {
    for (ns, before) in both.into_iter().zip(before) {
        let (record, grew) = (verified.of(ns, "timeouts")?, Counters::of(ns)?.since(before, "TCPTimeouts")?);
        ensure!(grew > 0 && record.verdict == "equal", "the kernel counted {grew}: {record:?}");
        ensure!(if all { record.xctl == grew } else { record.xctl <= grew }, "the kernel counted {grew}: {record:?}");
        ensure!(record.note.is_none() == (record.xctl == grew), "its note is wrong: {record:?}");
    }
    Ok(())
}

/// Marks segments from `a` to `b` from now on: by netem, which drops only segments that cannot be marked, or by nft.
pub fn mark(link: &Link) -> Result<()> {
    let netem = format!("-n {} qdisc replace dev veth0 root netem loss 30% ecn", link.a.name);
    if run_tool(tool("tc").args(netem.split(' ')), "").is_ok() {
        return Ok(());
    }
    let rules = "add table inet marks\nadd chain inet marks in { type filter hook input priority 0; }\n\
                 add rule inet marks in meta l4proto tcp ip ecn != not-ect numgen random mod 10 < 2 ip ecn set ce\n\
                 add rule inet marks in meta l4proto tcp ip6 ecn != not-ect numgen random mod 10 < 2 ip6 ecn set ce\n";
    link.b.enter(|| run_tool(tool("nft").args(["-f", "-"]), rules))
}

/// Lets segments from `a` overtake others from now on. False: the kernel has no netem.
fn reorder(link: &Link) -> bool {
    let netem = format!("-n {} qdisc replace dev veth0 root netem delay 10ms reorder 50%", link.a.name);
    run_tool(tool("tc").args(netem.split(' ')), "").is_ok()
}

/// A connection that resets its peer when it is dropped.
fn reset(ns: &Netns, to: SocketAddr) -> Result<()> {
    let connection = ns.enter(|| TcpStream::connect(to).context("connecting"))?;
    (&connection).write_all(b"x")?;
    resets(&connection)
}

/// Everything that the checks are about, on a link whose connections may be older than xctl and have no owner that passes
/// the filters.
pub fn run(set: Set, family: Family) -> Outcome {
    let link = Link::up()?;
    for ns in [&link.a, &link.b] {
        ns.set("tcp_ecn", "1")?;
    }
    let receiver = Receiver::new(&link.b, "receiver", link.address(&link.b, family), 0)?;
    let mut older = Puppet::new(&link.a, "older", receiver.at)?;
    older.send()?;
    // A connection that no process holds: it waits in the queue of accept() for ever.
    let listener = link.b.enter(|| TcpListener::bind((link.address(&link.b, family), 0)).context("listening"))?;
    let mut queued = link.a.enter(|| TcpStream::connect(listener.local_addr()?).context("connecting"))?;
    queued.write_all(b"before")?;
    // A listener that drops what does not fit into its queue.
    short_queues(&link.b)?;
    let mut full = Actor::new(&link.b, "full")?;
    let (_, full_at) = full.listen((link.address(&link.b, family), 0).into())?;
    let waiting = fill(&link, full_at)?;
    drop_some(&link, full_at, 2)?;
    thread::sleep(Duration::from_millis(300)); // for delayed acknowledgements
    let before = [Counters::of(&link.a)?, Counters::of(&link.b)?];
    let witness = Witness::of(&[])?;
    let xctl = Run::start(set, &["--port", "1"])?;

    link.lose(5)?;
    let bulk = Plan {
        sizes: vec![1 << 16],
        burst: 8,
        sends: 48,
        pause: Duration::from_millis(10),
        ..Plan::new("bulk", receiver.at)
    };
    let short = Plan { sizes: vec![2000], sends_a_connection: 3, ..Plan::new("short", receiver.at) };
    let marked = Plan { sends: 16, ..bulk.clone() };
    let senders = [bulk, short].into_iter().map(|plan| Sender::new(&link.a, plan)).collect::<Result<_>>()?;
    send_all(senders)?;
    link.lose(0)?;
    mark(&link)?;
    // netem marks a segment by chance, and offload makes few segments of many bytes
    for _ in 0..20 {
        if Counters::of(&link.a)?.since(&before[0], "TCPDeliveredCE")? == 0 {
            send_all(vec![Sender::new(&link.a, marked.clone())?])?;
        }
    }
    link.lose(0)?;
    let reorders = reorder(&link);
    let reordered = || Counters::of(&link.a)?.since(&before[0], "TCPSACKReorder");
    for _ in 0..20 {
        if reorders && reordered()? == 0 {
            send_all(vec![Sender::new(&link.a, marked.clone())?])?;
        }
    }
    link.lose(0)?;
    older.send()?;
    queued.write_all(b"meanwhile")?;
    for _ in 0..3 {
        reset(&link.a, receiver.at)?;
    }
    drop_some(&link, full_at, 3)?;
    let mut doomed = link.a.enter(|| TcpStream::connect(receiver.at).context("connecting"))?;
    setsockopt(&doomed, sockopt::TcpUserTimeout, &400)?;
    link.lose(100)?;
    doomed.write_all(b"x")?;
    wait_until_grown(&link.a, &before[0], "TCPAbortOnTimeout", 1)?;
    link.lose(0)?;
    older.exit()?;
    // A request of `b` whose SYN-ACKs get lost. The client has gone by the time one arrives, and resets it.
    link.lose_from(&link.b, 100)?;
    connect_in_vain(&link.a, "in-vain", receiver.at, 1)?;
    link.lose_from(&link.b, 0)?;
    let is_request = |line: &String| line.split_whitespace().nth(3) == Some("03");
    ensure!(poll(PATIENCE, || Ok(!connections(&link.b)?.iter().any(is_request)))?, "a request stays");
    thread::sleep(Duration::from_millis(300)); // for delayed acknowledgements
    let verified = xctl.stop()?;
    if let Some(why) = witness.hidden()? {
        return Ok(Verdict::Skipped(why));
    }
    let all_timeouts = is_guest() && ![Set::Kprobe, Set::Tracepoint].contains(&set);
    timeouts_agree(&verified, [&link.a, &link.b], &before, all_timeouts)?;
    if set == Set::Kprobe {
        ensure!(verified.of(&link.a, "delivered").is_err(), "it compares without the tracepoint of states");
        return Ok(Verdict::Passed("not compared".into()));
    }
    let [a, b] = [agrees(&verified, &link.a, &before[0], false)?, agrees(&verified, &link.b, &before[1], true)?];
    let [again, delivered, ce, resets, timeouts, _, _, drops] = [0, 1, 2, 3, 4, 5, 6, 7].map(|at| a[at] + b[at]);
    ensure!(drops >= 3, "no listener dropped a connection: {a:?} {b:?}");
    ensure!(again > 0 && delivered > 0 && resets >= 3 && timeouts == 1, "something did not happen: {a:?} {b:?}");
    ensure!(ce > 0, "no mark was delivered: {a:?} {b:?}");
    ensure!(!reorders || a[6] > 0, "no segment overtook another: {a:?} {b:?}");
    drop((queued, listener, doomed, waiting));
    Ok(Verdict::Passed(format!("{a:?} and {b:?}")))
}

/// The backup alone handles changes of state.
pub fn backed_up(set: Set, family: Family) -> Outcome {
    with_object(&without_first(), || run(set, family))
}

/// xctl starts and ends amid short connections on a lossy link. At any moment some are open, some begin and some end; each run
/// must know where it began.
pub fn starts(set: Set, family: Family) -> Outcome {
    let starts = crowd(50, 5);
    let link = Link::lossy()?;
    let receiver = Receiver::new(&link.b, "receiver", link.address(&link.b, family), 0)?;
    let day = Duration::from_secs(24 * 3600);
    let short =
        Plan { time: day, sizes: vec![2000], pause: Duration::from_millis(1), ..Plan::new("short", receiver.at) };
    let plans = [1, 3, 20].map(|sends| Plan { sends_a_connection: sends, ..short.clone() });
    let mut senders = plans.into_iter().map(|plan| Sender::new(&link.a, plan)).collect::<Result<Vec<_>>>()?;
    senders.iter_mut().try_for_each(Sender::go)?;
    let witness = Witness::of_ends()?;
    let (mut delivered, mut hidden) = (0, BTreeSet::new());
    for start in 0..starts {
        let before = witness.above_pid_1()?;
        let xctl = Run::start(set, &["--port", "1"])?;
        thread::sleep(Duration::from_millis(100 + start * 37 % 200));
        let verified = xctl.stop()?;
        for ns in [&link.a, &link.b] {
            for (check, _) in CHECKS {
                let record = verified.of(ns, check)?;
                let excused = record.verdict == "differs" && witness.above_pid_1()? > before;
                ensure!(record.verdict == "equal" || excused, "start {start} differs: {record:?}");
                if excused {
                    hidden.insert(start);
                }
            }
            delivered += verified.of(ns, "delivered")?.xctl;
        }
    }
    ensure!(delivered > 0, "nothing was sent");
    ensure!(hidden.len() as u64 <= starts / 5, "too many starts differ: {hidden:?}");
    Ok(Verdict::Passed(format!(
        "{starts} starts, {delivered} segments delivered while xctl ran; above PID 1, {} differ",
        hidden.len()
    )))
}

/// A real difference: the ring of the ledger has room for a few connections, and many end at once.
pub fn difference(set: Set, family: Family) -> Outcome {
    let object = Object::with_less_room(RING, PAGE)?;
    let link = Link::up()?;
    let receiver = Receiver::new(&link.b, "receiver", link.address(&link.b, family), 0)?;
    let before = Counters::of(&link.a)?;
    let xctl = Run::start(set, &["--object", &object.path.to_string_lossy()])?;
    for _ in 0..40 {
        reset(&link.a, receiver.at)?;
    }
    let resets = || Counters::of(&link.a)?.since(&before, "EstabResets");
    let verified = xctl.stop()?;
    ensure!(verified.code == Some(DIFFERENCE), "it ended with {:?}", verified.code);
    let (record, resets) = (verified.of(&link.a, "estab_resets")?, resets()?);
    ensure!(record.kernel == Some((resets, resets)) && record.xctl < resets, "{resets} resets: {record:?}");
    let says_why = record.note.as_ref().is_some_and(|note| note.contains("lost.ledger"));
    ensure!(record.verdict == "differs" && says_why, "it does not say that accounts were lost: {record:?}");
    ensure!(verified.said.contains("lost.ledger"), "not in the message: {:?}", verified.said);
    Ok(Verdict::Passed(format!("{} of {resets} resets", record.xctl)))
}
