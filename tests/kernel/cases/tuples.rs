//! Misleading four-tuples: the same one twice, and IPv4 connections of IPv6 sockets.

use std::fs;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Result, anyhow, bail, ensure};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::socket::SockFlag;

use crate::claims::{Claims, Whose};
use crate::counters::{Counters, unacknowledged, wait_until_grown};
use crate::host::{Set, is_guest};
use crate::link::{Link, SECOND_MTU};
use crate::map;
use crate::process::{PATIENCE, poll};
use crate::workers::{Flow, Plan, Puppet, Receiver, Sender, Truth, open, send_all};
use crate::xctl::{Kind, Owner, Retransmit, Trace, Xctl};
use crate::{Family, Outcome, Verdict};

/// Two connections have the same addresses and ports at the same time, in two network namespaces.
pub fn same_tuple_two_netns(set: Set, family: Family) -> Outcome {
    const LOCAL: u16 = 40000;
    const REMOTE: u16 = 5000;
    let links = [Link::lossy()?, Link::lossy()?];
    let mut receivers = vec![];
    let mut senders = vec![];
    for (link, comm) in links.iter().zip(["twin-0", "twin-1"]) {
        let receiver = Receiver::new(&link.b, "receiver", link.address(&link.b, family), REMOTE)?;
        let from = SocketAddr::new(link.address(&link.a, family), LOCAL);
        senders.push(Sender::new(&link.a, Plan { from: Some(from), ..busy_plan(comm, receiver.at) })?);
        receivers.push(receiver);
    }
    let xctl = Xctl::start(set, &[])?;
    let truths = send_all(senders)?;
    links.iter().try_for_each(Link::quiet)?;
    let trace = xctl.stop(Signal::SIGINT)?;

    trace.nothing_lost()?;
    ensure!(truths[0].flow()? == truths[1].flow()?, "the test did not make twins: {truths:?}");
    let mut counts = vec![];
    for ((link, truth), receiver) in links.iter().zip(&truths).zip(&receivers) {
        counts.push(all_named(&trace, link, truth, receiver)?);
    }
    Ok(Verdict::Passed(format!("{} and {} retransmits", counts[0], counts[1])))
}

/// Two connections with the same four-tuple in one network namespace, on two wires with the same link-local addresses. The
/// size of their segments distinguishes them.
pub fn same_tuple_two_devices(set: Set, _family: Family) -> Outcome {
    const LOCAL: u16 = 40000;
    let link = Link::up()?;
    let wires = link.second_wire()?;
    let receiver = Receiver::new(&link.b, "receiver", Ipv6Addr::UNSPECIFIED.into(), 0)?;
    let xctl = Xctl::start(set, &[])?;
    let before = Counters::of(&link.a)?;
    link.lose_from(&link.a, 10)?;
    link.lose_from_second(&link.a, 10)?;
    let mut twins = vec![];
    for (wire, comm) in wires.iter().zip(["twin-0", "twin-1"]) {
        // enough sends, even if the SYN gets lost several times first
        let many = Plan { sends: 2000, time: PATIENCE, ..busy_plan(comm, on_wire(*wire, 2, receiver.at.port())) };
        let plan = Plan { from: Some(on_wire(*wire, 1, LOCAL)), ..many };
        twins.push(Sender::new(&link.a, plan)?);
    }
    let truths = send_all(twins)?;
    link.lose_from_second(&link.a, 0)?;
    link.lose_from(&link.a, 0)?;
    link.quiet()?;
    let trace = xctl.stop(Signal::SIGINT)?;

    trace.nothing_lost()?;
    ensure!(truths[0].flow()? == truths[1].flow()?, "the test did not make twins: {truths:?}");
    let mut counts = [0; 2];
    // until the peer has announced its MSS, the MSS of a SYN is a guess
    for record in trace.of(link.a.inode).filter(|record| record.kind != Kind::Syn) {
        let second = usize::from(record.mss.is_some_and(|mss| mss < SECOND_MTU - 40));
        let who = &truths[second].who;
        ensure!(record.at.pid == Some(who.pid), "this is of {who:?}: {record:?}");
        counts[second] += 1;
    }
    let segs: u64 = trace.of(link.a.inode).map(|record| record.segs).sum();
    let grown = Counters::of(&link.a)?.since(&before, "RetransSegs")?;
    ensure!(
        counts.iter().all(|count| *count > 0),
        "not both sent again: {counts:?}, {segs} segments, the kernel counted {grown}"
    );
    Ok(Verdict::Passed(format!("{} and {} retransmits", counts[0], counts[1])))
}

