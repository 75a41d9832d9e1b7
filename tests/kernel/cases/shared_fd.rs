//! Processes that share a socket without exec(): children of fork(), and processes that took the socket by pidfd_getfd().
//! The last process that sent is the owner. If none has sent, the owner is the process that accepted.

use anyhow::ensure;

use crate::claims::{Claims, Whose};
use crate::host::{Set, crowd};
use crate::link::Link;
use crate::ways::{ALONE, How::Call, Order, RIVAL_ALONE, RawActor};
use crate::workers::{Receiver, Who};
use crate::xctl::{Kind, Owner, Xctl};
use crate::{Family, Outcome};

pub fn run(set: Set, family: Family) -> Outcome {
    let link = Link::up()?;
    let mut server = RawActor::new(&link.b, "server")?;
    let mut parent = RawActor::new(&link.a, "parent")?;
    let mut stranger = RawActor::new(&link.a, "stranger")?;
    let mut xctl = Xctl::start(set, &[])?;
    let (listener, at) = server.listen(link.address(&link.b, family))?;
    let workers = [server.fork("worker-1")?, server.fork("worker-2")?];

    let mut ends = vec![];
    for worker in workers.iter().cycle().take(5) {
        let ours = parent.socket(Order::Connect(at))?;
        ends.push((ours, server.child_socket(worker, Order::Accept(listener, Call))?));
    }
    let [to_child, to_child_and_back, taken, taken_in_vain, idle] = ends[..] else { unreachable!() };
    let child = parent.fork("child")?;
    let mut take = |(theirs, _)| stranger.attempt_socket(Order::Take(parent.who.pid, theirs));
    let (by_stranger, _) = (take(taken.0)?, take(taken_in_vain.0)?);

    link.lose(100)?;
    let (mut claims, mut note) = (Claims::default(), String::new());
    let of = |who: &Who, owner| Whose::Of(who.clone(), owner);
    let mut client = |what, flow, who: &Who| claims.add(what, &link.a, flow, Kind::Rto, of(who, Owner::Send));
    parent.child_done(&child, Order::Send(to_child.0.0, Call))?;
    client("the child sends", to_child.0.1, &child.who)?;
    parent.child_done(&child, Order::Send(to_child_and_back.0.0, Call))?;
    parent.done(Order::Send(to_child_and_back.0.0, Call))?;
    client("the child sends, then the parent", to_child_and_back.0.1, &parent.who)?;
    match by_stranger {
        Ok((fd, _)) => {
            stranger.done(Order::Send(fd, Call))?;
            client("a process sends that took it by pidfd_getfd()", taken.0.1, &stranger.who)?;
        }
        Err(why) => note = format!("; {why}"),
    }
    parent.done(Order::Send(taken_in_vain.0.0, Call))?;
    client("another took it and did nothing", taken_in_vain.0.1, &parent.who)?;

    let mut accepted = |what, flow, who: &Who, owner| claims.add(what, &link.b, flow, Kind::Rto, of(who, owner));
    server.child_done(&workers[0], Order::Send(to_child.1.0, Call))?;
    accepted("one worker sends", to_child.1.1, &workers[0].who, Owner::Send)?;
    server.child_done(&workers[1], Order::Send(to_child_and_back.1.0, Call))?;
    accepted("the other worker sends", to_child_and_back.1.1, &workers[1].who, Owner::Send)?;
    server.child_done(&workers[0], Order::Shutdown(idle.1.0))?;
    accepted("a worker accepts and closes", idle.1.1, &workers[0].who, Owner::Accept)?;
    claims.wait(&mut xctl)?;
    claims.judge(xctl, &note)
}

/// Several processes hold a connection and its listener before xctl starts; xctl learns the holders from the iterator.
pub fn at_start(set: Set, family: Family) -> Outcome {
    held_at_start(set, family, &[])
}

/// Like [`at_start`], with holders from /proc.
pub fn at_start_from_proc(set: Set, family: Family) -> Outcome {
    held_at_start(set, family, &["--seed", "proc"])
}

fn held_at_start(set: Set, family: Family, args: &[&str]) -> Outcome {
    let link = Link::up()?;
    let mut server = RawActor::new(&link.b, "server")?;
    let mut client = RawActor::new(&link.a, "client")?;
    let (listener, at) = server.listen(link.address(&link.b, family))?;
    client.socket(Order::Connect(at))?;
    let (idle, idle_flow) = server.socket(Order::Accept(listener, Call))?;
    client.socket(Order::Connect(at))?;
    let (used, used_flow) = server.socket(Order::Accept(listener, Call))?;
    let worker = server.fork("worker")?;
    link.lose(100)?;
    server.done(Order::Send(idle, Call))?;
    server.done(Order::Send(used, Call))?;

    let mut xctl = Xctl::start(set, args)?;
    let mut holders = vec![server.who.clone(), worker.who.clone()];
    holders.sort_by_key(|who| who.pid);
    let mut claims = Claims::default();
    claims.add_since(0, "nobody uses it", &link.b, idle_flow, Kind::Rto, Whose::Shared(holders));
    server.child_done(&worker, Order::Send(used, Call))?;
    claims.add("the worker uses it", &link.b, used_flow, Kind::Rto, Whose::Of(worker.who.clone(), Owner::Send))?;
    claims.wait(&mut xctl)?;
    claims.judge(xctl, "")
}

/// Two processes on two CPUs repeatedly send at the same time, then each of them sends alone. Each time the latter is the last
/// sender, and the socket is handed over under load.
pub fn contended(set: Set, family: Family) -> Outcome {
    let times = crowd(5000, 500);
    let link = Link::up()?;
    let receiver = Receiver::new(&link.b, "receiver", link.address(&link.b, family), 0)?;
    let mut parent = RawActor::new(&link.a, "parent")?;
    let netns = link.a.path().to_string_lossy().into_owned();
    let mut xctl = Xctl::start(set, &["--events", "all", "--netns", &netns])?;
    let (socket, flow) = parent.socket(Order::Connect(receiver.at))?;
    let rival = parent.contend(socket, times)?;
    link.lose(100)?;
    let mut claims = Claims::default();
    parent.done(Order::Send(socket, Call))?;
    claims.add("it sends alone", &link.a, flow, Kind::Rto, Whose::Of(parent.who.clone(), Owner::Send))?;
    claims.wait(&mut xctl)?;
    let trace = xctl.stop(nix::sys::signal::Signal::SIGINT)?;

    let mut all = 0;
    for (who, bytes) in [(&parent.who, ALONE), (&rival, RIVAL_ALONE)] {
        let alone: Vec<_> = trace.sends.iter().filter(|send| send.bytes == bytes).collect();
        let wrong: Vec<_> = alone.iter().filter(|send| send.at.pid != Some(who.pid)).collect();
        let (wrongs, first) = (wrong.len(), wrong.first());
        ensure!(wrong.is_empty(), "{wrongs} of {} must be of {who:?}, as this one: {first:?}", alone.len());
        let seen = alone.len() as u64 + trace.summary.lost.perf + trace.summary.lost.missed.unwrap_or(0);
        ensure!(seen >= u64::from(times), "{} sends of {times}, lost: {:?}", alone.len(), trace.summary.lost);
        all += alone.len();
    }
    claims.hold(&trace, &format!(", {all} sends"))
}
