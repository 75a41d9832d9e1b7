//! A run of `xctl top` over time: the values of a picture, from the records of its intervals.

use bpf_object::sort;
use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::saved::{Interval, Ready};
use super::summary::Process;

/// The most intervals of a run, and the most records of processes in them. A picture shows no more detail.
const MOST_INTERVALS: usize = 4096;
const MOST_RECORDS: usize = 1 << 18;

/// The processes that one row of records stands for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// The process id, if it is one process.
    pub pid: Option<u32>,
    /// Its name; or what stands in place of a process.
    pub name: String,
}

impl Key {
    fn of(process: &Process) -> Self {
        let name = match (&process.comm, process.kernel, process.shared, process.others) {
            (Some(comm), ..) => comm,
            (None, true, ..) => "(kernel)",
            (None, _, true, _) => "(shared)",
            (None, _, _, Some(_)) => "(exited processes)",
            (None, ..) => "(unknown)",
        };
        Self { pid: process.pid, name: name.to_owned() }
    }
}

/// The figures of a process in an interval. None: not known, or there is none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// The number of the interval, from 0 on.
    pub interval: usize,
    /// The share of the sent bytes that were sent again, percent. None: nothing was sent.
    pub again: Option<f64>,
    /// The smoothed round-trip time above the least one, milliseconds.
    pub above_ms: Option<f64>,
    /// How much of the interval the receiver, the send buffer and the network set the pace, percent, summed over the
    /// connections of the process. So a sum may be above 100.
    pub limits: Option<[f64; 3]>,
}

/// A process over time.
#[derive(Debug, Default, PartialEq)]
pub struct Line {
    /// Payload bytes that were sent, and those of them that were sent again.
    pub sent: u64,
    /// The bytes that were sent again.
    pub again: u64,
    /// The figures, in the order of time.
    pub points: Vec<Point>,
    /// The words of the verdict about the whole run; none if the run has no summary.
    pub verdict: Option<String>,
}

/// A run over time.
#[derive(Debug, Default)]
pub struct Timeline {
    /// The version of xctl and the hooks.
    pub about: String,
    /// The end of the last interval, RFC 3339.
    pub time: String,
    /// The end of each interval, seconds after the beginning of the first.
    pub ends: Vec<f64>,
    /// What was lost: names and counts.
    pub lost: Vec<(String, u64)>,
    /// The processes.
    pub lines: BTreeMap<Key, Line>,
    /// Whether its rows stand for something other than processes (`--by`).
    pub has_groups: bool,
    /// The length of the last interval, microseconds.
    last_us: u64,
    records: usize,
}

/// `part` of `all`, percent; none: there is no whole.
fn percent(part: u64, all: u64) -> Option<f64> {
    (all > 0).then(|| part as f64 * 100.0 / all as f64)
}

impl Timeline {
    /// The beginning of a run.
    #[must_use]
    pub fn begin(ready: &Ready) -> Self {
        Self { about: format!("xctl {}, hooks {}", ready.version, ready.attach), ..Self::default() }
    }

    /// Add an interval. Records of its processes follow.
    ///
    /// # Errors
    /// If there are too many.
    pub fn interval(&mut self, interval: &Interval) -> Result<(), String> {
        if self.ends.len() == MOST_INTERVALS {
            return Err(format!("the run has more than {MOST_INTERVALS} intervals: use a longer --interval"));
        }
        let before = self.ends.last().copied().unwrap_or(0.0);
        self.last_us = interval.interval_us;
        self.ends.push(before + interval.interval_us as f64 / 1e6);
        self.time.clone_from(&interval.time);
        let lost = interval.lost.entries().into_iter();
        let lost = lost.filter_map(|(name, count)| Some((name.to_owned(), count.filter(|count| *count > 0)?)));
        self.lost = lost.collect();
        Ok(())
    }

