//! `xctl sockets --stats` is compared with TCP_INFO, which the kernel gives the process that holds the connection, and with ss.

use std::os::fd::RawFd;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::host::{Set, tool};
use crate::link::{Link, Netns, run};
use crate::process::{PATIENCE, poll};
use crate::schema;
use crate::tcp_info::{RTO_TIME, TcpInfo};
use crate::ways::{How, Order, RawActor};
use crate::workers::{Flow, Who};
use crate::xctl::command;
use crate::{Family, Outcome, Verdict};

/// Times are in jiffies there, and in milliseconds in ss.
const SS_COUNTERS: [(&str, &str); 9] = [
    ("bytes_sent", "bytes_sent"),
    ("bytes_retrans", "bytes_retrans"),
    ("bytes_received", "bytes_received"),
    ("segs_out", "segs_out"),
    ("segs_in", "segs_in"),
    ("data_segs_out", "data_segs_out"),
    ("data_segs_in", "data_segs_in"),
    ("delivered", "delivered"),
    ("dsack_dups", "dsack_dups"),
];

/// A process in each namespace, and connections between them.
pub struct Stage {
    pub link: Link,
    pub writer: RawActor,
    pub reader: RawActor,
    pub listener: (RawFd, std::net::SocketAddr),
}

/// One connection: its end in each process.
pub struct Connection {
    pub writes: (RawFd, Flow),
    pub reads: (RawFd, Flow),
}

impl Stage {
    pub fn new(family: Family) -> Result<Stage> {
        let link = Link::up()?;
        let writer = RawActor::new(&link.a, "writer")?;
        let mut reader = RawActor::new(&link.b, "reader")?;
        let listener = reader.listen(link.address(&link.b, family))?;
        Ok(Stage { link, writer, reader, listener })
    }

    pub fn connect(&mut self) -> Result<Connection> {
        let writes = self.writer.socket(Order::Connect(self.listener.1))?;
        let reads = self.reader.socket(Order::Accept(self.listener.0, How::Call))?;
        Ok(Connection { writes, reads })
    }

    pub fn told(&mut self, connection: &Connection) -> Result<[TcpInfo; 2]> {
        Ok([self.writer.tcp_info(connection.writes.0)?, self.reader.tcp_info(connection.reads.0)?])
    }

    /// Waits until the writer's own TCP_INFO says so.
    fn until(&mut self, connection: &Connection, what: &str, done: impl Fn(&TcpInfo) -> bool) -> Result<()> {
        let mut last = None;
        let reached = poll(PATIENCE, || {
            let info = self.writer.tcp_info(connection.writes.0)?;
            let reached = done(&info);
            last = Some(info);
            Ok(reached)
        })?;
        ensure!(reached, "{what}: never: {last:?}");
        Ok(())
    }

    /// Waits until both ends have sent and acknowledged everything.
    pub fn rest(&mut self, connection: &Connection, bytes: u64) -> Result<()> {
        self.until(connection, "at rest", |info| {
            info.unacked == 0 && info.counter("bytes_sent") >= bytes && info.gauges["now.notsent_bytes"] == 0
        })
    }

    /// The TCP_INFO of both processes, once it no longer changes: delayed acknowledgements and timers are over. It lacks the time in
    /// recovery if that still grows ([`TcpInfo::at_rest`]).
    pub fn settled(&mut self, connection: &Connection) -> Result<[TcpInfo; 2]> {
        for _ in 0..20 {
            let before = self.told(connection)?;
            thread::sleep(Duration::from_millis(100));
            let after = self.told(connection)?;
            if before.each_ref().map(settled) == after.each_ref().map(settled) {
                let [writer, reader] = after;
                return Ok([writer.at_rest(&before[0]), reader.at_rest(&before[1])]);
            }
        }
        anyhow::bail!("the connection never rests: {:?}", self.told(connection)?)
    }

    /// Compares both ends of a connection with both processes: owner, counters and gauges. Returns both records.
    fn compare(&mut self, connection: &Connection) -> Result<[Value; 2]> {
        // Delayed acknowledgements and timers may change something between two readings.
        for _ in 0..20 {
            let before = self.told(connection)?;
            let (a, b) = (record(&self.link.a, connection.writes.1)?, record(&self.link.b, connection.reads.1)?);
            let after = self.told(connection)?;
            between(&a, &self.writer.who, &before[0], &after[0])?;
            between(&b, &self.reader.who, &before[1], &after[1])?;
            if before.each_ref().map(settled) == after.each_ref().map(settled) {
                for (record, told) in [(&a, &before[0]), (&b, &before[1])] {
                    equal(record, told)?;
                }
                return Ok([a, b]);
            }
            thread::sleep(Duration::from_millis(100));
        }
        anyhow::bail!("the connection never rests: {:?}", self.told(connection)?)
    }

