//! Each kind of retransmit is provoked on purpose. xctl must see as many as the kernel's own counter of that kind.

use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::signal::Signal;

use super::lossy_link::nothing_is_missing;
use crate::claims::{Claims, Whose};
use crate::counters::{Counters, unacknowledged};
use crate::crowd::{Job, Member};
use crate::host::Set;
use crate::link::{Link, Netns};
use crate::missed::Witness;
use crate::process::{PATIENCE, poll};
use crate::ways::{How::Call, Order, RawActor};
use crate::workers::{Flow, Receiver, connect_fast, connect_in_vain};
use crate::xctl::{Kind, Owner, Trace, Xctl};
use crate::{Family, Outcome, Verdict};

/// This many bytes fit into the first congestion window: nothing is left to send that is not in flight.
const WINDOW: usize = 12_000;

/// One way to make TCP retransmit, on a link of its own, so that the link's counters count nothing else.
struct Way {
    link: Link,
    before: (Counters, Counters),
    after: (Counters, Counters),
}

pub fn run(set: Set, family: Family) -> Outcome {
    let xctl = Xctl::start(set, &[])?;
    let witness = Witness::of(&xctl.ready.hooks)?;
    // each way waits most of the time, so all of them run at once
    let [handshake, tail, loss, end] = thread::scope(|scope| {
        [handshake, tail, loss, end]
            .map(|way| scope.spawn(move || Way::go(family, way)))
            .map(|way| way.join().unwrap_or_else(|_| Err(anyhow!("a thread panicked"))))
    });
    let [handshake, tail, loss, end] = [handshake?, tail?, loss?, end?];
    let missed = witness.skipped()? + witness.above_pid_1()?;
    let trace = xctl.stop(Signal::SIGINT)?;

    for (name, way) in [("handshake", &handshake), ("tail", &tail), ("loss", &loss), ("end", &end)] {
        nothing_is_missing(&trace, &way.link.a, &way.before.0, &way.after.0, missed).context(name)?;
        nothing_is_missing(&trace, &way.link.b, &way.before.1, &way.after.1, missed).context(name)?;
    }
    let counts = [
        handshake.side_a(&trace, &[Kind::Syn], "TCPSynRetrans", missed)?,
        handshake.side_b(&trace, &[Kind::Synack], "TCPSynRetrans", missed)?,
        tail.side_a(&trace, &[Kind::Tlp], "TCPLossProbes", missed)?,
        // a retransmitted SYN is a timeout, too; none is lost here, but a machine may be slow
        tail.side_a(&trace, &[Kind::Rto, Kind::Syn], "TCPTimeouts", missed)?,
        loss.side_a(&trace, &[Kind::SlowStart], "TCPSlowStartRetrans", missed)?,
        loss.side_a(&trace, &[Kind::Fast], "TCPFastRetrans", missed)?,
    ];
    // the socket is closed when all data are acknowledged: FIN is all that is left to send
    let ends: Vec<_> = trace.of(end.link.a.inode).filter(|record| record.state == "FIN_WAIT1").collect();
    ensure!(missed > 0 || !ends.is_empty(), "no FIN was sent again");
    for record in &ends {
        ensure!(record.fin && record.bytes == 0, "not a FIN alone: {record:?}");
    }
    for way in [&tail, &loss] {
        for record in trace.of(way.link.a.inode).filter(|record| record.state == "ESTABLISHED") {
            let mss = record.mss.context("no mss")?;
            let right = ((record.segs - 1) * mss + 1..=record.segs * mss).contains(&record.bytes);
            ensure!(!record.fin && right, "a FIN, or not as many bytes as segments take: {record:?}");
        }
    }
    let skipped = if missed > 0 { format!("; {missed} runs missed") } else { String::new() };
    Ok(Verdict::Passed(format!("{}, Fin {}{skipped}", counts.join(", "), ends.len())))
}

impl Way {
    fn go(family: Family, way: fn(&Link, Family) -> Result<()>) -> Result<Way> {
        let link = Link::up()?;
        let counters = || Ok::<_, anyhow::Error>((Counters::of(&link.a)?, Counters::of(&link.b)?));
        let before = counters()?;
        way(&link, family)?;
        let after = counters()?;
        Ok(Way { link, before, after })
    }

    fn side_a(&self, trace: &Trace, kinds: &[Kind], counter: &str, missed: u64) -> Result<String> {
        equal(trace, &self.link.a, kinds, counter, (&self.before.0, &self.after.0), missed)
    }

    fn side_b(&self, trace: &Trace, kinds: &[Kind], counter: &str, missed: u64) -> Result<String> {
        equal(trace, &self.link.b, kinds, counter, (&self.before.1, &self.after.1), missed)
    }
}

/// The namespace has retransmits of these kinds, as many as the kernel counted.
fn equal(
    trace: &Trace,
    ns: &Netns,
    kinds: &[Kind],
    counter: &str,
    (before, after): (&Counters, &Counters),
    missed: u64,
) -> Result<String> {
    let seen = trace.segs(|record| record.at.netns == ns.inode && kinds.contains(&record.kind));
    let kernel = after.since(before, counter)?;
    ensure!(kernel > 0, "{kinds:?} was not provoked");
    // a failed attempt was a timeout or a probe, too, and sent nothing
    let failed = after.since(before, "TCPRetransFail")? + after.since(before, "TCPSpuriousRtxHostQueues")?;
    let unseen = kernel - i64::try_from(seen)?;
    ensure!(
        (0..=failed + i64::try_from(missed)?).contains(&unseen),
        "{counter}: the kernel counted {kernel}, xctl {seen} of {kinds:?} ({failed} attempts failed, {missed} runs missed)"
    );
    Ok(format!("{:?} {seen}", kinds[0]))
}

