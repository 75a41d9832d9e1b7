//! `xctl top --by`: the intervals of each connection, remote address and cgroup add up to what the processes were told.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Map, Value};

use super::filters::{Cgroup, path_of};
use super::ledger::{Expected, end};
use super::stats::{Connection, Stage};
use super::top::{LEAST, add};
use crate::host::Set;
use crate::process::Process;
use crate::schema;
use crate::ways::Order;
use crate::workers::Flow;
use crate::xctl::command;
use crate::{Family, Outcome, Verdict};

/// The sums of a run's intervals by group.
type Groups = BTreeMap<String, Value>;

fn start(set: Set, by: &str, [a, b]: &[String; 2]) -> Result<Process> {
    let set = set.to_string();
    let args = ["top", "--json", "--by", by, "--interval", "0.1", "--netns", a, "--netns", b, "--attach", &set];
    let mut process = Process::start(by, command(&args)?)?;
    let ready: Value = schema::record(&process.line()?)?;
    ensure!(ready["type"] == "ready", "the first record is not `ready`: {ready}");
    Ok(process)
}

/// The name of a record's row: the ends of a connection with the PID of its owner, a remote address, or the path of a cgroup.
fn group(record: &Value) -> Result<String> {
    let text = |name: &str| record[name].as_str().with_context(|| format!("no {name}: {record}"));
    Ok(match text("by")? {
        "remote" => text("remote")?.to_owned(),
        "cgroup" => text("cgroup_path")?.to_owned(),
        _ => {
            let end = |ip: &str, port: &str| -> Result<SocketAddr> {
                Ok(SocketAddr::new(text(ip)?.parse()?, record[port].to_string().parse()?))
            };
            let flow = Flow { local: end("saddr", "sport")?, remote: end("daddr", "dport")? };
            format!("{flow:?} of {}", record["pid"])
        }
    })
}

/// Stops it, and adds up its intervals by group.
fn finish(mut process: Process, by: &str) -> Result<Groups> {
    process.signal(Signal::SIGINT)?;
    let lines = process.rest()?;
    let status = process.wait()?;
    ensure!(status.code() == Some(0), "it ended with {status} and said {:?}", process.errors());
    let (mut groups, mut intervals) = (Groups::new(), 0);
    for line in &lines {
        let record: Value = schema::record(line)?;
        match record["type"].as_str() {
            Some("interval") => {
                intervals += 1;
                groups.values_mut().for_each(|row| row["connections"]["open"] = 0.into());
            }
            Some("group") => {
                ensure!(record["by"] == by && record["others"].is_null(), "not by {by}: {record}");
                let row = groups.entry(group(&record)?).or_insert_with(|| Value::Object(Map::new()));
                for part in ["tcp", "connections"] {
                    add(&mut row[part], &record[part], part == "connections");
                }
                row["complete"] = record["complete"].clone();
            }
            other => ensure!(other == Some("summary"), "neither interval nor group: {record}"),
        }
    }
    ensure!(intervals >= LEAST, "only {intervals} intervals");
    Ok(groups)
}

/// A connection that is older than xctl, one that ends, and one that stays open; each between two cgroups.
pub fn run(set: Set, family: Family) -> Outcome {
    const MORE: u32 = 300_000;
    let Some(root) = Cgroup::root()? else { return Ok(Verdict::Skipped("this host has no cgroup v2".into())) };
    let cgroup = Cgroup::new(root.join(format!("xctl-test-top-{}", std::process::id())))?;
    let mut stage = Stage::new(family)?;
    cgroup.take(stage.writer.who.pid)?;
    stage.link.one_by_one(&stage.link.a)?;
    let old = stage.connect()?;
    let pour = |stage: &mut Stage, connection: &Connection| {
        stage.reader.done(Order::Drain(connection.reads.0, 1 << 16, 0))?;
        stage.writer.done(Order::Pour(connection.writes.0, MORE, 30_000))
    };
    pour(&mut stage, &old)?;
    stage.rest(&old, MORE.into())?;
    let before = stage.settled(&old)?;
    let netns = [&stage.link.a, &stage.link.b].map(|netns| netns.inode.to_string());
    let by = ["connection", "remote", "cgroup"];
    let tops = by.map(|by| start(set, by, &netns).with_context(|| format!("--by {by}")));

    let [open, ended] = [stage.connect()?, stage.connect()?];
    stage.link.lose(5)?;
    stage.writer.done(Order::Pour(old.writes.0, MORE, 30_000))?;
    pour(&mut stage, &open)?;
    pour(&mut stage, &ended)?;
    for (connection, bytes) in [(&old, 2 * MORE), (&open, MORE), (&ended, MORE)] {
        stage.rest(connection, bytes.into())?;
    }
    stage.link.lose(0)?;
    let told = [end(&mut stage, &ended)?, stage.settled(&open)?, stage.settled(&old)?];

    let mut expected: [BTreeMap<String, (Expected, bool)>; 3] = Default::default();
    for (connection, told, before) in
        [(&ended, &told[0], None), (&open, &told[1], None), (&old, &told[2], Some(&before))]
    {
        for (which, (flow, actor)) in
            [(connection.writes.1, &stage.writer), (connection.reads.1, &stage.reader)].into_iter().enumerate()
        {
            let pid = actor.who.pid;
            let names = [format!("{flow:?} of {pid}"), flow.remote.ip().to_string(), path_of(pid)?];
            for (groups, name) in expected.iter_mut().zip(names) {
                let (sums, complete) = groups.entry(name).or_insert_with(|| (Expected::default(), true));
                sums.count(&told[which], before.map(|before| &before[which]));
                let count = if connection.writes.0 == ended.writes.0 { &mut sums.ended } else { &mut sums.open };
                *count += 1;
                *complete &= before.is_none();
            }
        }
    }
    let mut lines = 0;
    for ((by, top), expected) in by.into_iter().zip(tops).zip(&expected) {
        let groups = finish(top?, by).with_context(|| format!("--by {by}"))?;
        let (ours, told): (Vec<_>, Vec<_>) = (groups.keys().collect(), expected.keys().collect());
        ensure!(ours == told, "--by {by} has {ours:?}, and there are {told:?}");
        for (name, (sums, complete)) in expected {
            sums.equals(&groups[name], *complete).with_context(|| format!("--by {by}: {name}"))?;
        }
        lines += groups.len();
    }
    let again: u64 = told.iter().map(|told| told[0].counter("retrans")).sum();
    ensure!(again > 0, "nothing was retransmitted");
    Ok(Verdict::Passed(format!("{lines} groups, {again} segments again")))
}
