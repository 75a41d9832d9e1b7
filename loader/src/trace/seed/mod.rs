//! The owners of sockets that were open before xctl started. The kernel's iterators tell them ([`iterator`]). On
//! kernels without iterators, /proc does ([`procfs`]). `xctl sockets` lists the same owners ([`listing`]).

pub mod holders;
pub mod iterator;
pub mod listing;
pub mod procfs;

use anyhow::Result;

use crate::kernel::loaded::LoadedObject;
use crate::model::maps::SOCKETS;
use holders::Seeded;
pub use iterator::SEED;

/// The source that tells who holds the sockets that are open already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The kernel's iterator over open files, with the program [`SEED`].
    Iterator,
    /// [`procfs`].
    Proc,
    /// No source.
    None,
}

/// Remember the owners of sockets that are open already. `cgroups` has the ids of the cgroups that the user asked for, and zeros.
/// `progress` is told how many sockets were read so far. The iterator counts a socket once for each process that holds it.
///
/// # Errors
/// If the kernel does not let us read.
pub fn seed(object: &LoadedObject, source: Source, cgroups: &[u64], progress: &mut dyn FnMut(usize)) -> Result<Seeded> {
    match source {
        Source::Iterator => iterator::seed(object, progress),
        Source::Proc => procfs::seed(&object.contents(SOCKETS)?, cgroups, progress),
        Source::None => Ok(Seeded::default()),
    }
}
