//! Each kind of retransmit, provoked on purpose, and as many as the kernel's own counter of that kind says.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::signal::Signal;

use super::lossy_link::nothing_is_missing;
use crate::counters::{Counters, unacknowledged};
use crate::crowd::{Job, Member};
use crate::host::Set;
use crate::link::{DEAD_V4, Link, Netns};
use crate::missed::Witness;
use crate::process::{PATIENCE, poll};
use crate::workers::{Flow, Receiver, connect_in_vain};
use crate::xctl::{Kind, Trace, Xctl};
use crate::{Family, Outcome, Verdict};

/// Fits into the first congestion window: nothing is left to send that is not on its way.
const WINDOW: usize = 12_000;

/// A SYN goes again after one second.
const ONE_SYN: Duration = Duration::from_millis(1400);

/// A link of its own for each way, so that its counters tell that way alone.
pub fn run(set: Set, family: Family) -> Outcome {
    let xctl = Xctl::start(set, &[])?;
    let witness = Witness::of(&xctl.ready.hooks)?;
    let (handshake, tail, loss, end) = thread::scope(|scope| {
        let ways = [
            scope.spawn(|| handshake(family)),
            scope.spawn(|| tail(family)),
            scope.spawn(|| loss(family)),
            scope.spawn(|| end(family)),
        ];
        let mut done = ways.into_iter().map(|way| way.join().unwrap_or_else(|_| Err(anyhow!("a thread panicked"))));
        let mut next = || done.next().unwrap_or_else(|| Err(anyhow!("there are four")));
        Ok::<_, anyhow::Error>((next()?, next()?, next()?, next()?))
    })?;
    let missed = witness.skipped()? + witness.above_pid_1()?;
    let trace = xctl.stop(Signal::SIGINT)?;

    for (way, name) in [(&handshake, "handshake"), (&tail, "tail"), (&loss, "loss"), (&end, "end")] {
        way.is_exact(&trace, missed).with_context(|| name.to_owned())?;
    }
    let mut counts = vec![];
    for (way, a_to_b, kind, counter) in [
        (&handshake, true, Kind::Syn, "TCPSynRetrans"),
        (&handshake, false, Kind::Synack, "TCPSynRetrans"),
        (&tail, true, Kind::Tlp, "TCPLossProbes"),
        (&tail, true, Kind::Rto, "TCPTimeouts"),
        (&loss, true, Kind::SlowStart, "TCPSlowStartRetrans"),
        (&loss, true, Kind::Fast, "TCPFastRetrans"),
    ] {
        let (ns, grown) = if a_to_b { (&way.link.a, &way.grown.0) } else { (&way.link.b, &way.grown.1) };
        let seen = trace.segs(|record| record.at.netns == ns.inode && record.kind == kind);
        // only now and then does an attempt fail: it is counted as a timeout, and nothing was sent
        let failed = grown("RetransFail")?;
        let kernel = grown(counter)?;
        let short = kernel - i64::try_from(seen)?;
        ensure!(kernel > 0, "{kind:?}: not provoked");
        ensure!(
            (0..=failed + i64::try_from(missed)?).contains(&short),
            "{kind:?}: the kernel counted {kernel}, xctl {seen}; {failed} failed"
        );
        counts.push(format!("{kind:?} {seen}"));
    }
    let ends: Vec<_> = trace.of(end.link.a.inode).collect();
    ensure!(missed > 0 || ends.iter().any(|record| record.fin), "no FIN among {ends:?}");
    for record in ends {
        ensure!(record.fin && record.bytes == 0, "not a FIN alone: {record:?}");
    }
    let others = trace.retransmits.iter().filter(|record| record.fin && record.at.netns != end.link.a.inode);
    Ok(Verdict::Passed(format!("{}, {} FINs elsewhere", counts.join(", "), others.count())))
}
