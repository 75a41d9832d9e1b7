//! JSON lines, version 1 of the event format.

use std::io::{self, Write};
use std::net::IpAddr;

use serde::Serialize;

use super::summary::{Lost, Process, Summary};
use super::{Moment, Output, Ready};
use crate::events::{Flow, KINDS, Kind, Owner, Retransmit, Send, address, comm, state_name};
use crate::hooks;
use crate::kernel::calendar::rfc3339;
use crate::verify::{self, Report};

/// Version of the event format.
pub(super) const SCHEMA: u32 = 1;

/// Prints one object a line.
pub struct Json<W> {
    out: W,
}

impl<W: Write> Json<W> {
    /// To this writer.
    pub fn new(out: W) -> Self {
        Self { out }
    }

    fn line(&mut self, record: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut self.out, record)?;
        self.out.write_all(b"\n")
    }
}

#[derive(Serialize)]
pub(super) struct FlowFields {
    family: &'static str,
    saddr: IpAddr,
    sport: u16,
    daddr: IpAddr,
    dport: u16,
    netns: u32,
}

impl From<&Flow> for FlowFields {
    fn from(flow: &Flow) -> Self {
        let saddr = address(flow.saddr);
        Self {
            family: if saddr.is_ipv4() { "ipv4" } else { "ipv6" },
            saddr,
            sport: flow.sport,
            daddr: address(flow.daddr),
            dport: flow.dport,
            netns: flow.netns,
        }
    }
}

#[derive(Serialize)]
struct OwnerFields {
    pid: Option<u32>,
    comm: Option<String>,
    tid: Option<u32>,
    uid: Option<u32>,
    cgroup: Option<u64>,
    owner: &'static str,
    exited: bool,
}

impl OwnerFields {
    fn new(owner: &Owner, exited: bool) -> Self {
        let process = owner.is_process().then_some(owner);
        Self {
            pid: process.map(|owner| owner.tgid),
            comm: process.map(|owner| comm(&owner.comm)),
            tid: process.map(|owner| owner.tid),
            uid: process.map(|owner| owner.uid),
            cgroup: process.map(|owner| owner.cgroup),
            owner: owner.how().name(),
            exited,
        }
    }
}

#[derive(Serialize)]
struct CurrentFields {
    pid: u32,
    comm: String,
}

#[derive(Serialize)]
struct RetransmitRecord {
    r#type: &'static str,
    time: String,
    mono_ns: u64,
    kind: &'static str,
    segs: u32,
    bytes: u32,
    err: i32,
    fin: bool,
    state: String,
    #[serde(flatten)]
    flow: FlowFields,
    #[serde(flatten)]
    owner: OwnerFields,
    current: CurrentFields,
    srtt_us: Option<u32>,
    cwnd: Option<u32>,
    ssthresh: Option<u32>,
    mss: Option<u32>,
    cpu: u32,
    sk_retrans: u32,
}

#[derive(Serialize)]
struct SendRecord {
    r#type: &'static str,
    time: String,
    mono_ns: u64,
    bytes: u64,
    #[serde(flatten)]
    flow: FlowFields,
    #[serde(flatten)]
    owner: OwnerFields,
    cpu: u32,
}

#[derive(Serialize)]
struct HookFields {
    hook: hooks::Kind,
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

/// `serialize_with` hands over a reference to the field, which is one already.
fn by_name<S: serde::Serializer>(kinds: &&[u64; KINDS], to: S) -> Result<S::Ok, S::Error> {
    super::summary::by_name(kinds, to)
}

#[derive(Serialize)]
struct SummaryRecord<'a> {
    r#type: &'static str,
    retransmits: u64,
    segs: u64,
    #[serde(serialize_with = "by_name")]
    kinds: &'a [u64; KINDS],
    lost: &'a Lost,
    processes: &'a [Process],
    verified: Option<bool>,
}

#[derive(Serialize)]
struct VerifyRecord<'a> {
    r#type: &'static str,
    #[serde(flatten)]
    record: &'a verify::Record,
}

