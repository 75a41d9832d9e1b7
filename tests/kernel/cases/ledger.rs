//! The ledger of a run, and that of `xctl top`, is compared with TCP_INFO, which the kernel gives the process that holds a connection.

use std::collections::BTreeMap;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::stats::{Connection, Stage, number};
use super::top::Top;
use crate::counters::Counters;
use crate::host::{Set, crowd};
use crate::process::{PATIENCE, poll};
use crate::tcp_info::{RTO_TIME, TcpInfo};
use crate::ways::{How, Order, RawActor};
use crate::workers::{FAST, connect_fast};
use crate::xctl::{Xctl, with_object};
use crate::{Family, Outcome, Verdict, without};

/// TCP_CLOSE.
pub const CLOSED: u64 = 7;
/// Long enough for a counter of milliseconds to grow.
pub const SOME_MILLISECONDS: Duration = Duration::from_millis(3);

/// Linux 5.10 counts the ACK that ends a connection as dropped, after the end (`tcp_rcv_state_process()`).
const DROPPED: &str = "rcv_dropped";

/// Sums of what processes are told.
type Sums = BTreeMap<&'static str, i64>;

/// The part of each process.
#[derive(Default)]
pub struct Expected {
    sums: Sums,
    pub open: u64,
    pub ended: u64,
    reset: u64,
    /// Whether the time in recovery of one of the connections grew when its process was told of it.
    recovers: bool,
}

impl Expected {
    /// Counts a connection from one TCP_INFO to another.
    pub fn count(&mut self, after: &TcpInfo, before: Option<&TcpInfo>) {
        self.recovers |= after.recovers() || before.is_some_and(TcpInfo::recovers);
        for (name, value) in &after.counters {
            let before = before.map_or(0, |before| before.counter(name));
            *self.sums.entry(name).or_default() += *value as i64 - before as i64;
        }
    }

    pub fn sum(&self, name: &str) -> i64 {
        self.sums.get(name).copied().unwrap_or_default()
    }

    pub fn equals(&self, row: &Value, complete: bool) -> Result<()> {
        for (name, told) in self.sums.iter().filter(|(name, _)| **name != RTO_TIME.0 || !self.recovers) {
            let ours = number(row, &format!("tcp.{name}")).map(|ours| ours as i64);
            let late = if *name == DROPPED { self.ended as i64 } else { 0 };
            ensure!(
                ours.is_some_and(|ours| (*told - late..=*told).contains(&ours)),
                "{name} is {ours:?}, and the process was told {told}: {row}"
            );
        }
        for (name, count) in [("open", self.open), ("ended", self.ended), ("reset", self.reset), ("refused", 0)] {
            ensure!(number(row, &format!("connections.{name}")) == Some(count), "{name} is not {count}: {row}");
        }
        ensure!(row["complete"] == complete, "complete is not {complete}: {row}");
        Ok(())
    }
}

/// Ends a connection at both ends. Its descriptors stay open, so the processes can still be told.
pub fn end(stage: &mut Stage, connection: &Connection) -> Result<[TcpInfo; 2]> {
    stage.writer.done(Order::Shutdown(connection.writes.0))?;
    stage.reader.done(Order::Shutdown(connection.reads.0))?;
    told_at_end(stage, connection)
}

/// The TCP_INFO of both processes once a connection that they have shut down has ended.
fn told_at_end(stage: &mut Stage, connection: &Connection) -> Result<[TcpInfo; 2]> {
    let mut last = None;
    let closed = poll(PATIENCE, || {
        let told = stage.told(connection)?;
        let closed = told.iter().all(|told| told.state == CLOSED);
        last = Some(told);
        Ok(closed)
    })?;
    ensure!(closed, "it never ends: {last:?}");
    let [writer, reader] = last.context("nothing was told")?;
    sleep(SOME_MILLISECONDS);
    let [writer_now, reader_now] = stage.told(connection)?;
    Ok([writer_now.at_rest(&writer), reader_now.at_rest(&reader)])
}

