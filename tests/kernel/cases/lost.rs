//! The ledger: counters of what is lost that no other case makes move.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use super::ends::bpf_objects;
use crate::claims::{Claims, Whose};
use crate::counters::Counters;
use crate::host::{Set, tool};
use crate::link::Link;
use crate::map;
use crate::process::{PATIENCE, nameless_file, poll};
use crate::ways::{Order, RawActor};
use crate::without;
use crate::workers::{Plan, Puppet, Receiver, Sender, send_all, unanswered};
use crate::xctl::{Kind, Owner, Xctl};
use crate::{Family, Outcome, Verdict};

/// No ring takes a record, for no reason that a ring has: each is counted, and the totals know of all.
pub fn output(set: Set, family: Family) -> Outcome {
    let (_file, object) = nameless_file(&without::output())?;
    let link = Link::up()?;
    let before = Counters::of(&link.a)?;
    let xctl = Xctl::start(set, &["--object", &object, "--netns", &link.a.path().to_string_lossy()])?;
    let (_receiver, sender) = unanswered(&link, family, "sender")?;
    link.lose(0)?;
    let who = sender.truth.who.clone();
    sender.exit()?;
    link.quiet()?;
    let after = Counters::of(&link.a)?;
    let trace = xctl.stop(Signal::SIGINT)?;

    let lost = &trace.summary.lost;
    ensure!(trace.retransmits.is_empty(), "it printed {:?}", trace.retransmits);
    ensure!(lost.output >= trace.summary.retransmits && lost.output > 0, "lost: {lost:?}");
    ensure!(lost.perf == 0 && lost.unknown == 0, "lost: {lost:?}");
    let counted = after.since(&before, "RetransSegs")? - after.since(&before, "TCPRetransFail")?;
    let own = trace.summary.processes.iter().find(|process| process.pid == Some(who.pid));
    let segs = own.with_context(|| format!("{who:?} is not in the summary"))?.segs;
    ensure!(i64::try_from(segs)? == counted, "the kernel counted {counted} segments, the summary {segs}");
    Ok(Verdict::Passed(format!("{} records lost, {segs} segments in the totals", lost.output)))
}

/// Maps that are busy when a socket ends: its entry stays and is nobody's, which is counted, and whose the next connection
/// with that four-tuple is, is right.
pub fn refused(set: Set, family: Family) -> Outcome {
    let (_file, object) = nameless_file(&without::removal())?;
    let link = Link::up()?;
    let receiver = Receiver::new(&link.b, "receiver", link.address(&link.b, family), 0)?;
    let xctl = Xctl::start(set, &["--object", &object, "--netns", &link.a.path().to_string_lossy()])?;
    let from = Some((link.address(&link.a, family), 40000).into());
    let mut truths = vec![];
    let mut dead = vec![];
    for (comm, loss) in [("first", 0), ("second", 20)] {
        link.lose_from(&link.a, loss)?;
        let plan = Plan { from, ..Plan::new(comm, receiver.at) };
        truths.extend(send_all(vec![Sender::new(&link.a, plan)?])?);
        link.lose_from(&link.a, 0)?;
        link.quiet()?;
        dead.push(map::dead(xctl.process.pid())?);
    }
    let trace = xctl.stop(Signal::SIGINT)?;

    ensure!(truths[0].flow()? == truths[1].flow()?, "not the same four-tuple: {truths:?}");
    let is_first = |entry: &map::Entry| entry.netns == link.a.inode && entry.pid == truths[0].who.pid;
    ensure!(dead[0].iter().any(is_first), "the entry of the first is not dead: {:?}", dead[0]);
    ensure!(trace.summary.lost.output > 0 && trace.summary.lost.map_full == 0, "lost: {:?}", trace.summary.lost);
    let count = trace.all_of(link.a.inode, &truths[1].who, truths[1].flow()?)?;
    ensure!(count > 0, "nothing was sent again");
    Ok(Verdict::Passed(format!("{} dead, {count} retransmits", dead[1].len())))
}

/// Sockets that several processes held before xctl came are remembered once, and for nothing else there was no room.
pub fn shared_before(set: Set, family: Family) -> Outcome {
    let link = Link::up()?;
    let receiver = Receiver::new(&link.b, "receiver", link.address(&link.b, family), 0)?;
    let mut parent = RawActor::new(&link.a, "parent")?;
    let flows = [(); 3].map(|()| parent.socket(Order::Connect(receiver.at)).map(|(_, flow)| flow));
    let flows = flows.into_iter().collect::<Result<Vec<_>>>()?;
    let _children = [parent.fork("child-1")?, parent.fork("child-2")?];
    let xctl = Xctl::start(set, &[])?;
    let entries = map::entries(xctl.process.pid())?;
    let trace = xctl.stop(Signal::SIGINT)?;

    trace.nothing_lost()?;
    for flow in &flows {
        let own = entries.iter().filter(|entry| entry.netns == link.a.inode && entry.sport == flow.local.port());
        let pids: Vec<_> = own.map(|entry| entry.pid).collect();
        ensure!(pids == [parent.who.pid], "{flow:?} is of {:?}, and not of {pids:?}", parent.who);
    }
    Ok(Verdict::Passed(format!("{} sockets of three processes", flows.len())))
}

