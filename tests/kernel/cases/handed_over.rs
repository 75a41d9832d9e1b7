//! Sockets that change hands: the last process that sent is the owner.

use crate::actors::{Actor, Protocols};
use crate::claims::{Claims, Whose};
use crate::host::Set;
use crate::link::Link;
use crate::xctl::{Kind, Owner, Xctl};
use crate::{Family, Outcome};

pub fn run(set: Set, family: Family) -> Outcome {
    let link = Link::up()?;
    let mut server = Actor::new(&link.b, "server")?;
    let mut parent = Actor::new(&link.a, "parent")?;
    let mut stranger = Actor::new(&link.a, "stranger")?;
    let (listener, at) = server.listen((link.address(&link.b, family), 0).into())?;
    let mut xctl = Xctl::start(set, &[])?;

    let mut connections = vec![];
    for _ in 0..4 {
        connections.push(parent.connect(at, Protocols::Tcp)?);
        server.accept(listener)?;
    }
    let [to_child, to_child_and_back, to_stranger, through_all] = connections[..] else { unreachable!() };
    let child = parent.fork("child", to_child.0)?;
    let other_child = parent.fork("other-child", to_child_and_back.0)?;
    let last_child = parent.fork("last-child", through_all.0)?;
    let given = parent.give(to_stranger.0, &mut stranger)?;
    let given_too = parent.give(through_all.0, &mut stranger)?;

    link.lose(100)?;
    let mut claims = Claims::default();
    let mut add = |what, flow, who: &crate::workers::Who| {
        claims.add(what, &link.a, flow, Kind::Rto, Whose::Of(who.clone(), Owner::Send))
    };
    parent.child_sends(&child)?;
    add("the child sends", to_child.1, &child.who)?;
    parent.child_sends(&other_child)?;
    parent.send(to_child_and_back.0)?;
    add("the child sends, then the parent", to_child_and_back.1, &parent.who)?;
    stranger.send(given)?;
    add("a process sends that got it by SCM_RIGHTS", to_stranger.1, &stranger.who)?;
    parent.send(through_all.0)?;
    stranger.send(given_too)?;
    parent.child_sends(&last_child)?;
    add("the parent sends, the stranger, then the child", through_all.1, &last_child.who)?;
    claims.wait(&mut xctl)?;
    claims.judge(xctl, "")
}
