//! The verdict about a connection at its end is the one that was set up, and its counters are those that the process was told.
//! `stats_verdicts` and `stats_netem` do the same for open connections.

use std::path::Path;
use std::rc::Rc;
use std::thread::sleep;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

use super::ledger::{CLOSED, Expected, SOME_MILLISECONDS, end};
use super::stats::{Connection, Stage, number, shape, shape_of};
use crate::host::Set;
use crate::process::{PATIENCE, poll};
use crate::tcp_info::TcpInfo;
use crate::ways::Order;
use crate::xctl::{Trace, Xctl};
use crate::{Family, Outcome, Verdict};

/// A connection that has ended, and what must be said about it.
struct Expects {
    stage: Rc<Stage>,
    connection: Connection,
    told: TcpInfo,
    /// Words of the verdict that must be there.
    says: &'static [&'static str],
    /// Words that must not.
    never: &'static [&'static str],
    /// The least `busy_us`, if the process was told more than there was at the end.
    least_busy: Option<u64>,
}

impl Expects {
    fn new(
        stage: impl Into<Rc<Stage>>,
        connection: Connection,
        told: TcpInfo,
        says: &'static [&'static str],
        never: &'static [&'static str],
    ) -> Self {
        Self { stage: stage.into(), connection, told, says, never, least_busy: None }
    }
}

fn connect(stage: &mut Stage) -> Result<Connection> {
    let connection = stage.connect()?;
    stage.reader.done(Order::Drain(connection.reads.0, 1 << 16, 0))?;
    Ok(connection)
}

fn pour(stage: &mut Stage, connection: &Connection, bytes: u32, size: u32, all: u64) -> Result<()> {
    stage.writer.done(Order::Pour(connection.writes.0, bytes, size))?;
    stage.rest(connection, all)
}

/// A long way without any fault.
fn path(family: Family) -> Result<Expects> {
    let mut stage = Stage::new(family)?;
    shape(&stage, "delay 50ms")?;
    let connection = connect(&mut stage)?;
    pour(&mut stage, &connection, 150_000, 1000, 150_000)?;
    let [told, _] = end(&mut stage, &connection)?;
    let never = &["loss", "needless", "ecn", "local", "queue"];
    Ok(Expects::new(stage, connection, told, &["network", "path"], never))
}

/// Segments that arrive, but whose acknowledgements come after the timer has sent them again. The delay is at the other end: TCP
/// sends no segment again that is still in a queue of its own host.
fn needless(family: Family) -> Result<Expects> {
    let mut stage = Stage::new(family)?;
    shape_of(&stage.link.b, "delay 1ms")?;
    let connection = connect(&mut stage)?;
    pour(&mut stage, &connection, 20_000, 1000, 20_000)?;
    shape_of(&stage.link.b, "delay 500ms")?;
    pour(&mut stage, &connection, 20_000, 20_000, 40_000)?;
    let [told, _] = end(&mut stage, &connection)?;
    ensure!(told.counter("retrans") > 0, "nothing was sent again: {told:?}");
    Ok(Expects::new(stage, connection, told, &["network", "needless"], &["loss", "ecn", "local", "path"]))
}

/// Segments that the network marks. `mode` is that of net.ipv4.tcp_ecn: 1 is RFC 3168, 3 is Accurate ECN.
fn ecn(family: Family, mode: &str) -> Result<Expects> {
    let mut stage = Stage::new(family)?;
    for ns in [&stage.link.a, &stage.link.b] {
        ns.set("tcp_ecn", mode)?;
    }
    let connection = connect(&mut stage)?;
    // netem marks by chance, and drops segments that cannot be marked
    shape(&stage, "delay 5ms loss 30% ecn")?;
    let mut all = 0;
    for _ in 0..20 {
        if stage.writer.tcp_info(connection.writes.0)?.counter("delivered_ce") < 10 {
            all += 200_000;
            pour(&mut stage, &connection, 200_000, 10_000, all)?;
        }
    }
    shape(&stage, "delay 1ms")?;
    let [told, _] = end(&mut stage, &connection)?;
    Ok(Expects::new(stage, connection, told, &["network", "ecn"], &["needless", "local", "path"]))
}

