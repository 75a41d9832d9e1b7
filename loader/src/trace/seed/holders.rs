//! The result of seeding, and the holders of sockets that several processes shared before xctl started.

use std::collections::HashMap;

use crate::model::events::{COMM_LEN, Holder};
use bpf_object::sort;

/// A process that holds a socket, and its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// The process's PID.
    pub tgid: u32,
    /// The process's name, NUL-terminated.
    pub comm: [u8; COMM_LEN],
}

/// The lists of holders, by [`crate::model::events::Owner::holders`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holders(HashMap<u64, Vec<Process>>);

impl Holders {
    /// Make the list of each socket with at least two holders. Records come in any order, and may repeat.
    #[must_use]
    pub fn new(records: impl Iterator<Item = Holder>) -> Self {
        let mut all: Vec<_> =
            records.map(|Holder { socket, tgid, comm, .. }| (socket, Process { tgid, comm })).collect();
        sort::by_key(&mut all, |(socket, process)| (*socket, process.tgid));
        all.dedup_by_key(|(socket, process)| (*socket, process.tgid));
        let lists = all.chunk_by(|(one, _), (other, _)| one == other).filter(|list| list.len() > 1);
        Self(lists.map(|list| (list[0].0, list.iter().map(|(_, process)| *process).collect())).collect())
    }

    /// The list of this key, by PID; empty for a socket that is not shared.
    #[must_use]
    pub fn of(&self, key: u64) -> &[Process] {
        self.0.get(&key).map_or(&[], Vec::as_slice)
    }
}

/// The result of seeding.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seeded {
    /// The number of sockets that have an owner now.
    pub sockets: usize,
    /// The number of those that are connections, by the inode number of their network namespace; empty if /proc was read.
    pub by_netns: HashMap<u32, usize>,
    /// Sockets for which SOCKET_TO_PID had no room, except those that the programs count themselves.
    pub no_room: u64,
    /// Network namespaces that xctl may not enter: their sockets have no owner yet.
    pub closed_namespaces: usize,
    /// Processes whose open files xctl may not see.
    pub closed_processes: usize,
    /// The holders of shared sockets.
    pub holders: Holders,
}

/// The name that all holders share; none if their names differ.
#[must_use]
pub fn common_name(holders: &[Process]) -> Option<&[u8; COMM_LEN]> {
    let (first, rest) = holders.split_first()?;
    rest.iter().all(|process| process.comm == first.comm).then_some(&first.comm)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(socket: u64, tgid: u32, comm: u8) -> Holder {
        Holder { socket, tgid, comm: [comm; COMM_LEN], ..Holder::default() }
    }

    #[test]
    fn a_process_counts_once_and_a_single_holder_makes_no_list() {
        let records = [(1, 9, 3), (2, 9, 3), (1, 4, 3), (1, 9, 3), (2, 9, 3), (3, 1, 1), (3, 2, 2)];
        let holders = Holders::new(records.into_iter().map(|(socket, tgid, comm)| holder(socket, tgid, comm)));
        let pids: Vec<_> = holders.of(1).iter().map(|process| process.tgid).collect();
        assert_eq!(pids, [4, 9]);
        assert!(holders.of(2).is_empty() && holders.of(0).is_empty());
        assert_eq!(common_name(holders.of(1)), Some(&[3; COMM_LEN]));
        assert_eq!(common_name(holders.of(3)), None);
        assert_eq!(common_name(&[]), None);
    }
}