/// Connections that are open before xctl, made meanwhile, ended, still open at the end, and handed over.
pub fn run(set: Set, family: Family) -> Outcome {
    let mut stage = Stage::new(family)?;
    // Each segment can be lost by itself: of a few large skbs, none may be.
    stage.link.one_by_one(&stage.link.a)?;
    let mut heir = RawActor::new(&stage.link.a, "heir")?;
    let [old, old_and_ended] = [stage.connect()?, stage.connect()?];
    for connection in [&old, &old_and_ended] {
        stage.reader.done(Order::Drain(connection.reads.0, 1 << 16, 0))?;
        stage.writer.done(Order::Pour(connection.writes.0, 200_000, 10_000))?;
        stage.rest(connection, 200_000)?;
    }
    let before = [stage.settled(&old)?, stage.settled(&old_and_ended)?];
    let xctl = Xctl::start(set, &["--events", "retransmit,connection"])?;
    let of_netns = Xctl::start(set, &["--netns", &stage.link.a.inode.to_string()])?;
    let top = Top::start(set)?;
    let of_heir = Xctl::start(set, &["--pid", &heir.who.pid.to_string()])?;

    let [new, new_and_ended, taken] = [stage.connect()?, stage.connect()?, stage.connect()?];
    stage.link.lose(5)?;
    for (connection, bytes) in
        [(&old, 700_000), (&old_and_ended, 600_000), (&new, 500_000), (&new_and_ended, 400_000), (&taken, 300_000)]
    {
        if ![old.reads.0, old_and_ended.reads.0].contains(&connection.reads.0) {
            stage.reader.done(Order::Drain(connection.reads.0, 1 << 16, 0))?;
        }
        stage.writer.done(Order::Pour(connection.writes.0, bytes, 30_000))?;
    }
    for (connection, bytes) in
        [(&old, 900_000), (&old_and_ended, 800_000), (&new, 500_000), (&new_and_ended, 400_000), (&taken, 300_000)]
    {
        stage.rest(connection, bytes)?;
    }
    stage.link.lose(0)?;
    let mut at_change = stage.settled(&taken)?;
    let (fd, _) = heir.socket(Order::Take(stage.writer.who.pid, taken.writes.0))?;
    for sends in 0..3 {
        heir.done(Order::Send(fd, How::Call))?;
        // If only the end of a send shows the sender, the first send counts for the process before.
        if sends == 0 && !xctl.sees_senders_first() {
            at_change = stage.settled(&taken)?;
        }
    }
    stage.rest(&taken, 300_003)?;

    let (mut writes, mut reads, mut inherits) = (Expected::default(), Expected::default(), Expected::default());
    // The expected record of each end: its flow and owner, its counters, and whether they are complete.
    let mut ends = vec![];
    for (connection, before) in [(&old_and_ended, Some(&before[1])), (&new_and_ended, None)] {
        let told = end(&mut stage, connection)?;
        let both = [(&mut writes, connection.writes.1, &stage.writer), (&mut reads, connection.reads.1, &stage.reader)];
        for (which, (expected, flow, actor)) in both.into_iter().enumerate() {
            let mut alone = Expected::default();
            for expected in [expected, &mut alone] {
                expected.count(&told[which], before.map(|before| &before[which]));
                expected.ended += 1;
            }
            ends.push((flow, actor.who.clone(), alone, before.is_none()));
        }
    }
    for (connection, before) in [(&old, Some(&before[0])), (&new, None)] {
        let told = stage.settled(connection)?;
        for (expected, which) in [(&mut writes, 0), (&mut reads, 1)] {
            expected.count(&told[which], before.map(|before| &before[which]));
            expected.open += 1;
        }
    }
    let told = stage.settled(&taken)?;
    writes.count(&at_change[0], None);
    inherits.count(&told[0], Some(&at_change[0]));
    reads.count(&told[1], None);
    (inherits.open, reads.open) = (1, reads.open + 1);

    let trace = xctl.stop(Signal::SIGINT)?;
    trace.nothing_lost()?;
    for (flow, who, expected, complete) in &ends {
        let of_flow: Vec<_> = trace.connections.iter().filter(|record| record.at.flow() == *flow).collect();
        ensure!(of_flow.len() == 1, "{flow:?} ended once, and has the records {of_flow:?}");
        of_flow[0].at.is_of(who, *flow)?;
        expected.equals(&of_flow[0].ledger, *complete)?;
        let orderly = ["LAST_ACK", "CLOSING", "FIN_WAIT2"].contains(&of_flow[0].state.as_str());
        ensure!(orderly && of_flow[0].err == 0, "it ended in an orderly way: {:?}", of_flow[0]);
    }
    let row = |pid: u32| {
        let rows = trace.summary.ledger.iter().filter(|row| row.pid == Some(pid));
        rows.map(|row| &row.ledger).next().with_context(|| format!("no row of {pid}"))
    };
    let filtered = of_heir.stop(Signal::SIGINT)?.summary.ledger;
    ensure!(filtered.len() == 1 && filtered[0].pid == Some(heir.who.pid), "--pid {}: {filtered:?}", heir.who.pid);
    inherits.equals(&filtered[0].ledger, true)?;
    let top = top.finish()?;
    for (expected, actor, complete) in
        [(&writes, &stage.writer, false), (&reads, &stage.reader, false), (&inherits, &heir, true)]
    {
        let row = top.get(&actor.who.pid).with_context(|| format!("xctl top has no row of {:?}", actor.who))?;
        expected.equals(row, complete).context("xctl top")?;
    }
    writes.equals(row(stage.writer.who.pid)?, false)?;
    reads.equals(row(stage.reader.who.pid)?, false)?;
    inherits.equals(row(heir.who.pid)?, true)?;
    // Each end was counted once, and for its owner: there is no row of connections that nobody owns.
    let mut pids: Vec<_> = of_netns.stop(Signal::SIGINT)?.summary.ledger.iter().map(|row| row.pid).collect();
    pids.sort_unstable();
    let mut expected = [stage.writer.who.pid, heir.who.pid].map(Some);
    expected.sort_unstable();
    ensure!(pids == expected, "the processes with connections in the namespace are {pids:?}, not {expected:?}");
    let retrans = writes.sums["retrans"];
    ensure!(retrans > 0, "nothing was retransmitted");
    let recovery = if writes.recovers { None } else { writes.sums.get(RTO_TIME.0) };
    let sent = writes.sums["data_segs_out"];
    Ok(Verdict::Passed(format!("{retrans} segments of {sent} again, {recovery:?} us of recovery")))
}

