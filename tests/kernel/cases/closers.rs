//! Connections that were in messages between processes when xctl started, so that no process had them open. A process that
//! then closes such a connection does not become its owner; a process that reads does.

use anyhow::Result;

use crate::actors::{Actor, Protocols};
use crate::claims::{Claims, Whose};
use crate::host::Set;
use crate::link::Link;
use crate::xctl::{Kind, Owner, Xctl};
use crate::{Family, Outcome};

pub fn run(set: Set, family: Family) -> Outcome {
    let link = Link::up()?;
    let mut sender = Actor::new(&link.b, "sender")?;
    let mut reader = Actor::new(&link.b, "reader")?;
    let mut closer = Actor::new(&link.b, "closer")?;
    let mut stranger = Actor::new(&link.b, "stranger")?;
    let mut client = Actor::new(&link.a, "client")?;
    let (listener, at) = sender.listen((link.address(&link.b, family), 0).into())?;
    let mut connect = || -> Result<_> { Ok((client.connect(at, Protocols::Tcp)?.0, sender.accept(listener)?)) };
    let [(ours, read), (_, unread), (_, stranded)] = [connect()?, connect()?, connect()?];
    client.send(ours)?;
    sender.mail(read.0, &reader)?;
    sender.mail(unread.0, &closer)?;
    // newer kernels collect stranded sockets at once, in a worker
    link.lose_from(&link.b, 100)?;
    sender.close_mailbox()?; // the sender's end would make the kernel collect stranded sockets
    sender.strand(stranded.0)?;
    drop(sender);

    let mut xctl = Xctl::start(set, &[])?;
    let mut claims = Claims::default();
    let (taken, _) = reader.take()?;
    reader.drain(taken)?;
    reader.shutdown(taken)?;
    let reads = match xctl.ready.attach.as_str() {
        "kprobe" => Whose::Unknown,
        _ => Whose::Of(reader.who.clone(), Owner::Read),
    };
    claims.add("taken from a message, read, and closed", &link.b, read.1, Kind::Rto, reads)?;
    closer.close_mailbox()?;
    claims.add("closed with the message", &link.b, unread.1, Kind::Rto, Whose::Unknown)?;
    stranger.open_and_close()?;
    claims.add("collected by the kernel", &link.b, stranded.1, Kind::Rto, Whose::Unknown)?;
    claims.wait(&mut xctl)?;
    claims.judge(xctl, "")
}
