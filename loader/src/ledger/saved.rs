//! Records that a run printed as JSON, read back: its summary, or what its other records add up to.

use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;

use super::counters::{Counters, Rtt};
use super::figures::Ledger;
use super::row::{Fates, Row};
use super::summary::{Process, Summary};
use super::verdict::{Verdict, Word};
use crate::model::events::{Flow, KINDS, Kind};
use crate::model::lost::Lost;

/// A line of a run's output. Fields and records that this program does not know are left out.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Record {
    /// The beginning of a run.
    Ready(Ready),
    /// A retransmit.
    Retransmit(Retransmit),
    /// The end of a connection.
    Connection(Box<Connection>),
    /// The end of a run.
    Summary(Box<Totals>),
    /// Another record.
    #[serde(other)]
    Other,
}

/// The fields of `ready` that a report shows.
#[derive(Debug, Deserialize)]
pub struct Ready {
    /// The version of the format.
    pub schema: u32,
    /// The set of hooks.
    pub attach: String,
    /// The version of xctl.
    pub version: String,
}

/// The fields of `retransmit` that a report adds up.
#[derive(Debug, Deserialize)]
pub struct Retransmit {
    pid: Option<u32>,
    comm: Option<String>,
    kind: String,
    segs: u64,
    bytes: u64,
    err: i32,
}

/// The fields of `connection` that a report adds up.
#[derive(Debug, Deserialize)]
pub struct Connection {
    pid: Option<u32>,
    comm: Option<String>,
    mono_ns: u64,
    #[serde(flatten)]
    figures: Figures,
}

/// The fields of the ledger that a report shows. They are null or missing if the kernel had no ledger.
#[derive(Debug, Deserialize)]
struct Figures {
    connections: Option<Fates>,
    observed_us: Option<u64>,
    complete: Option<bool>,
    tcp: Option<Counters>,
    local_dropped_bytes: Option<u64>,
    rtt: Option<Rtt>,
    verdict: Option<Vec<Word>>,
}

/// The fields of `summary`.
#[derive(Debug, Deserialize)]
pub struct Totals {
    retransmits: u64,
    segs: u64,
    failed: u64,
    kinds: BTreeMap<String, u64>,
    lost: Lost,
    processes: Vec<Of>,
    /// The result of `--verify`: none if it was not asked for, or if something could not be compared.
    pub verified: Option<bool>,
}

/// A row of `processes`.
#[derive(Debug, Deserialize)]
struct Of {
    pid: Option<u32>,
    comm: Option<String>,
    #[serde(default)]
    kernel: bool,
    #[serde(default)]
    shared: bool,
    others: Option<u64>,
    segs: u64,
    bytes: u64,
    retransmits: u64,
    #[serde(flatten)]
    figures: Figures,
}

impl From<Totals> for Summary {
    fn from(saved: Totals) -> Self {
        let mut kinds = [0; KINDS];
        for (kind, segs) in &saved.kinds {
            kinds[place(kind)] += segs;
        }
        Summary {
            retransmits: saved.retransmits,
            segs: saved.segs,
            failed: saved.failed,
            kinds,
            lost: saved.lost,
            processes: saved.processes.into_iter().map(Process::from).collect(),
            ..Summary::default()
        }
    }
}

impl From<Of> for Process {
    fn from(row: Of) -> Self {
        let Of { pid, comm, kernel, shared, others, segs, bytes, retransmits, figures } = row;
        Process {
            pid,
            comm,
            kernel,
            shared,
            others,
            segs,
            bytes,
            retransmits,
            ledger: figures.into(),
            ..Process::default()
        }
    }
}

impl From<Figures> for Ledger {
    fn from(saved: Figures) -> Self {
        let local_bytes = saved.local_dropped_bytes;
        Ledger {
            connections: saved.connections,
            observed_us: saved.observed_us,
            complete: saved.complete,
            tcp: saved.tcp.map(|tcp| Counters { local_bytes, ..tcp }),
            rtt: saved.rtt.map(Into::into),
            judged: saved.verdict.map(|words| Verdict { words, checks: Vec::new() }),
            ..Ledger::default()
        }
    }
}

/// The place of a kind in tables by kind. A kind that this program does not know counts as `other`.
fn place(name: &str) -> usize {
    Kind::ALL.iter().find(|kind| kind.name() == name).copied().unwrap_or(Kind::Other) as usize
}

/// A process as its records name it.
type Name = (Option<u32>, Option<String>);

