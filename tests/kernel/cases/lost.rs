//! The ledger: counters of losses that no other case increments.

use std::collections::BTreeSet;
use std::net::{TcpListener, TcpStream};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use super::ends::bpf_objects;
use super::stats::number;
use super::stopped_reader::stopped;
use crate::claims::{Claims, Whose};
use crate::counters::{Counters, wait_until_grown};
use crate::host::{Set, is_full, tool};
use crate::link::{DEAD_V4, Link, quiet};
use crate::map;
use crate::missed::Witness;
use crate::process::{PATIENCE, nameless_file, poll};
use crate::ways::{Order, RawActor};
use crate::without;
use crate::workers::{Plan, Puppet, Receiver, Sender, Who, crowd_in_vain, send_all, unanswered};
use crate::xctl::{Kind, Owner, Xctl};
use crate::{Family, Outcome, Verdict};

/// Every output to a ring fails, without a reason on the ring's side. Each record is counted, and the totals include all of
/// them.
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

/// Maps are busy when a socket ends. The socket's entry stays, without an owner, which is counted. The owner of the next
/// connection with that four-tuple is right.
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

/// Sockets that several processes held before xctl started take one entry each, and no other socket finds the map full.
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

/// Connections end while xctl is stopped, more than the ring of the ledger holds. Each end is counted in a row or as lost, and
/// no row claims to have everything.
pub fn ledger(set: Set, family: Family) -> Outcome {
    const CONNECTIONS: u64 = 2500;
    let link = Link::up()?;
    let xctl = Xctl::start(set, &["--netns", &link.a.inode.to_string()])?;
    xctl.process.signal(Signal::SIGSTOP)?;
    ensure!(poll(PATIENCE, || stopped(xctl.process.pid()))?, "xctl does not stop");
    let address = link.address(&link.a, family);
    // The listener's own end, which would be lost too, comes after the run.
    let _listener = link.a.enter(|| {
        let listener = TcpListener::bind((address, 0)).context("listening")?;
        let at = listener.local_addr()?;
        for _ in 0..CONNECTIONS {
            // Both ends are closed at once.
            let _ends = (TcpStream::connect(at).context("connecting")?, listener.accept()?);
        }
        Ok(listener)
    })?;
    quiet(&[&link.a])?;
    xctl.process.signal(Signal::SIGCONT)?;
    let trace = xctl.stop(Signal::SIGINT)?;

    let (lost, rows) = (&trace.summary.lost, &trace.summary.ledger);
    ensure!(lost.perf == 0 && lost.output == 0 && lost.map_full == 0, "lost: {lost:?}");
    ensure!(lost.ledger > 0, "nothing was lost: the ring was not full");
    let pids: Vec<_> = rows.iter().map(|row| row.pid).collect();
    ensure!(pids == [Some(std::process::id())], "this process alone has connections: {rows:?}");
    let counted = number(&rows[0].ledger, "connections.ended").context("no connections")?;
    let ends = 2 * CONNECTIONS;
    ensure!(counted + lost.ledger == ends, "of {ends} ends {counted} are counted, and {} lost", lost.ledger);
    ensure!(rows[0].ledger["complete"] == false, "it claims to be complete: {rows:?}");
    Ok(Verdict::Passed(format!("of {ends} ends {counted} counted, {} lost", lost.ledger)))
}

/// There are more processes than the totals have room for. Processes that came too late are counted, and their events are
/// right.
pub fn totals(set: Set, family: Family) -> Outcome {
    const ROOM: u32 = 2;
    let (_file, object) = nameless_file(&without::room_for_totals(ROOM))?;
    let link = Link::up()?;
    let receiver = Receiver::new(&link.b, "receiver", link.address(&link.b, family), 0)?;
    // a cut of a congestion window is counted in the same table
    let netns = link.a.path().to_string_lossy().into_owned();
    let args = ["--events", "retransmit,cut", "--object", &object, "--netns", &netns];
    let mut xctl = Xctl::start(set, &args)?;
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
    let retransmits = trace.retransmits.iter().map(|record| record.at.pid);
    let uncounted =
        retransmits.chain(trace.cuts.iter().map(|cut| cut.at.pid)).filter(|pid| !counted.contains(pid)).count();
    ensure!(uncounted > 0 && trace.summary.lost.totals == uncounted as u64, "{uncounted}: {:?}", trace.summary.lost);
    claims.hold(&trace, &format!(", {uncounted} not in the totals"))
}

