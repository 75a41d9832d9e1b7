//! Two ACKs that end one handshake arrive on two CPUs at once. Each CPU makes a connection, and one of the two loses the race for
//! the request (`inet_ehash_nolisten()`): it ends at once, and nobody can accept it. It carries the retransmitted SYN-ACKs of the
//! request, as the other one does. The ledger counts each connection once.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, sleep};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

use super::ledger::Expected;
use super::stats::Stage;
use crate::host::{Set, tool};
use crate::link::{Netns, dead};
use crate::missed::Witness;
use crate::packets::{Packets, SynAck};
use crate::process::{PATIENCE, poll};
use crate::ways::{How, Order};
use crate::workers::{cpus, move_to};
use crate::xctl::Xctl;
use crate::{Family, Outcome, Verdict};

/// Requests of a round. The listener's backlog is 64.
const AT_ONCE: u16 = 32;
/// The most rounds. In each, some ten of a hundred requests have a race.
const ROUNDS: u16 = 20;

pub fn run(set: Set, family: Family) -> Outcome {
    let two: Vec<usize> = cpus()?.into_iter().take(2).collect();
    let [one, other] = two[..] else { return Ok(Verdict::Skipped("this machine has one CPU".into())) };
    let mut stage = Stage::new(family)?;
    let absent = dead(family);
    stage
        .link
        .b
        .ip(&format!("neigh replace {absent} lladdr {} nud permanent dev veth0", stage.link.hardware(&stage.link.a)))?;
    let (listener, at) = stage.listener;
    let packets = Packets::new(&stage.link.a, absent, at)?;
    let witness = Witness::of_ends()?;
    let xctl = Xctl::start(set, &["--netns", &stage.link.b.inode.to_string()])?;
    let (mut accepted, mut races) = (vec![], 0);
    for round in 0..ROUNDS {
        let first = 10_000 + round * AT_ONCE;
        for answer in asked_twice(&packets, first..first + AT_ONCE)? {
            twice_at_once(&packets, &packets.ack(answer), [one, other])?;
            let (fd, _) = stage.reader.socket(Order::Accept(listener, How::Call))?;
            // where no hook shows accept(), a read shows the owner
            stage.reader.done(Order::Drain(fd, 1 << 16, 0))?;
            accepted.push(fd);
        }
        races = witness.ends_from("TCP_SYN_RECV", at.port())?;
        if races > 0 {
            break;
        }
    }
    let mut told = vec![];
    let settled = poll(PATIENCE, || {
        let before = std::mem::take(&mut told);
        told = accepted.iter().map(|fd| stage.reader.tcp_info(*fd)).collect::<Result<Vec<_>>>()?;
        sleep(Duration::from_millis(100));
        Ok(before == told && told.iter().all(|told| told.counter("bytes_received") == 1))
    })?;
    ensure!(settled && poll(PATIENCE, || nothing_unread(&stage.link.b))?, "not all has arrived and was read: {told:?}");
    let mut expected = Expected::default();
    expected.open = told.len() as u64;
    told.iter().for_each(|told| expected.count(told, None));
    let trace = xctl.stop(Signal::SIGINT)?;
    if let Some(why) = witness.hidden()? {
        return Ok(Verdict::Skipped(why));
    }
    ensure!(races > 0, "no race in {} handshakes", accepted.len());
    trace.nothing_lost()?;
    // A connection that lost has no owner: if it counted, there would be a second row.
    let [row] = &trace.summary.ledger[..] else { bail!("not one row: {:?}", trace.summary.ledger) };
    ensure!(row.pid == Some(stage.reader.who.pid), "whose row? {row:?}");
    expected.equals(&row.ledger, true)?;
    ensure!(expected.sum("retrans") >= accepted.len() as i64, "not each SYN-ACK was sent twice: {}", row.ledger);
    Ok(Verdict::Passed(format!("{races} races in {} handshakes", accepted.len())))
}

/// Whether the processes of a namespace have read all data that have arrived.
fn nothing_unread(ns: &Netns) -> Result<bool> {
    let output = ns.enter(|| tool("ss").args(["-Htn", "state", "established"]).output().context("starting ss"))?;
    let text = String::from_utf8(output.stdout)?;
    Ok(text.lines().all(|line| line.split_whitespace().next() == Some("0")))
}

/// Asks for connections from these ports, and waits until each answer has come twice.
fn asked_twice(packets: &Packets, ports: std::ops::Range<u16>) -> Result<Vec<SynAck>> {
    ports.clone().try_for_each(|port| packets.send(&packets.syn(port)))?;
    let mut answers: BTreeMap<u16, (SynAck, u32)> = BTreeMap::new();
    let all = poll(PATIENCE, || {
        for answer in packets.answers()? {
            answers.entry(answer.port).or_insert((answer, 0)).1 += 1;
        }
        Ok(ports.clone().all(|port| answers.get(&port).is_some_and(|(_, times)| *times > 1)))
    })?;
    ensure!(all, "not each SYN-ACK came twice: {answers:?}");
    Ok(ports.filter_map(|port| answers.get(&port)).map(|(answer, _)| *answer).collect())
}

/// Sends a packet from both CPUs at the same time. A packet on a veth pair arrives on the CPU that sends it.
fn twice_at_once(packets: &Packets, packet: &[u8], [one, other]: [usize; 2]) -> Result<()> {
    /// The number of threads that are ready.
    const BOTH: u32 = 2;
    let ready = AtomicU32::new(0);
    let send = |cpu: usize| -> Result<()> {
        let moved = move_to(cpu);
        // also after a failure: the other one waits
        ready.fetch_add(1, Ordering::SeqCst);
        moved?;
        while ready.load(Ordering::SeqCst) < BOTH {
            std::hint::spin_loop();
        }
        packets.send(packet)
    };
    thread::scope(|scope| {
        let threads = [one, other].map(|cpu| scope.spawn(move || send(cpu)));
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?)
    })
}
