//! The maps of the loaded programs, as tables to read and change.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::AsFd;

use anyhow::{Context, Result};

use crate::kernel::loaded::LoadedObject;
use crate::kernel::map::Map;
use crate::ledger::epochs::Table;
use crate::model::events::{NetnsKey, Owner, Plain, ProcessKey, Totals};
use crate::model::lost::{COUNTERS, Counts};
use crate::model::maps::{EPOCH, LOST, NETNS_TOTALS, PROCESS_TOTALS, SOCKETS};

/// The programs and maps in the kernel. Dropping the value unloads them.
pub struct Tables {
    pub(super) object: LoadedObject,
}

impl Tables {
    /// The entries of the LOST map, each summed over all CPUs.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn counts(&self) -> Result<Counts> {
        let lost = self.object.contents(LOST)?;
        let mut values = vec![0; lost.value_size()];
        let mut counts = [0; COUNTERS];
        for (index, count) in (0u32..).zip(&mut counts) {
            lost.lookup(&index.to_ne_bytes(), &mut values).context("cannot read the map LOST")?;
            *count = values.chunks_exact(size_of::<u64>()).map(u64::get).sum();
        }
        Ok(Counts(counts))
    }

    /// The number of sockets whose owners are known. None: this kernel does not read many entries in one call (before 5.6).
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn sockets(&self) -> Result<Option<usize>> {
        let mut sockets = 0;
        match self.object.contents(SOCKETS)?.for_each(|_, _| sockets += 1) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(None),
            result => result.map(|()| Some(sockets)).context("cannot read the map SOCKET_TO_PID"),
        }
    }

    /// The totals of each network namespace. Filters do not affect these totals.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn by_netns(&self) -> Result<HashMap<NetnsKey, Totals>> {
        Ok(read_map(&self.object.contents(NETNS_TOTALS)?)
            .context("cannot read the map NETNS_TOTALS")?
            .into_iter()
            .collect())
    }
}

impl Table for Tables {
    fn count_under(&self, epoch: u32) -> Result<()> {
        let map = self.object.contents(EPOCH)?;
        map.set(&0u32.to_ne_bytes(), &epoch.to_ne_bytes()).context("cannot write to the map EPOCH")
    }

    fn by_process(&self) -> Result<Vec<(ProcessKey, Totals)>> {
        read_map(&self.object.contents(PROCESS_TOTALS)?).context("cannot read the map PROCESS_TOTALS")
    }

    fn owners(&self) -> Result<HashSet<u32>> {
        let mut owners = HashSet::new();
        let sockets = self.object.contents(SOCKETS)?;
        sockets
            .for_each(|_, value| _ = owners.insert(Owner::get(value).tgid))
            .context("cannot read the map SOCKET_TO_PID")?;
        Ok(owners)
    }

    fn take(&self, epoch: u32) -> Result<Vec<(ProcessKey, Totals)>> {
        let map = self.object.contents(PROCESS_TOTALS)?;
        let mut taken = self.by_process()?;
        taken.retain(|(key, _)| key.epoch == epoch);
        let mut bytes = [0; size_of::<ProcessKey>()];
        for (key, _) in &taken {
            key.put(&mut bytes);
            map.remove(&bytes).context("cannot remove from the map PROCESS_TOTALS")?;
        }
        Ok(taken)
    }
}

/// The entries of a map. Entries that come or go meanwhile may be missing.
fn read_map<K: Plain, V: Plain>(map: &Map<impl AsFd>) -> io::Result<Vec<(K, V)>> {
    /// A limit above the size of any map that is read so. An iteration that lost its place because of changes begins again, perhaps
    /// for ever.
    const MOST: usize = 1 << 20;
    let (mut key, mut next) = (None::<Vec<u8>>, vec![0; size_of::<K>()]);
    let mut value = vec![0; size_of::<V>()];
    let mut entries = Vec::new();
    while entries.len() < MOST && map.next_key(key.as_deref(), &mut next)? {
        match map.lookup(&next, &mut value) {
            Ok(()) => entries.push((K::get(&next), V::get(&value))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        key = Some(next.clone());
    }
    Ok(entries)
}
