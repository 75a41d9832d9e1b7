//! MPTCP: a process uses a socket that has no segments of its own. The kernel makes subflows, which send the segments.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use super::ss;
use super::stats::number;
use super::top::Top;

use crate::actors::{Actor, Id, Protocols};
use crate::claims::{Claims, Whose};
use crate::counters::Counters;
use crate::host::{Set, tool};
use crate::link::{Link, Netns, dead};
use crate::map;
use crate::missed::program_misses;
use crate::process::{PATIENCE, now, poll};
use crate::workers::Flow;
use crate::xctl::{Kind, OfProcess, Owner, Xctl};
use crate::{Family, Outcome, Verdict};

/// Connections of MPTCP at both ends, one of them handed over, and connections where one end speaks only TCP.
pub fn run(set: Set, family: Family) -> Outcome {
    let link = Link::up()?;
    let here = link.address(&link.b, family);
    let mut server = Actor::new(&link.b, "server")?;
    let mut client = Actor::new(&link.a, "client")?;
    let mut heir = Actor::new(&link.a, "heir")?;
    let mut xctl = Xctl::start(set, &[])?;
    let (both, at_both) = match server.listen_mptcp((here, 0).into())? {
        Ok(listener) => listener,
        Err(why) => return Ok(Verdict::Skipped(why)),
    };
    let (plain, at_plain) = server.listen((here, 0).into())?;

    let mut connect = |at: SocketAddr, listener: Id, protocol| -> Result<_> {
        Ok((client.connect(at, protocol)?, server.accept(listener)?))
    };
    let (ours, theirs) = connect(at_both, both, Protocols::Mptcp)?;
    let (handed, _) = connect(at_both, both, Protocols::Mptcp)?;
    let (idle, _) = connect(at_both, both, Protocols::Mptcp)?;
    let (_, from_tcp) = connect(at_both, both, Protocols::Tcp)?;
    let (to_tcp, _) = connect(at_plain, plain, Protocols::Mptcp)?;
    let given = client.give(handed.0, &mut heir)?;
    let idle_given = client.give(idle.0, &mut heir)?;
    let made = Counters::of(&link.a)?.value("MPCapableSYNACKRX")?;
    ensure!(made == 3, "{made} connections of MPTCP, where the test made 3");

    // xctl remembers nothing of a connection that has ended, nor of its parent
    let mut brief = Actor::new(&link.a, "brief")?;
    let (sends, _) = brief.connect(at_both, Protocols::Mptcp)?;
    let (reads, _) = server.accept(both)?;
    brief.send(sends)?;
    server.drain(reads)?;
    server.shutdown(reads)?;
    let pid = brief.who.pid;
    drop(brief);
    let left = || map::entries_of(xctl.process.pid(), &[pid]);
    let gone = poll(PATIENCE, || Ok(left()?.is_empty()))?;
    // a reader of a map keeps programs from running on that CPU, and newer kernels count these runs
    let programs = program_misses(xctl.process.pid())?;
    let skipped = programs.iter().any(|(name, misses)| name == "kp_state" && *misses > 0);
    ensure!(gone || skipped, "remembered after its end: {:?}", left()?);

    // the client's data arrive, and the ACKs do not
    link.lose_from(&link.b, 100)?;
    let of = |actor: &Actor, owner| Whose::Of(actor.who.clone(), owner);
    let (a, b) = (&link.a, &link.b);
    let mut claims = Claims::default();
    client.send(ours.0)?;
    claims.add("the client's", a, ours.1, Kind::Rto, of(&client, Owner::Send))?;
    server.send(theirs.0)?;
    claims.add("the server's", b, theirs.1, Kind::Rto, of(&server, Owner::Send))?;
    client.send(handed.0)?;
    heir.send(given)?;
    claims.add("handed over", a, handed.1, Kind::Rto, of(&heir, Owner::Send))?;
    claims.or_else(&client.who);
    heir.send(idle_given)?;
    claims.add("handed over before the first send", a, idle.1, Kind::Rto, of(&heir, Owner::Send))?;
    claims.or_else(&client.who);
    server.send(from_tcp.0)?;
    claims.add("the client speaks TCP", b, from_tcp.1, Kind::Rto, of(&server, Owner::Send))?;
    client.send(to_tcp.0)?;
    claims.add("the server speaks TCP", a, to_tcp.1, Kind::Rto, of(&client, Owner::Send))?;
    let asked = client.ask_mptcp(at_both)?.1;
    claims.add("a SYN", a, asked, Kind::Syn, of(&client, Owner::Connect))?;
    claims.add("a SYN-ACK", b, asked.reversed(), Kind::Synack, of(&server, Owner::Listen))?;
    claims.wait(&mut xctl)?;
    claims.judge(xctl, "")
}

