//! A filtered xctl says just what an unfiltered one beside it says of what passes the filter.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use crate::host::Set;
use crate::link::Link;
use crate::workers::{Plan, Receiver, Sender, send_all};
use crate::xctl::{Kind, Retransmit, Trace, Xctl};
use crate::{Family, Outcome, Verdict};

pub fn run(set: Set, _family: Family) -> Outcome {
    let link = Link::lossy()?;
    let mut receivers = vec![];
    let mut senders = vec![];
    for (family, comm) in [(Family::V4, "filter-4"), (Family::V6, "filter-6")] {
        let receiver = Receiver::new(&link.b, "receiver", link.address(&link.b, family), 0)?;
        // bulk with pauses: timeouts, fast retransmits and tail loss probes
        let plan = Plan {
            sizes: vec![3000],
            burst: 10,
            pause: std::time::Duration::from_millis(20),
            ..Plan::new(comm, receiver.at)
        };
        senders.push(Sender::new(&link.a, plan)?);
        receivers.push(receiver);
    }
    let pid = senders[0].who.pid;
    let port = receivers[1].at.port();
    let (inode_a, inode_b) = (link.a.inode, link.b.inode);
    let path_a = link.a.path().display().to_string();

    let all = Xctl::start(set, &[])?;
    let filtered = [
        Filter::new(set, &["--pid", &pid.to_string()], move |record| record.at.pid == Some(pid))?,
        Filter::new(set, &["--comm", "filter-6"], |record| record.at.comm.as_deref() == Some("filter-6"))?,
        Filter::new(set, &["--port", &port.to_string()], move |record| {
            [record.at.sport, record.at.dport].contains(&port)
        })?,
        Filter::new(set, &["--netns", &inode_b.to_string()], move |record| record.at.netns == inode_b)?,
        Filter::new(set, &["--netns", &path_a, "-4"], move |record| {
            record.at.netns == inode_a && record.at.saddr.is_ipv4()
        })?,
        Filter::new(set, &["-6"], |record| record.at.saddr.is_ipv6())?,
        Filter::new(set, &["--kind", "fast,tlp,synack"], |record| {
            matches!(record.kind, Kind::Fast | Kind::Tlp | Kind::Synack)
        })?,
    ];
    send_all(senders)?;
    link.quiet()?;
    let all = all.stop(Signal::SIGINT)?;
    // others may use TCP on this host too; only what happened on the link happened while every xctl was there
    let of_link = |trace: &Trace| -> Vec<Retransmit> {
        trace.retransmits.iter().filter(|record| [inode_a, inode_b].contains(&record.at.netns)).cloned().collect()
    };
    let everything = of_link(&all);
    for record in &everything {
        ensure!(record.at.pid.is_some(), "owner unknown: {record:?}");
    }
    let (mut counts, mut wrong) = (vec![], vec![]);
    for Filter { args, xctl, passes } in filtered {
        let trace = xctl.stop(Signal::SIGINT).with_context(|| format!("with {args:?}"))?;
        for record in &trace.retransmits {
            ensure!(passes(record), "{args:?} let through {record:?}");
        }
        let expected: Vec<_> = everything.iter().filter(|record| passes(record)).map(identity).collect();
        let got: Vec<_> = of_link(&trace).iter().map(identity).collect();
        let (expected, got) = (sorted(expected), sorted(got));
        if expected != got {
            wrong.push(format!("{args:?}: without it {} such records, with it {}", expected.len(), got.len()));
        }
        counts.push(format!("{} {}", args[0], got.len()));
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    ensure!(everything.len() >= 5, "only {} retransmits: too few to tell anything", everything.len());
    Ok(Verdict::Passed(format!("of {}: {}", everything.len(), counts.join(", "))))
}

struct Filter {
    args: Vec<String>,
    xctl: Xctl,
    passes: Box<dyn Fn(&Retransmit) -> bool>,
}

impl Filter {
    fn new(set: Set, args: &[&str], passes: impl Fn(&Retransmit) -> bool + 'static) -> Result<Filter> {
        let xctl = Xctl::start(set, args).with_context(|| format!("with {args:?}"))?;
        Ok(Filter { args: args.iter().map(ToString::to_string).collect(), xctl, passes: Box::new(passes) })
    }
}

/// What two xctls must tell alike of one retransmit; each reads the clock for itself.
fn identity(record: &Retransmit) -> String {
    let Retransmit { kind, segs, bytes, err, fin, state, sk_retrans, at, .. } = record;
    format!("{at:?} {kind:?} {segs} {bytes} {err} {fin} {state} {sk_retrans}")
}

fn sorted(mut list: Vec<String>) -> Vec<String> {
    list.sort();
    list
}
