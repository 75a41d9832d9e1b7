//! The programs that emit a record at this moment, as the map UNDER_WAY counts them.

use std::os::fd::OwnedFd;
use std::sync::atomic::{Ordering, fence};

use anyhow::{Context, Result};

use crate::kernel::loaded::LoadedObject;
use crate::kernel::map::Map;
use crate::model::events::{Plain, UnderWay as Counts};
use crate::model::maps::UNDER_WAY;
use crate::ring::written::Written;

/// How long a CPU may hold its writes back from others, in ns. On x86, others see the writes in their order, and the programs'
/// atomic additions are barriers. Elsewhere these additions order nothing (additions that order writes need Linux 5.12). A
/// store buffer holds writes for less than a microsecond.
const DELAY: u64 = if cfg!(target_arch = "x86_64") { 0 } else { 1_000_000 };

/// The counts of all CPUs. A system call reads them, since a per-CPU map cannot be mapped. It takes less than a microsecond.
pub struct UnderWay {
    map: Map<OwnedFd>,
    started: Vec<u8>,
    finished: Vec<u8>,
    written: Written,
}

impl UnderWay {
    /// Begin without knowledge.
    ///
    /// # Errors
    /// If there is no descriptor left.
    pub fn new(object: &LoadedObject) -> Result<Self> {
        let fd = object.map(UNDER_WAY)?.try_clone_to_owned().context("cannot keep the map UNDER_WAY")?;
        let map = Map::new(fd)?;
        let room = vec![0; map.value_size()];
        Ok(Self { map, started: room.clone(), finished: room, written: Written::new(DELAY) })
    }

    /// Look at the counts. `now` is the time before the look, on CLOCK_MONOTONIC. Returns a time: every record before it is
    /// seen by a reading of the rings that begins now.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn look(&mut self, now: u64) -> Result<u64> {
        let Self { map, started, finished, written } = self;
        let key = 0u32.to_ne_bytes();
        // The kernel copies a CPU's two counts in no certain order. So the map is read twice: `finished` is taken from the
        // first copy, and `started` from the second.
        map.lookup(&key, finished).context("cannot read the map UNDER_WAY")?;
        fence(Ordering::SeqCst);
        map.lookup(&key, started).context("cannot read the map UNDER_WAY")?;
        fence(Ordering::SeqCst);
        let size = size_of::<Counts>();
        let both = started.chunks_exact(size).zip(finished.chunks_exact(size));
        Ok(written.look(now, both.map(|(one, other)| (Counts::get(one).started, Counts::get(other).finished))))
    }
}