/// The sums of the records of a run that has no summary.
#[derive(Debug, Default)]
pub struct Sums {
    kinds: [u64; KINDS],
    failed: u64,
    rows: HashMap<Name, (Process, Row)>,
    last_ns: u64,
}

impl Sums {
    /// Whether no record was added.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.failed == 0
    }

    fn row(&mut self, pid: Option<u32>, comm: Option<String>) -> &mut (Process, Row) {
        let of = || (Process { pid, comm: comm.clone(), ..Process::default() }, Row::default());
        self.rows.entry((pid, comm.clone())).or_insert_with(of)
    }

    /// Add a retransmit.
    pub fn retransmit(&mut self, record: Retransmit) {
        if record.err != 0 {
            self.failed += 1;
            return;
        }
        self.kinds[place(&record.kind)] += record.segs;
        let (process, _) = self.row(record.pid, record.comm);
        process.segs += record.segs;
        process.bytes += record.bytes;
        process.retransmits += 1;
    }

    /// Add the end of a connection.
    pub fn connection(&mut self, record: Connection) {
        let Connection { pid, comm, mono_ns, figures } = record;
        let Figures { connections: Some(fates), tcp: Some(tcp), .. } = figures else { return };
        self.last_ns = self.last_ns.max(mono_ns);
        let needless = tcp.dsack_dups.min(tcp.retrans);
        let more = Row {
            fates,
            counters: Counters { needless, local_bytes: figures.local_dropped_bytes, ..tcp },
            complete: figures.complete == Some(true),
            rtt: figures.rtt.map(|rtt| (rtt, Flow::default())),
            since_ns: mono_ns.saturating_sub(figures.observed_us.unwrap_or(0).saturating_mul(1000)),
            ..Row::default()
        };
        self.row(pid, comm).1.add(&more);
    }

    /// The summary of these records. What the kernel lost is not known.
    #[must_use]
    pub fn summary(self) -> Summary {
        let mut summary = Summary { kinds: self.kinds, failed: self.failed, ..Summary::default() };
        for (mut process, row) in self.rows.into_values() {
            summary.segs += process.segs;
            summary.retransmits += process.retransmits;
            if row.fates != Fates::default() {
                process.ledger = Ledger::new(&row, self.last_ns);
            }
            summary.processes.push(process);
        }
        summary.sort();
        summary
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(line: &str) -> Record {
        serde_json::from_str(line).unwrap()
    }

    #[test]
    fn records_add_up_to_what_a_summary_would_say() {
        let mut sums = Sums::default();
        for (segs, err) in [(3, 0), (2, 0), (9, -11)] {
            let line = format!(
                r#"{{"type":"retransmit","pid":7,"comm":"x","kind":"tlp","segs":{segs},"bytes":10,"err":{err},"new":{{}}}}"#
            );
            let Record::Retransmit(retransmit) = record(&line) else { panic!("{line}") };
            sums.retransmit(retransmit);
        }
        let counters = Counters { bytes_sent: 50, dsack_dups: 3, retrans: 1, ..Counters::ZERO };
        let tcp = serde_json::to_string(&counters).unwrap();
        for observed_us in [1, 4] {
            let line = format!(
                r#"{{"type":"connection","pid":7,"comm":"x","mono_ns":5000,"complete":true,"observed_us":{observed_us},
                "connections":{{"open":0,"ended":1,"reset":1,"timed_out":0,"refused":0}},"tcp":{tcp},"rtt":null}}"#
            );
            let Record::Connection(connection) = record(&line) else { panic!("{line}") };
            sums.connection(*connection);
        }
        let summary = sums.summary();
        assert_eq!((summary.segs, summary.retransmits, summary.failed), (5, 2, 1));
        assert_eq!(summary.kinds[Kind::Tlp as usize], 5);
        let [process] = &summary.processes[..] else { panic!("{summary:?}") };
        let ledger = &process.ledger;
        assert_eq!((process.pid, process.segs, process.bytes), (Some(7), 5, 20));
        assert_eq!((ledger.tcp.unwrap().bytes_sent, ledger.tcp.unwrap().needless), (100, 2));
        assert_eq!((ledger.connections.unwrap().reset, ledger.observed_us, ledger.complete), (2, Some(4), Some(true)));
    }

    #[test]
    fn a_record_that_is_not_known_is_left_out_and_a_broken_one_is_not() {
        assert!(matches!(record(r#"{"type":"weather","rain":true}"#), Record::Other));
        assert!(serde_json::from_str::<Record>(r#"{"type":"retransmit","pid":"seven"}"#).is_err());
    }
}