    /// Add the figures of a process in the last interval.
    ///
    /// # Errors
    /// If there are too many, or if no interval came before.
    pub fn process(&mut self, process: &Process) -> Result<(), String> {
        self.records += 1;
        if self.records > MOST_RECORDS {
            return Err(format!("the run has more than {MOST_RECORDS} records of processes"));
        }
        let Some(interval) = self.ends.len().checked_sub(1) else {
            return Err("the record `process` is of no interval".into());
        };
        let tcp = process.ledger.tcp;
        let (sent, again) = tcp.map_or((0, 0), |tcp| (tcp.bytes_sent, tcp.bytes_retrans));
        let rtt = process.ledger.rtt.as_ref().map(|worst| worst.rtt);
        let above_us = rtt.and_then(|rtt| Some(rtt.srtt_us?.saturating_sub(rtt.min_us?)));
        let limits = tcp.filter(|_| self.last_us > 0).map(|tcp| {
            let rest = tcp.busy_us.saturating_sub(tcp.rwnd_limited_us).saturating_sub(tcp.sndbuf_limited_us);
            [tcp.rwnd_limited_us, tcp.sndbuf_limited_us, rest].map(|us| us as f64 * 100.0 / self.last_us as f64)
        });
        let line = self.lines.entry(Key::of(process)).or_default();
        (line.sent, line.again) = (line.sent.saturating_add(sent), line.again.saturating_add(again));
        let above_ms = above_us.map(|us| us as f64 / 1e3);
        line.points.push(Point { interval, again: percent(again, sent), above_ms, limits });
        Ok(())
    }

    /// Add the verdict about a process in the whole run.
    pub fn verdict(&mut self, process: &Process) {
        let judged = process.ledger.judged.as_ref();
        if let (Some(line), Some(judged)) = (self.lines.get_mut(&Key::of(process)), judged) {
            let words: Vec<_> = judged.words.iter().map(|word| word.name()).collect();
            line.verdict = Some(words.join(", "));
        }
    }

    /// The processes, the worst first.
    #[must_use]
    pub fn worst(&self) -> Vec<(&Key, &Line)> {
        let mut lines: Vec<_> = self.lines.iter().collect();
        sort::by_key(&mut lines, |(key, line)| (Reverse((line.again, line.sent)), *key));
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::counters::{Counters, Rtt};
    use crate::ledger::figures::Ledger;
    use crate::model::lost::Lost;

    fn process(pid: u32, sent: u64, again: u64) -> Process {
        let tcp = Counters {
            bytes_sent: sent,
            bytes_retrans: again,
            busy_us: 900,
            rwnd_limited_us: 300,
            ..Counters::default()
        };
        let rtt = Rtt { srtt_us: Some(3000), min_us: Some(1000), var_us: None };
        let ledger = Ledger { tcp: Some(tcp), rtt: Some(rtt.into()), ..Ledger::default() };
        Process { pid: Some(pid), comm: Some("x".into()), ledger, ..Process::default() }
    }

    fn interval(time: &str, interval_us: u64, perf: u64) -> Interval {
        Interval { time: time.into(), interval_us, lost: Lost { perf, ..Lost::default() } }
    }

    #[test]
    fn figures_belong_to_the_interval_before_them() {
        let mut run = Timeline::default();
        assert!(run.process(&process(1, 1, 1)).unwrap_err().contains("no interval"));
        run.interval(&interval("a", 2000, 0)).unwrap();
        run.process(&process(1, 1000, 25)).unwrap();
        run.process(&process(2, 0, 0)).unwrap();
        run.interval(&interval("b", 1000, 7)).unwrap();
        run.process(&process(2, 10, 10)).unwrap();
        assert_eq!((run.time.as_str(), run.ends.len()), ("b", 2));
        assert_eq!(run.lost, [("perf".to_owned(), 7)]);
        let worst = run.worst();
        assert_eq!(worst.iter().map(|(key, _)| key.pid).collect::<Vec<_>>(), [Some(1), Some(2)]);
        let point = Point { interval: 0, again: Some(2.5), above_ms: Some(2.0), limits: Some([15.0, 0.0, 30.0]) };
        assert_eq!(worst[0].1.points, [point]);
        assert_eq!(worst[1].1.points[0].again, None);
        assert_eq!((worst[1].1.points[1].interval, worst[1].1.points[1].again), (1, Some(100.0)));
    }

    #[test]
    fn a_run_is_bounded() {
        let mut run = Timeline::default();
        for _ in 0..MOST_INTERVALS {
            run.interval(&interval("a", 1, 0)).unwrap();
        }
        assert!(run.interval(&interval("a", 1, 0)).unwrap_err().contains("--interval"));
        for _ in 0..MOST_RECORDS {
            run.process(&process(1, 1, 1)).unwrap();
        }
        assert!(run.process(&process(1, 1, 1)).is_err());
    }
}