/// Many pairs of connections with the same four-tuple; both of a pair call connect() at the same moment. Neither may take
/// the other's place.
pub fn twins_at_once(set: Set, _family: Family) -> Outcome {
    const PAIRS: usize = 200;
    const FIRST: u16 = 40000;
    const GIVEN_UP: usize = usize::MAX / 2;
    let link = Link::up()?;
    let wires = link.second_wire()?;
    let receiver = Receiver::new(&link.b, "receiver", Ipv6Addr::UNSPECIFIED.into(), 0)?;
    let xctl = Xctl::start(set, &[])?;
    let ready = AtomicUsize::new(0);
    let connect_all = |wire: u32| {
        let ports = (1..=PAIRS).zip(FIRST..);
        let streams = ports.map(|(pair, port)| {
            ready.fetch_add(1, Ordering::SeqCst);
            while ready.load(Ordering::SeqCst) < 2 * pair {
                thread::yield_now();
            }
            Ok(open(Some(on_wire(wire, 1, port)), on_wire(wire, 2, receiver.at.port()), SockFlag::empty())?.0)
        });
        streams.collect::<Result<Vec<_>>>().inspect_err(|_| ready.store(GIVEN_UP, Ordering::SeqCst))
    };
    let streams = link.a.enter(|| {
        thread::scope(|scope| {
            let threads = wires.map(|wire| scope.spawn(move || connect_all(wire)));
            let joined = threads.map(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?);
            joined.into_iter().collect::<Result<Vec<_>>>()
        })
    })?;
    let known = map::sockets_of(xctl.process.pid(), std::process::id())?;
    ensure!(known.len() == 2 * PAIRS, "of {} sockets {} are known", 2 * PAIRS, known.len());
    drop(streams);
    xctl.stop(Signal::SIGINT)?;
    Ok(Verdict::Passed(format!("{PAIRS} pairs")))
}

/// Two connections with the same four-tuple were open before xctl started. xctl learns them from the iterator or /proc.
pub fn twins_already_open(set: Set, _family: Family) -> Outcome {
    let ways = [("iterator", false), ("proc", false), ("proc", true)];
    let seen: Vec<_> = ways.iter().map(|(source, busy)| seeded_twins(set, source, *busy)).collect::<Result<_>>()?;
    Ok(Verdict::Passed(format!("{seen:?} retransmits")))
}

/// `busy`: the first connection sends while xctl starts, so that the programs know it before seeding sees the second.
fn seeded_twins(set: Set, source: &str, busy: bool) -> Result<[usize; 2]> {
    let link = Link::up()?;
    let receiver = Receiver::new(&link.b, "receiver", Ipv6Addr::UNSPECIFIED.into(), 0)?;
    let mut twins = twins(&link, &receiver)?;
    link.lose_from(&link.a, 100)?;
    link.lose_from_second(&link.a, 100)?;
    twins.iter_mut().try_for_each(Puppet::send)?;
    let started = AtomicBool::new(!busy);
    let mut xctl = thread::scope(|scope| {
        let sending = scope.spawn(|| {
            // the data go nowhere, and the socket's buffer has no room for more sends
            const MOST: usize = 40;
            let pause = Duration::from_millis(if is_guest() { 100 } else { 10 });
            for _ in (0..MOST).take_while(|_| !started.load(Ordering::Relaxed)) {
                twins[0].send()?;
                thread::sleep(pause);
            }
            Ok::<_, anyhow::Error>(())
        });
        let xctl = Xctl::start(set, &["--seed", source]);
        started.store(true, Ordering::Relaxed);
        sending.join().map_err(|_| anyhow!("the thread that sends panicked"))??;
        xctl
    })?;
    let is_second = |record: &Retransmit| record.mss.is_some_and(|mss| mss < SECOND_MTU - 40);
    let netns = link.a.inode;
    for second in [false, true] {
        let seen = xctl.wait_for(|record| record.at.netns == netns && is_second(record) == second)?;
        ensure!(seen.is_some(), "{source}: nothing was sent again, on the second wire: {second}");
    }
    if !busy {
        // an acknowledgement ends the growth of the timeout, so that the FIN is sent again soon
        let wires = [Link::lose_from, Link::lose_from_second];
        wires.iter().try_for_each(|lose| lose(&link, &link.a, 0))?;
        ensure!(poll(PATIENCE, || Ok(unacknowledged(&link.a)?.is_empty()))?, "{source}: not acknowledged");
        wires.iter().try_for_each(|lose| lose(&link, &link.a, 100))?;
    }
    // After close() no file leads to the socket. The socket keeps its owner nevertheless, until its end.
    let owners: Vec<_> = twins.iter().map(|twin| twin.truth.who.clone()).collect();
    twins.into_iter().try_for_each(Puppet::exit)?;
    for second in [false, true].into_iter().filter(|_| !busy) {
        let seen = xctl.wait_for(|record| {
            record.at.netns == netns && is_second(record) == second && record.state == "FIN_WAIT1"
        })?;
        ensure!(seen.is_some(), "{source}: nothing was sent again after close(), on the second wire: {second}");
    }
    link.lose_from(&link.a, 0)?;
    link.lose_from_second(&link.a, 0)?;
    let pids: Vec<_> = owners.iter().map(|who| who.pid).collect();
    let left = || map::entries_of(xctl.process.pid(), &pids);
    ensure!(poll(PATIENCE, || Ok(left()?.is_empty()))?, "{source}: entries of sockets that are gone: {:?}", left()?);
    let trace = xctl.stop(Signal::SIGINT)?;
    let mut counts = [0; 2];
    for record in trace.of(netns) {
        let second = usize::from(is_second(record));
        let who = &owners[second];
        // for the busy connection, a hook may know the owner first, or seeding does before a retransmit
        let how = record.at.owner == Owner::Seed || (busy && second == 0 && record.at.owner == Owner::Send);
        let right = record.at.pid == Some(who.pid) && how;
        ensure!(right, "{source}: this is of {who:?}: {record:?}");
        counts[second] += 1;
    }
    Ok(counts)
}

