//! The passive side: listeners, processes that share them, and accepted connections that never sent.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::refusals::Btf;
use crate::actors::{Actor, Protocols};
use crate::claims::{Claims, Whose};
use crate::host::{Set, possible_cpus};
use crate::link::Link;
use crate::process::{PATIENCE, poll};
use crate::workers::Receiver;
use crate::xctl::{Kind, Owner, Xctl};
use crate::{Family, Outcome, Verdict};

/// Workers accept on a listener of their parent's. Until accept() a connection is the parent's; then it is the worker's,
/// which never sends.
pub fn forked(set: Set, family: Family) -> Outcome {
    workers(set, family, 0, None)
}

/// Like [`forked`], on a kernel where only accept()'s own function shows accept(): the BTF that xctl is given says so.
pub fn by_return(set: Set, family: Family) -> Outcome {
    workers(set, family, 0, Some(Btf::without("security_sock_graft")?))
}

/// Like [`forked`], while more processes wait in accept() than a kretprobe of this kernel can have running at a time.
pub fn crowded(set: Set, family: Family) -> Outcome {
    workers(set, family, 10.max(2 * possible_cpus()?) + 1, None)
}

fn workers(set: Set, family: Family, waiting: usize, btf: Option<Btf>) -> Outcome {
    let link = Link::up()?;
    let mut parent = Actor::new(&link.b, "parent")?;
    let mut heir = Actor::new(&link.b, "heir")?;
    let mut client = Actor::new(&link.a, "client")?;
    let path = btf.as_ref().map(Btf::path);
    let mut xctl = Xctl::start(set, &path.iter().flat_map(|path| ["--btf", path.as_str()]).collect::<Vec<_>>())?;
    let by_return = xctl.ready.hooks.iter().any(|hook| hook.hook == "kretprobe" && hook.target == "inet_csk_accept");
    ensure!(btf.is_none() || by_return, "accept() is not seen at its return: {:?}", xctl.ready.hooks);
    let waiting: Vec<_> = (0..waiting)
        .map(|_| Receiver::new(&link.b, "waits", link.address(&link.b, family), 0))
        .collect::<Result<_>>()?;
    for other in &waiting {
        if let Some(why) = wait_until_in_accept(other.who.pid)? {
            return Ok(Verdict::Skipped(why));
        }
    }
    let (listener, at) = parent.listen((link.address(&link.b, family), 0).into())?;
    let workers = [parent.fork("worker-1", listener)?, parent.fork("worker-2", listener)?];

    client.connect(at, Protocols::Tcp)?;
    let first = parent.child_accepts(&workers[0])?;
    client.connect(at, Protocols::Tcp)?;
    let second = parent.child_accepts(&workers[1])?;
    let given = parent.child_gives(&workers[1], second.0, &mut heir)?;

    link.lose_from(&link.b, 100)?;
    let mut claims = Claims::default();
    let of = |who: &crate::workers::Who, owner| Whose::Of(who.clone(), owner);
    let asked = client.ask(at)?.1.reversed();
    claims.add("a SYN-ACK", &link.b, asked, Kind::Synack, of(&parent.who, Owner::Listen))?;
    parent.child_shuts_down(&workers[0], first.0)?;
    claims.add("accepted and closed", &link.b, first.1, Kind::Rto, of(&workers[0].who, Owner::Accept))?;
    // the process that accepted is the owner until another sends; if no hook shows accept(), no use of the connection was
    // seen
    let owner = if xctl.sees_accept() { of(&workers[1].who, Owner::Accept) } else { Whose::Unknown };
    heir.shutdown(given)?;
    claims.add("accepted, and closed by another", &link.b, second.1, Kind::Rto, owner)?;
    claims.wait(&mut xctl)?;
    claims.judge(xctl, "")
}

/// Two processes listen on one address. A SYN-ACK belongs to the process whose listener got the SYN, and which will accept
/// the connection.
pub fn shared(set: Set, family: Family) -> Outcome {
    const CONNECTIONS: usize = 8;
    let link = Link::up()?;
    let mut client = Actor::new(&link.a, "client")?;
    let mut xctl = Xctl::start(set, &[])?;
    let mut first = Actor::new(&link.b, "first")?;
    let mut second = Actor::new(&link.b, "second")?;
    let (of_first, at) = first.listen_shared((link.address(&link.b, family), 0).into())?;
    let (of_second, _) = second.listen_shared(at)?;

    link.lose_from(&link.b, 100)?;
    let asked = (0..CONNECTIONS).map(|_| Ok(client.ask(at)?.1.reversed())).collect::<Result<Vec<_>>>()?;
    for flow in &asked {
        let is_it = |record: &crate::xctl::Retransmit| {
            record.at.netns == link.b.inode && record.at.flow() == *flow && record.kind == Kind::Synack
        };
        ensure!(xctl.wait_for(is_it)?.is_some(), "no SYN-ACK of {flow:?} went again within {PATIENCE:?}");
    }
    link.lose_from(&link.b, 0)?;
    let mut accepted = BTreeMap::new();
    let all = poll(PATIENCE, || {
        for (actor, listener) in [(&mut first, of_first), (&mut second, of_second)] {
            let got = actor.accept_waiting(listener)?;
            accepted.extend(got.into_iter().map(|(_, flow)| (flow.remote.port(), actor.who.clone())));
        }
        Ok(accepted.len() == CONNECTIONS)
    })?;
    ensure!(all, "only {} of {CONNECTIONS} were accepted", accepted.len());
    let mut claims = Claims::default();
    for flow in asked {
        let who = accepted.get(&flow.remote.port()).context("accepted by nobody")?;
        claims.add_since(0, "a SYN-ACK", &link.b, flow, Kind::Synack, Whose::Of(who.clone(), Owner::Listen));
    }
    let of_first = accepted.values().filter(|who| **who == first.who).count();
    claims.judge(xctl, &format!(", {of_first} of {CONNECTIONS} connections to the first"))
}

