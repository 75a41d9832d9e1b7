//! Kinds of retransmits in rare states of the connection. `--verify` must agree with the kernel's counters, and so must the
//! test's own reading of the counters.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::verify::{Run, Verified};
use crate::counters::{Counters, unacknowledged, wait_until_grown};
use crate::crowd::{Job, Member};
use crate::host::Set;
use crate::link::{Link, Netns};
use crate::missed::Witness;
use crate::process::{PATIENCE, poll};
use crate::router::{Routed, SERVER};
use crate::ways::{How::Call, Order, RawActor};
use crate::workers::{Flow, Receiver};
use crate::xctl::{Kind, Retransmit};
use crate::{Family, Outcome, Verdict};

/// A namespace that retransmits, and an xctl that traces it.
struct Watched<'a> {
    ns: &'a Netns,
    before: Counters,
    witness: Witness,
    xctl: Run,
}

/// The result of the run.
struct Seen {
    verified: Verified,
    ns: u64,
    before: Counters,
    after: Counters,
    missed: u64,
}

impl<'a> Watched<'a> {
    fn start(set: Set, ns: &'a Netns) -> Result<Watched<'a>> {
        let before = Counters::of(ns)?;
        let xctl = Run::start(set, &[])?;
        Ok(Watched { ns, before, witness: Witness::of(&xctl.hooks)?, xctl })
    }

    /// Stops xctl. `--verify` must agree with the kernel.
    fn stop(self) -> Result<Seen> {
        let missed = self.witness.skipped()? + self.witness.above_pid_1()?;
        let verified = self.xctl.stop()?;
        verified.agrees(self.ns, &self.before, missed)?;
        Ok(Seen { verified, ns: self.ns.inode, before: self.before, after: Counters::of(self.ns)?, missed })
    }
}

impl Seen {
    fn records(&self) -> impl Iterator<Item = &Retransmit> {
        self.verified.retransmits.iter().filter(|record| record.at.netns == self.ns && record.err == 0)
    }

    /// xctl has as many segments of the kind as the kernel counted. Returns the number.
    fn equal(&self, kind: Kind, counter: &str) -> Result<i64> {
        let grew = |name| self.after.since(&self.before, name);
        let seen: u64 = self.records().filter(|record| record.kind == kind).map(Retransmit::went_out).sum();
        let (seen, kernel) = (i64::try_from(seen)?, grew(counter)?);
        let failed = grew("TCPRetransFail")? + grew("TCPSpuriousRtxHostQueues")?;
        let right = (0..=failed + i64::try_from(self.missed)?).contains(&(kernel - seen));
        ensure!(right, "{counter}: the kernel counted {kernel}, xctl {seen} of {kind:?} ({failed} attempts failed)");
        Ok(seen)
    }