/// More processes than the totals have room for: those that came too late are counted, and their events are right.
pub fn totals(set: Set, family: Family) -> Outcome {
    const ROOM: u32 = 2;
    let (_file, object) = nameless_file(&without::room_for_totals(ROOM))?;
    let link = Link::up()?;
    let receiver = Receiver::new(&link.b, "receiver", link.address(&link.b, family), 0)?;
    let mut xctl = Xctl::start(set, &["--object", &object, "--netns", &link.a.path().to_string_lossy()])?;
    let mut senders: Vec<_> = (0..=ROOM).map(|_| Puppet::new(&link.a, "sender", receiver.at)).collect::<Result<_>>()?;
    link.lose(100)?;
    let mut claims = Claims::default();
    for sender in &mut senders {
        sender.send()?;
        let whose = Whose::Of(sender.truth.who.clone(), Owner::Send);
        claims.add("one of them", &link.a, sender.truth.flow()?, Kind::Rto, whose)?;
    }
    claims.wait(&mut xctl)?;
    let trace = xctl.stop(Signal::SIGINT)?;

    let counted: BTreeSet<_> = trace.summary.processes.iter().map(|process| process.pid).collect();
    ensure!(counted.len() == ROOM as usize, "room for {ROOM}, and it has {counted:?}");
    let uncounted = trace.retransmits.iter().filter(|record| !counted.contains(&record.at.pid)).count();
    ensure!(uncounted > 0 && trace.summary.lost.totals == uncounted as u64, "{uncounted}: {:?}", trace.summary.lost);
    claims.hold(&trace, &format!(", {uncounted} not in the totals"))
}

/// Totals have room for one network namespace, and two retransmit: nobody asked for them, so nothing is lost; with
/// `--verify` it is told.
pub fn netns_totals(set: Set, family: Family) -> Outcome {
    let (_file, object) = nameless_file(&without::room_for_netns_totals(1))?;
    let lost = |verify: &[&str]| -> Result<u64> {
        let (link, wire) = (Link::up()?, Link::up()?);
        let mut xctl = Xctl::start(set, &[&["--object", &object], verify].concat())?;
        for wire in [&link, &wire] {
            let _connection = unanswered(wire, family, "sender")?;
            let seen = xctl.wait_for(|record| record.at.netns == wire.a.inode)?;
            ensure!(seen.is_some(), "no retransmit in {}", wire.a.inode);
            wire.lose(0)?;
        }
        xctl.process.signal(Signal::SIGINT)?;
        let last = xctl.process.rest()?.pop().context("no summary")?;
        let summary: serde_json::Value = serde_json::from_str(&last)?;
        summary["lost"]["totals"].as_u64().with_context(|| format!("no totals in {last}"))
    };
    let (without, with) = (lost(&[])?, lost(&["--verify"])?);
    ensure!(without == 0 && with > 0, "{without} lost without --verify, {with} with");
    Ok(Verdict::Passed(format!("nothing lost; with --verify {with}")))
}

/// Softirqs that interrupt bpf(2) where it copies a value: there the kernel runs no kprobe's program, and counts that. Events
/// are missing then, as many as it is told at the most, and no other is wrong.
pub fn missed(set: Set, family: Family) -> Outcome {
    let link = Link::lossy()?;
    let receiver = Receiver::new(&link.b, "receiver", link.address(&link.b, family), 0)?;
    let before = bpf_objects()?;
    let xctl = Xctl::start(set, &["--netns", &link.a.path().to_string_lossy()])?;
    let own: BTreeSet<_> = bpf_objects()?.difference(&before).cloned().collect();
    let kernel_before = Counters::of(&link.a)?;
    let mut crowd = RawActor::new(&link.a, "crowd")?;
    crowd.done(Order::Crowd)?;
    let mut truths = Vec::new();
    let skipped = poll(PATIENCE, || {
        let plan = Plan { sizes: vec![700], burst: 4, ..Plan::new("sender", receiver.at) };
        truths.extend(send_all(vec![Sender::new(&link.a, plan)?])?);
        // a kernel that does not count them: as much as such kernels are asked for
        Ok(recursion_misses(&own)? > 0 || truths.len() >= 5)
    })?;
    drop(crowd);
    link.quiet()?;
    let told_by_bpftool = recursion_misses(&own)?;
    let kernel_after = Counters::of(&link.a)?;
    let trace = xctl.stop(Signal::SIGINT)?;
    let Some(missed) = trace.summary.lost.missed else {
        ensure!(told_by_bpftool == 0, "bpftool knows of {told_by_bpftool} skipped runs, and xctl of none");
        return Ok(Verdict::Skipped("this kernel does not tell which kprobes it skipped".into()));
    };
    ensure!(skipped && told_by_bpftool > 0, "no run was skipped in {} connections", truths.len());
    ensure!(missed >= told_by_bpftool, "bpftool: {told_by_bpftool} runs were skipped; xctl: {missed}");
    for record in trace.of(link.a.inode) {
        let right = truths.iter().any(|truth| record.at.pid == Some(truth.who.pid));
        ensure!(right || record.at.owner == Owner::Unknown, "of none of the senders: {record:?}");
    }
    let kernel = kernel_after.since(&kernel_before, "RetransSegs")?;
    let seen = i64::try_from(trace.segs(|record| record.at.netns == link.a.inode))?;
    let short = kernel - seen;
    ensure!(
        (0..=i64::try_from(missed)?).contains(&short),
        "the kernel counted {kernel}, xctl {seen} and missed {missed}"
    );
    Ok(Verdict::Passed(format!(
        "{missed} runs skipped, by bpftool {told_by_bpftool}; {seen} of {kernel} segments seen"
    )))
}

/// Runs that the kernel skipped, of these programs, as bpftool tells them.
fn recursion_misses(objects: &BTreeSet<String>) -> Result<u64> {
    let output = tool("bpftool").args(["-j", "prog", "show"]).output().context("starting bpftool")?;
    let list: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).context("in what bpftool said")?;
    let own = list.iter().filter(|program| objects.contains(&format!("prog_id {}", program["id"])));
    Ok(own.filter_map(|program| program["recursion_misses"].as_u64()).sum())
}
