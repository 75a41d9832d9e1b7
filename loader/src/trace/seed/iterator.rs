//! The kernel's iterators: programs that the kernel runs once for each object, and whose output is read like a file.

use std::collections::{HashMap, HashSet};
use std::io::{ErrorKind, Read};
use std::os::fd::BorrowedFd;

use anyhow::{Context, Result, ensure};

use super::holders::{Holders, Seeded};
use crate::kernel::bpf;
use crate::kernel::loaded::LoadedObject;
use crate::model::events::{Flow, Holder, KnownBy, Plain};
use crate::model::maps::SOCKETS;

/// The program that remembers the holders of open sockets.
pub const SEED: &str = "it_seed";

/// Let [`SEED`] remember the owners of sockets that are open already. `progress` is told how many holders were read so far.
///
/// # Errors
/// If the kernel does not let us read.
pub fn seed(object: &LoadedObject, progress: &mut dyn FnMut(usize)) -> Result<Seeded> {
    let mut records = Vec::<Holder>::new();
    let each = |record| {
        records.push(record);
        progress(records.len());
    };
    self::records(object.program(SEED)?, each).context("cannot read open files")?;
    let (mut sockets, mut by_netns) = (0, HashMap::new());
    for record in records.iter().filter(|record| record.first != 0) {
        sockets += 1;
        if record.netns != 0 {
            *by_netns.entry(record.netns).or_default() += 1;
        }
    }
    Ok(Seeded { sockets, by_netns, holders: Holders::new(records.into_iter()), ..Seeded::default() })
}

/// Whether an open file leads to one of these sockets now. SOCKET_TO_PID has no owner of them. An entry under the key of one of them
/// may belong to another socket, which has ended, and is removed first. If the map is full, no such socket counts as held.
///
/// # Errors
/// If the kernel does not let us read or write.
pub(super) fn held_now(object: &LoadedObject, sockets: &HashSet<Flow>) -> Result<bool> {
    let owners = object.contents(SOCKETS)?;
    let mut bytes = [0; size_of::<Flow>()];
    for by_address in sockets {
        let by_flow = Flow { socket: 0, known_by: KnownBy::Flow as u8, ..*by_address };
        let by_address = Flow { socket: by_address.socket, known_by: KnownBy::Address as u8, ..Flow::default() };
        for key in [by_flow, by_address] {
            key.put(&mut bytes);
            owners.remove(&bytes).context("cannot change the map SOCKET_TO_PID")?;
        }
    }
    let addresses: HashSet<u64> = sockets.iter().map(|flow| flow.socket).collect();
    let mut held = false;
    records(object.program(SEED)?, |record: Holder| held |= addresses.contains(&record.socket))
        .context("cannot read open files")?;
    Ok(held)
}

/// Run an iterator program to its end, and hand on each record that it writes.
pub(super) fn records<T: Plain>(program: BorrowedFd<'_>, each: impl FnMut(T)) -> Result<()> {
    split(bpf::iterate(program).context("the kernel refuses to start the iterator")?, each)
}

/// Split the output of an iterator into records: whole records, and nothing else.
pub(in crate::trace) fn split<T: Plain>(mut file: impl Read, mut each: impl FnMut(T)) -> Result<()> {
    let mut buffer = vec![0; 1 << 16];
    let mut held = 0;
    loop {
        match file.read(&mut buffer[held..]) {
            Ok(0) => break,
            Ok(count) => held += count,
            // The kernel stops after a million objects without output, to let other tasks run.
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => continue,
            Err(error) => return Err(error.into()),
        }
        let records = buffer[..held].chunks_exact(size_of::<T>());
        let left = records.remainder().len();
        records.for_each(|record| each(T::get(record)));
        buffer.copy_within(held - left..held, 0);
        held = left;
    }
    ensure!(held == 0, "an iterator ended within a record: {held} bytes are left");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::listing::tests::socket;
    use super::*;
    use crate::model::events::{How, SocketRecord};

    /// A file that gives so many bytes at a time.
    struct Slow<'a>(&'a [u8], usize);

    impl Read for Slow<'_> {
        fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
            let most = to.len().min(self.1);
            self.0.read(&mut to[..most])
        }
    }

    #[test]
    fn a_list_is_whole_records_however_it_is_read() {
        let mut bytes = vec![0; size_of::<SocketRecord>() * 2];
        socket(7, How::Seed, 80).put(&mut bytes[size_of::<SocketRecord>()..]);
        for at_a_time in [1, 100, size_of::<SocketRecord>(), 1000] {
            let mut read = Vec::new();
            split(Slow(&bytes, at_a_time), |record: SocketRecord| read.push(record)).unwrap();
            assert_eq!(read, [SocketRecord::default(), socket(7, How::Seed, 80)], "{at_a_time}");
        }
        assert!(split(&bytes[1..], |_: SocketRecord| {}).is_err());
        assert!(split(&[][..], |_: SocketRecord| panic!("no record")).is_ok());
    }
}
