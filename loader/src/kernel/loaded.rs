//! An object in the kernel: the descriptors of its programs and maps, by name.

use std::any::Any;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use anyhow::{Context, Result, anyhow};
use nix::fcntl::OFlag;
use nix::unistd::dup3_raw;

use super::bpf;
use super::map::Map;

/// An object that is loaded into the kernel. Dropping it unloads the programs and maps that nothing else holds.
pub struct LoadedObject {
    /// The programs that were selected, in the order of the object.
    programs: Vec<(String, OwnedFd)>,
    /// The maps, in libbpf's order; those without a descriptor were left out.
    maps: Vec<(String, Option<RawFd>)>,
    /// libbpf's object, the owner of the maps' descriptors until [`Self::leave_libbpf`]. Dropping it closes them.
    libbpf: Option<Box<dyn Any>>,
    /// The owners of the maps' descriptors from then on.
    own: Vec<OwnedFd>,
}

impl LoadedObject {
    /// The maps' descriptors are open as long as `libbpf` lives.
    pub(super) fn new(programs: Vec<(String, OwnedFd)>, maps: Vec<(String, Option<RawFd>)>, libbpf: impl Any) -> Self {
        Self { programs, maps, libbpf: Some(Box::new(libbpf)), own: vec![] }
    }

    /// Free libbpf's copy of the object, which takes more memory than everything else in a run. The descriptors keep their
    /// numbers, since the instructions and the record name descriptors by number. No other thread may open a file
    /// meanwhile: libbpf closes its descriptors before the numbers are taken again.
    ///
    /// # Errors
    /// If the process may not have two descriptors for each map.
    pub fn leave_libbpf(mut self) -> Result<Self> {
        let copied: io::Result<Vec<_>> =
            self.maps().map(|(_, fd)| Ok((fd.as_raw_fd(), fd.try_clone_to_owned()?))).collect();
        let copied = copied.context("cannot copy the descriptors of the maps")?;
        self.libbpf = None;
        // SAFETY: the number is not in use. libbpf has just closed its descriptor of that number.
        let moved = copied.into_iter().map(|(number, copy)| unsafe { dup3_raw(copy, number, OFlag::O_CLOEXEC) });
        self.own = moved.collect::<nix::Result<_>>().context("cannot move the descriptors")?;
        Ok(self)
    }

    fn borrow(&self, number: RawFd) -> BorrowedFd<'_> {
        // SAFETY: `libbpf` or `own` keeps the descriptors of this value open. The borrow of `self` ends before that.
        unsafe { BorrowedFd::borrow_raw(number) }
    }

    /// The descriptor of a loaded program.
    ///
    /// # Errors
    /// If the program was not loaded.
    pub fn program(&self, name: &str) -> Result<BorrowedFd<'_>> {
        let found = self.programs.iter().find(|(program, _)| program == name);
        let (_, fd) = found.ok_or_else(|| anyhow!("program {name} is not in the kernel"))?;
        Ok(fd.as_fd())
    }

    /// The programs that are in the kernel, with their names, in the order of the object.
    pub fn programs(&self) -> impl Iterator<Item = (&str, BorrowedFd<'_>)> {
        self.programs.iter().map(|(name, fd)| (name.as_str(), fd.as_fd()))
    }

    /// The maps in the kernel, with their names in the object. The name of a map for variables is the name of its section.
    pub fn maps(&self) -> impl Iterator<Item = (&str, BorrowedFd<'_>)> {
        self.maps.iter().filter_map(|(name, number)| Some((name.as_str(), self.borrow((*number)?))))
    }

    /// The maps that were left out, by name, each with its index in libbpf's order.
    pub fn maps_left_out(&self) -> impl Iterator<Item = (&str, usize)> {
        let all = self.maps.iter().enumerate();
        all.filter(|(_, (_, number))| number.is_none()).map(|(index, (name, _))| (name.as_str(), index))
    }

    /// The number of runs of a program that the kernel has skipped ([`bpf::ProgramInfo::skipped`]).
    ///
    /// # Errors
    /// The kernel's errno.
    pub fn skipped(&self, name: &str) -> Result<u64> {
        let info = bpf::program_info(self.program(name)?);
        Ok(info.with_context(|| format!("cannot ask about program {name}"))?.skipped)
    }

    /// The descriptor of a map.
    ///
    /// # Errors
    /// If the map is not in the kernel.
    pub fn map(&self, name: &str) -> Result<BorrowedFd<'_>> {
        let found = self.maps().find(|(map, _)| *map == name);
        found.map(|(_, fd)| fd).ok_or_else(|| anyhow!("map {name} is not in the kernel"))
    }

    /// A map, for reading and changing its entries.
    ///
    /// # Errors
    /// As [`Self::map`], or if the kernel does not tell the sizes of keys and values.
    pub fn contents(&self, name: &str) -> Result<Map<BorrowedFd<'_>>> {
        Map::new(self.map(name)?).with_context(|| format!("map {name}"))
    }
}
