//! Sockets that were open before xctl started, and whose processes do nothing more. They are both ends of a connection, a
//! connection that is being made, and a listener.

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;

use crate::actors::{Actor, Protocols};
use crate::claims::{Claims, Whose};
use crate::host::Set;
use crate::link::Link;
use crate::xctl::{Kind, Owner, Xctl};
use crate::{Family, Outcome, Verdict};

/// xctl learns the sockets from the kernel's iterator, or from /proc if the kernel has none.
pub fn run(set: Set, family: Family) -> Outcome {
    seeded(set, family, &[])
}

/// xctl learns the sockets from /proc, as on kernels without the iterator. A second run without seeding proves that the
/// owners come from seeding.
pub fn seeded_from_proc(set: Set, family: Family) -> Outcome {
    let Verdict::Passed(seen) = seeded(set, family, &["--seed", "proc"])? else { unreachable!("it needs nothing") };
    let Verdict::Passed(unseen) = seeded(set, family, &["--seed", "none"])? else { unreachable!("it needs nothing") };
    Ok(Verdict::Passed(format!("{seen}; {unseen} without")))
}

fn seeded(set: Set, family: Family, args: &[&str]) -> Outcome {
    seeded_by(family, !args.contains(&"none"), || Xctl::start(set, args))
}

/// `start` starts the xctl; `seeds` says whether this xctl seeds.
pub fn seeded_by(family: Family, seeds: bool, start: impl FnOnce() -> Result<Xctl>) -> Outcome {
    // two ends, one socket that waits for its connection, and a listener
    let (connections, listeners) = if seeds { (3, 1) } else { (0, 0) };
    let link = Link::up()?;
    let mut server = Actor::new(&link.b, "server")?;
    let mut client = Actor::new(&link.a, "client")?;
    let (listener, at) = server.listen((link.address(&link.b, family), 0).into())?;
    let (ours, flow) = client.connect(at, Protocols::Tcp)?;
    let (theirs, _) = server.accept(listener)?;
    // the server's data do not arrive, and neither do the ACKs for the client's data
    link.lose_from(&link.b, 100)?;
    let asked = client.ask(at)?.1;
    client.send(ours)?;
    server.send(theirs)?;

    let mut xctl = start()?;
    let (sockets, seeded) = (connections + listeners, xctl.ready.seeded);
    // others on the host may have sockets, too
    ensure!(seeded >= sockets && (sockets > 0) == (seeded > 0), "seeded {seeded} sockets, not {sockets}");
    let whose = |actor: &Actor, known| match known {
        0 => Whose::Unknown,
        _ => Whose::Of(actor.who.clone(), Owner::Seed),
    };
    let mut claims = Claims::default();
    claims.add_since(0, "the client's end", &link.a, flow, Kind::Rto, whose(&client, connections));
    claims.add_since(0, "the server's end", &link.b, flow.reversed(), Kind::Rto, whose(&server, connections));
    claims.add_since(0, "asks for a connection", &link.a, asked, Kind::Syn, whose(&client, connections));
    claims.add_since(0, "the listener", &link.b, asked.reversed(), Kind::Synack, whose(&server, listeners));
    claims.wait(&mut xctl)?;
    let trace = xctl.stop(Signal::SIGINT)?;
    for record in trace.of(link.a.inode).chain(trace.of(link.b.inode)) {
        let right = record.at.uid == record.at.pid.map(|_| 0) && record.at.tid == record.at.pid;
        ensure!(right, "the main thread of a process of root's: {record:?}");
    }
    claims.hold(&trace, "")
}