/// Further subflows of a connection. The kernel opens them in a worker and in the process that configures addresses, and
/// also listens for them. Subflows that belong to a process's connection are the process's; the listener is the kernel's.
pub fn subflows(set: Set, family: Family) -> Outcome {
    const PORT: u16 = 5204;
    // a second address of the server; the route to it starts at a dead address of the client
    let (announced, dead) = (second_address(family), dead(family));
    let link = Link::up()?;
    let (a, b) = (&link.a, &link.b);
    let mut server = Actor::new(b, "server")?;
    let mut client = Actor::new(a, "client")?;
    let mut xctl = Xctl::start(set, &[])?;
    let (listener, at) = match server.listen_mptcp((link.address(b, family), 0).into())? {
        Ok(listener) => listener,
        Err(why) => return Ok(Verdict::Skipped(why)),
    };
    // other connections must not choose this address as their source
    ip(a, &format!("addr add {dead} dev veth0 nodad preferred_lft 0"))?;
    ip(a, &format!("route add {announced} dev veth0 src {dead}"))?;
    announce(&link, announced, PORT)?;

    let (ours, _) = client.connect(at, Protocols::Mptcp)?;
    let (theirs, _) = server.accept(listener)?;
    // now each end knows that the other speaks MPTCP, and the server announces its address
    client.send(ours)?;
    server.send(theirs)?;
    let since = now()?;
    let announced = (announced, PORT).into();
    let join = wait_for_syn(&mut xctl, a, |flow| flow.remote == announced)?;
    if set == Set::Auto {
        let listed = super::sockets::of_kernel(b)?;
        let listens = listed.iter().any(|(_, state)| state == "LISTEN");
        ensure!(listens, "`xctl sockets` lists as the kernel's {listed:?}");
    }
    // the same from the process that configures addresses; another process made the connection
    ip(a, &format!("mptcp endpoint add {dead} dev veth0 subflow"))?;
    let second = wait_for_syn(&mut xctl, a, |flow| flow.remote == at)?;

    let mut claims = Claims::default();
    let of_client = || Whose::Of(client.who.clone(), Owner::Send);
    claims.add_since(since, "a subflow that a worker opens", a, join, Kind::Syn, of_client());
    claims.add_since(since, "a subflow that ip opens", a, second, Kind::Syn, of_client());
    claims.add_since(since, "the kernel's listener", b, join.reversed(), Kind::Synack, Whose::Kernel);
    claims.wait(&mut xctl)?;
    claims.judge(xctl, "")
}

/// An address that the server announces besides its first one.
fn second_address(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 99, 0, 50).into(),
        Family::V6 => Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 0x50).into(),
    }
}

/// Gives `b` a second address, which its MPTCP announces. Since a port is announced with it, the kernel listens for the subflow.
/// `a` must have a route to the address.
fn announce(link: &Link, second: IpAddr, port: u16) -> Result<()> {
    let (a, b) = (&link.a, &link.b);
    // the option for an IPv6 address with a port needs the room that timestamps take in the header
    [a, b].into_iter().try_for_each(|ns| ns.set("tcp_timestamps", "0"))?;
    // neighbour discovery from a dead address would get no answer
    ip(a, &format!("neigh replace {second} lladdr {} nud permanent dev veth0", link.hardware(b)))?;
    ip(b, &format!("addr add {second} dev veth0 nodad"))?;
    [a, b].into_iter().try_for_each(|ns| ip(ns, "mptcp limits set subflows 4 add_addr_accepted 4"))?;
    ip(b, &format!("mptcp endpoint add {second} port {port} signal"))
}