    fn verdict(&self, connection: &Connection) -> Result<Vec<String>> {
        verdict_of(&record(&self.link.a, connection.writes.1)?)
    }
}

/// What the process is told, without the time in recovery: it goes on as long as no new data ends the recovery.
fn settled(told: &TcpInfo) -> TcpInfo {
    let mut told = told.clone();
    told.counters.remove(RTO_TIME.0);
    told
}

/// A number of a record, by the names of its members.
pub fn number(record: &Value, path: &str) -> Option<u64> {
    path.split('.').fold(record, |value, name| &value[name]).as_u64()
}

fn verdict_of(record: &Value) -> Result<Vec<String>> {
    serde_json::from_value(record["verdict"].clone()).with_context(|| format!("no verdict: {record}"))
}

/// The owner is the process that holds the descriptor. Every counter is at least what the process was told before, and at
/// most what it was told after.
fn between(record: &Value, who: &Who, before: &TcpInfo, after: &TcpInfo) -> Result<()> {
    ensure!(record["pid"] == who.pid && record["comm"] == who.comm.as_str(), "whose is it? {who:?}: {record}");
    ensure!(record["complete"] == true && record["observed_us"].is_null(), "not a snapshot: {record}");
    for (name, before) in &before.counters {
        // While a recovery lasts, its time counts up to now; at its end, up to the time that the peer echoed. So it may fall.
        if *name == RTO_TIME.0 && *before != after.counter(name) {
            continue;
        }
        let ours = number(record, &format!("tcp.{name}")).with_context(|| format!("no {name}: {record}"))?;
        let range = *before..=after.counter(name);
        ensure!(range.contains(&ours), "{name} is {ours}, and the process was told {range:?}: {record}");
    }
    let (timeouts, here) = (record["tcp"]["total_rto"].is_null(), before.counters.contains_key("total_rto"));
    ensure!(timeouts != here, "this kernel tells of timeouts: {here}: {record}");
    Ok(())
}

/// Gauges of a connection at rest.
fn equal(record: &Value, told: &TcpInfo) -> Result<()> {
    for (name, &told) in &told.gauges {
        // Without a measurement both are special values in TCP_INFO.
        let special = name.starts_with("rtt.") && (told == 0 || told == u64::from(u32::MAX));
        let ours = number(record, name);
        let measured = number(record, "rtt.srtt_us").is_some() || !name.starts_with("rtt.");
        ensure!(
            if measured && !special { ours == Some(told) } else { ours.is_none_or(|ours| ours == told) },
            "{name} is {ours:?}, and the process was told {told}: {record}"
        );
    }
    Ok(())
}

/// The records of a namespace.
fn records(ns: &Netns) -> Result<Vec<Value>> {
    let netns = ns.inode.to_string();
    let output = command(&["sockets", "--stats", "--json", "--netns", &netns])?.output().context("starting xctl")?;
    ensure!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    text.lines().map(schema::record).collect()
}

/// The record of this connection.
fn record(ns: &Netns, flow: Flow) -> Result<Value> {
    let all = records(ns)?;
    let is_it = |record: &&Value| {
        let end = |address: &str, port: &str| {
            let ip = record[address].as_str()?.parse().ok()?;
            Some(std::net::SocketAddr::new(ip, u16::try_from(record[port].as_u64()?).ok()?))
        };
        end("saddr", "sport") == Some(flow.local) && end("daddr", "dport") == Some(flow.remote)
    };
    all.iter().find(is_it).cloned().with_context(|| format!("no record of {flow:?}: {all:?}"))
}

