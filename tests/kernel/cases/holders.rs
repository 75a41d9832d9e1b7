//! Sockets that several processes held before xctl started, and that none of them uses. The first is the listener of a
//! server that forks its workers before they accept. The second is a connection whose duplicate a supervisor keeps. The
//! third is a connection with more holders than a record lists.

use std::time::Instant;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;

use super::sockets;
use crate::actors::{Actor, Protocols};
use crate::claims::{Claims, Whose};
use crate::host::Set;
use crate::link::Link;
use crate::process::{PATIENCE, Process};
use crate::ways::{How::Call, Order, RawActor};
use crate::workers::{Flow, Who};
use crate::xctl::{Kind, Xctl, command};
use crate::{Family, Outcome};

/// xctl learns the holders from the kernel's iterator. `xctl sockets` is compared with the same facts.
pub fn by_iterator(set: Set, family: Family) -> Outcome {
    held(set, family, &[], true)
}

/// xctl learns the holders from /proc. `xctl sockets` never asks /proc.
pub fn by_proc(set: Set, family: Family) -> Outcome {
    held(set, family, &["--seed", "proc"], false)
}

fn held(set: Set, family: Family, args: &[&str], list: bool) -> Outcome {
    let link = Link::up()?;
    let mut client = Actor::new(&link.a, "client")?;
    let mut prefork = Actor::new(&link.b, "prefork")?;
    let mut service = Actor::new(&link.b, "service")?;
    let mut supervisor = Actor::new(&link.b, "supervisor")?;
    let (listener, at) = prefork.listen((link.address(&link.b, family), 0).into())?;
    let (door, there) = service.listen((link.address(&link.b, family), 0).into())?;
    client.connect(there, Protocols::Tcp)?;
    let (stored, stored_flow) = service.accept(door)?;
    let mut crowd = RawActor::new(&link.b, "crowd")?;
    let (entrance, here) = crowd.listen(link.address(&link.b, family))?;
    client.connect(here, Protocols::Tcp)?;
    let (crowded, crowded_flow) = crowd.socket(Order::Accept(entrance, Call))?;

    let mut workers = vec![prefork.who.clone()];
    for name in ["worker-1", "worker-2"] {
        workers.push(prefork.fork(name, listener)?.who);
    }
    service.give(stored, &mut supervisor)?;
    let two = vec![service.who.clone(), supervisor.who.clone()];
    let mut many = vec![crowd.who.clone()];
    while many.len() <= Whose::LISTED {
        many.push(crowd.fork("crowd")?.who);
    }
    link.lose_from(&link.b, 100)?;
    let asked = client.ask(at)?.1.reversed();
    service.send(stored)?;
    crowd.done(Order::Send(crowded, Call))?;

    let mut xctl = Xctl::start(set, args)?;
    let attach = set.to_string();
    let text = [&["trace", "--attach", &attach], args].concat();
    let mut text = Process::start("xctl, for people", command(&text)?)?;
    let mut claims = Claims::default();
    let held = [
        ("the listener of all workers", asked, Kind::Synack, workers),
        ("stored by a supervisor", stored_flow, Kind::Rto, two),
        ("held by many", crowded_flow, Kind::Rto, many),
    ];
    for (what, flow, kind, holders) in &held {
        claims.add_since(0, what, &link.b, *flow, *kind, Whose::Shared(holders.clone()));
    }
    claims.wait(&mut xctl)?;
    let mut unread: Vec<_> = held.iter().map(|(_, flow, _, holders)| (*flow, in_words(holders))).collect();
    let end = Instant::now() + PATIENCE;
    while let Some(line) = text.line_until(end)? {
        for (flow, words) in &unread {
            let right = !line.contains(&addresses(*flow)) || line.contains(&format!("      ? shared: {words} "));
            ensure!(right, "it must say {words}: {line}");
        }
        unread.retain(|(flow, _)| !line.contains(&addresses(*flow)));
        if unread.is_empty() {
            break;
        }
    }
    ensure!(unread.is_empty(), "not printed for people: {unread:?}");
    text.signal(Signal::SIGINT)?;
    text.rest()?;
    text.succeed()?;
    if list {
        let listening = Flow { local: at, remote: at };
        for (flow, holders) in [(listening, &held[0].3), (held[1].1, &held[1].3), (held[2].1, &held[2].3)] {
            listed(&link.b, flow, holders)?;
        }
    }
    claims.judge(xctl, if list { "; `xctl sockets` says the same" } else { "" })
}

/// Checks that `xctl sockets` prints the same holders, as JSON and for people.
fn listed(ns: &crate::link::Netns, flow: Flow, holders: &[Who]) -> Result<()> {
    let told = sockets::holders_of(ns, flow)?;
    ensure!(told == Whose::list(holders), "{flow:?} is held by {holders:?}, not {told:?}");
    let output = command(&["sockets", "--netns", &ns.inode.to_string()])?.output()?;
    let (table, words) = (String::from_utf8(output.stdout)?, in_words(holders));
    let start = format!("      ? shared: {words} ");
    let is_right = |line: &&str| line.starts_with(&start) && line.contains(&format!(" {} ", flow.local));
    ensure!(table.lines().filter(is_right).count() >= 1, "no line of {} that says {words}: {table}", flow.local);
    Ok(())
}

/// The holders in words: the name that all share, or two of the PIDs and the number of the others.
fn in_words(holders: &[Who]) -> String {
    if holders.iter().all(|who| who.comm == holders[0].comm) {
        return holders[0].comm.clone();
    }
    let mut pids: Vec<_> = holders.iter().map(|who| who.pid).collect();
    pids.sort_unstable();
    let more = if pids.len() > 2 { format!(",+{}", pids.len() - 2) } else { String::new() };
    format!("{},{}{more}", pids[0], pids[1])
}

fn addresses(flow: Flow) -> String {
    format!("{} -> {}", flow.local, flow.remote)
}
