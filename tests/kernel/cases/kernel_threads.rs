//! What the kernel does with sockets by itself. Its threads that send on a process's socket, for the process, never become its
//! owner; its own sockets are nobody's, whoever made it open them.

use anyhow::{Context, ensure};

use crate::actors::{Actor, Protocols};
use crate::claims::{Claims, Whose};
use crate::counters::unacknowledged;
use crate::host::Set;
use crate::link::{DEAD_V4, DEAD_V6, Link};
use crate::process::{PATIENCE, poll};
use crate::ways::{How, Order, RawActor};
use crate::workers::mount_in_vain;
use crate::xctl::{Kind, Owner, Xctl};
use crate::{Family, Outcome, Verdict};

/// A sockmap: what comes in on one socket of a process is sent on another by a worker of the kernel. The process itself
/// has only made the connection.
pub fn sockmap(set: Set, family: Family) -> Outcome {
    let link = Link::up()?;
    let mut source = Actor::new(&link.a, "source")?;
    let mut sink = Actor::new(&link.a, "sink")?;
    let mut proxy = RawActor::new(&link.b, "proxy")?;
    let mut xctl = Xctl::start(set, &[])?;
    let (listener, at_proxy) = proxy.listen(link.address(&link.b, family))?;
    let (_, at_sink) = sink.listen((link.address(&link.a, family), 0).into())?;
    let (sends, _) = source.connect(at_proxy, Protocols::Tcp)?;
    let (from, _) = proxy.socket(Order::Accept(listener, How::Call))?;
    let (to, flow) = proxy.socket(Order::Connect(at_sink))?;
    if let Err(why) = proxy.attempt(Order::Forward(from, to))? {
        return Ok(Verdict::Skipped(why));
    }

    link.lose_from(&link.b, 100)?;
    let mut claims = Claims::default();
    let whose = Whose::Of(proxy.who.clone(), Owner::Connect);
    claims.add("a worker forwards", &link.b, flow, Kind::Rto, whose)?;
    source.send(sends)?;
    claims.wait(&mut xctl)?;
    claims.judge(xctl, "")
}

/// kTLS: what did not fit into the socket's buffer is sent by a worker of the kernel, once there is room.
pub fn ktls(set: Set, family: Family) -> Outcome {
    let link = Link::up()?;
    // so that a record of TLS takes many: only one that fits in part is left to the worker
    link.one_by_one(&link.a)?;
    let mut client = Actor::new(&link.a, "client")?;
    let mut server = Actor::new(&link.b, "server")?;
    let (listener, at) = server.listen((link.address(&link.b, family), 0).into())?;
    let mut xctl = Xctl::start(set, &[])?;
    let (sends, flow) = client.connect(at, Protocols::Tcp)?;
    let (reads, _) = server.accept(listener)?;
    if let Err(why) = client.fill(sends)? {
        return Ok(Verdict::Skipped(why));
    }
    let taken = || Ok(unacknowledged(&link.a)?.is_empty());
    ensure!(!taken()?, "the peer reads nothing, and yet nothing waits");
    // the worker is through when the peer has all
    ensure!(
        poll(PATIENCE, || {
            server.drain(reads)?;
            taken()
        })?,
        "not acknowledged"
    );

    link.lose(100)?;
    let mut claims = Claims::default();
    claims.add("after a worker sent", &link.a, flow, Kind::Rto, Whose::Of(client.who.clone(), Owner::Send))?;
    client.shutdown(sends)?;
    claims.wait(&mut xctl)?;
    claims.judge(xctl, "")
}

/// A file system on a server: the kernel connects by itself, in the context of the process that calls mount(2).
pub fn mount(set: Set, family: Family) -> Outcome {
    const CIFS_PORT: u16 = 445;
    let known = std::fs::read_to_string("/proc/filesystems").context("reading /proc/filesystems")?;
    if !known.split_whitespace().any(|name| name == "cifs") {
        return Ok(Verdict::Skipped("this kernel has no CIFS, or has not loaded it".into()));
    }
    let link = Link::up()?;
    let server = if family == Family::V4 { DEAD_V4 } else { DEAD_V6 };
    let mut xctl = Xctl::start(set, &[])?;
    let mounting = mount_in_vain(&link.a, "mounting", server)?;
    let to = (server, CIFS_PORT).into();
    let syn = xctl.wait_for(|record| record.at.netns == link.a.inode && record.at.flow().remote == to)?;
    drop(mounting);
    let mut claims = Claims::default();
    let flow = syn.context("the kernel does not connect")?.at.flow();
    claims.add_since(0, "the kernel's connection", &link.a, flow, Kind::Syn, Whose::Kernel);
    claims.judge(xctl, "")
}
