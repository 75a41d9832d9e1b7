//! The fates of connections: ended in an orderly way, reset, timed out, refused. The numbers are those of the kernel's counters.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};

use anyhow::{Context, Result, ensure};
use nix::libc;
use nix::sys::signal::Signal;
use nix::sys::socket::{setsockopt, sockopt};

use super::stats::number;
use crate::counters::{Counters, wait_until_grown};
use crate::host::Set;
use crate::link::Link;
use crate::xctl::Xctl;
use crate::{Family, Outcome, Verdict};

/// The numbers of connections that this process resets, that its peer resets, and that nobody accepts.
const RESETS: usize = 3;
const RESETS_BY_PEER: usize = 2;
const REFUSED: usize = 2;

/// Closing this socket resets the connection.
pub fn resets(connection: &TcpStream) -> Result<()> {
    setsockopt(connection, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 }).context("setting SO_LINGER")
}

pub fn run(set: Set, family: Family) -> Outcome {
    let link = Link::up()?;
    let listen = || link.b.enter(|| TcpListener::bind((link.address(&link.b, family), 0)).context("listening"));
    let (listener, closed) = (listen()?, listen()?.local_addr()?);
    let at = listener.local_addr()?;
    let connect = || -> Result<[TcpStream; 2]> {
        let near = link.a.enter(|| TcpStream::connect(at).context("connecting"))?;
        Ok([near, listener.accept()?.0])
    };
    let before = Counters::of(&link.a)?;
    let xctl = Xctl::start(set, &["--events", "retransmit,connection", "--netns", &link.a.inode.to_string()])?;

    let [near, mut far] = connect()?;
    drop(near);
    ensure!(far.read(&mut [0])? == 0, "the end does not arrive");
    drop(far);
    for _ in 0..RESETS {
        let [near, far] = connect()?;
        resets(&near)?;
        drop(near);
        drop(far);
    }
    for _ in 0..RESETS_BY_PEER {
        let [mut near, far] = connect()?;
        resets(&far)?;
        drop(far);
        let end = near.read(&mut [0]).map_err(|error| error.kind());
        ensure!(end == Err(ErrorKind::ConnectionReset), "the reset does not arrive: {end:?}");
    }
    for _ in 0..REFUSED {
        let end = link.a.enter(|| Ok(TcpStream::connect(closed).map_err(|error| error.kind())))?;
        ensure!(matches!(end, Err(ErrorKind::ConnectionRefused)), "it is not refused: {end:?}");
    }
    let [mut doomed, _far] = connect()?;
    setsockopt(&doomed, sockopt::TcpUserTimeout, &400)?;
    link.lose(100)?;
    doomed.write_all(b"x")?;
    wait_until_grown(&link.a, &before, "TCPAbortOnTimeout", 1)?;
    link.lose(0)?;

    let after = Counters::of(&link.a)?;
    let grew = |name| after.since(&before, name);
    let trace = xctl.stop(Signal::SIGINT)?;
    trace.nothing_lost()?;
    let told = [grew("ActiveOpens")?, grew("EstabResets")?, grew("TCPAbortOnTimeout")?, grew("AttemptFails")?];
    let made = RESETS + RESETS_BY_PEER + 1;
    ensure!(told == [made + REFUSED + 1, made, 1, REFUSED].map(|count| count as i64), "the kernel counted {told:?}");

    let rows = trace.summary.ledger.iter().filter(|row| row.pid == Some(std::process::id()));
    let row = &rows.map(|row| &row.ledger).next().context("no row of this process")?;
    let count =
        |of, name: &str| number(of, &format!("connections.{name}")).with_context(|| format!("no {name}: {row}"));
    let fates = |of| -> Result<[i64; 5]> {
        let names = ["ended", "reset", "timed_out", "refused", "open"];
        let counts = names.map(|name| count(of, name));
        let mut all = [0; 5];
        for (place, count) in all.iter_mut().zip(counts) {
            *place = count?.cast_signed();
        }
        Ok(all)
    };
    // The kernel counts the connection that timed out as reset, too.
    let [opened, reset, timed_out, refused] = told;
    let expected = [opened, reset - timed_out, timed_out, refused, 0];
    ensure!(fates(row)? == expected, "the kernel has {expected:?}: {row}");
    let mut sums = [0; 5];
    for record in &trace.connections {
        let one = fates(&record.ledger)?;
        ensure!(one[0] == 1 && one[1..].iter().sum::<i64>() <= 1, "two fates: {record:?}");
        sums.iter_mut().zip(one).for_each(|(sum, one)| *sum += one);
    }
    ensure!(sums == expected, "the records of ends have {sums:?}, and the kernel {expected:?}");
    Ok(Verdict::Passed(format!("{expected:?}")))
}