impl<W: Write> Output for Json<W> {
    fn ready(&mut self, ready: &Ready<'_>) -> io::Result<()> {
        let hooks = ready.plan.hooks.iter().flat_map(|hook| hook.programs().map(move |program| (hook, program)));
        self.line(&ReadyRecord {
            r#type: if ready.attached { "ready" } else { "loaded" },
            schema: SCHEMA,
            version: env!("CARGO_PKG_VERSION"),
            attach: ready.plan.name,
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

    fn retransmit(&mut self, event: &Retransmit, moment: Moment) -> io::Result<()> {
        // A SYN-ACK goes out before its connection's socket exists.
        let socket = |value| (event.kind() != Kind::Synack).then_some(value);
        self.line(&RetransmitRecord {
            r#type: "retransmit",
            time: rfc3339(moment.realtime_ns),
            mono_ns: event.header.mono_ns,
            kind: event.kind().name(),
            segs: event.segs,
            bytes: event.bytes,
            err: event.err,
            fin: event.fin != 0,
            state: state_name(event.state),
            flow: (&event.flow).into(),
            owner: OwnerFields::new(&event.owner, moment.exited),
            current: CurrentFields { pid: event.current_tgid, comm: comm(&event.current_comm) },
            srtt_us: socket(event.srtt_us),
            cwnd: socket(event.cwnd),
            ssthresh: socket(event.ssthresh),
            mss: socket(event.mss),
            cpu: event.header.cpu,
            sk_retrans: event.sk_retrans,
        })
    }

    fn send(&mut self, event: &Send, moment: Moment) -> io::Result<()> {
        self.line(&SendRecord {
            r#type: "send",
            time: rfc3339(moment.realtime_ns),
            mono_ns: event.header.mono_ns,
            bytes: event.bytes,
            flow: (&event.flow).into(),
            owner: OwnerFields::new(&event.owner, moment.exited),
            cpu: event.header.cpu,
        })
    }

    fn summary(&mut self, summary: &Summary) -> io::Result<()> {
        for record in summary.verify.iter().flat_map(|report| &report.records) {
            self.line(&VerifyRecord { r#type: "verify", record })?;
        }
        self.line(&SummaryRecord {
            r#type: "summary",
            retransmits: summary.retransmits,
            segs: summary.segs,
            kinds: &summary.kinds,
            lost: &summary.lost,
            processes: &summary.processes,
            verified: summary.verify.as_ref().and_then(Report::verified),
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::events::How;
    use serde_json::Value;
    use std::net::Ipv6Addr;

    fn printed(event: &Retransmit, exited: bool) -> Value {
        let mut json = Json::new(Vec::new());
        json.retransmit(event, Moment { realtime_ns: 1_700_000_000_123_456_789, exited }).unwrap();
        assert_eq!(json.out.iter().filter(|&&byte| byte == b'\n').count(), 1);
        serde_json::from_slice(&json.out).unwrap()
    }

    fn event() -> Retransmit {
        let mut event = Retransmit::default();
        event.flow.saddr = "::ffff:10.0.0.1".parse::<Ipv6Addr>().unwrap().octets();
        event.flow.daddr = "::ffff:10.0.0.2".parse::<Ipv6Addr>().unwrap().octets();
        (event.flow.sport, event.flow.dport, event.flow.netns) = (40000, 443, 4_026_531_840);
        event.owner.comm = *b"a\"\\\n\xff\0\0\0\0\0\0\0\0\0\0\0";
        (event.owner.tgid, event.owner.tid, event.owner.how) = (42, 43, How::Send as u8);
        (event.kind, event.state, event.segs, event.mss) = (Kind::Tlp as u8, 1, 3, 1448);
        event
    }

    #[test]
    fn any_name_is_valid_json() {
        let value = printed(&event(), false);
        assert_eq!(value["comm"], "a\"\\\n\u{fffd}");
        assert_eq!(value["time"], "2023-11-14T22:13:20.123456789Z");
        assert_eq!((&value["saddr"], &value["family"]), (&"10.0.0.1".into(), &"ipv4".into()));
        assert_eq!((&value["kind"], &value["state"]), (&"tlp".into(), &"ESTABLISHED".into()));
        assert_eq!((&value["pid"], &value["tid"], &value["mss"]), (&42.into(), &43.into(), &1448.into()));
    }

    #[test]
    fn unknown_is_null_and_so_are_a_syn_acks_measures() {
        let mut event = event();
        event.owner = Owner::default();
        event.kind = Kind::Synack as u8;
        let value = printed(&event, false);
        for field in ["pid", "comm", "tid", "uid", "cgroup", "srtt_us", "cwnd", "ssthresh", "mss"] {
            assert_eq!(value[field], Value::Null, "{field}");
        }
        assert_eq!(value["owner"], "unknown");
    }
}