/// What ss says about a connection at rest.
fn same_as_ss(ns: &Netns, flow: Flow, record: &Value) -> Result<()> {
    let (local, remote) = (flow.local.to_string(), flow.remote.to_string());
    let output = ns.enter(|| {
        tool("ss").args(["-H", "-O", "-tni", "src", &local, "dst", &remote]).output().context("starting ss")
    })?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(text.lines().count() == 1, "ss said {text:?}");
    for (name, theirs) in SS_COUNTERS {
        let said = text.split_whitespace().find_map(|word| word.strip_prefix(theirs)?.strip_prefix(':'));
        // ss leaves out what is 0
        let said: u64 = said.map_or(Ok(0), str::parse).with_context(|| format!("{theirs} of {text}"))?;
        let ours = number(record, &format!("tcp.{name}"));
        ensure!(ours == Some(said), "{name} is {ours:?}, and ss says {said}: {text}");
    }
    Ok(())
}

/// Counters and gauges of both ends equal what each process is told, before, after and amid loss.
pub fn at_rest(_set: Set, family: Family) -> Outcome {
    let mut stage = Stage::new(family)?;
    let quiet = stage.connect()?;
    let busy = stage.connect()?;
    stage.reader.done(Order::Drain(busy.reads.0, 1 << 16, 0))?;
    stage.compare(&quiet)?;

    stage.link.lose(10)?;
    stage.writer.done(Order::Pour(busy.writes.0, 3_000_000, 30_000))?;
    let amid = (0..3).map(|_| in_motion(&mut stage, &busy)).collect::<Result<Vec<_>>>()?;
    stage.rest(&busy, 3_000_000)?;
    stage.link.lose(0)?;
    let [sent, received] = stage.compare(&busy)?;
    same_as_ss(&stage.link.a, busy.writes.1, &sent)?;
    same_as_ss(&stage.link.b, busy.reads.1, &received)?;
    let retrans = number(&sent, "tcp.retrans").unwrap_or_default();
    ensure!(retrans > 0 && number(&received, "tcp.rcv_ooopack") > Some(0), "nothing was lost: {sent} {received}");
    ensure!(number(&received, "tcp.bytes_received") == Some(3_000_000), "received: {received}");

    // the queue of a listener
    stage.writer.socket(Order::Connect(stage.listener.1))?;
    let all = records(&stage.link.b)?;
    let listener = all.iter().find(|record| record["state"] == "LISTEN").context("no listener")?;
    ensure!(
        number(listener, "listener.queue") == Some(1) && listener["tcp"].is_null() && listener["verdict"].is_null(),
        "one connection waits: {listener}"
    );
    Ok(Verdict::Passed(format!("{retrans} retransmitted, {} readings amid them", amid.len())))
}

/// Compares a connection that changes meanwhile.
fn in_motion(stage: &mut Stage, connection: &Connection) -> Result<()> {
    let before = stage.writer.tcp_info(connection.writes.0)?;
    let record = record(&stage.link.a, connection.writes.1)?;
    let after = stage.writer.tcp_info(connection.writes.0)?;
    between(&record, &stage.writer.who, &before, &after)
}

/// The verdict is the one that was set up.
pub fn verdicts(_set: Set, family: Family) -> Outcome {
    let mut stage = Stage::new(family)?;

    let never_used = stage.connect()?;
    let verdict = stage.verdict(&never_used)?;
    ensure!(verdict == ["idle"], "nothing was sent: {verdict:?}");

    // a process that reads little
    let slow = stage.connect()?;
    stage.reader.done(Order::Drain(slow.reads.0, 1000, 100))?;
    stage.writer.done(Order::Pour(slow.writes.0, 100_000_000, 100_000))?;
    stage.until(&slow, "limited by the receiver", |info| {
        info.counter("busy_us") > 1_000_000 && info.counter("rwnd_limited_us") * 10 > info.counter("busy_us") * 6
    })?;
    let receiver = record(&stage.link.a, slow.writes.1)?;
    ensure!(verdict_of(&receiver)? == ["receiver"], "the peer does not read: {receiver}");
    let because = &receiver["because"][0];
    let share = because["is"].as_f64().context("no share")?;
    ensure!(because["what"] == "rwnd_limited_us/busy_us" && share > 0.5, "because: {receiver}");

    // a link that loses
    let lossy = stage.connect()?;
    stage.reader.done(Order::Drain(lossy.reads.0, 1 << 16, 0))?;
    stage.link.lose(10)?;
    stage.writer.done(Order::Pour(lossy.writes.0, 300_000_000, 100_000))?;
    // Behind a hole, segments fill the receiver's window too. The kernel counts that as limited by the receiver.
    stage.until(&lossy, "retransmissions", |info| {
        let lost = info.counter("retrans") > 20 && info.counter("bytes_retrans") * 50 > info.counter("bytes_sent");
        // Long enough that the shares no longer change much until xctl reads them.
        let busy_us = info.counter("busy_us");
        lost && busy_us > 500_000 && info.counter("rwnd_limited_us") * 3 < busy_us
    })?;
    let before = stage.writer.tcp_info(lossy.writes.0)?;
    let loss = record(&stage.link.a, lossy.writes.1)?;
    stage.link.lose(0)?;
    let words = verdict_of(&loss)?;
    // a pause between timeouts may be long enough for idle
    let idle = number(&loss, "age_at_least_us").unwrap_or_default() > before.counter("busy_us") * 10;
    ensure!(idle || words.starts_with(&["network".into(), "loss".into()]), "10 % were lost: {loss}");
    Ok(Verdict::Passed(format!("receiver {share:.2}, {}", loss["because"])))
}