/// A connection that sends little, behind another one that fills a queue. Returns both, the little one first.
fn victim(family: Family) -> Result<[Expects; 2]> {
    /// The bytes of the other one: more than the queue lets through meanwhile.
    const BULK: u32 = 30_000_000;
    let mut stage = Stage::new(family)?;
    let (bulk, victim) = (connect(&mut stage)?, connect(&mut stage)?);
    pour(&mut stage, &victim, 1000, 100, 1000)?;
    shape(&stage, "rate 8mbit limit 10000")?;
    stage.writer.done(Order::Pour(bulk.writes.0, BULK, 100_000))?;
    // until the time behind the queue is most of the connection's time
    let mut all = 1000;
    for _ in 0..100 {
        if stage.writer.tcp_info(victim.writes.0)?.counter("busy_us") < 1_500_000 {
            all += 1000;
            pour(&mut stage, &victim, 1000, 1000, all)?;
        }
    }
    let [told, _] = end(&mut stage, &victim)?;
    ensure!(told.counter("retrans") == 0, "something was sent again: {told:?}");
    let amid = stage.writer.tcp_info(bulk.writes.0)?;
    ensure!(amid.counter("bytes_sent") < BULK.into(), "it was no longer behind a queue: {amid:?}");
    shape(&stage, "rate 10gbit limit 10000")?;
    stage.rest(&bulk, BULK.into())?;
    let [bulk_told, _] = end(&mut stage, &bulk)?;
    let never = &["loss", "needless", "ecn", "local", "path"];
    let stage = Rc::new(stage);
    let little = Expects::new(stage.clone(), victim, told, &["network", "queue"], never);
    // Segments that waited in the queue may have been retransmitted needlessly. At the end there is no queue.
    Ok([little, Expects::new(stage, bulk, bulk_told, &["network"], &["loss", "ecn", "local"])])
}

/// A process that may hand over only a few kilobytes at a time, on a long way. The kernel counts time as limited by the send buffer
/// only if the last of the data leaves while the process waits already, as with BBR, which paces what it sends.
fn small_buffer(family: Family) -> Result<Expects> {
    let mut stage = Stage::new(family)?;
    stage.link.a.set("tcp_wmem", "4096 8192 8192")?;
    stage.link.a.set("tcp_congestion_control", "bbr")?;
    stage.link.one_by_one(&stage.link.a)?;
    shape_of(&stage.link.b, "delay 20ms")?;
    // How fast BBR paces depends on what it has measured, and so does the time for which the process waits.
    for _ in 0..5 {
        let connection = connect(&mut stage)?;
        pour(&mut stage, &connection, 100_000, 100_000, 100_000)?;
        let [told, _] = end(&mut stage, &connection)?;
        if told.counter("sndbuf_limited_us") * 2 > told.counter("busy_us") {
            let never = &["network", "receiver", "idle"];
            return Ok(Expects::new(stage, connection, told, &["sndbuf"], never));
        }
    }
    bail!("its send buffer never limits a connection for most of the time")
}

/// A queue of this host with hardly any room.
fn full_queue(family: Family) -> Result<Expects> {
    let mut stage = Stage::new(family)?;
    shape(&stage, "delay 5ms limit 3")?;
    stage.link.one_by_one(&stage.link.a)?;
    let connection = connect(&mut stage)?;
    pour(&mut stage, &connection, 500_000, 100_000, 500_000)?;
    let [told, _] = end(&mut stage, &connection)?;
    ensure!(told.refused() > 0, "the queue took everything: {told:?}");
    let never: &[_] =
        if told.counter("retrans") == 0 { &["loss", "needless", "ecn", "path"] } else { &["ecn", "path"] };
    Ok(Expects::new(stage, connection, told, &["network", "local"], never))
}

/// Segments that arrive twice. The peer says so, and what TCP sent again for that had arrived.
fn duplicated(family: Family) -> Result<Expects> {
    let mut stage = Stage::new(family)?;
    shape(&stage, "delay 5ms duplicate 20%")?;
    stage.link.one_by_one(&stage.link.a)?;
    let connection = connect(&mut stage)?;
    pour(&mut stage, &connection, 300_000, 10_000, 300_000)?;
    // an acknowledgement that arrives twice may come after the end
    shape(&stage, "delay 5ms")?;
    stage.settled(&connection)?;
    let [told, _] = end(&mut stage, &connection)?;
    ensure!(told.counter("dsack_dups") > 0, "nothing arrived twice: {told:?}");
    Ok(Expects::new(stage, connection, told, &[], &["loss", "ecn", "local"]))
}

/// Segments that overtake others.
fn reordered(family: Family) -> Result<Expects> {
    let mut stage = Stage::new(family)?;
    shape(&stage, "delay 10ms reorder 50%")?;
    stage.link.one_by_one(&stage.link.a)?;
    let connection = connect(&mut stage)?;
    pour(&mut stage, &connection, 300_000, 10_000, 300_000)?;
    let [told, _] = end(&mut stage, &connection)?;
    ensure!(told.counter("reord_seen") > 0, "nothing was overtaken: {told:?}");
    Ok(Expects::new(stage, connection, told, &[], &["loss", "ecn", "local"]))
}

