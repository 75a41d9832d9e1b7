//! The side that waits: listeners, those who share them, and connections that were accepted and never sent on.

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

/// Workers that accept on a listener of their parent's. Until then a connection is the parent's, then the worker's, which
/// never sends.
pub fn forked(set: Set, family: Family) -> Outcome {
    workers(set, family, 0, None)
}

/// The same on a kernel that has no function to see accept() in but its own: so says the BTF that xctl is given.
pub fn by_return(set: Set, family: Family) -> Outcome {
    workers(set, family, 0, Some(Btf::without("security_sock_graft")?))
}

/// The same, while more processes wait in accept() than a kretprobe of this kernel can be in at a time.
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
    // who accepted it is its owner until another sends; where nothing shows accept(), closing it is the first that is seen
    let owner = if xctl.sees_accept() { workers[1].who.clone() } else { heir.who.clone() };
    heir.shutdown(given)?;
    claims.add("accepted, and closed by another", &link.b, second.1, Kind::Rto, of(&owner, Owner::Accept))?;
    claims.or_else(&heir.who);
    claims.wait(&mut xctl)?;
    claims.judge(xctl, "")
}

/// Two processes listen on one address: a SYN-ACK is of that one to whose listener the SYN came, who will accept it.
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

/// A call of accept() that had begun before xctl came, so that nothing shows who returns from it. The process never sends.
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

/// Why it cannot be known; none once the process waits in the system call.
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
