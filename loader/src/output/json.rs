//! JSON lines, version 1 of the event format.

mod interval;

use std::borrow::Cow;
use std::io::{self, Write};
use std::net::IpAddr;

use serde::Serialize;

use super::line::Line;
use super::{Interval, Moment, Output, Ready};
use crate::kernel::calendar::Calendar;
use crate::ledger::connection::Connection;
use crate::ledger::figures::Ledger;
use crate::ledger::summary::{self, Drops, Process, Summary};
use crate::model::events::{Cut, Drop, Flow, How, KINDS, Kind, Owner, Retransmit, Send, address, comm, state_name};
use crate::model::hooks::HookKind;
use crate::model::lost::Lost;
use crate::trace::seed::holders::{self, common_name};
use crate::verify::report::{self, Report};

/// The version of the event format.
pub(super) const SCHEMA: u32 = 1;

/// An output that prints one object a line.
pub struct Json<W> {
    out: W,
    line: Line,
    calendar: Calendar,
}

impl<W: Write> Json<W> {
    /// Print to this writer.
    pub fn new(out: W) -> Self {
        Self { out, line: Line::default(), calendar: Calendar::default() }
    }

    fn line(&mut self, record: &impl Serialize) -> io::Result<()> {
        line(&mut self.out, &mut self.line, record)
    }
}

/// Write a record. Its line is put together in `line`, where the one before was: nothing is allocated for it.
fn line(out: &mut impl Write, line: &mut Line, record: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *line, record)?;
    line.write_all(b"\n")?;
    out.write_all(line.take())
}

#[derive(Serialize)]
pub(super) struct FlowFields<'a> {
    family: &'static str,
    saddr: IpAddr,
    sport: u16,
    daddr: IpAddr,
    dport: u16,
    netns: u32,
    netns_name: Option<&'a str>,
}

impl<'a> FlowFields<'a> {
    /// `netns_name` is the name of the network namespace, if it has one.
    pub(super) fn new(flow: &Flow, netns_name: Option<&'a str>) -> Self {
        let saddr = address(flow.saddr);
        Self {
            family: if saddr.is_ipv4() { "ipv4" } else { "ipv6" },
            saddr,
            sport: flow.sport,
            daddr: address(flow.daddr),
            dport: flow.dport,
            netns: flow.netns,
            netns_name,
        }
    }
}

/// The number of holders of a shared socket that are listed; the others are only counted.
const HOLDERS: usize = 8;

#[derive(Serialize)]
struct HolderFields<'a> {
    pid: u32,
    comm: Cow<'a, str>,
}

/// The fields that only a shared socket has.
#[derive(Serialize)]
pub(super) struct HoldersFields<'a> {
    holders: Vec<HolderFields<'a>>,
    more: usize,
}

impl<'a> HoldersFields<'a> {
    pub(super) fn new(owner: &Owner, holders: &'a [holders::Process]) -> Option<Self> {
        let field = |holder: &'a holders::Process| HolderFields { pid: holder.tgid, comm: comm(&holder.comm) };
        (owner.how() == How::Shared).then(|| Self {
            holders: holders.iter().take(HOLDERS).map(field).collect(),
            more: holders.len().saturating_sub(HOLDERS),
        })
    }
}

/// The owner's name, or the common name of all holders of a shared socket.
pub(super) fn name_of<'a>(owner: &'a Owner, holders: &'a [holders::Process]) -> Option<Cow<'a, str>> {
    match owner.how() {
        How::Shared => common_name(holders).map(comm),
        _ => owner.is_process().then(|| comm(&owner.comm)),
    }
}

#[derive(Serialize)]
struct OwnerFields<'a> {
    pid: Option<u32>,
    comm: Option<Cow<'a, str>>,
    tid: Option<u32>,
    uid: Option<u32>,
    cgroup: Option<u64>,
    cgroup_path: Option<&'a str>,
    owner: &'static str,
    exited: bool,
    #[serde(flatten)]
    holders: Option<HoldersFields<'a>>,
}

impl<'a> OwnerFields<'a> {
    fn new(owner: &'a Owner, moment: &Moment<'a>) -> Self {
        let process = owner.is_process().then_some(owner);
        Self {
            pid: process.map(|owner| owner.tgid),
            comm: name_of(owner, moment.holders),
            tid: process.map(|owner| owner.tid),
            uid: process.map(|owner| owner.uid),
            cgroup: process.map(|owner| owner.cgroup),
            cgroup_path: process.and(moment.cgroup_path),
            owner: owner.how().name(),
            exited: moment.exited,
            holders: HoldersFields::new(owner, moment.holders),
        }
    }
}

