//! Who owned what before we came: every TCP socket that some process holds, as the kernel's own iterators tell, or, where
//! it has none, as [`procfs`] tells.

pub mod procfs;

use std::cmp::Reverse;
use std::collections::HashSet;
use std::io::{ErrorKind, Read};
use std::os::fd::BorrowedFd;

use anyhow::{Context, Result, ensure};

use crate::events::{Flow, How, Owner, Plain, SocketRecord};
use crate::kernel::libbpf::Loaded;
use crate::kernel::{bpf, netns};
use crate::maps::SOCKETS;
use crate::tracer::read_map;

/// The program that remembers what is open already.
pub const SEED: &str = "it_seed";
/// The program that lists the sockets of a network namespace.
pub const LIST: &str = "it_sockets";

/// How often a listing begins anew because the host changed meanwhile.
const ATTEMPTS: usize = 3;

/// Where to learn who holds the sockets that are open already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The kernel's iterator over open files, by [`SEED`].
    Iterator,
    /// [`procfs`].
    Proc,
    /// Nowhere.
    None,
}

/// What was remembered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seeded {
    /// Sockets.
    pub sockets: usize,
    /// Sockets for which SOCKET_TO_PID had no room, as far as the programs did not count them themselves.
    pub no_room: u64,
    /// Network namespaces whose sockets were not looked at, as they may not be entered.
    pub closed_namespaces: usize,
    /// Processes whose open files may not be seen.
    pub closed_processes: usize,
}

/// Remember what is open already. `cgroup` is the id of the cgroup that the user asked for, or 0.
///
/// # Errors
/// If the kernel does not let us read.
pub fn seed(object: &Loaded, source: Source, cgroup: u64) -> Result<Seeded> {
    match source {
        Source::Iterator => {
            let sockets = run(object.program(SEED)?).context("cannot read open files")?.len();
            Ok(Seeded { sockets, ..Seeded::default() })
        }
        Source::Proc => procfs::seed(&object.contents(SOCKETS)?, cgroup),
        Source::None => Ok(Seeded::default()),
    }
}

/// All that an iterator program writes.
fn run(program: BorrowedFd<'_>) -> Result<Vec<u8>> {
    let mut file = bpf::iterate(program).context("the kernel refuses to iterate")?;
    let mut bytes = Vec::new();
    loop {
        match file.read_to_end(&mut bytes) {
            Ok(_) => return Ok(bytes),
            // The kernel stops after a million objects without output, to let others run. What was read is kept.
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The TCP sockets of this host.
#[derive(Debug, Default)]
pub struct Listing {
    /// By owner, then by address.
    pub sockets: Vec<SocketRecord>,
    /// In how many network namespaces they were looked for.
    pub namespaces: usize,
    /// Sockets that processes hold in network namespaces that nothing leads to: they are not in the list.
    pub unreachable: usize,
}

/// List every TCP socket. `load` loads [`SEED`] and [`LIST`].
///
/// A socket can be younger than what was learned about open files: where one has a file behind it and yet no owner, the
/// listing begins anew, with nothing remembered. What then still has none is a socket in flight, or held by an
/// `io_uring`, or the host changes faster than it can be looked at.
///
/// # Errors
/// If the kernel does not let us load, enter a network namespace, or read.
pub fn list(load: impl Fn() -> Result<Loaded>) -> Result<Listing> {
    let mut listing = Listing::default();
    for _ in 0..ATTEMPTS {
        listing = list_once(&load()?)?;
        if !listing.sockets.iter().any(|socket| socket.held != 0 && socket.owner.how() == How::Unknown) {
            break;
        }
    }
    listing.sockets.sort_by_key(|socket| order(&socket.owner, &socket.flow));
    Ok(listing)
}

/// Processes by PID, then the kernel, then nobody; among these by address.
fn order(owner: &Owner, flow: &Flow) -> impl Ord + use<> {
    let nobody = (!owner.is_process()).then_some(Reverse(owner.how));
    (nobody, owner.tgid, flow.netns, flow.saddr, flow.sport, flow.daddr, flow.dport)
}

fn list_once(object: &Loaded) -> Result<Listing> {
    let program = object.program(LIST)?;
    seed(object, Source::Iterator, 0)?;
    let (mut sockets, mut visited, mut seen) = (Vec::new(), HashSet::new(), HashSet::new());
    // What leads to a namespace can end before we are there, while something else still leads there.
    for _ in 0..ATTEMPTS {
        let new: Vec<_> = netns::all()?.into_iter().filter(|netns| !visited.contains(&netns.inode)).collect();
        if new.is_empty() {
            break;
        }
        for netns in new {
            let Some(bytes) = netns.enter(|| run(program).context("cannot list sockets"))? else { continue };
            visited.insert(netns.inode);
            // An iterator that goes on after a pause may show a socket once more.
            sockets.extend(parse(&bytes)?.filter(|socket| seen.insert(socket.flow)));
        }
    }
    let held: Vec<(Flow, Owner)> = read_map(&object.contents(SOCKETS)?).context("cannot read the map SOCKET_TO_PID")?;
    let unreachable = |flow: &Flow| flow.netns != 0 && !visited.contains(&flow.netns);
    let unreachable = held.iter().filter(|(flow, _)| unreachable(flow)).count();
    Ok(Listing { sockets, namespaces: visited.len(), unreachable })
}

/// What the iterator wrote: records, and nothing else.
fn parse(bytes: &[u8]) -> Result<impl Iterator<Item = SocketRecord>> {
    let records = bytes.chunks_exact(size_of::<SocketRecord>());
    ensure!(
        records.remainder().is_empty(),
        "a list of sockets of {} bytes, which is no number of records",
        bytes.len()
    );
    Ok(records.map(SocketRecord::get))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn socket(tgid: u32, how: How, sport: u16) -> SocketRecord {
        let owner = Owner { tgid, how: how as u8, ..Owner::default() };
        SocketRecord { owner, flow: Flow { sport, ..Flow::default() }, ..SocketRecord::default() }
    }

    #[test]
    fn a_list_is_whole_records() {
        let mut bytes = vec![0; size_of::<SocketRecord>() * 2];
        socket(7, How::Seed, 80).put(&mut bytes[size_of::<SocketRecord>()..]);
        let read: Vec<_> = parse(&bytes).unwrap().collect();
        assert_eq!(read, [SocketRecord::default(), socket(7, How::Seed, 80)]);
        assert!(parse(&bytes[1..]).is_err());
        assert_eq!(parse(&[]).unwrap().count(), 0);
    }

    #[test]
    fn by_process_then_by_address_and_what_nobody_owns_last() {
        let mut sockets = [
            socket(0, How::Unknown, 1),
            socket(9, How::Seed, 1),
            socket(0, How::Kernel, 1),
            socket(2, How::Listen, 7),
            socket(2, How::Seed, 5),
        ];
        sockets.sort_by_key(|socket| order(&socket.owner, &socket.flow));
        let pids: Vec<_> = sockets.iter().map(|socket| (socket.owner.tgid, socket.flow.sport)).collect();
        assert_eq!(pids, [(2, 5), (2, 7), (9, 1), (0, 1), (0, 1)]);
        assert_eq!(sockets[3].owner.how(), How::Kernel);
    }
}
