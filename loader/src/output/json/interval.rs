//! The records of an interval of `xctl top`: its totals, and its rows.

use std::io;
use std::net::IpAddr;

use serde::Serialize;

use super::{FlowFields, TotalsFields};
use crate::ledger::figures::Ledger;
use crate::ledger::group::{By, Group};
use crate::ledger::summary::Process;
use crate::model::events::address;
use crate::output::Interval;

/// A record of an interval.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Record<'a> {
    Interval(IntervalRecord<'a>),
    Process(ProcessRecord<'a>),
    Group(Box<GroupRecord<'a>>),
}

/// Pass on the records of an interval, which ended at this time.
pub(super) fn records<'a>(
    interval: &'a Interval,
    time: &'a str,
    mut print: impl FnMut(Record<'a>) -> io::Result<()>,
) -> io::Result<()> {
    let &Interval { mono_ns, took_us: interval_us, by, ref summary, .. } = interval;
    print(Record::Interval(IntervalRecord { r#type: "interval", time, mono_ns, interval_us, totals: summary.into() }))?;
    for process in &summary.processes {
        print(match by {
            By::Process => Record::Process(ProcessRecord { r#type: "process", time, mono_ns, interval_us, process }),
            _ => Record::Group(Box::new(GroupRecord::new(by, process, time, mono_ns, interval_us))),
        })?;
    }
    Ok(())
}

#[derive(Serialize)]
pub(super) struct IntervalRecord<'a> {
    r#type: &'static str,
    time: &'a str,
    mono_ns: u64,
    interval_us: u64,
    #[serde(flatten)]
    totals: TotalsFields<'a>,
}

#[derive(Serialize)]
pub(super) struct ProcessRecord<'a> {
    r#type: &'static str,
    time: &'a str,
    mono_ns: u64,
    interval_us: u64,
    #[serde(flatten)]
    process: &'a Process,
}

/// A row that does not stand for a process.
#[derive(Serialize)]
pub(super) struct GroupRecord<'a> {
    r#type: &'static str,
    time: &'a str,
    mono_ns: u64,
    interval_us: u64,
    by: &'static str,
    others: Option<u64>,
    #[serde(flatten)]
    connection: Option<GroupConnection<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    remote: Option<IpAddr>,
    #[serde(flatten)]
    cgroup: Option<GroupCgroup<'a>>,
    #[serde(flatten)]
    ledger: &'a Ledger,
}

#[derive(Serialize)]
struct GroupConnection<'a> {
    #[serde(flatten)]
    flow: FlowFields<'a>,
    pid: Option<u32>,
    kernel: bool,
    shared: bool,
    comm: Option<&'a str>,
    uid: Option<u32>,
}

#[derive(Serialize)]
struct GroupCgroup<'a> {
    cgroup: Option<u64>,
    cgroup_path: Option<&'a str>,
}

impl<'a> GroupRecord<'a> {
    fn new(by: By, row: &'a Process, time: &'a str, mono_ns: u64, interval_us: u64) -> Self {
        let Process {
            group,
            pid,
            kernel,
            shared,
            others,
            ref comm,
            uid,
            cgroup,
            ref cgroup_path,
            ref netns_name,
            ref ledger,
            ..
        } = *row;
        let connection = match group {
            Some(Group::Connection(flow, _)) => {
                let flow = FlowFields::new(&flow, netns_name.as_deref());
                Some(GroupConnection { flow, pid, kernel, shared, comm: comm.as_deref(), uid })
            }
            _ => None,
        };
        let remote = match group {
            Some(Group::Remote(remote)) => Some(address(remote)),
            _ => None,
        };
        let has_cgroup = matches!(group, Some(Group::Connection(..) | Group::Cgroup(_)));
        let cgroup = has_cgroup.then_some(GroupCgroup { cgroup, cgroup_path: cgroup_path.as_deref() });
        let (r#type, by) = ("group", by.name());
        Self { r#type, time, mono_ns, interval_us, by, others, connection, remote, cgroup, ledger }
    }
}