/// A child calls listen() on a listener that its parent opened: the listener is the child's from then on.
pub fn again(set: Set, family: Family) -> Outcome {
    let link = Link::up()?;
    let mut parent = Actor::new(&link.b, "parent")?;
    let mut client = Actor::new(&link.a, "client")?;
    let mut xctl = Xctl::start(set, &[])?;
    if xctl.ready.attach == "tracepoint" {
        return Ok(Verdict::Skipped("no tracepoint shows listen() on a socket that listens already".into()));
    }
    let (listener, at) = parent.listen((link.address(&link.b, family), 0).into())?;
    let child = parent.fork("child", listener)?;
    link.lose_from(&link.b, 100)?;
    let asked = client.ask(at)?.1.reversed();
    let mut claims = Claims::default();
    claims.add("the parent listens", &link.b, asked, Kind::Synack, Whose::Of(parent.who.clone(), Owner::Listen))?;
    claims.wait(&mut xctl)?;
    claims.until_now()?;
    parent.child_listens_again(&child)?;
    claims.add("the child listens", &link.b, asked, Kind::Synack, Whose::Of(child.who.clone(), Owner::Listen))?;
    claims.wait(&mut xctl)?;
    claims.judge(xctl, "")
}

/// One of two listeners on an address closes. The other one answers requests that came to the first.
pub fn migrated(set: Set, family: Family) -> Outcome {
    const CONNECTIONS: usize = 8;
    let link = Link::up()?;
    if !Path::new("/proc/sys/net/ipv4/tcp_migrate_req").exists() {
        return Ok(Verdict::Skipped("this kernel's listeners take over no requests (tcp_migrate_req)".into()));
    }
    link.b.set("tcp_migrate_req", "1")?;
    let mut client = Actor::new(&link.a, "client")?;
    let mut xctl = Xctl::start(set, &[])?;
    let mut first = Actor::new(&link.b, "first")?;
    let mut second = Actor::new(&link.b, "second")?;
    let (_, at) = first.listen_shared((link.address(&link.b, family), 0).into())?;
    second.listen_shared(at)?;
    link.lose_from(&link.b, 100)?;
    let asked = (0..CONNECTIONS).map(|_| Ok(client.ask(at)?.1.reversed())).collect::<Result<Vec<_>>>()?;
    for flow in &asked {
        let is_it = |record: &crate::xctl::Retransmit| record.at.flow() == *flow && record.kind == Kind::Synack;
        ensure!(xctl.wait_for(is_it)?.is_some(), "no SYN-ACK of {flow:?} went again within {PATIENCE:?}");
    }
    // from 6.5 on the client asks again before the request's timer runs: the request still names the closed listener
    drop(first);
    let mut claims = Claims::default();
    for flow in asked {
        let owner = Whose::Of(second.who.clone(), Owner::Listen);
        claims.add("a SYN-ACK of the listener that is left", &link.b, flow, Kind::Synack, owner)?;
    }
    claims.wait(&mut xctl)?;
    claims.judge(xctl, "")
}

/// A call of accept() began before xctl started, so no hook shows which process returns from it. The process never sends.
pub fn blocked_accept(set: Set, family: Family) -> Outcome {
    let link = Link::up()?;
    let mut server = Actor::new(&link.b, "server")?;
    let mut client = Actor::new(&link.a, "client")?;
    let (listener, at) = server.listen((link.address(&link.b, family), 0).into())?;
    server.begin_accept(listener)?;
    if let Some(why) = wait_until_in_accept(server.who.pid)? {
        return Ok(Verdict::Skipped(why));
    }
    let mut xctl = Xctl::start(set, &[])?;
    client.connect(at, Protocols::Tcp)?;
    let (id, flow) = server.accepted(listener)?;

    link.lose_from(&link.b, 100)?;
    server.shutdown(id)?;
    let mut claims = Claims::default();
    let owner = Whose::Of(server.who.clone(), Owner::Accept);
    claims.add("closed without a send", &link.b, flow, Kind::Rto, owner)?;
    claims.wait(&mut xctl)?;
    claims.judge(xctl, "")
}

/// Waits until the process is in the system call. Returns why the kernel cannot tell, or none.
fn wait_until_in_accept(pid: u32) -> Result<Option<String>> {
    let file = format!("/proc/{pid}/syscall");
    if !Path::new(&file).exists() {
        return Ok(Some(format!("this kernel does not tell what a process waits in ({file})")));
    }
    let accept = [libc::SYS_accept, libc::SYS_accept4].map(|number| number.to_string());
    let waits = || {
        let said = std::fs::read_to_string(&file).with_context(|| format!("reading {file}"))?;
        Ok(said.split_whitespace().next().is_some_and(|number| accept.iter().any(|own| own == number)))
    };
    ensure!(poll(PATIENCE, waits)?, "the server does not get into accept()");
    Ok(None)
}