/// With TCP Fast Open a connection can be accepted before its SYN-ACK has arrived. The process that accepted the connection
/// owns the SYN-ACK, too.
pub fn accepted_early(set: Set, family: Family) -> Outcome {
    const SERVE_ALL_WITHOUT_COOKIES: u32 = 0x2 | 0x200 | 0x400;
    let link = Link::up()?;
    link.b.set("tcp_fastopen", &SERVE_ALL_WITHOUT_COOKIES.to_string())?;
    let mut server = RawActor::new(&link.b, "server")?;
    let (listener, at) = server.listen(link.address(&link.b, family))?;
    let worker = server.fork("worker")?;
    let mut xctl = Xctl::start(set, &[])?;
    link.lose_from(&link.b, 100)?;
    let _client = connect_fast(&link.a, at)?;
    let (socket, flow) = server.child_socket(&worker, Order::Accept(listener, Call))?;
    let owner = if xctl.sees_accept() { Owner::Accept } else { Owner::Send };
    if owner == Owner::Send {
        server.child_done(&worker, Order::Send(socket, Call))?;
    }
    let mut claims = Claims::default();
    claims.add("accepted early", &link.b, flow, Kind::Synack, Whose::Of(worker.who.clone(), owner))?;
    claims.wait(&mut xctl)?;
    claims.judge(xctl, "")
}

/// Provokes SYNs that nobody answers, and SYN-ACKs that do not arrive.
fn handshake(link: &Link, family: Family) -> Result<()> {
    let receiver = Receiver::new(&link.b, "receiver", link.address(&link.b, family), 0)?;
    link.lose_from(&link.b, 100)?;
    connect_in_vain(&link.a, "in-vain", receiver.at, 1)?;
    link.lose_from(&link.b, 0)?;
    link.quiet()
}

/// Loses one segment repeatedly: first a probe is sent, then timeouts follow. There is nothing else to send.
fn tail(link: &Link, family: Family) -> Result<()> {
    let receiver = Receiver::new(&link.b, "receiver", link.address(&link.b, family), 0)?;
    let mut holder = hold(link, &receiver)?;
    let before = Counters::of(&link.a)?;
    link.lose_from(&link.a, 100)?;
    holder.order("each 1")?;
    until_counted(link, &before, "TCPTimeouts", 2)?;
    link.lose_from(&link.a, 0)?;
    acknowledged(link)?;
    drop(holder);
    link.quiet()
}

/// Loses a whole window of segments, so that after a timeout the ACKs drive the retransmits. Then loses some segments of a
/// window.
fn loss(link: &Link, family: Family) -> Result<()> {
    let receiver = Receiver::new(&link.b, "receiver", link.address(&link.b, family), 0)?;
    let mut holder = hold(link, &receiver)?;
    let before = Counters::of(&link.a)?;
    again_until(link, &before, "TCPSlowStartRetrans", || {
        let earlier = Counters::of(&link.a)?;
        link.lose_from(&link.a, 100)?;
        holder.order(&format!("bulk {WINDOW}"))?;
        until_counted(link, &earlier, "TCPTimeouts", 1)?;
        link.lose_from(&link.a, 0)?;
        acknowledged(link)
    })?;
    link.lose_from(&link.a, 20)?;
    again_until(link, &before, "TCPFastRetrans", || holder.order("trickle 50"))?;
    link.lose_from(&link.a, 0)?;
    acknowledged(link)?;
    drop(holder);
    link.quiet()
}

/// Closes a connection on which all data are acknowledged.
fn end(link: &Link, family: Family) -> Result<()> {
    let receiver = Receiver::new(&link.b, "receiver", link.address(&link.b, family), 0)?;
    let mut holder = hold(link, &receiver)?;
    holder.order("each 1")?;
    acknowledged(link)?;
    let before = Counters::of(&link.a)?;
    link.lose_from(&link.a, 100)?;
    holder.kill()?;
    until_counted(link, &before, "RetransSegs", 2)?;
    link.lose_from(&link.a, 0)?;
    link.quiet()
}

/// Starts a process with one connection.
fn hold(link: &Link, receiver: &Receiver) -> Result<Member> {
    let mut holder = Member::new(&link.a, "holder", &Job::Hold { to: receiver.at, connections: 1 })?;
    holder.said::<Vec<Flow>>()?;
    Ok(holder)
}

fn until_counted(link: &Link, before: &Counters, name: &str, times: i64) -> Result<()> {
    let counted = || Ok(Counters::of(&link.a)?.since(before, name)? >= times);
    ensure!(poll(PATIENCE, counted)?, "{name} does not grow by {times}");
    Ok(())
}

/// Calls `provoke` repeatedly until the kernel's counter has grown.
fn again_until(link: &Link, before: &Counters, name: &str, mut provoke: impl FnMut() -> Result<()>) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while Counters::of(&link.a)?.since(before, name)? == 0 {
        ensure!(Instant::now() < end, "{name} does not grow");
        provoke()?;
    }
    Ok(())
}

fn acknowledged(link: &Link) -> Result<()> {
    ensure!(poll(PATIENCE, || Ok(unacknowledged(&link.a)?.is_empty()))?, "not acknowledged");
    Ok(())
}