/// Two connections with the same four-tuple are shut down for sending and wait for their peer: close() does not change
/// their state.
pub fn twins_shut_down(set: Set, _family: Family) -> Outcome {
    const FIN_WAIT2: &str = "05";
    let link = Link::up()?;
    let receiver = Receiver::new(&link.b, "receiver", Ipv6Addr::UNSPECIFIED.into(), 0)?;
    let mut twins = twins(&link, &receiver)?;
    receiver.freeze()?;
    twins.iter_mut().try_for_each(Puppet::shut)?;
    let waiting = || {
        let table = link.a.enter(|| Ok(fs::read_to_string("/proc/thread-self/net/tcp6")?))?;
        Ok::<_, anyhow::Error>(table.lines().filter(|line| line.split_whitespace().nth(3) == Some(FIN_WAIT2)).count())
    };
    ensure!(poll(PATIENCE, || Ok(waiting()? == 2))?, "{} sockets in FIN_WAIT2", waiting()?);
    let xctl = Xctl::start(set, &["--seed", "proc"])?;
    let owners: Vec<_> = twins.iter().map(|twin| twin.truth.who.pid).collect();
    let known = || map::entries_of(xctl.process.pid(), &owners);
    ensure!(known()?.len() == 2, "seeded: {:?}", known()?);
    twins.into_iter().try_for_each(Puppet::exit)?;
    ensure!(poll(PATIENCE, || Ok(known()?.is_empty()))?, "entries of sockets that are gone: {:?}", known()?);
    xctl.stop(Signal::SIGINT)?;
    Ok(Verdict::Passed("2 forgotten".to_owned()))
}

/// A port of the link's host 1 or 2, on the device of this index.
fn on_wire(wire: u32, host: u16, port: u16) -> SocketAddr {
    SocketAddrV6::new(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, host), port, 0, wire).into()
}

/// Connections with the same addresses and ports over two wires, of processes called "twin-0" and "twin-1".
fn twins(link: &Link, receiver: &Receiver) -> Result<Vec<Puppet>> {
    const LOCAL: u16 = 40000;
    let mut twins = vec![];
    for (wire, comm) in link.second_wire()?.iter().zip(["twin-0", "twin-1"]) {
        let (from, to) = (on_wire(*wire, 1, LOCAL), on_wire(*wire, 2, receiver.at.port()));
        twins.push(Puppet::from(&link.a, comm, Some(from), to)?);
    }
    // the same in everything except the wire
    let ends = |flow: Flow| [flow.local, flow.remote].map(|end| (end.ip(), end.port()));
    let flows = [ends(twins[0].truth.flow()?), ends(twins[1].truth.flow()?)];
    ensure!(flows[0] == flows[1], "the test did not make twins: {flows:?}");
    Ok(twins)
}