/// There are more processes, one after the other, than the programs' table has room for. Each process keeps its sums, or
/// its sums are part of the one row of exited processes. A process that runs all the time has one row.
pub fn totals_that_last(set: Set, family: Family) -> Outcome {
    // With `--full`, more processes than the unaltered PROCESS_TOTALS has room for.
    let (room, processes, at_once) = if is_full() { (4096, 5000, 200) } else { (128, 384, 40) };
    let (_file, object) = nameless_file(&without::room_for_totals(room))?;
    let link = Link::up()?;
    let receiver = Receiver::new(&link.b, "receiver", link.address(&link.b, family), 0)?;
    let before = Counters::of(&link.a)?;
    let witness = Witness::of(&[])?;
    let xctl = Xctl::start(set, &["--object", &object, "--netns", &link.a.path().to_string_lossy()])?;
    let mut steady = Puppet::new(&link.a, "steady", receiver.at)?;
    let memory = memory_kb(xctl.process.pid())?;
    let mut truths = Vec::new();
    while truths.len() < processes {
        // The link is whole meanwhile, so that the time between two retransmits does not grow from round to round.
        let counted = Counters::of(&link.a)?;
        link.lose(100)?;
        steady.send()?;
        wait_until_grown(&link.a, &counted, "RetransSegs", 1)?;
        link.lose(0)?;
        truths.extend(crowd_in_vain(
            &link.a,
            (DEAD_V4, 443).into(),
            (truths.len()..truths.len() + at_once).map(|number| format!("short-{number}")),
        )?);
    }
    let goes_on = steady.truth.who.clone();
    steady.exit()?;
    link.quiet()?;
    let grown = memory_kb(xctl.process.pid())?.saturating_sub(memory);
    let after = Counters::of(&link.a)?;
    let trace = xctl.stop(Signal::SIGINT)?;
    if let Some(why) = witness.hidden()? {
        return Ok(Verdict::Skipped(why));
    }

    trace.nothing_lost()?;
    // There are so many processes that two may have had the same PID.
    let is_of =
        |pid: Option<u32>, comm: &Option<String>, who: &Who| pid == Some(who.pid) && comm.as_ref() == Some(&who.comm);
    let told = |who: &Who| {
        let rows = trace.summary.processes.iter().filter(|row| is_of(row.pid, &row.comm, who));
        rows.map(|row| row.segs).collect::<Vec<_>>()
    };
    let printed = |who: &Who| trace.segs(|record| is_of(record.at.pid, &record.at.comm, who));
    let mut without_row = (0, 0);
    for who in truths.iter().map(|truth| &truth.who).chain([&goes_on]) {
        let (told, printed) = (told(who), printed(who));
        ensure!(printed > 0, "{who:?} has no retransmit");
        if told.is_empty() {
            without_row = (without_row.0 + 1, without_row.1 + printed);
        } else {
            ensure!(told.iter().sum::<u64>() == printed, "{who:?}: printed {printed}, summary {told:?}");
        }
    }
    let folded = trace.summary.processes.iter().find_map(|process| Some((process.others?, process.segs)));
    ensure!(folded.unwrap_or_default() == without_row, "{folded:?} folded, and {without_row:?} without a row");
    ensure!(told(&goes_on).len() == 1, "not one row: {:?}", told(&goes_on));
    let kernel = after.since(&before, "RetransSegs")? - after.since(&before, "TCPRetransFail")?;
    let segs = trace.summary.segs;
    ensure!(i64::try_from(segs)? == kernel, "the kernel counted {kernel} segments, the summary {segs}");
    // xctl keeps 1,024 rows, and for a moment those that come at once. The hash tables then have 2,048 places, of 216 bytes for the
    // totals and of 864 for the ledger, which is 2.2 MB. It remembers connections that have ended for a second.
    let bound = if is_full() { 4096 } else { 1024 };
    ensure!(grown < bound, "it took {grown} KiB more");
    Ok(Verdict::Passed(format!(
        "{} processes in a table of {room}, {} of them in one row; {segs} segments; {grown} KiB more",
        truths.len(),
        without_row.0
    )))
}

/// The private memory of the process, in KiB.
fn memory_kb(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("reading xctl's status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// The totals have room for one network namespace, and two namespaces retransmit. Without `--verify` these totals are not
/// needed, so nothing counts as lost; with `--verify`, xctl reports the loss.
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

/// Softirqs interrupt bpf(2) while it copies a value. The kernel then runs no kprobe's program, and counts the skipped run.
/// At most as many events are missing as xctl says, and all other events are right.
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
        // a kernel that does not count skipped runs gets 5 rounds
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

/// The skipped runs of these programs, as bpftool shows them.
fn recursion_misses(objects: &BTreeSet<String>) -> Result<u64> {
    let output = tool("bpftool").args(["-j", "prog", "show"]).output().context("starting bpftool")?;
    let list: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).context("in what bpftool said")?;
    let own = list.iter().filter(|program| objects.contains(&format!("prog_id {}", program["id"])));
    Ok(own.filter_map(|program| program["recursion_misses"].as_u64()).sum())
}
