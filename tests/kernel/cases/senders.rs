//! Ways to send that are not send(), at both ends of a connection.

use crate::actors::{Actor, Id, Protocols, Way};
use crate::claims::{Claims, Whose};
use crate::host::Set;
use crate::link::Link;
use crate::xctl::{Kind, Owner, Xctl};
use crate::{Family, Outcome, Verdict};

pub fn run(set: Set, family: Family) -> Outcome {
    let link = Link::up()?;
    let mut server = Actor::new(&link.b, "server")?;
    let mut client = Actor::new(&link.a, "client")?;
    let (listener, at) = server.listen((link.address(&link.b, family), 0).into())?;
    let mut xctl = Xctl::start(set, &[])?;

    let mut connections = vec![];
    for way in [Way::Send, Way::Sendfile, Way::Splice, Way::Ktls] {
        connections.push((way, client.connect(at, Protocols::Tcp)?, server.accept(listener)?));
    }

    link.lose(100)?;
    let (mut claims, mut note) = (Claims::default(), String::new());
    let mut send = |actor: &mut Actor, ns, what: &str, way, (id, flow): (Id, _)| -> anyhow::Result<()> {
        let whose = Whose::Of(actor.who.clone(), Owner::Send);
        match actor.send_by(id, way)? {
            Ok(()) => claims.add(&format!("{way:?} of the {what}"), ns, flow, Kind::Rto, whose)?,
            Err(cannot) => note = format!("; {cannot}"),
        }
        Ok(())
    };
    for (way, ours, theirs) in connections {
        send(&mut client, &link.a, "client", way, ours)?;
        send(&mut server, &link.b, "server", way, theirs)?;
    }
    claims.wait(&mut xctl)?;
    claims.judge(xctl, &note)
}

/// SMC to a peer without SMC: the kernel's own TCP socket becomes the process's.
pub fn smc(set: Set, family: Family) -> Outcome {
    let link = Link::up()?;
    let mut server = Actor::new(&link.b, "server")?;
    let mut client = Actor::new(&link.a, "client")?;
    let (listener, at) = server.listen((link.address(&link.b, family), 0).into())?;
    let mut xctl = Xctl::start(set, &[])?;
    let (ours, flow) = match client.connect_smc(at)? {
        Ok(made) => made,
        Err(why) => return Ok(Verdict::Skipped(why)),
    };
    server.accept(listener)?;
    link.lose(100)?;
    client.send(ours)?;
    let mut claims = Claims::default();
    claims.add("fell back to TCP", &link.a, flow, Kind::Rto, Whose::Of(client.who.clone(), Owner::Send))?;
    claims.wait(&mut xctl)?;
    // The kernel's socket holds no reference to its network namespace. On 5.10, such a socket may still be open when the
    // namespace goes. It then stays in the kernel's table for good, and appears in a later namespace at the same address.
    link.lose(0)?;
    drop((client, server));
    link.quiet()?;
    claims.judge(xctl, "")
}