/// Replaces the queue of `a` by netem with `args`.
pub fn shape(stage: &Stage, args: &str) -> Result<()> {
    shape_of(&stage.link.a, args)
}

/// Replaces the queue of a namespace by netem with `args`.
pub fn shape_of(ns: &Netns, args: &str) -> Result<()> {
    let words = ["-n", &ns.name, "qdisc", "replace", "dev", "veth0", "root", "netem"];
    run(tool("tc").args(words).args(args.split(' ')), "")
}

/// Verdicts that need a queue of a known kind: netem. Each has a link of its own: what one connection leaves in a queue
/// would keep out the handshake of the next.
pub fn with_netem(_set: Set, family: Family) -> Outcome {
    let stage = Stage::new(family)?;
    if let Err(why) = shape(&stage, "delay 1ms") {
        return Ok(Verdict::Skipped(format!("this kernel has no netem: {why:#}")));
    }
    let queue = long_queue(stage)?;
    let dropped = full_queue(Stage::new(family)?)?;
    Ok(Verdict::Passed(format!("{queue}; {dropped} bytes dropped here")))
}

/// A queue that takes everything, and lets 4 Mbit/s through. Returns the numbers of the verdict.
fn long_queue(mut stage: Stage) -> Result<String> {
    let queued = stage.connect()?;
    stage.reader.done(Order::Drain(queued.reads.0, 1 << 16, 0))?;
    shape(&stage, "rate 4mbit limit 10000")?;
    stage.writer.done(Order::Pour(queued.writes.0, 300_000_000, 100_000))?;
    stage.until(&queued, "a queue", |info| {
        let (rtt, min) = (info.gauges["rtt.srtt_us"], info.gauges["rtt.min_us"]);
        info.counter("busy_us") > 500_000 && rtt > 3 * min && rtt > min + 30_000
    })?;
    let queue = record(&stage.link.a, queued.writes.1)?;
    ensure!(verdict_of(&queue)? == ["network", "queue"], "a long queue: {queue}");
    Ok(queue["because"].to_string())
}

/// A queue of this host with hardly any room. Returns how many bytes it dropped.
fn full_queue(mut stage: Stage) -> Result<u64> {
    shape(&stage, "delay 5ms limit 3")?;
    let full = stage.connect()?;
    stage.reader.done(Order::Drain(full.reads.0, 1 << 16, 0))?;
    stage.link.one_by_one(&stage.link.a)?;
    stage.writer.done(Order::Pour(full.writes.0, 500_000, 100_000))?;
    stage.rest(&full, 500_000)?;
    let told = stage.writer.tcp_info(full.writes.0)?;
    ensure!(told.refused() > 0, "the queue took everything: {told:?}");
    // long enough for a kernel that does not lock what it reads, and not long enough for idle
    thread::sleep(Duration::from_millis(120));
    let local = record(&stage.link.a, full.writes.1)?;
    let dropped = number(&local, "local_dropped_bytes");
    ensure!(
        dropped == Some(told.refused()),
        "{dropped:?} dropped here, and TCP_INFO tells {}: {local}",
        told.refused()
    );
    let words = verdict_of(&local)?;
    ensure!(words == ["idle"] || words.contains(&"local".into()), "this host dropped: {local}");
    ensure!(number(&local, "tcp.retrans") != Some(0) || !words.contains(&"loss".into()), "nothing was lost: {local}");
    Ok(told.refused())
}