/// A copy of xctl's object whose first programs for changes of state do nothing, as if the kernel always skipped them.
pub fn without_first() -> Vec<u8> {
    without::programs(&["kp_state", "tp_state"])
}

/// The backup alone handles changes of state.
pub fn backed_up(set: Set, family: Family) -> Outcome {
    with_object(&without_first(), || {
        let hooks = Xctl::start(set, &[])?.ready.hooks;
        let has = |program: &str| hooks.iter().any(|hook| hook.program == program);
        ensure!((has("kp_state") || has("tp_state")) && has("tp2_state"), "no program and its backup: {hooks:?}");
        run(set, family)
    })
}

/// How long data get lost: long enough for each segment to be sent again at least once.
const LOSSY: Duration = Duration::from_millis(300);

/// Many short connections, some of whose data get lost. Each process adds up what it is told about its own.
pub fn short(set: Set, family: Family) -> Outcome {
    const BATCH: usize = 100;
    let batches: u64 = crowd(15, 3);
    // Each process holds all its connections to the end. A guest's limit is 1,024 files.
    let (files, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, files.max(4096), most.max(4096))?;
    let mut stage = Stage::new(family)?;
    let xctl = Xctl::start(set, &[])?;
    let (mut writes, mut reads) = (Expected::default(), Expected::default());
    for _ in 0..batches {
        // a lost SYN would take a second
        let connections = (0..BATCH).map(|_| stage.connect()).collect::<Result<Vec<_>>>()?;
        stage.link.lose(20)?;
        for connection in &connections {
            stage.writer.done(Order::Send(connection.writes.0, How::Call))?;
        }
        sleep(LOSSY);
        // If a segment gets lost while a connection ends, TCP_INFO goes on after the end: a reset does not stop busy_time
        // (tcp_write_queue_purge()), and segs_in counts a segment that waited for the socket's lock.
        stage.link.lose(0)?;
        for connection in &connections {
            stage.rest(connection, 1)?;
        }
        for connection in &connections {
            stage.writer.done(Order::Shutdown(connection.writes.0))?;
            stage.reader.done(Order::Shutdown(connection.reads.0))?;
        }
        for connection in &connections {
            let [writer, reader] = told_at_end(&mut stage, connection)?;
            for (expected, told) in [(&mut writes, writer), (&mut reads, reader)] {
                expected.count(&told, None);
                expected.ended += 1;
            }
        }
    }
    let trace = xctl.stop(Signal::SIGINT)?;
    trace.nothing_lost()?;
    for (expected, actor) in [(&writes, &stage.writer), (&reads, &stage.reader)] {
        let row = trace.summary.ledger.iter().find(|row| row.pid == Some(actor.who.pid)).context("no row")?;
        expected.equals(&row.ledger, true)?;
        ensure!(expected.ended == batches * BATCH as u64, "{} connections ended", expected.ended);
    }
    let retrans = writes.sums["retrans"] + reads.sums["retrans"];
    ensure!(retrans > 0, "nothing was retransmitted");
    // The acknowledgement of the FIN ended each recovery, so its time has been compared. Without another loss it is below 1 ms.
    ensure!(!writes.recovers && !reads.recovers, "a recovery goes on after the end of its connection");
    let recovery = writes.sums.get(RTO_TIME.0);
    Ok(Verdict::Passed(format!("{} connections, {retrans} segments again, {recovery:?} us of recovery", writes.ended)))
}