/// Both ends of connections with two subflows each: the server announces a second address.
struct TwoWays {
    link: Link,
    server: Actor,
    client: Actor,
    listener: Id,
    at: SocketAddr,
}

/// The figures of subflows that `ss` has, too.
const NAMES: [&str; 6] = ["bytes_sent", "bytes_received", "segs_out", "segs_in", "data_segs_out", "data_segs_in"];

impl TwoWays {
    /// The inner error says that the kernel has no MPTCP.
    fn new(family: Family) -> Result<Result<TwoWays, String>> {
        let link = Link::up()?;
        let (a, b) = (&link.a, &link.b);
        let mut server = Actor::new(b, "server")?;
        let client = Actor::new(a, "client")?;
        let (listener, at) = match server.listen_mptcp((link.address(b, family), 0).into())? {
            Ok(listener) => listener,
            Err(why) => return Ok(Err(why)),
        };
        let second = second_address(family);
        ip(a, &format!("route add {second} dev veth0"))?;
        announce(&link, second, 5205)?;
        Ok(Ok(TwoWays { link, server, client, listener, at }))
    }

    fn connect(&mut self) -> Result<(Id, Id)> {
        Ok((self.client.connect(self.at, Protocols::Mptcp)?.0, self.server.accept(self.listener)?.0))
    }

    fn exchange(&mut self, (ours, theirs): (Id, Id), sends: u32) -> Result<()> {
        for _ in 0..sends {
            self.client.send(ours)?;
            self.server.drain(theirs)?;
            self.server.send(theirs)?;
            self.client.drain(ours)?;
        }
        Ok(())
    }

    /// The sums of all subflows at each end, once nothing changes: also not by a delayed acknowledgement.
    fn told(&self, subflows: usize) -> Result<[[u64; 6]; 2]> {
        let (mut before, mut now) = (None, None);
        let settled = poll(PATIENCE, || {
            sleep(Duration::from_millis(300));
            let all = [ss::sums(&self.link.a, NAMES)?, ss::sums(&self.link.b, NAMES)?];
            let whole = all.iter().all(|(count, _)| *count == subflows);
            before = now.replace(all.map(|(_, sums)| sums));
            Ok(whole && before == now)
        })?;
        ensure!(settled, "never {subflows} subflows at rest: {now:?}");
        now.context("nothing was told")
    }
}

/// The ledger counts the subflows of connections that stay open: what each has counted according to `ss`.
pub fn ledger(set: Set, family: Family) -> Outcome {
    let mut ways = match TwoWays::new(family)? {
        Ok(ways) => ways,
        Err(why) => return Ok(Verdict::Skipped(why)),
    };
    let old = ways.connect()?;
    ways.exchange(old, 3)?;
    let before = ways.told(2)?;
    let xctl = Xctl::start(set, &[])?;
    let top = Top::start(set)?;
    let new = ways.connect()?;
    ways.exchange(old, 5)?;
    ways.exchange(new, 7)?;
    let after = ways.told(4)?;
    let top = top.finish()?;
    let trace = xctl.stop(Signal::SIGINT)?;
    trace.nothing_lost()?;
    ensure!(trace.summary.lost.ledger == 0, "the ledger lacks {}", trace.summary.lost.ledger);
    for (end, who) in [&ways.client.who, &ways.server.who].into_iter().enumerate() {
        let row = trace.summary.ledger.iter().find(|row| row.pid == Some(who.pid));
        let row = &row.with_context(|| format!("no row of {who:?}"))?.ledger;
        ensure!(row["connections"]["open"] == 4 && row["complete"] == false, "four are open, two are older: {row}");
        for (place, name) in NAMES.into_iter().enumerate() {
            let expected = after[end][place] - before[end][place];
            ensure!(expected > 0, "{name} of {who:?} is 0");
            ensure!(row["tcp"][name] == expected, "{name} of {who:?} is not {expected}: {row}");
            let of_top = top.get(&who.pid).map(|row| &row["tcp"][name]);
            ensure!(
                of_top.is_some_and(|sum| *sum == expected),
                "xctl top: {name} of {who:?} is {of_top:?}, not {expected}"
            );
        }
    }
    Ok(Verdict::Passed(format!("{:?} before, {:?} after", before[0], after[0])))
}

