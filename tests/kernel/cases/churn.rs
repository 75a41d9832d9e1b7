//! Thousands of short connections share a few hundred four-tuples over a lossy link. Each retransmit names the process that
//! had the four-tuple at that time. In the end xctl remembers exactly the sockets that are left.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::signal::Signal;

use super::lossy_link::nothing_is_missing;
use crate::counters::{Counters, connections, unacknowledged};
use crate::crowd::{Job, Life, Member};
use crate::host::{Set, crowd};
use crate::link::Link;
use crate::map::{self, Entry};
use crate::missed::{Witness, program_misses};
use crate::process::{PATIENCE, poll};
use crate::workers::{Flow, Puppet, Who};
use crate::xctl::{Kind, Owner, Retransmit, Xctl};
use crate::{Family, Outcome, Verdict};

const PROCESSES: usize = 20;
/// The number of connections that each churner has at a time.
const THREADS: usize = 4;
/// The range of local ports. With two servers, there are twice as many four-tuples.
const PORTS: &str = "40000 40299";
const SERVERS: usize = 2;
const LONG_LIVED: usize = 4;

pub fn run(set: Set, family: Family) -> Outcome {
    let all = crowd(20_000, 2_000);
    let link = Link::up()?;
    for ns in [&link.a, &link.b] {
        ns.set("ip_local_port_range", PORTS)?;
        // a port may be used again a second after its connection's end, while the connection is in TIME_WAIT
        ns.set("tcp_tw_reuse", "1")?;
        ns.set("tcp_fin_timeout", "2")?;
    }
    let xctl = Xctl::start(set, &[])?;
    let witness = Witness::of(&xctl.ready.hooks)?;
    let (mut servers, mut at) = (vec![], vec![]);
    for number in 0..SERVERS {
        let on = (link.address(&link.b, family), 6000 + u16::try_from(number)?).into();
        let mut server = Member::new(&link.b, &format!("server-{number}"), &Job::Serve { on })?;
        at.push(server.said()?);
        servers.push(server);
    }
    let mut long_lived = (0..LONG_LIVED)
        .map(|number| Puppet::new(&link.a, &format!("long-{number}"), at[number % SERVERS]))
        .collect::<Result<Vec<_>>>()?;
    let mut churners = (0..PROCESSES)
        .map(|number| {
            let job = Job::Churn { to: at[number % SERVERS], connections: all / PROCESSES, threads: THREADS };
            Member::new(&link.a, &format!("churn-{number}"), &job)
        })
        .collect::<Result<Vec<_>>>()?;

    let before = (Counters::of(&link.a)?, Counters::of(&link.b)?);
    link.lose(3)?;
    let mut tuples: Tuples = HashMap::new();
    for puppet in &long_lived {
        tuples.entry(puppet.truth.flow()?).or_default().push((0, 0, puppet.truth.who.clone()));
    }
    let lives = while_sending(&mut long_lived, || {
        churners.iter_mut().try_for_each(|churner| churner.tell("go"))?;
        let lives = churners.iter_mut().map(|churner| Ok((churner.who.clone(), churner.said()?)));
        lives.collect::<Result<Vec<(Who, Vec<Life>)>>>()
    })?;
    for (who, lives) in lives {
        for Life { flow, asked, got } in lives {
            tuples.entry(flow).or_default().push((asked, got, who.clone()));
        }
    }
    drop(churners);
    link.lose(0)?;
    servers.iter_mut().try_for_each(|server| server.order("close"))?;
    for ns in [&link.a, &link.b] {
        let settled = || Ok(connections(ns)?.len() == LONG_LIVED && unacknowledged(ns)?.is_empty());
        ensure!(poll(PATIENCE, settled)?, "not the long-lived connections alone: {:?}", connections(ns)?);
    }
    let after = (Counters::of(&link.a)?, Counters::of(&link.b)?);
    let mut entries = map::entries(xctl.process.pid())?;
    let (skipped, hidden) = (witness.skipped()?, witness.above_pid_1()?);
    let programs = program_misses(xctl.process.pid())?;
    let owners = witness.owners_missed(&programs)?;
    let of = |name: &str| programs.get(name).copied().unwrap_or(0);
    // xctl misses a socket's end if all programs that see the end were skipped
    let ends = hidden + of("tp_state").min(of("tp2_state")) + witness.ends_skipped()?;
    let trace = xctl.stop(Signal::SIGINT)?;

    let lost = &trace.summary.lost;
    let told = lost.missed.unwrap_or(0);
    // A kprobe that was skipped leaves the other probe of its pair alone, which counts in `output`.
    ensure!(lost.perf == 0 && lost.output <= skipped && lost.map_full == 0, "{skipped} skipped, lost: {lost:?}");
    let (mut unknown, mut by_close) = (0, 0);
    for record in trace.of(link.a.inode) {
        let right = owners_at(&tuples, record).with_context(|| format!("nobody made the flow of {record:?}"))?;
        match record.at.owner {
            Owner::Unknown => {
                unknown += 1;
                ensure!(unknown <= owners, "owner unknown, and {owners} were missed: {record:?}");
                continue;
            }
            // if xctl missed connect() and each send(), the opener is known only by its read() or close()
            Owner::Accept | Owner::Read => by_close += 1,
            how => ensure!(matches!(how, Owner::Send | Owner::Connect), "it connects, and sends: {record:?}"),
        }
        ensure!(unknown + by_close <= owners, "known by read() or close() alone, and {owners} were missed: {record:?}");
        let named = right.iter().any(|who| record.at.is_of(who, record.at.flow()).is_ok());
        ensure!(named, "this is of {right:?}: {record:?}");
    }
    for record in trace.of(link.b.inode) {
        let server = at.iter().position(|at| at.port() == record.at.sport);
        let server = &servers[server.with_context(|| format!("of no server: {record:?}"))?];
        if record.at.owner == Owner::Unknown {
            unknown += 1;
            ensure!(unknown <= owners, "owner unknown: {record:?}");
            continue;
        }
        let listens = record.at.owner == Owner::Listen;
        let known = listens || matches!(record.at.owner, Owner::Accept | Owner::Read | Owner::Send);
        ensure!(known && listens == (record.kind == Kind::Synack), "it listens, accepts, reads, and sends: {record:?}");
        record.at.is_of(&server.who, record.at.flow())?;
    }
    let unseen = skipped + hidden + trace.events_told_missed();
    nothing_is_missing(&trace, &link.a, &before.0, &after.0, unseen).context("namespace a")?;
    nothing_is_missing(&trace, &link.b, &before.1, &after.1, unseen).context("namespace b")?;

    // the long-lived connections, seen from both ends, and the listeners
    let mut left = vec![];
    for puppet in &long_lived {
        let flow = puppet.truth.flow()?;
        left.push(entry(link.a.inode, flow, puppet.truth.who.pid));
        let server = &servers[usize::from(flow.remote.port() - 6000)];
        left.push(entry(link.b.inode, flow.reversed(), server.who.pid));
    }
    left.extend(servers.iter().map(|server| Entry { netns: 0, sport: 0, dport: 0, pid: server.who.pid }));
    left.sort_unstable();
    let ours: Vec<u32> = servers.iter().map(|server| server.who.pid).collect();
    entries.retain(|entry| [link.a.inode, link.b.inode].contains(&entry.netns) || ours.contains(&entry.pid));
    let dead: Vec<_> = entries.iter().filter(|entry| !left.contains(entry)).collect();
    ensure!(dead.len() as u64 <= ends, "{} remembered after their end: {:?}", dead.len(), dead[0]);
    let forgotten: Vec<_> = left.iter().filter(|entry| !entries.contains(entry)).collect();
    ensure!(forgotten.len() as u64 <= owners, "not remembered: {forgotten:?}");
    let living = left.len() - forgotten.len();
    ensure!(entries.len() == living + dead.len(), "{left:?} remembered as {entries:?}");
    let dead = dead.len();
    let total = trace.of(link.a.inode).count() + trace.of(link.b.inode).count();
    let shared = tuples.values().map(Vec::len).max().unwrap_or(0);
    Ok(Verdict::Passed(format!(
        "{all} connections, {} tuples, one {shared} times; {total} retransmits, {unknown} unknown; {told} runs skipped, \
         {owners} of them owners', {by_close} known by close(), {dead} not forgotten",
        tuples.len()
    )))
}