    fn note(&self) -> String {
        if self.missed > 0 { format!("; {} runs missed", self.missed) } else { String::new() }
    }
}

/// The server is unplugged, and its router says so by ICMP (host unreachable). Each such message shortens the timeout of
/// the segment that the message quotes. If that time has passed already, tcp_v4_err() retransmits the segment at once
/// (tcp_ld_RTO_revert()).
pub fn unreachable(set: Set, _family: Family) -> Outcome {
    /// This many timeouts take more than 100 s if each waits twice as long as the one before, beginning with 0.2 s.
    const TIMEOUTS: i64 = 10;
    let routed = Routed::up()?;
    let receiver = Receiver::new(&routed.server, "receiver", SERVER, 0)?;
    let mut holder = hold(&routed.client, &receiver)?;
    let watched = Watched::start(set, &routed.client)?;
    routed.unplug()?;
    let unplugged = Instant::now();
    holder.order("each 1")?;
    wait_until_grown(&routed.client, &watched.before, "TCPTimeouts", TIMEOUTS)?;
    let took = unplugged.elapsed();
    ensure!(took < Duration::from_secs(100), "no timeout was shortened: {TIMEOUTS} took {took:?}");
    routed.plug_in()?;
    acknowledged(&routed.client)?;
    drop(holder);
    routed.quiet()?;

    let seen = watched.stop()?;
    let timeouts = seen.equal(Kind::Rto, "TCPTimeouts")?;
    seen.equal(Kind::Tlp, "TCPLossProbes")?;
    Ok(Verdict::Passed(format!("{timeouts} timeouts{}", seen.note())))
}

/// A small segment is lost. The segments after it are too big for a wire behind the router, which says so by ICMP
/// (fragmentation needed). The client retransmits them as smaller ones, in the state Loss, and keeps the timer for a loss
/// probe (tcp_simple_retransmit()).
pub fn too_big(set: Set, _family: Family) -> Outcome {
    const TRIES: usize = 10;
    let mut notes = vec![];
    // with 1 segment, the last one has been retransmitted before the probe sends it; with 9, the congestion window had no
    // room for it
    for segments in [1, 9] {
        let mut tries = 0;
        let note = loop {
            tries += 1;
            let seen = sent_too_big(set, segments)?;
            let probes = seen.equal(Kind::Tlp, "TCPLossProbes")?;
            let timeouts = seen.equal(Kind::Rto, "TCPTimeouts")?;
            let kinds: Vec<_> = seen.records().map(|record| record.kind).collect();
            let provoked = kinds.windows(2).any(|pair| pair == [Kind::SlowStart, Kind::Tlp]);
            if provoked {
                break format!("{probes} probes, {timeouts} timeouts at try {tries}{}", seen.note());
            }
            // TCP sends no probe while the segment is in the host's own queues: a slow machine takes longer than the timer.
            ensure!(tries < TRIES, "no loss probe in the state Loss: {kinds:?}");
        };
        notes.push(note);
    }
    Ok(Verdict::Passed(notes.join("; ")))
}

/// Sends this many segments of the old size after the small one.
fn sent_too_big(set: Set, segments: usize) -> Result<Seen> {
    /// The bytes of data in a segment: 1500 less the headers with timestamps.
    const MSS: usize = 1448;
    let routed = Routed::up()?;
    let receiver = Receiver::new(&routed.server, "receiver", SERVER, 0)?;
    let mut holder = hold(&routed.client, &receiver)?;
    let watched = Watched::start(set, &routed.client)?;
    routed.narrow(600)?;
    routed.lose(100)?;
    // one order for both sends: the timer that the first send sets must not expire between them
    holder.tell(&format!("burst 1\nbulk {}", segments * MSS))?;
    holder.said::<()>()?;
    holder.said::<()>()?;
    wait_until_grown(&routed.client, &watched.before, "TCPTimeouts", 1)?;
    routed.lose(0)?;
    acknowledged(&routed.client)?;
    drop(holder);
    routed.quiet()?;
    watched.stop()
}

/// The peer closes its window while a segment is in flight. The retransmit at the timeout is then a window probe. The
/// kernel counts it as a retransmit, but under no kind.
pub fn no_window(set: Set, family: Family) -> Outcome {
    const TIMES: i64 = 4;
    let link = Link::up()?;
    let receiver = Receiver::new(&link.b, "receiver", link.address(&link.b, family), 0)?;
    let mut client = RawActor::new(&link.a, "client")?;
    let watched = Watched::start(set, &link.a)?;
    let (socket, flow) = client.socket(Order::Connect(receiver.at))?;
    link.lose_from(&link.a, 100)?;
    client.done(Order::Send(socket, Call))?;
    client.done(Order::NoWindow(socket))?;
    wait_until_grown(&link.a, &watched.before, "RetransSegs", TIMES)?;
    link.lose_from(&link.a, 0)?;
    acknowledged(&link.a)?;
    drop(client);
    link.quiet()?;

    let seen = watched.stop()?;
    let probes = seen.equal(Kind::Tlp, "TCPLossProbes")?;
    seen.equal(Kind::Rto, "TCPTimeouts")?;
    let others = seen.records().filter(|record| record.kind == Kind::Other && record.at.flow() == flow).count();
    let least = usize::try_from(TIMES - probes)?.saturating_sub(usize::try_from(seen.missed)?);
    ensure!(others >= least, "{others} window probes: {:?}", seen.verified.retransmits);
    Ok(Verdict::Passed(format!("{others} window probes, {probes} loss probes{}", seen.note())))
}

/// Starts a process with one connection, on which all data are acknowledged.
fn hold(ns: &Netns, receiver: &Receiver) -> Result<Member> {
    let mut holder = Member::new(ns, "holder", &Job::Hold { to: receiver.at, connections: 1 })?;
    holder.said::<Vec<Flow>>().context("connecting")?;
    Ok(holder)
}

fn acknowledged(ns: &Netns) -> Result<()> {
    ensure!(poll(PATIENCE, || Ok(unacknowledged(ns)?.is_empty()))?, "not acknowledged");
    Ok(())
}