/// A process ends without having read all: the kernel resets the connection, whose socket of MPTCP ends before its subflows, and
/// their owner with it. The xctl that starts late has read the subflows at its start, and knows their owner. The other one
/// counts them in the row without a PID.
pub fn reset(set: Set, family: Family) -> Outcome {
    let mut ways = match TwoWays::new(family)? {
        Ok(ways) => ways,
        Err(why) => return Ok(Verdict::Skipped(why)),
    };
    let [a, b] = [&ways.link.a, &ways.link.b].map(|netns| netns.inode.to_string());
    let here = ["--netns", &a, "--netns", &b];
    let early = Xctl::start(set, &here)?;
    let connection = ways.connect()?;
    ways.exchange(connection, 3)?;
    let before = ways.told(2)?;
    let late = Xctl::start(set, &here)?;
    ways.exchange(connection, 5)?;
    ways.server.send(connection.1)?;
    let after = ways.told(2)?;
    let TwoWays { link, server, client, .. } = ways;
    let pids = [client.who.pid, server.who.pid];
    drop(client);
    drop(server);
    link.quiet()?;
    let resets = Counters::of(&link.a)?.value("MPFastcloseTx")?;
    ensure!(resets > 0, "the kernel did not reset the connection");
    for (xctl, is_early, before) in [(early, true, [[0; 6]; 2]), (late, false, before)] {
        let trace = xctl.stop(Signal::SIGINT)?;
        trace.nothing_lost()?;
        let rows = &trace.summary.ledger;
        let is_unknown =
            |row: &OfProcess| row.pid.is_none() && row.ledger["kernel"] == false && row.ledger["shared"] == false;
        for (end, pid) in pids.into_iter().enumerate() {
            let own = rows.iter().find(|row| row.pid == Some(pid));
            let unknown = rows.iter().find(|row| is_early && end == 0 && is_unknown(row));
            let row = &own.or(unknown).with_context(|| format!("no row of {pid}: {rows:?}"))?.ledger;
            ensure!(row["connections"]["open"] == 0 && row["connections"]["ended"] == 2, "two have ended: {row}");
            ensure!(row["complete"] == (is_early && own.is_some()), "complete: {row}");
            for (place, name) in NAMES.into_iter().enumerate().filter(|(_, name)| !name.starts_with("segs")) {
                let expected = after[end][place] - before[end][place];
                ensure!(expected > 0 && row["tcp"][name] == expected, "{name} of {pid} is not {expected}: {row}");
            }
        }
        let ended = |row: &OfProcess| number(&row.ledger, "connections.ended").unwrap_or(0);
        ensure!(rows.iter().map(ended).sum::<u64>() == 4, "four subflows have ended: {rows:?}");
    }
    Ok(Verdict::Passed(format!("{:?} bytes and segments; resets: {resets}", after[0])))
}

/// Waits for a retransmitted SYN whose flow `which` accepts, and returns the flow.
fn wait_for_syn(xctl: &mut Xctl, ns: &Netns, which: impl Fn(Flow) -> bool) -> Result<Flow> {
    let found =
        xctl.wait_for(|record| record.at.netns == ns.inode && record.kind == Kind::Syn && which(record.at.flow()))?;
    Ok(found.context("no further subflow was opened")?.at.flow())
}

fn ip(ns: &Netns, arguments: &str) -> Result<()> {
    let output = ns.enter(|| tool("ip").args(arguments.split(' ')).output().context("starting ip"))?;
    ensure!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