/// The SYN carries data, and the peer takes them (TCP Fast Open): its connection is not established yet when it has them.
pub fn fast_open(set: Set, family: Family) -> Outcome {
    /// The listener takes data, without a cookie and without TCP_FASTOPEN.
    const TAKES_ALL: u32 = 0x2 | 0x200 | 0x400;
    let mut stage = Stage::new(family)?;
    stage.link.b.set("tcp_fastopen", &TAKES_ALL.to_string())?;
    let listener = stage.reader.listen(stage.link.address(&stage.link.b, family))?;
    let before = Counters::of(&stage.link.b)?;
    let [a, b] = [&stage.link.a, &stage.link.b].map(|netns| netns.inode.to_string());
    let xctl = Xctl::start(set, &["--netns", &a, "--netns", &b])?;
    let (client, flow) = connect_fast(&stage.link.a, listener.1)?;
    let (fd, accepted) = stage.reader.socket(Order::Accept(listener.0, How::Call))?;
    ensure!(accepted == flow.reversed(), "{accepted:?} was accepted, not {flow:?}");
    stage.reader.done(Order::Drain(fd, 1 << 16, 0))?;
    let mut told = stage.reader.tcp_info(fd)?;
    let rests = poll(PATIENCE, || {
        sleep(Duration::from_millis(100));
        let now = stage.reader.tcp_info(fd)?;
        let rests = now == told && now.counter("bytes_received") == FAST as u64;
        told = now;
        Ok(rests)
    })?;
    ensure!(rests, "it never rests: {told:?}");
    let taken = Counters::of(&stage.link.b)?.since(&before, "TCPFastOpenPassive")?;
    ensure!(taken == 1, "{taken} SYNs had data that were taken");
    let trace = xctl.stop(Signal::SIGINT)?;
    trace.nothing_lost()?;
    let row = |pid: u32| {
        let rows = trace.summary.ledger.iter().filter(|row| row.pid == Some(pid));
        rows.map(|row| &row.ledger).next().with_context(|| format!("no row of {pid}"))
    };
    let mut expected = Expected { open: 1, ..Expected::default() };
    expected.count(&told, None);
    expected.equals(row(stage.reader.who.pid)?, true).context("the end that accepted")?;
    let ours = row(std::process::id())?;
    ensure!(number(ours, "tcp.bytes_sent") == Some(FAST as u64) && ours["complete"] == true, "of this end: {ours}");
    drop(client);
    Ok(Verdict::Passed(format!("{FAST} bytes with the SYN")))
}
