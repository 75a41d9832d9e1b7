//! There are more connections than SOCKET_TO_PID has room for. Known owners are right, and unknown owners are counted.

use std::collections::HashMap;

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;

use super::lossy_link::nothing_is_missing;
use crate::counters::{Counters, connections, unacknowledged};
use crate::crowd::{Job, Member};
use crate::host::{Set, crowd, is_guest};
use crate::link::Link;
use crate::map::{self, Entry};
use crate::missed::{Witness, program_misses};
use crate::process::{PATIENCE, poll};
use crate::workers::{Flow, Puppet, Who};
use crate::xctl::{Owner, Xctl};
use crate::{Family, Outcome, Verdict};

/// The number of connections of one process: fewer than its limit of open files.
const EACH: usize = 800;
/// One connection of this many sends.
const ONE_IN: usize = 10;
const MANY: usize = 300;

pub fn run(set: Set, family: Family) -> Outcome {
    let (processes, room) = crowd((25, 8192), (2, 512));
    let link = Link::up()?;
    let xctl = Xctl::start(set, &["--max-sockets", &room.to_string(), "--perf-pages", "1024"])?;
    let witness = Witness::of(&xctl.ready.hooks)?;
    let before = (Counters::of(&link.a)?, Counters::of(&link.b)?);
    let mut servers = vec![];
    for number in 0..processes {
        let on = (link.address(&link.b, family), 7000 + u16::try_from(number)?).into();
        let mut server = Member::new(&link.b, &format!("server-{number}"), &Job::Serve { on })?;
        let at = server.said()?;
        servers.push((server, at));
    }
    let mut early = Puppet::new(&link.a, "early", servers[0].1)?;
    let mut holders = vec![];
    for (number, (_, at)) in servers.iter().enumerate() {
        let job = Job::Hold { to: *at, connections: EACH };
        holders.push(Member::new(&link.a, &format!("holder-{number}"), &job)?);
    }
    let mut owners: HashMap<Flow, Who> = HashMap::new();
    for holder in &mut holders {
        owners.extend(holder.said::<Vec<Flow>>()?.into_iter().map(|flow| (flow, holder.who.clone())));
    }
    let mut late = Puppet::new(&link.a, "late", servers[0].1)?;
    let (early_flow, late_flow) = (early.truth.flow()?, late.truth.flow()?);
    owners.extend([(early_flow, early.truth.who.clone()), (late_flow, late.truth.who.clone())]);
    let made = owners.len();
    // the server has accepted them, too
    ensure!(poll(PATIENCE, || Ok(connections(&link.b)?.len() == made))?, "not {made} connections");

    // a socket without room asks for room at every send, and counts once nevertheless
    (0..MANY).try_for_each(|_| late.send())?;
    let idle = || Ok(unacknowledged(&link.a)?.is_empty());
    ensure!(poll(PATIENCE, idle)?, "not acknowledged");
    link.lose(100)?;
    early.send()?;
    late.send()?;
    for holder in &mut holders {
        holder.order(&format!("each {ONE_IN}"))?;
    }
    let sends = processes * EACH / ONE_IN + 2;
    let sent_again = || Ok(Counters::of(&link.a)?.since(&before.0, "RetransSegs")? >= i64::try_from(sends)?);
    ensure!(poll(PATIENCE, sent_again)?, "not sent again");
    link.lose(0)?;
    ensure!(poll(PATIENCE, idle)?, "not acknowledged");
    let alive = connections(&link.a)?.len() + connections(&link.b)?.len() + servers.len();
    let after = (Counters::of(&link.a)?, Counters::of(&link.b)?);
    let entries = map::entries(xctl.process.pid())?;
    let (skipped, hidden) = (witness.skipped()?, witness.above_pid_1()?);
    let owners_missed = witness.owners_missed(&program_misses(xctl.process.pid())?)?;
    // if no hook shows accept(), an accepted socket that never sends asks for no room
    let ask = if xctl.sees_accept() { alive } else { made + servers.len() };
    let trace = xctl.stop(Signal::SIGINT)?;

    let mut known = 0;
    for record in trace.of(link.a.inode) {
        let flow = record.at.flow();
        let who = owners.get(&flow).with_context(|| format!("nobody made the flow of {record:?}"))?;
        if record.at.owner == Owner::Unknown {
            ensure!(flow != early_flow || owners_missed > 0, "it was there before the map was full: {record:?}");
        } else {
            known += 1;
            record.at.is_of(who, flow)?;
        }
    }
    for record in trace.of(link.b.inode).filter(|record| record.at.owner != Owner::Unknown) {
        let server = servers.iter().find(|(_, at)| at.port() == record.at.sport);
        record.at.is_of(&server.context("of no server")?.0.who, record.at.flow())?;
    }
    for entry in entries.iter().filter(|entry| entry.netns == link.a.inode) {
        let flow = owners.keys().find(|flow| (flow.local.port(), flow.remote.port()) == (entry.sport, entry.dport));
        let who = &owners[flow.with_context(|| format!("nobody made {entry:?}"))?];
        ensure!(who.pid == entry.pid, "this is of {who:?}: {entry:?}");
    }
    let unseen = skipped + hidden + trace.events_told_missed();
    nothing_is_missing(&trace, &link.a, &before.0, &after.0, unseen).context("namespace a")?;
    nothing_is_missing(&trace, &link.b, &before.1, &after.1, unseen).context("namespace b")?;

    let lost = &trace.summary.lost;
    ensure!(lost.perf == 0 && lost.output == 0, "lost: {lost:?}");
    ensure!(lost.unknown > 0, "{sends} of {made} connections sent again, and there was room for {room}: {lost:?}");
    // each living socket that asked for room in vain was counted
    let ours = |entry: &&Entry| {
        [link.a.inode, link.b.inode].contains(&entry.netns)
            || servers.iter().any(|(server, _)| server.who.pid == entry.pid)
    };
    let least = (ask - entries.iter().filter(ours).count()) as u64;
    ensure!(lost.map_full + owners_missed >= least, "{ask} sockets, {least} not in the map: {lost:?}");
    // The upper bound holds if no other process has sockets. The cache has no more room than the map, and may have
    // forgotten that a socket was counted. Then the socket is counted once more when its process sends, and so is the
    // peer's socket when its process reads.
    let most = (alive - entries.len().min(alive) + 2 * sends) as u64;
    ensure!(!is_guest() || lost.map_full <= most, "{alive} sockets, {} in the map: {lost:?}", entries.len());
    ensure!(entries.len() <= room, "{} entries, room for {room}", entries.len());
    Ok(Verdict::Passed(format!(
        "{made} connections, room for {room} sockets; {known} retransmits known, {} unknown; {} not remembered",
        lost.unknown, lost.map_full
    )))
}
