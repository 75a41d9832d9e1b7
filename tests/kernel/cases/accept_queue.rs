//! Processes that accept too slowly: the drops of their listeners are compared with the kernel's counter, and the accept queues
//! with /proc/net/tcp.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use nix::sys::socket::SockFlag;
use serde_json::{Value, json};

use crate::actors::Actor;
use crate::counters::{Counters, accept_queue, wait_until_grown};
use crate::host::Set;
use crate::link::{Link, Netns};
use crate::process::{PATIENCE, poll};
use crate::workers::open;
use crate::xctl::{Trace, Xctl};
use crate::{Family, Outcome, Verdict};

/// How many connections may wait. The kernel lets one more wait.
const BACKLOG: u32 = 4;

/// Lets at most [`BACKLOG`] connections wait at each listener that is made from now on.
pub fn short_queues(ns: &Netns) -> Result<()> {
    ns.set("../core/somaxconn", &BACKLOG.to_string())
}

/// Connects until the queue of the listener is full.
pub fn fill(link: &Link, at: SocketAddr) -> Result<Vec<TcpStream>> {
    let connect = |_| link.a.enter(|| TcpStream::connect(at).context("connecting"));
    let connections = (0..=BACKLOG).map(connect).collect::<Result<_>>()?;
    // the last ACK of a handshake may still be on its way
    let is_full = || Ok(accept_queue(&link.b, at.port())? == BACKLOG + 1);
    ensure!(poll(PATIENCE, is_full)?, "{} wait", accept_queue(&link.b, at.port())?);
    Ok(connections)
}

/// Makes the listener, whose queue is full, drop SYNs: `times`, or more if one is sent again. Returns how many.
pub fn drop_some(link: &Link, at: SocketAddr, times: i64) -> Result<i64> {
    let before = Counters::of(&link.b)?;
    for dropped in 1..=times {
        let asks = link.a.enter(|| open(None, at, SockFlag::SOCK_NONBLOCK))?;
        wait_until_grown(&link.b, &before, "ListenDrops", dropped)?;
        drop(asks);
    }
    Counters::of(&link.b)?.since(&before, "ListenDrops")
}

/// The field `listener` of a process's row; null: the process has no listener. None: the process has no row.
fn told(trace: &Trace, pid: u32) -> Option<Value> {
    let row = trace.summary.ledger.iter().find(|row| row.pid == Some(pid))?;
    Some(row.ledger["listener"].clone())
}

/// A listener that is older than xctl and dropped connections before, one that ends with a full queue, one that another
/// process takes over, and one to which nothing happens.
pub fn run(set: Set, family: Family) -> Outcome {
    let link = Link::up()?;
    short_queues(&link.b)?;
    let address = SocketAddr::from((link.address(&link.b, family), 0));
    let mut early = Actor::new(&link.b, "early")?;
    let mut quiet = Actor::new(&link.b, "quiet")?;
    let (_, early_at) = early.listen(address)?;
    quiet.listen(address)?;
    let mut waiting = fill(&link, early_at)?;
    drop_some(&link, early_at, 3)?;
    let xctl = Xctl::start(set, &[])?;

    let mut expected = BTreeMap::new();
    let full = |dropped: i64| json!({"dropped": dropped, "queue": BACKLOG + 1, "backlog": BACKLOG});
    expected.insert(early.who.pid, full(drop_some(&link, early_at, 2)?));

    let mut late = Actor::new(&link.b, "late")?;
    let (_, late_at) = late.listen(address)?;
    waiting.extend(fill(&link, late_at)?);
    expected.insert(late.who.pid, full(drop_some(&link, late_at, 3)?));
    drop(late);

    let mut parent = Actor::new(&link.b, "parent")?;
    let (listener, at) = parent.listen(address)?;
    let child = parent.fork("child", listener)?;
    waiting.extend(fill(&link, at)?);
    let of_parent = drop_some(&link, at, 1)?;
    let takes_over = xctl.ready.attach != "tracepoint";
    parent.child_listens_again(&child)?;
    let of_child = drop_some(&link, at, 4)?;
    if takes_over {
        expected.insert(parent.who.pid, full(of_parent));
        expected.insert(child.who.pid, full(of_child));
    } else {
        expected.insert(parent.who.pid, full(of_parent + of_child));
    }

    let trace = xctl.stop(Signal::SIGINT)?;
    drop(waiting);
    for (pid, listener) in &expected {
        let told = told(&trace, *pid);
        ensure!(told.as_ref() == Some(listener), "{listener} expected of process {pid}, not {told:?}");
    }
    let of_quiet = told(&trace, quiet.who.pid);
    ensure!(of_quiet.is_none(), "a row of a listener to which nothing happened: {of_quiet:?}");
    trace.nothing_lost()?;
    let dropped: Vec<_> = expected.values().map(|listener| listener["dropped"].to_string()).collect();
    Ok(Verdict::Passed(format!("{} dropped", dropped.join(", "))))
}