/// A process at the other end that reads 200 kB a second.
fn slow_reader(family: Family) -> Result<Expects> {
    let mut stage = Stage::new(family)?;
    let connection = stage.connect()?;
    stage.reader.done(Order::Drain(connection.reads.0, 10_000, 50))?;
    pour(&mut stage, &connection, 600_000, 10_000, 600_000)?;
    let [told, _] = end(&mut stage, &connection)?;
    Ok(Expects::new(stage, connection, told, &["receiver"], &["network", "idle", "sndbuf"]))
}

/// A host that disappears: the kernel sends again, and gives up. It empties the queue of such a connection without ending the busy
/// time (`tcp_write_queue_purge()`), so in TCP_INFO this time goes on after the end.
fn gone(family: Family) -> Result<Expects> {
    let mut stage = Stage::new(family)?;
    stage.link.a.set("tcp_retries2", "3")?;
    let connection = connect(&mut stage)?;
    pour(&mut stage, &connection, 10_000, 10_000, 10_000)?;
    stage.link.lose(100)?;
    stage.writer.done(Order::Pour(connection.writes.0, 10_000, 10_000))?;
    let mut told = stage.writer.tcp_info(connection.writes.0)?;
    let mut least_busy = None;
    let gave_up = poll(PATIENCE, || {
        least_busy = Some(told.counter("busy_us"));
        told = stage.writer.tcp_info(connection.writes.0)?;
        Ok(told.state == CLOSED)
    })?;
    sleep(SOME_MILLISECONDS);
    told = stage.writer.tcp_info(connection.writes.0)?.at_rest(&told);
    ensure!(gave_up && told.counter("retrans") > 2, "it does not give up: {told:?}");
    let expects = Expects::new(stage, connection, told, &["network", "loss"], &["idle", "needless", "path"]);
    Ok(Expects { least_busy, ..expects })
}

/// The record of the connection agrees with its process and with what was set up. Returns why.
fn holds(trace: &Trace, expects: &Expects) -> Result<String> {
    let Expects { stage, connection, told, says, never, least_busy } = expects;
    let of = |record: &&crate::xctl::Connection| {
        record.at.netns == stage.link.a.inode && record.at.flow() == connection.writes.1
    };
    let record = trace.connections.iter().find(of).with_context(|| format!("no end of {:?}", connection.writes.1))?;
    let mut told = told.clone();
    if let Some(least) = least_busy {
        let busy = number(&record.ledger, "tcp.busy_us").context("busy_us")?;
        ensure!((*least..=told.counter("busy_us")).contains(&busy), "busy for {busy}, at least {least}: {told:?}");
        told.counters.insert("busy_us", busy);
    }
    let mut counts = Expected::default();
    counts.count(&told, None);
    counts.ended = 1;
    counts.equals(&record.ledger, true)?;
    let words: Vec<String> = serde_json::from_value(record.ledger["verdict"].clone())?;
    let has = |word: &&&str| words.iter().any(|own| own == **word);
    let (said, wrong) = (says.iter().filter(has).count(), never.iter().filter(has).count());
    ensure!(said == says.len() && wrong == 0, "{says:?} expected, and none of {never:?}: {}", record.ledger);
    Ok(format!("{words:?}"))
}

/// Each cause has a link of its own.
pub fn run(set: Set, family: Family) -> Outcome {
    let probe = Stage::new(family)?;
    if let Err(why) = shape(&probe, "delay 1ms") {
        return Ok(Verdict::Skipped(format!("this kernel has no netem: {why:#}")));
    }
    let xctl = Xctl::start(set, &["--events", "connection"])?;
    let mut all = vec![
        path(family)?,
        needless(family)?,
        ecn(family, "1")?,
        full_queue(family)?,
        duplicated(family)?,
        reordered(family)?,
        slow_reader(family)?,
        gone(family)?,
    ];
    all.extend(victim(family)?);
    if std::fs::read_to_string("/proc/sys/net/ipv4/tcp_available_congestion_control")?.contains("bbr") {
        all.push(small_buffer(family)?);
    }
    // Linux 6.18 and newer
    if Path::new("/proc/sys/net/ipv4/tcp_ecn_option").exists() {
        all.push(ecn(family, "3")?);
    }
    let trace = xctl.stop(Signal::SIGINT)?;
    let said = all.iter().map(|expects| holds(&trace, expects)).collect::<Result<Vec<_>>>()?;
    Ok(Verdict::Passed(said.join("; ")))
}