#[derive(Serialize)]
struct CurrentFields<'a> {
    pid: u32,
    comm: Cow<'a, str>,
}

#[derive(Serialize)]
struct RetransmitRecord<'a> {
    r#type: &'static str,
    time: &'a str,
    mono_ns: u64,
    kind: &'static str,
    segs: u32,
    bytes: u32,
    err: i32,
    fin: bool,
    state: Cow<'static, str>,
    #[serde(flatten)]
    flow: FlowFields<'a>,
    #[serde(flatten)]
    owner: OwnerFields<'a>,
    current: CurrentFields<'a>,
    srtt_us: Option<u32>,
    cwnd: Option<u32>,
    ssthresh: Option<u32>,
    mss: Option<u32>,
    cpu: u32,
    sk_retrans: u32,
}

#[derive(Serialize)]
struct SendRecord<'a> {
    r#type: &'static str,
    time: &'a str,
    mono_ns: u64,
    bytes: u64,
    #[serde(flatten)]
    flow: FlowFields<'a>,
    #[serde(flatten)]
    owner: OwnerFields<'a>,
    cpu: u32,
}

#[derive(Serialize)]
struct CutRecord<'a> {
    r#type: &'static str,
    time: &'a str,
    mono_ns: u64,
    why: Option<&'static str>,
    cwnd: Option<u32>,
    ssthresh: Option<u32>,
    #[serde(flatten)]
    flow: FlowFields<'a>,
    #[serde(flatten)]
    owner: OwnerFields<'a>,
    cpu: u32,
}

#[derive(Serialize)]
struct DropRecord<'a> {
    r#type: &'static str,
    time: &'a str,
    mono_ns: u64,
    reason: Option<&'a str>,
    segs: u32,
    bytes: Option<u32>,
    state: Cow<'static, str>,
    #[serde(flatten)]
    flow: FlowFields<'a>,
    #[serde(flatten)]
    owner: OwnerFields<'a>,
    cpu: u32,
}

#[derive(Serialize)]
struct ConnectionRecord<'a> {
    r#type: &'static str,
    time: &'a str,
    mono_ns: u64,
    state: Cow<'static, str>,
    err: u32,
    #[serde(flatten)]
    flow: FlowFields<'a>,
    #[serde(flatten)]
    owner: OwnerFields<'a>,
    #[serde(flatten)]
    ledger: Ledger,
}

#[derive(Serialize)]
struct HookFields {
    hook: HookKind,
    target: &'static str,
    program: &'static str,
}

#[derive(Serialize)]
struct ReadyRecord<'a> {
    r#type: &'static str,
    schema: u32,
    version: &'static str,
    attach: &'static str,
    hooks: Vec<HookFields>,
    btf: &'a str,
    object_sha256: &'a str,
    max_sockets: u32,
    seeded: usize,
    proven: Option<bool>,
}

/// `serialize_with` passes a reference to the field, and the field is itself a reference.
fn by_name<S: serde::Serializer>(kinds: &&[u64; KINDS], to: S) -> Result<S::Ok, S::Error> {
    summary::by_name(kinds, to)
}

/// The fields of a summary that an interval has too.
#[derive(Serialize)]
struct TotalsFields<'a> {
    retransmits: u64,
    segs: u64,
    failed: u64,
    #[serde(serialize_with = "by_name")]
    kinds: &'a [u64; KINDS],
    lost: &'a Lost,
}

impl<'a> From<&'a Summary> for TotalsFields<'a> {
    fn from(summary: &'a Summary) -> Self {
        let Summary { retransmits, segs, failed, kinds, lost, .. } = summary;
        Self { retransmits: *retransmits, segs: *segs, failed: *failed, kinds, lost }
    }
}

#[derive(Serialize)]
struct SummaryRecord<'a> {
    r#type: &'static str,
    #[serde(flatten)]
    totals: TotalsFields<'a>,
    drops: Option<Drops>,
    processes: &'a [Process],
    verified: Option<bool>,
}

#[derive(Serialize)]
struct VerifyRecord<'a> {
    r#type: &'static str,
    #[serde(flatten)]
    record: &'a report::Comparison,
}

impl<W: Write> Output for Json<W> {
    fn ready(&mut self, ready: &Ready<'_>) -> io::Result<()> {
        let hooks = ready.hooks.iter().flat_map(|hook| hook.programs().map(move |program| (hook, program)));
        self.line(&ReadyRecord {
            r#type: if ready.attached { "ready" } else { "loaded" },
            schema: SCHEMA,
            version: env!("CARGO_PKG_VERSION"),
            attach: ready.attach,
            hooks: hooks
                .map(|(hook, program)| HookFields { hook: hook.kind, target: hook.target_name(), program })
                .collect(),
            btf: ready.btf,
            object_sha256: ready.object_sha256,
            max_sockets: ready.max_sockets,
            seeded: ready.seeded,
            proven: ready.proven,
        })
    }

