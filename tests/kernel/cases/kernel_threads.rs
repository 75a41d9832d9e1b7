//! Sockets that the kernel uses by itself. A kernel thread that sends on a process's socket, for the process, never becomes
//! the owner. The kernel's own sockets belong to no process, not even to the process that made the kernel open them.

use std::net::IpAddr;

use anyhow::{Context, ensure};

use crate::actors::{Actor, Protocols};
use crate::claims::{Claims, Whose};
use crate::counters::unacknowledged;
use crate::host::Set;
use crate::link::{Link, Netns, dead};
use crate::process::{PATIENCE, poll};
use crate::ways::{How, Order, RawActor};
use crate::workers::{Flow, Receiver, mount_in_vain};
use crate::xctl::{Kind, Owner, Retransmit, Xctl};
use crate::{Family, Outcome, Verdict};

/// A sockmap: data that arrive on one socket of a process are sent on another by a kernel worker. The process itself has
/// only made the connection.
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

/// kTLS: data that did not fit into the socket's buffer are sent by a kernel worker, once there is room.
pub fn ktls(set: Set, family: Family) -> Outcome {
    let link = Link::up()?;
    // a TLS record then takes many skbs: the worker sends only a record that fits in part
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
    // the worker is done when the peer has all the data
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

/// A network file system: the kernel connects by itself, in the context of the process that calls mount(2), and sends by
/// itself. It sends SYNs to a server that does not answer, and data to one that accepts.
pub fn mount(set: Set, family: Family) -> Outcome {
    const CIFS_PORT: u16 = 445;
    /// Less than the first message of CIFS, and more than a handshake takes, in bytes.
    const NARROW: u32 = 80;
    let known = std::fs::read_to_string("/proc/filesystems").context("reading /proc/filesystems")?;
    if !known.split_whitespace().any(|name| name == "cifs") {
        return Ok(Verdict::Skipped("this kernel has no CIFS, or has not loaded it".into()));
    }
    let link = Link::up()?;
    let mut claims = Claims::default();
    let mut xctl = Xctl::start(set, &[])?;
    let mut wait = |ns: &Netns, server: IpAddr, kind: Kind| -> anyhow::Result<Flow> {
        let to = (server, CIFS_PORT).into();
        let wanted =
            |record: &Retransmit| record.at.netns == ns.inode && record.at.flow().remote == to && record.kind == kind;
        Ok(xctl.wait_for(wanted)?.with_context(|| format!("nothing of kind {kind:?} to {to}"))?.at.flow())
    };
    let dead = dead(family);
    let mounting = mount_in_vain(&link.a, "mounting", dead)?;
    let flow = wait(&link.a, dead, Kind::Syn)?;
    if set == Set::Auto {
        let listed = super::sockets::of_kernel(&link.a)?;
        // the kernel may have given up, and try another port
        let right = listed.iter().all(|(to, state)| to.ip() == dead && state == "SYN_SENT");
        ensure!(right && !listed.is_empty(), "`xctl sockets` lists as the kernel's {listed:?}");
    }
    drop(mounting);
    claims.add_since(0, "the kernel's connection", &link.a, flow, Kind::Syn, Whose::Kernel);

    let server = Receiver::new(&link.b, "server", link.address(&link.b, family), CIFS_PORT)?;
    // the smallest packet that every device must take is longer with IPv6, so IPv6 cannot be narrowed this far
    if family == Family::V4 {
        link.narrow(&link.b, NARROW)?;
        let mounting = mount_in_vain(&link.a, "mounting", server.at.ip())?;
        let flow = wait(&link.a, server.at.ip(), Kind::Rto)?;
        claims.add_since(0, "what the kernel says", &link.a, flow, Kind::Rto, Whose::Kernel);
        // a closed kernel socket retransmits nothing, and outlives the namespace
        link.narrow(&link.b, 1500)?;
        ensure!(poll(PATIENCE, || Ok(unacknowledged(&link.a)?.is_empty()))?, "not acknowledged");
        drop(mounting);
        link.quiet()?;
    }
    claims.judge(xctl, "")
}
