//! `xctl top`, for cases that know what each process was told: the intervals of a run add up to that.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Map, Value};

use super::stats::number;
use crate::host::Set;
use crate::process::Process;
use crate::schema;
use crate::xctl::command;

/// The least number of intervals of a run: with fewer, nothing would be added up.
pub const LEAST: usize = 3;

/// A running `xctl top`.
pub struct Top(Process);

/// The sums of a process's intervals, as one row of a summary. What is open is what the last interval had.
type Rows = BTreeMap<u32, Value>;

impl Top {
    /// Starts it with short intervals, and waits until it is attached.
    pub fn start(set: Set) -> Result<Top> {
        let args = ["top", "--json", "--interval", "0.3", "--max-sockets", "32768", "--attach", &set.to_string()];
        let mut process = Process::start("top", command(&args)?)?;
        let line = process.line()?;
        let ready: Value = schema::record(&line)?;
        ensure!(ready["type"] == "ready" && ready["proven"] == true, "the first record is not `ready`: {line}");
        Ok(Top(process))
    }

    /// Stops it, and adds up its intervals, which must have exactly what its summary has.
    pub fn finish(mut self) -> Result<Rows> {
        self.0.signal(Signal::SIGINT)?;
        let lines = self.0.rest()?;
        let status = self.0.wait()?;
        ensure!(status.code() == Some(0), "xctl top ended with {status} and said {:?}", self.0.errors());
        let records: Vec<Value> = lines.iter().map(|line| schema::record(line)).collect::<Result<_>>()?;
        let (summary, records) = records.split_last().context("it printed nothing")?;
        ensure!(summary["type"] == "summary", "the last record is not `summary`: {summary}");

        let (mut rows, mut intervals, mut segs) = (Rows::new(), 0, 0);
        let mut last = Value::Null;
        for record in records {
            match record["type"].as_str() {
                Some("interval") => {
                    intervals += 1;
                    segs += number(record, "segs").context("an interval without segs")?;
                    let follows = record["mono_ns"].as_u64() > last["mono_ns"].as_u64();
                    ensure!(follows, "it does not follow the one before: {record}");
                    last = record.clone();
                    rows.values_mut().for_each(|row| row["connections"]["open"] = 0.into());
                }
                Some("process") => {
                    let same = |field: &str| record[field] == last[field];
                    ensure!(same("mono_ns") && same("interval_us"), "it is of another interval than {last}: {record}");
                    let Some(pid) = record["pid"].as_u64() else { continue };
                    // A process that only repeated SYN-ACKs in an interval has no figures in it.
                    let observed = number(record, "observed_us");
                    ensure!(observed.is_some() || record["tcp"].is_null(), "observed_us is null: {record}");
                    let most = number(record, "interval_us").context("interval_us")?;
                    ensure!(observed.unwrap_or(0) <= most, "it was observed for longer than the interval: {record}");
                    let row = rows.entry(u32::try_from(pid)?).or_insert_with(|| Value::Object(Map::new()));
                    for part in ["tcp", "connections", "cuts"] {
                        add(&mut row[part], &record[part], part == "connections");
                    }
                    if observed.is_some() {
                        row["complete"] = record["complete"].clone();
                    }
                }
                _ => anyhow::bail!("neither interval nor process: {record}"),
            }
        }
        ensure!(intervals >= LEAST, "only {intervals} intervals");
        ensure!(number(summary, "segs") == Some(segs), "the intervals have {segs} segments: {summary}");
        for process in summary["processes"].as_array().context("processes")? {
            let Some(pid) = process["pid"].as_u64() else { continue };
            let row = rows.get(&u32::try_from(pid)?).with_context(|| format!("in no interval: {process}"))?;
            for part in ["tcp", "connections", "cuts"] {
                let (mut all, mut told) = (row[part].clone(), process[part].clone());
                // null as soon as one interval has a cut of unknown reason
                for either in [&mut all, &mut told].into_iter().filter_map(Value::as_object_mut) {
                    either.retain(|name, _| !["ecn", "local", "probe"].contains(&name.as_str()));
                }
                let same = all == told;
                ensure!(
                    same,
                    "{part} of {pid} is {} in all intervals, and in the summary {}",
                    row[part],
                    process[part]
                );
            }
        }
        Ok(rows)
    }
}

/// Adds each number of `more`. With `gauge`, the number of open connections replaces the one before.
pub fn add(to: &mut Value, more: &Value, gauge: bool) {
    for (name, more) in more.as_object().into_iter().flatten() {
        to[name] = match (to[name].as_u64(), more.as_u64()) {
            (Some(before), Some(more)) if !gauge || name != "open" => (before + more).into(),
            _ => more.clone(),
        };
    }
}
