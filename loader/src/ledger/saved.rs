//! Records that a run printed as JSON, read back: its summary, or what its other records add up to.

use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;

use super::counters::{Counters, Rtt};
use super::figures::{Ledger, Listener, ZeroWindow};
use super::row::{Fates, Row};
use super::summary::{Drops, Process, Seen, Summary};
use super::verdict::{Verdict, Word};
use crate::model::events::{Flow, KINDS, Kind};
use crate::model::lost::Lost;

/// A line of a run's output. Fields and records that this program does not know are left out.
#[derive(Debug)]
pub enum Record {
    /// The beginning of a run.
    Ready(Ready),
    /// A retransmit.
    Retransmit(Retransmit),
    /// The end of a connection.
    Connection(Box<Connection>),
    /// A packet that the host dropped.
    Drop(Box<Drop>),
    /// The end of an interval of `xctl top`.
    Interval(Box<Interval>),
    /// The figures of a process in that interval.
    Process(Box<Of>),
    /// The figures in that interval of something other than a process (`--by`).
    Group,
    /// The end of a run.
    Summary(Box<Totals>),
    /// Another record.
    Other,
}

/// The field that tells which fields a record has.
#[derive(Deserialize)]
struct Typed {
    r#type: String,
}

impl Record {
    /// Read a line. The first pass reads the type alone: serde's own code for tagged records keeps a copy of all fields.
    ///
    /// # Errors
    /// The line is no record.
    pub fn read(line: &[u8]) -> serde_json::Result<Self> {
        let Typed { r#type } = serde_json::from_slice(line)?;
        Ok(match &*r#type {
            "ready" => Record::Ready(serde_json::from_slice(line)?),
            "retransmit" => Record::Retransmit(serde_json::from_slice(line)?),
            "connection" => Record::Connection(serde_json::from_slice(line)?),
            "drop" => Record::Drop(serde_json::from_slice(line)?),
            "interval" => Record::Interval(serde_json::from_slice(line)?),
            "process" => Record::Process(serde_json::from_slice(line)?),
            "group" => Record::Group,
            "summary" => Record::Summary(serde_json::from_slice(line)?),
            _ => Record::Other,
        })
    }
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

/// The fields of `interval` that a picture shows.
#[derive(Debug, Deserialize)]
pub struct Interval {
    /// The end of the interval, RFC 3339.
    pub time: String,
    /// Its length, microseconds.
    pub interval_us: u64,
    /// What was lost since the run began.
    pub lost: Lost,
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

/// The fields that `connection`, `drop` and rows of `processes` have. Each of them lacks some. Those of the ledger are
/// null or missing if the kernel had no ledger.
#[derive(Debug, Deserialize)]
struct Fields {
    pid: Option<u32>,
    comm: Option<String>,
    #[serde(default)]
    kernel: bool,
    #[serde(default)]
    shared: bool,
    others: Option<u64>,
    mono_ns: Option<u64>,
    segs: Option<u64>,
    bytes: Option<u64>,
    retransmits: Option<u64>,
    drops: Option<Drops>,
    connections: Option<Fates>,
    observed_us: Option<u64>,
    complete: Option<bool>,
    tcp: Option<Counters>,
    local_dropped_bytes: Option<u64>,
    rtt: Option<Rtt>,
    listener: Option<Listener>,
    #[serde(default)]
    zero_window: ZeroWindow,
    verdict: Option<Vec<Word>>,
}

/// The end of a connection: the fields that a report adds up.
#[derive(Debug, Deserialize)]
#[serde(try_from = "Fields")]
pub struct Connection {
    mono_ns: u64,
    fields: Fields,
}

impl TryFrom<Fields> for Connection {
    type Error = &'static str;

    fn try_from(fields: Fields) -> Result<Self, Self::Error> {
        Ok(Self { mono_ns: fields.mono_ns.ok_or("missing field `mono_ns`")?, fields })
    }
}

/// A packet that the host dropped: the fields that a report adds up.
#[derive(Debug, Deserialize)]
#[serde(try_from = "Fields")]
pub struct Drop {
    segs: u64,
    fields: Fields,
}

impl TryFrom<Fields> for Drop {
    type Error = &'static str;

    fn try_from(fields: Fields) -> Result<Self, Self::Error> {
        Ok(Self { segs: fields.segs.ok_or("missing field `segs`")?, fields })
    }
}

/// The fields of `summary`.
#[derive(Debug, Deserialize)]
pub struct Totals {
    retransmits: u64,
    segs: u64,
    failed: u64,
    kinds: BTreeMap<String, u64>,
    lost: Lost,
    drops: Option<Drops>,
    /// The processes.
    pub processes: Vec<Of>,
    /// The result of `--verify`: none if it was not asked for, or if something could not be compared.
    pub verified: Option<bool>,
}

/// A row of `processes`, or a `process` record.
#[derive(Debug, Deserialize)]
#[serde(try_from = "Fields")]
pub struct Of(pub Process);

impl TryFrom<Fields> for Of {
    type Error = &'static str;

