//! Ways to send that are not send(), and both ends of a connection.

use anyhow::Result;

use crate::actors::{Actor, Protocols, Way};
use crate::claims::{Claims, Whose};
use crate::host::Set;
use crate::link::Link;
use crate::xctl::{Kind, Owner, Xctl};
use crate::{Family, Outcome};

pub fn run(set: Set, family: Family) -> Outcome {
    let link = Link::up()?;
    let mut server = Actor::new(&link.b, "server")?;
    let mut client = Actor::new(&link.a, "client")?;
    let (listener, at) = server.listen((link.address(&link.b, family), 0).into())?;
    let mut xctl = Xctl::start(set, &[])?;

    let (accepted, to_client) = {
        client.connect(at, Protocols::Tcp)?;
        server.accept(listener)?
    };
    let mut connections = vec![];
    for way in [Way::Send, Way::Sendfile, Way::Splice, Way::Ktls] {
        let (id, flow) = client.connect(at, Protocols::Tcp)?;
        server.accept(listener)?;
        connections.push((way, id, flow));
    }

    link.lose(100)?;
    let (mut claims, mut note) = (Claims::default(), String::new());
    for (way, id, flow) in connections {
        match client.send_by(id, way)? {
            Ok(()) => claims.add(&format!("{way:?}"), &link.a, flow, Kind::Rto, of(&client, Owner::Send))?,
            Err(cannot) => note += &format!("; {cannot}"),
        }
    }
    server.send(accepted)?;
    claims.add("the server's send", &link.b, to_client, Kind::Rto, of(&server, Owner::Send))?;
    claims.wait(&mut xctl)?;
    claims.judge(xctl, &note)
}

fn of(actor: &Actor, owner: Owner) -> Whose {
    Whose::Of(actor.who.clone(), owner)
}

/// MPTCP: a process uses a socket that has no segments of its own, and subflows of the kernel's making have them. One
/// connection of MPTCP at both ends, and those where one end speaks only TCP.
pub fn mptcp(set: Set, family: Family) -> Outcome {
    let link = Link::up()?;
    let here = link.address(&link.b, family);
    let mut server = Actor::new(&link.b, "server")?;
    let mut client = Actor::new(&link.a, "client")?;
    let mut heir = Actor::new(&link.a, "heir")?;
    let (both, at_both) = match server.listen_mptcp((here, 0).into())? {
        Ok(listener) => listener,
        Err(why) => return Ok(crate::Verdict::Skipped(why)),
    };
    let (plain, at_plain) = server.listen((here, 0).into())?;
    let mut xctl = Xctl::start(set, &[])?;

    let mut connect =
        |at, listener, protocol| -> Result<_> { Ok((client.connect(at, protocol)?, server.accept(listener)?)) };
    let (ours, theirs) = connect(at_both, both, Protocols::Mptcp)?;
    let (handed, _) = connect(at_both, both, Protocols::Mptcp)?;
    let (_, from_tcp) = connect(at_both, both, Protocols::Tcp)?;
    let (to_tcp, _) = connect(at_plain, plain, Protocols::Mptcp)?;
    let given = client.give(handed.0, &mut heir)?;

    link.lose(100)?;
    let mut claims = Claims::default();
    client.send(ours.0)?;
    claims.add("the client's", &link.a, ours.1, Kind::Rto, of(&client, Owner::Send))?;
    server.send(theirs.0)?;
    claims.add("the server's", &link.b, theirs.1, Kind::Rto, of(&server, Owner::Send))?;
    client.send(handed.0)?;
    heir.send(given)?;
    claims.add("handed over", &link.a, handed.1, Kind::Rto, of(&heir, Owner::Send))?;
    server.send(from_tcp.0)?;
    claims.add("the client speaks TCP", &link.b, from_tcp.1, Kind::Rto, of(&server, Owner::Send))?;
    client.send(to_tcp.0)?;
    claims.add("the server speaks TCP", &link.a, to_tcp.1, Kind::Rto, of(&client, Owner::Send))?;
    claims.wait(&mut xctl)?;
    claims.judge(xctl, "")
}
