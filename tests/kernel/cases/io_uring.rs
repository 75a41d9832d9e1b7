//! io_uring carries out requests of a process in the process's own context, in a worker, or in the thread that polls for
//! requests. Workers and that thread are kernel threads, and yet threads of the process.

use anyhow::Result;

use crate::claims::{Claims, Whose};
use crate::host::Set;
use crate::link::Link;
use crate::ways::{How, Order, RawActor};
use crate::workers::Who;
use crate::xctl::{Kind, Owner, Xctl};
use crate::{Family, Outcome, Verdict};

pub fn run(set: Set, family: Family) -> Outcome {
    let link = Link::up()?;
    let mut server = RawActor::new(&link.b, "server")?;
    let mut client = RawActor::new(&link.a, "client")?;
    let mut xctl = Xctl::start(set, &[])?;
    let (listener, at) = server.listen(link.address(&link.b, family))?;
    let mut connections = vec![];
    for how in [How::Ring, How::Worker, How::Poll] {
        for sends in [true, false] {
            let ours = client.socket(Order::Connect(at))?;
            match server.attempt_socket(Order::Accept(listener, how))? {
                Ok(theirs) => connections.push((how, sends, ours, theirs)),
                Err(why) => return Ok(Verdict::Skipped(why)),
            }
        }
    }

    let closer = server.fork("closer")?;

    link.lose(100)?;
    let mut claims = Claims::default();
    let of = |who: &Who, owner| Whose::Of(who.clone(), owner);
    let asked = client.socket(Order::Ask(at))?.1;
    claims.add_since(0, "asks for a connection", &link.a, asked, Kind::Syn, of(&client.who, Owner::Connect));
    // if no hook shows accept(), no use of the connection was seen
    let accepted = if xctl.sees_accept() { of(&server.who, Owner::Accept) } else { Whose::Unknown };
    for (how, sends, ours, theirs) in connections {
        let mut add = |what: &str, ns, flow, whose| -> Result<()> {
            claims.add(&format!("{what}, {how:?}"), ns, flow, Kind::Rto, whose)
        };
        if sends {
            client.done(Order::Send(ours.0, how))?;
            add("the client sends", &link.a, ours.1, of(&client.who, Owner::Send))?;
            server.done(Order::Send(theirs.0, how))?;
            add("the server sends", &link.b, theirs.1, of(&server.who, Owner::Send))?;
        } else {
            server.child_done(&closer, Order::Shutdown(theirs.0))?;
            add("accepted, and closed by another", &link.b, theirs.1, accepted.clone())?;
        }
    }
    claims.wait(&mut xctl)?;
    claims.judge(xctl, "")
}
