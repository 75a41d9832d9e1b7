//! The default number of sockets that xctl has room for: four times the existing sockets, or 8192 if that is more.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use crate::crowd::{Job, Member};
use crate::host::{Set, is_guest};
use crate::link::Link;
use crate::process::poll;
use crate::workers::Flow;
use crate::xctl::{Xctl, command};
use crate::{Family, Outcome, Verdict};

const LEAST: u64 = 8192;
/// Both sockets of each connection are on this host. The number is lower than a process's limit of open files.
const CONNECTIONS: usize = 750;

pub fn run(set: Set, family: Family) -> Outcome {
    let (few, idle) = default_room(set)?;
    // A guest has few sockets. Some are orphans of earlier cases, which still send unacknowledged data.
    ensure!(!is_guest() || 4 * few < LEAST, "{few} sockets before any are made: the least room is not seen");
    let link = Link::up()?;
    let mut members = vec![];
    for port in [7000, 7001] {
        let on = (link.address(&link.b, family), port).into();
        let mut server = Member::new(&link.b, "server", &Job::Serve { on })?;
        let job = Job::Hold { to: server.said()?, connections: CONNECTIONS };
        let mut holder = Member::new(&link.a, "holder", &job)?;
        holder.said::<Vec<Flow>>()?;
        members.extend([server, holder]);
    }
    let (many, full) = default_room(set)?;
    ensure!(many >= 4 * CONNECTIONS as u64, "{many} sockets after {} connections", 2 * CONNECTIONS);
    Ok(Verdict::Passed(format!("{idle} for {few} sockets, {full} for {many}")))
}

/// The number of sockets on the host, and the number that an xctl without `--max-sockets` has room for. The number of
/// sockets must be the same before and after.
fn default_room(set: Set) -> Result<(u64, u64)> {
    let mut found = None;
    poll(Duration::from_secs(30), || {
        let before = sockets()?;
        let attach = set.to_string();
        let xctl = Xctl::start_command(set, command(&["trace", "--json", "--attach", &attach])?)?;
        let room = xctl.ready.max_sockets;
        xctl.stop(Signal::SIGINT)?;
        found = Some((before, room)).filter(|_| sockets().is_ok_and(|after| after == before));
        Ok(found.is_some())
    })?;
    let (sockets, room) = found.context("sockets come and go on this host")?;
    ensure!(room == LEAST.max(4 * sockets), "room for {room}, and there are {sockets} sockets");
    Ok((sockets, room))
}

/// The number of sockets of the host, as the kernel counts allocated ones.
fn sockets() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/net/sockstat").context("reading /proc/net/sockstat")?;
    let tcp = text.lines().find_map(|line| line.strip_prefix("TCP: ")).context("no TCP in it")?;
    let alloc = tcp.split_once("alloc ").and_then(|(_, rest)| rest.split(' ').next()).context("no alloc in it")?;
    alloc.parse().with_context(|| format!("it says {tcp}"))
}
