//! `xctl sockets`: every TCP socket of the host, its owner, and on request its counters.

use std::cmp::Reverse;
use std::collections::HashSet;

use anyhow::{Context, Result};
use bpf_object::sort;

use super::holders::Holders;
use super::iterator::{self, records};
use crate::kernel::loaded::LoadedObject;
use crate::kernel::netns;
use crate::model::events::{Flow, How, Owner, Plain, SocketRecord};
use crate::model::reading::Reading;

/// The program that lists the sockets of a network namespace.
const LIST: &str = "it_sockets";
/// The program that lists them with their counters.
const READ: &str = "it_readings";

/// The program for a listing.
#[must_use]
pub fn program(with_readings: bool) -> &'static str {
    if with_readings { READ } else { LIST }
}

/// The most attempts at a listing. A listing begins again if the host changed meanwhile.
const ATTEMPTS: usize = 3;

/// A socket of the list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    /// The socket and its owner.
    pub socket: SocketRecord,
    /// What the socket counts, if that was asked for.
    pub reading: Option<Box<Reading>>,
}

impl From<SocketRecord> for Listed {
    fn from(socket: SocketRecord) -> Self {
        Self { socket, reading: None }
    }
}

/// What [`READ`] writes for a socket.
struct WithReading {
    socket: SocketRecord,
    reading: Reading,
}

impl Plain for WithReading {
    fn get(bytes: &[u8]) -> Self {
        let (socket, reading) = bytes.split_at(size_of::<SocketRecord>());
        Self { socket: SocketRecord::get(socket), reading: Reading::get(reading) }
    }

    fn put(&self, to: &mut [u8]) {
        let (socket, reading) = to.split_at_mut(size_of::<SocketRecord>());
        self.socket.put(socket);
        self.reading.put(reading);
    }
}

impl From<WithReading> for Listed {
    fn from(WithReading { socket, reading }: WithReading) -> Self {
        Self { socket, reading: Some(Box::new(reading)) }
    }
}

/// The TCP sockets of this host.
#[derive(Debug, Default)]
pub struct Listing {
    /// By owner, then by address.
    pub sockets: Vec<Listed>,
    /// The number of network namespaces that were searched.
    pub namespaces: usize,
    /// Sockets in network namespaces that /proc does not lead to. Processes hold them, but they are not in the list.
    pub unreachable: usize,
    /// The holders of shared sockets.
    pub holders: Holders,
}

/// List every TCP socket. `load` loads [`iterator::SEED`] and [`program()`].
///
/// A socket can be younger than the list of open files. If a socket of the listing has a file but no owner, and an open file of a
/// process leads to it now, the listing begins again, unless the listing before had all of these sockets, too. A socket that has no
/// owner after the last attempt is in flight, or an `io_uring` holds it, or it was closed meanwhile, or the host changes faster than
/// xctl reads.
///
/// # Errors
/// If the kernel does not let us load, enter a network namespace, or read.
pub fn list(with_readings: bool, load: impl Fn() -> Result<LoadedObject>) -> Result<Listing> {
    let mut listing = Listing::default();
    let mut older = HashSet::new();
    for _ in 0..ATTEMPTS {
        let object = load()?;
        listing = list_once(&object, with_readings)?;
        let sockets = listing.sockets.iter().map(|Listed { socket, .. }| socket);
        let unknown = sockets.filter(|socket| socket.held != 0 && socket.owner.how() == How::Unknown);
        let unknown: HashSet<Flow> = unknown.map(|socket| socket.flow).collect();
        // Reading the files once more takes less time than listing all once more.
        if unknown.is_subset(&older) || !iterator::held_now(&object, &unknown)? {
            break;
        }
        older = unknown;
    }
    sort::by_key(&mut listing.sockets, |Listed { socket, .. }| order(&socket.owner, &socket.flow));
    Ok(listing)
}

/// Processes by PID, then the kernel, then nobody; among these by address.
fn order(owner: &Owner, flow: &Flow) -> impl Ord + use<> {
    let nobody = (!owner.is_process()).then_some(Reverse(owner.how));
    (nobody, owner.tgid, flow.netns, flow.saddr, flow.sport, flow.daddr, flow.dport)
}

fn list_once(object: &LoadedObject, with_readings: bool) -> Result<Listing> {
    let program = object.program(program(with_readings))?;
    let seeded = iterator::seed(object, &mut |_| ())?;
    let (mut sockets, mut visited, mut seen) = (Vec::new(), HashSet::new(), HashSet::new());
    // The process or mount that leads to a namespace can end before we enter it, while another still leads there.
    for _ in 0..ATTEMPTS {
        let new: Vec<_> = netns::all()?.into_iter().filter(|netns| !visited.contains(&netns.inode)).collect();
        if new.is_empty() {
            break;
        }
        for netns in new {
            let mut found = Vec::new();
            let mut all = || match with_readings {
                true => records(program, |record: WithReading| found.push(Listed::from(record))),
                false => records(program, |record: SocketRecord| found.push(Listed::from(record))),
            };
            let Some(()) = netns.enter(|| all().context("cannot list sockets"))? else { continue };
            visited.insert(netns.inode);
            // An iterator that goes on after a pause may show a socket once more.
            sockets.extend(found.into_iter().filter(|Listed { socket, .. }| seen.insert(socket.flow)));
        }
    }
    let unreachable =
        seeded.by_netns.iter().filter(|(netns, _)| !visited.contains(netns)).map(|(_, count)| count).sum();
    Ok(Listing { sockets, namespaces: visited.len(), unreachable, holders: seeded.holders })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn socket(tgid: u32, how: How, sport: u16) -> SocketRecord {
        let owner = Owner { tgid, how: how as u8, ..Owner::default() };
        SocketRecord { owner, flow: Flow { sport, ..Flow::default() }, ..SocketRecord::default() }
    }

    #[test]
    fn sockets_are_sorted_by_process_then_address_and_unowned_ones_last() {
        let mut sockets = [
            socket(0, How::Unknown, 1),
            socket(9, How::Seed, 1),
            socket(0, How::Kernel, 1),
            socket(2, How::Listen, 7),
            socket(2, How::Seed, 5),
        ];
        sort::by_key(&mut sockets, |socket| order(&socket.owner, &socket.flow));
        let pids: Vec<_> = sockets.iter().map(|socket| (socket.owner.tgid, socket.flow.sport)).collect();
        assert_eq!(pids, [(2, 5), (2, 7), (9, 1), (0, 1), (0, 1)]);
        assert_eq!(sockets[3].owner.how(), How::Kernel);
    }
}