/// `AF_INET6` sockets at both ends that use IPv4.
pub fn v4_mapped(set: Set, _family: Family) -> Outcome {
    let link = Link::lossy()?;
    let receiver = Receiver::new(&link.b, "receiver", Ipv6Addr::UNSPECIFIED.into(), 0)?;
    let IpAddr::V4(address) = link.address(&link.b, Family::V4) else { bail!("not an IPv4 address") };
    let to = SocketAddr::new(address.to_ipv6_mapped().into(), receiver.at.port());
    let sender = Sender::new(&link.a, busy_plan("mapped", to))?;
    let xctl = Xctl::start(set, &[])?;
    let truths = send_all(vec![sender])?;
    link.quiet()?;
    let trace = xctl.stop(Signal::SIGINT)?;

    trace.nothing_lost()?;
    let count = all_named(&trace, &link, &truths[0], &receiver)?;
    for record in trace.of(link.a.inode).chain(trace.of(link.b.inode)) {
        ensure!(record.at.family == "ipv4", "not told as IPv4: {record:?}");
    }
    Ok(Verdict::Passed(format!("{count} retransmits")))
}

/// A connect() fails because another connection has its four-tuple. The kernel ends a socket of that tuple, and the other
/// connection still belongs to its process.
pub fn in_use(set: Set, family: Family) -> Outcome {
    of_tuple_in_use(set, family, false)
}

/// Like [`in_use`], with a connection that was open before xctl started, and that xctl learned from /proc.
pub fn seeded_in_use(set: Set, family: Family) -> Outcome {
    of_tuple_in_use(set, family, true)
}

fn of_tuple_in_use(set: Set, family: Family, seeded: bool) -> Outcome {
    const LOCAL: u16 = 40000;
    let link = Link::up()?;
    let receiver = Receiver::new(&link.b, "receiver", link.address(&link.b, family), 0)?;
    let from = Some(SocketAddr::new(link.address(&link.a, family), LOCAL));
    let connect = || Puppet::from(&link.a, "holder", from, receiver.at);
    let (mut xctl, mut holder) = if seeded {
        let mut holder = connect()?;
        link.lose(100)?;
        holder.send()?;
        (Xctl::start(set, &["--seed", "proc"])?, holder)
    } else {
        let xctl = Xctl::start(set, &[])?;
        let before = Counters::of(&link.a)?;
        let mut holder = connect()?;
        // a known sender is not looked up again
        holder.send()?;
        wait_until_grown(&link.a, &before, "TCPOrigDataSent", 1)?;
        (xctl, holder)
    };
    let refused = link.a.enter(|| Ok(open(from, receiver.at, SockFlag::empty()).err()))?;
    let why = refused.as_ref().and_then(|error| error.downcast_ref());
    ensure!(why == Some(&Errno::EADDRNOTAVAIL), "connect() from a port in use: {refused:?}");

    link.lose(100)?;
    let mut claims = Claims::default();
    let whose = Whose::Of(holder.truth.who.clone(), if seeded { Owner::Seed } else { Owner::Send });
    claims.add("the connection that lives", &link.a, holder.truth.flow()?, Kind::Rto, whose)?;
    if !seeded {
        holder.send()?;
    }
    claims.wait(&mut xctl)?;

    // after its end the connection has no owner
    link.lose(0)?;
    let pid = holder.truth.who.pid;
    holder.exit()?;
    link.quiet()?;
    let mut left = map::entries(xctl.process.pid())?;
    left.retain(|entry| entry.pid == pid);
    ensure!(left.is_empty(), "remembered after its end: {left:?}");
    claims.judge(xctl, "")
}

/// One connection that nearly always waits for a lost segment.
fn busy_plan(comm: &str, to: SocketAddr) -> Plan {
    Plan { sizes: vec![700], burst: 4, ..Plan::new(comm, to) }
}

/// Every record of the link is of its one connection and names the process of the record's end. Returns the number of the
/// sender's records.
fn all_named(trace: &Trace, link: &Link, sender: &Truth, receiver: &Receiver) -> Result<usize> {
    let flow = sender.flow()?;
    let count = trace.all_of(link.a.inode, &sender.who, flow)?;
    trace.all_of(link.b.inode, &receiver.who, flow.reversed())?;
    ensure!(count > 0, "no retransmits: the link was not lossy enough to tell anything");
    Ok(count)
}
