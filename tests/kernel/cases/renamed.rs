//! Processes that take another name after they have sent, by prctl() or exec(), and then no longer use their sockets.

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;

use super::filters::{Filter, same_as};
use crate::claims::{Claims, Whose};
use crate::host::Set;
use crate::link::Link;
use crate::ways::{How::Call, Order, RawActor, Renaming};
use crate::workers::Receiver;
use crate::xctl::{Kind, Owner, Xctl};
use crate::{Family, Outcome};

pub fn run(set: Set, family: Family) -> Outcome {
    let link = Link::up()?;
    let receiver = Receiver::new(&link.b, "receiver", link.address(&link.b, family), 0)?;
    let second = |record: &crate::xctl::Retransmit| record.at.comm.as_deref() == Some("second");
    let filter = Filter::new(set, &["--comm", "second"], second)?;
    let mut xctl = Xctl::start(set, &[])?;
    let mut actors = vec![];
    for (what, how, exits) in [
        ("it takes another name", Renaming::Prctl, false),
        ("it calls exec()", Renaming::Exec, false),
        ("another thread calls exec()", Renaming::ExecByThread, false),
        ("it takes another name and exits", Renaming::Prctl, true),
        ("it calls exec() and exits", Renaming::Exec, true),
    ] {
        let mut actor = RawActor::new(&link.a, "first")?;
        let (socket, flow) = actor.socket(Order::Connect(receiver.at))?;
        actors.push((what, how, exits, actor, socket, flow));
    }
    link.lose(100)?;
    for (.., actor, socket, _) in &mut actors {
        actor.done(Order::Send(*socket, Call))?;
    }
    let (mut claims, mut renamed, mut living) = (Claims::default(), vec![], vec![]);
    for (what, how, exits, mut actor, _, flow) in actors {
        let seen = xctl.wait_for(|record| record.at.flow() == flow && record.kind == Kind::Rto)?;
        seen.context("no retransmit")?.at.is_of(&actor.who, flow)?;
        actor.rename(how, "second")?;
        renamed.push(actor.who.clone());
        claims.add(what, &link.a, flow, Kind::Rto, Whose::Of(actor.who.clone(), Owner::Send))?;
        // the sockets of an exited process are left to the kernel
        if exits {
            claims.exited();
        } else {
            living.push(actor);
        }
    }
    claims.wait(&mut xctl)?;
    link.lose(0)?;
    drop(living);
    link.quiet()?;
    let trace = xctl.stop(Signal::SIGINT)?;
    for who in &renamed {
        let told = trace.summary.processes.iter().find(|process| process.pid == Some(who.pid));
        let told = told.with_context(|| format!("{who:?} is not in the summary"))?;
        ensure!(told.comm.as_ref() == Some(&who.comm), "in the summary {who:?} is {told:?}");
    }
    same_as(&link, &trace, [filter])?;
    claims.hold(&trace, "")
}
