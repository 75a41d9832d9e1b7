//! A process writes and exits, and a new process gets its PID. The retransmits of the first process's socket are not the
//! new process's.

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;

use crate::claims::{Claims, Whose};
use crate::counters::{Counters, unacknowledged};
use crate::crowd::{Job, Member};
use crate::host::Set;
use crate::link::{Link, Netns};
use crate::missed::Witness;
use crate::process::now;
use crate::process::{PATIENCE, poll};
use crate::ways::{How::Call, Order, RawActor};
use crate::workers::{Flow, Puppet, Receiver};
use crate::xctl::{Kind, Owner, Xctl};
use crate::{Family, Outcome, Verdict};

pub fn run(set: Set, family: Family) -> Outcome {
    // a link for each process: one link can lose every packet while the other transmits
    let (link, wire) = (Link::up()?, Link::up()?);
    let receiver = Receiver::new(&link.b, "receiver", link.address(&link.b, family), 0)?;
    let other = Receiver::new(&wire.b, "receiver", wire.address(&wire.b, family), 0)?;
    let mut leaver = Puppet::new(&link.a, "leaver", receiver.at)?;
    let (old, old_flow) = (leaver.truth.who.clone(), leaver.truth.flow()?);
    let xctl = Xctl::start(set, &[])?;
    let witness = Witness::of(&[])?;

    let sent_again = |ns: &Netns, times: i64| {
        let before = Counters::of(ns)?;
        let again = || Ok(Counters::of(ns)?.since(&before, "RetransSegs")? >= times);
        ensure!(poll(PATIENCE, again)?, "not sent again");
        Ok(())
    };
    link.lose(100)?;
    leaver.send()?;
    leaver.exit()?;
    let job = Job::Hold { to: other.at, connections: 1 };
    let Some(mut heir) = Member::with_pid(&wire.a, "heir", &job, old.pid)? else {
        return Ok(Verdict::Skipped(format!("no new process got PID {}", old.pid)));
    };
    let flows: Vec<Flow> = heir.said()?;
    let [new_flow] = flows[..] else { anyhow::bail!("one connection expected: {flows:?}") };
    let new = heir.who.clone();
    let born = now()?;
    wire.lose(100)?;
    heir.order("each 1")?;
    sent_again(&wire.a, 1)?;
    sent_again(&link.a, 1)?;
    link.lose(0)?;
    wire.lose(0)?;
    link.quiet()?;
    ensure!(poll(PATIENCE, || Ok(unacknowledged(&wire.a)?.is_empty()))?, "not acknowledged");
    // the new process lives until xctl has printed all records
    let trace = xctl.stop(Signal::SIGINT)?;
    drop(heir);
    if let Some(why) = witness.hidden()? {
        return Ok(Verdict::Skipped(why));
    }

    trace.nothing_lost()?;
    ensure!(old.pid == new.pid && old.comm != new.comm, "not an heir: {old:?}, {new:?}");
    trace.all_of(link.a.inode, &old, old_flow)?;
    trace.all_of(wire.a.inode, &new, new_flow)?;
    let after: Vec<_> = trace.of(link.a.inode).filter(|record| record.mono_ns > born).collect();
    ensure!(!after.is_empty(), "the old one's socket did nothing after the new one was there");
    for record in &after {
        ensure!(record.exited, "its process had exited: {record:?}");
    }
    for record in trace.of(wire.a.inode) {
        ensure!(!record.exited, "its process lives: {record:?}");
    }
    for (ns, who) in [(&link.a, &old), (&wire.a, &new)] {
        let own = |record: &&crate::xctl::OfProcess| {
            record.pid == Some(who.pid) && record.comm.as_deref() == Some(who.comm.as_str())
        };
        let told = trace.summary.processes.iter().find(own).with_context(|| format!("no total of {who:?}"))?;
        let seen = trace.segs(|record| record.at.netns == ns.inode);
        ensure!(told.segs == seen, "{seen} segments: {told:?}");
    }
    Ok(Verdict::Passed(format!("PID {} twice, {} retransmits of the first after that", old.pid, after.len())))
}

/// The new process is born in the same clock tick as the first one, so that /proc says the same of both. A third process
/// keeps the first one's socket open. The case also runs with sockets that xctl learned from /proc.
pub fn in_one_tick(set: Set, _family: Family) -> Outcome {
    let mut notes = vec![];
    for args in [&[][..], &["--seed", "proc"]] {
        let link = Link::up()?;
        let receiver = Receiver::new(&link.b, "receiver", link.address(&link.b, Family::V4), 0)?;
        let mut keeper = RawActor::new(&link.a, "keeper")?;
        let (socket, flow) = keeper.socket(Order::Connect(receiver.at))?;
        let (other, other_flow) = keeper.socket(Order::Connect(receiver.at))?;
        let mut xctl = Xctl::start(set, args)?;
        link.lose(100)?;
        let (first, second) = keeper.succeed(socket, "first", "second")?;
        let mut claims = Claims::default();
        claims.add("its process has exited", &link.a, flow, Kind::Rto, Whose::Of(first, Owner::Send))?;
        claims.exited();
        keeper.child_done(&second, Order::Send(other, Call))?;
        let lives = Whose::Of(second.who.clone(), Owner::Send);
        claims.add("the new one's own", &link.a, other_flow, Kind::Rto, lives)?;
        let born = now()?;
        claims.wait(&mut xctl)?;
        let trace = xctl.stop(Signal::SIGINT)?;
        for record in trace.of(link.a.inode).filter(|record| record.mono_ns > born) {
            ensure!(record.exited == (record.at.flow() == flow), "{args:?}: {record:?}");
        }
        let Verdict::Passed(note) = claims.hold(&trace, "")? else { unreachable!("claims are held or not") };
        notes.push(note);
    }
    Ok(Verdict::Passed(format!("{}; with --seed proc {}", notes[0], notes[1])))
}
