//! Sockets that move between processes, at both ends: the last process that sent is the owner.

use anyhow::Result;

use crate::actors::{Actor, Id, Protocols};
use crate::claims::{Claims, Whose};
use crate::host::Set;
use crate::link::{Link, Netns};
use crate::workers::{Flow, Who};
use crate::xctl::{Kind, Owner, Xctl};
use crate::{Family, Outcome};

pub fn run(set: Set, family: Family) -> Outcome {
    let link = Link::up()?;
    let mut clients = Side::new(&link.a)?;
    let mut servers = Side::new(&link.b)?;
    let (listener, at) = servers.parent.listen((link.address(&link.b, family), 0).into())?;
    let mut xctl = Xctl::start(set, &[])?;

    for _ in 0..4 {
        clients.sockets.push(clients.parent.connect(at, Protocols::Tcp)?);
        servers.sockets.push(servers.parent.accept(listener)?);
    }
    link.lose(100)?;
    let mut claims = Claims::default();
    clients.hand_over(&mut claims)?;
    servers.hand_over(&mut claims)?;
    claims.wait(&mut xctl)?;
    claims.judge(xctl, "")
}

/// A process, and another one that is not its child.
struct Side<'a> {
    ns: &'a Netns,
    parent: Actor,
    stranger: Actor,
    sockets: Vec<(Id, Flow)>,
}

impl Side<'_> {
    fn new(ns: &Netns) -> Result<Side<'_>> {
        Ok(Side { ns, parent: Actor::new(ns, "parent")?, stranger: Actor::new(ns, "stranger")?, sockets: vec![] })
    }

    fn hand_over(&mut self, claims: &mut Claims) -> Result<()> {
        let Side { ns, parent, stranger, sockets } = self;
        let [to_child, to_child_and_back, to_stranger, through_all] = sockets[..] else { unreachable!() };
        let child = parent.fork("child", to_child.0)?;
        let other_child = parent.fork("other-child", to_child_and_back.0)?;
        let last_child = parent.fork("last-child", through_all.0)?;
        let given = parent.give(to_stranger.0, stranger)?;
        let given_too = parent.give(through_all.0, stranger)?;

        let mut add = |what, flow, who: &Who, before: &Who| -> Result<()> {
            claims.add(what, ns, flow, Kind::Rto, Whose::Of(who.clone(), Owner::Send))?;
            claims.or_else(before);
            Ok(())
        };
        parent.child_sends(&child)?;
        add("the child sends", to_child.1, &child.who, &parent.who)?;
        parent.child_sends(&other_child)?;
        parent.send(to_child_and_back.0)?;
        add("the child sends, then the parent", to_child_and_back.1, &parent.who, &other_child.who)?;
        stranger.send(given)?;
        add("a process sends that got it by SCM_RIGHTS", to_stranger.1, &stranger.who, &parent.who)?;
        parent.send(through_all.0)?;
        stranger.send(given_too)?;
        parent.child_sends(&last_child)?;
        add("the parent sends, the stranger, then the child", through_all.1, &last_child.who, &stranger.who)
    }
}
