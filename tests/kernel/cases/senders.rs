//! Ways to send that are not send(), and both ends of a connection.

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