    fn try_from(fields: Fields) -> Result<Self, Self::Error> {
        let Fields { kernel, shared, others, .. } = fields;
        Ok(Self(Process {
            kernel,
            shared,
            others,
            segs: fields.segs.ok_or("missing field `segs`")?,
            bytes: fields.bytes.ok_or("missing field `bytes`")?,
            retransmits: fields.retransmits.ok_or("missing field `retransmits`")?,
            drops: fields.drops,
            pid: fields.pid,
            comm: fields.comm,
            ledger: Ledger {
                connections: fields.connections,
                observed_us: fields.observed_us,
                complete: fields.complete,
                tcp: fields.tcp.map(|tcp| Counters { local_bytes: fields.local_dropped_bytes, ..tcp }),
                rtt: fields.rtt.map(Into::into),
                listener: fields.listener,
                zero_window: fields.zero_window,
                judged: fields.verdict.map(|words| Verdict { words, checks: Vec::new() }),
                ..Ledger::default()
            },
            ..Process::default()
        }))
    }
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
            seen: Seen { drops: saved.drops.is_some(), ..Seen::default() },
            processes: saved.processes.into_iter().map(|Of(process)| process).collect(),
            ..Summary::default()
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
    /// Whether a packet was dropped.
    drops: bool,
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

    /// Add a packet that the host dropped.
    pub fn drop(&mut self, record: Drop) {
        self.drops = true;
        let (process, _) = self.row(record.fields.pid, record.fields.comm);
        let Drops { packets, segs, bytes } = process.drops.get_or_insert_default();
        *packets += 1;
        *segs = segs.saturating_add(record.segs);
        *bytes = bytes.saturating_add(record.fields.bytes.unwrap_or(0));
    }

    /// Add the end of a connection.
    pub fn connection(&mut self, record: Connection) {
        let Connection { mono_ns, fields } = record;
        let Fields { connections: Some(fates), tcp: Some(tcp), .. } = fields else { return };
        self.last_ns = self.last_ns.max(mono_ns);
        let needless = tcp.dsack_dups.min(tcp.retrans);
        let more = Row {
            fates,
            counters: Counters {
                needless,
                local_bytes: fields.local_dropped_bytes,
                zero_windows: fields.zero_window.times,
                zero_window_us: fields.zero_window.us,
                ..tcp
            },
            complete: fields.complete == Some(true),
            rtt: fields.rtt.map(|rtt| (rtt, Flow::default())),
            since_ns: mono_ns.saturating_sub(fields.observed_us.unwrap_or(0).saturating_mul(1000)),
            ..Row::default()
        };
        self.row(fields.pid, fields.comm).1.add(&more);
    }

    /// The summary of these records. What the kernel lost is not known.
    #[must_use]
    pub fn summary(self) -> Summary {
        // Without a record, nobody knows whether the run had --drops.
        let seen = Seen { drops: self.drops, ..Seen::default() };
        let mut summary = Summary { kinds: self.kinds, failed: self.failed, seen, ..Summary::default() };
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
        Record::read(line.as_bytes()).unwrap()
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
        for bytes in ["null", "1448"] {
            let line = format!(r#"{{"type":"drop","pid":7,"comm":"x","segs":2,"bytes":{bytes},"reason":null}}"#);
            let Record::Drop(dropped) = record(&line) else { panic!("{line}") };
            sums.drop(*dropped);
        }
        let summary = sums.summary();
        assert_eq!(summary.drops(), Some(Drops { packets: 2, segs: 4, bytes: 1448 }));
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
        for (line, why) in [
            (r#"{"type":"retransmit","pid":"seven"}"#, "invalid type"),
            (r#"{"type":"connection","pid":7,"connections":null}"#, "missing field `mono_ns`"),
            (r#"{"pid":7}"#, "missing field `type`"),
            ("7", "invalid type"),
        ] {
            let error = Record::read(line.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(why), "{line}: {error}");
        }
    }

    #[test]
    fn a_row_of_a_summary_without_a_number_is_an_error_and_not_0() {
        let lost = serde_json::to_string(&Lost::default()).unwrap();
        let summary = |row: &str| {
            format!(
                r#"{{"type":"summary","retransmits":1,"segs":1,"failed":0,"kinds":{{}},"lost":{lost},"processes":[{{{row}}}]}}"#
            )
        };
        let fields = [r#""segs":1"#, r#""bytes":2"#, r#""retransmits":3"#];
        assert!(matches!(record(&summary(&fields.join(","))), Record::Summary(_)));
        for (field, name) in fields.iter().zip(["segs", "bytes", "retransmits"]) {
            let without: Vec<_> = fields.iter().filter(|one| *one != field).copied().collect();
            let error = Record::read(summary(&without.join(",")).as_bytes()).unwrap_err().to_string();
            assert!(error.contains(&format!("missing field `{name}`")), "{error}");
        }
    }
}