/// The owners of each four-tuple, with the times at which they asked for it and got it.
type Tuples = HashMap<Flow, Vec<(u64, u64, Who)>>;

/// The possible owners of the record's four-tuple at the time of the record. They are the last process that had got the
/// four-tuple by then, and processes that were about to get it.
fn owners_at<'a>(tuples: &'a Tuples, record: &Retransmit) -> Option<Vec<&'a Who>> {
    let had = tuples.get(&record.at.flow())?;
    let time = record.mono_ns;
    let last = had.iter().filter(|(_, got, _)| *got <= time).max_by_key(|(_, got, _)| got);
    let about_to = had.iter().filter(|(asked, got, _)| (*asked..*got).contains(&time));
    Some(last.into_iter().chain(about_to).map(|(_, _, who)| who).collect())
}

/// Calls `work` while each of the puppets sends repeatedly.
fn while_sending<T>(puppets: &mut [Puppet], work: impl FnOnce() -> Result<T>) -> Result<T> {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let sending = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                puppets.iter_mut().try_for_each(Puppet::send)?;
                thread::sleep(Duration::from_millis(20));
            }
            Ok(())
        });
        let result = work();
        done.store(true, Ordering::Relaxed);
        sending.join().unwrap_or_else(|_| Err(anyhow!("the sending thread panicked")))?;
        result
    })
}

fn entry(netns: u64, flow: Flow, pid: u32) -> Entry {
    Entry { netns, sport: flow.local.port(), dport: flow.remote.port(), pid }
}