    fn retransmit(&mut self, event: &Retransmit, moment: Moment<'_>) -> io::Result<()> {
        // A SYN-ACK is sent before the socket of its connection exists.
        let socket = |value| (event.kind() != Kind::Synack).then_some(value);
        let record = RetransmitRecord {
            r#type: "retransmit",
            time: self.calendar.rfc3339(moment.realtime_ns),
            mono_ns: event.header.mono_ns,
            kind: event.kind().name(),
            segs: event.segs,
            bytes: event.bytes,
            err: event.err,
            fin: event.fin != 0,
            state: state_name(event.state),
            flow: FlowFields::new(&event.flow, moment.netns),
            owner: OwnerFields::new(&event.owner, &moment),
            current: CurrentFields { pid: event.current_tgid, comm: comm(&event.current_comm) },
            srtt_us: socket(event.srtt_us),
            cwnd: socket(event.cwnd),
            ssthresh: socket(event.ssthresh),
            mss: socket(event.mss),
            cpu: event.header.cpu,
            sk_retrans: event.sk_retrans,
        };
        line(&mut self.out, &mut self.line, &record)
    }

    fn send(&mut self, event: &Send, moment: Moment<'_>) -> io::Result<()> {
        let record = SendRecord {
            r#type: "send",
            time: self.calendar.rfc3339(moment.realtime_ns),
            mono_ns: event.header.mono_ns,
            bytes: event.bytes,
            flow: FlowFields::new(&event.flow, moment.netns),
            owner: OwnerFields::new(&event.owner, &moment),
            cpu: event.header.cpu,
        };
        line(&mut self.out, &mut self.line, &record)
    }

    fn cut(&mut self, event: &Cut, moment: Moment<'_>) -> io::Result<()> {
        let known = |value| Some(value).filter(|value| *value != 0);
        let record = CutRecord {
            r#type: "cut",
            time: self.calendar.rfc3339(moment.realtime_ns),
            mono_ns: event.header.mono_ns,
            why: event.why().name(),
            cwnd: known(event.cwnd),
            ssthresh: known(event.ssthresh),
            flow: FlowFields::new(&event.flow, moment.netns),
            owner: OwnerFields::new(&event.owner, &moment),
            cpu: event.header.cpu,
        };
        line(&mut self.out, &mut self.line, &record)
    }

    fn dropped(&mut self, event: &Drop, reason: Option<&str>, moment: Moment<'_>) -> io::Result<()> {
        let record = DropRecord {
            r#type: "drop",
            time: self.calendar.rfc3339(moment.realtime_ns),
            mono_ns: event.header.mono_ns,
            reason,
            segs: event.segs,
            bytes: event.payload(),
            state: state_name(event.state),
            flow: FlowFields::new(&event.flow, moment.netns),
            owner: OwnerFields::new(&event.owner, &moment),
            cpu: event.header.cpu,
        };
        line(&mut self.out, &mut self.line, &record)
    }

    fn connection(&mut self, connection: &Connection, moment: Moment<'_>) -> io::Result<()> {
        let record = ConnectionRecord {
            r#type: "connection",
            time: self.calendar.rfc3339(moment.realtime_ns),
            mono_ns: connection.mono_ns,
            state: state_name(connection.state),
            err: connection.err,
            flow: FlowFields::new(&connection.flow, moment.netns),
            owner: OwnerFields::new(&connection.owner, &moment),
            ledger: Ledger::new(&connection.row, connection.mono_ns),
        };
        line(&mut self.out, &mut self.line, &record)
    }

    fn interval(&mut self, interval: &Interval) -> io::Result<()> {
        let time = self.calendar.rfc3339(interval.realtime_ns);
        interval::records(interval, time, |record| line(&mut self.out, &mut self.line, &record))
    }

    fn summary(&mut self, summary: &Summary) -> io::Result<()> {
        for record in summary.verify.iter().flat_map(|report| &report.records) {
            self.line(&VerifyRecord { r#type: "verify", record })?;
        }
        self.line(&SummaryRecord {
            r#type: "summary",
            totals: summary.into(),
            drops: summary.drops(),
            processes: &summary.processes,
            verified: summary.verify.as_ref().and_then(Report::verified),
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests;
