//! The entries of a map: reading and changing them. The sizes of a key and a value come from the kernel, and not from
//! the definition in the object.

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::ptr;

use anyhow::{Context, Result};
use libbpf_sys as sys;

use super::bpf;

/// A map that is in the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Map<Fd> {
    fd: Fd,
    key_size: usize,
    /// Bytes of a value; in a per-CPU map, of the values of all CPUs.
    value_size: usize,
}

/// The number of CPUs that the kernel can ever have. An element of a per-CPU map has as many values.
pub(crate) fn possible_cpus() -> Result<usize> {
    // SAFETY: the function takes no arguments, and reads a file in sysfs.
    let count = unsafe { sys::libbpf_num_possible_cpus() };
    usize::try_from(count).map_err(|_| io::Error::from_raw_os_error(-count)).context("cannot count possible CPUs")
}

/// An error if the size that the caller gave is not the map's size.
fn same(what: &str, of_map: usize, given: usize) -> io::Result<()> {
    match of_map == given {
        true => Ok(()),
        false => {
            let differ = format!("the {what} in the kernel's map has {of_map} bytes, not {given}");
            Err(io::Error::new(io::ErrorKind::InvalidInput, differ))
        }
    }
}

impl<Fd: AsFd> Map<Fd> {
    /// Ask the kernel about the map behind a descriptor.
    ///
    /// # Errors
    /// If the kernel does not tell.
    pub fn new(fd: Fd) -> Result<Self> {
        let info = bpf::map_info(fd.as_fd()).context("cannot ask about a map")?;
        let value_size = info.value_size as usize;
        let per_cpu = matches!(
            info.map_type,
            sys::BPF_MAP_TYPE_PERCPU_HASH
                | sys::BPF_MAP_TYPE_PERCPU_ARRAY
                | sys::BPF_MAP_TYPE_LRU_PERCPU_HASH
                | sys::BPF_MAP_TYPE_PERCPU_CGROUP_STORAGE
        );
        let value_size = if per_cpu { value_size.next_multiple_of(8) * possible_cpus()? } else { value_size };
        Ok(Self { fd, key_size: info.key_size as usize, value_size })
    }

    fn raw(&self) -> RawFd {
        self.fd.as_fd().as_raw_fd()
    }

    /// Bytes of a value; in a per-CPU map, of the values of all CPUs, each padded to 8 bytes.
    #[must_use]
    pub fn value_size(&self) -> usize {
        self.value_size
    }

    /// Read the value of `key` into `value`; from a per-CPU map, the values of all CPUs, each padded to 8 bytes.
    ///
    /// # Errors
    /// The kernel's errno; `NotFound` if there is no such key, `InvalidInput` if the lengths are not the map's
    /// sizes.
    pub fn lookup(&self, key: &[u8], value: &mut [u8]) -> io::Result<()> {
        same("key", self.key_size, key.len())?;
        same("value", self.value_size, value.len())?;
        // SAFETY: the kernel reads a key and writes a value; the buffers have these sizes.
        let result =
            unsafe { sys::bpf_map_lookup_elem(self.raw(), key.as_ptr().cast(), value.as_mut_ptr().cast::<c_void>()) };
        if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(()) }
    }

    /// Insert a key that the map does not have, with its value; false if the map has the key.
    ///
    /// # Errors
    /// The kernel's errno; `E2BIG`: the map is full. `InvalidInput` if the lengths are not the map's sizes.
    pub fn insert(&self, key: &[u8], value: &[u8]) -> io::Result<bool> {
        same("key", self.key_size, key.len())?;
        same("value", self.value_size, value.len())?;
        let flags = sys::BPF_NOEXIST.into();
        // SAFETY: the kernel reads a key and a value; the buffers have these sizes.
        let result = unsafe { sys::bpf_map_update_elem(self.raw(), key.as_ptr().cast(), value.as_ptr().cast(), flags) };
        match -result {
            error if error <= 0 => Ok(true),
            libc::EEXIST => Ok(false),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// Set the value of a key, which may be new or not.
    ///
    /// # Errors
    /// The errors of `insert`.
    pub fn set(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        same("key", self.key_size, key.len())?;
        same("value", self.value_size, value.len())?;
        let flags = sys::BPF_ANY.into();
        // SAFETY: the kernel reads a key and a value; the buffers have these sizes.
        let result = unsafe { sys::bpf_map_update_elem(self.raw(), key.as_ptr().cast(), value.as_ptr().cast(), flags) };
        if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(()) }
    }

    /// Remove a key with its value; nothing happens if the map does not have the key.
    ///
    /// # Errors
    /// The kernel's errno; `InvalidInput` if the length is not the size of the map's keys.
    pub fn remove(&self, key: &[u8]) -> io::Result<()> {
        same("key", self.key_size, key.len())?;
        // SAFETY: the kernel reads a key; the buffer has its size.
        let result = unsafe { sys::bpf_map_delete_elem(self.raw(), key.as_ptr().cast()) };
        match -result {
            error if error <= 0 || error == libc::ENOENT => Ok(()),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// The key after `key`, in the map's own order; for none, the first key.
    ///
    /// # Errors
    /// The kernel's errno; `InvalidInput` if the lengths are not the size of the map's keys.
    pub fn next_key(&self, key: Option<&[u8]>, next: &mut [u8]) -> io::Result<bool> {
        same("key", self.key_size, key.map_or(self.key_size, <[u8]>::len))?;
        same("key", self.key_size, next.len())?;
        let key = key.map_or(ptr::null(), <[u8]>::as_ptr);
        // SAFETY: the kernel reads one key and writes one; the buffers have that size. Null asks for the first.
        let result = unsafe { sys::bpf_map_get_next_key(self.raw(), key.cast(), next.as_mut_ptr().cast::<c_void>()) };
        match -result {
            error if error <= 0 => Ok(true),
            libc::ENOENT => Ok(false),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// Pass each entry of a hash map to `each`. One call reads a thousand entries (5.6 and newer). Entries that come or go
    /// meanwhile may be missing; no entry comes twice.
    ///
    /// # Errors
    /// The kernel's errno.
    pub fn for_each(&self, mut each: impl FnMut(&[u8], &[u8])) -> io::Result<()> {
        let mut room: u32 = 1024;
        // The kernel's place in the map, the number of a bucket.
        let mut place = None::<u32>;
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        loop {
            keys.resize(self.key_size * room as usize, 0);
            values.resize(self.value_size * room as usize, 0);
            let (mut count, mut next) = (room, 0u32);
            let from = place.as_mut().map_or(ptr::null_mut(), ptr::from_mut);
            // SAFETY: the kernel reads and writes a place of 32 bits, and writes at most `count` keys and values.
            let result = unsafe {
                sys::bpf_map_lookup_batch(
                    self.raw(),
                    from.cast(),
                    ptr::from_mut(&mut next).cast(),
                    keys.as_mut_ptr().cast(),
                    values.as_mut_ptr().cast(),
                    &mut count,
                    ptr::null(),
                )
            };
            match -result {
                // A bucket has more entries than there is room.
                libc::ENOSPC => {
                    room = room.checked_mul(2).ok_or(io::ErrorKind::OutOfMemory)?;
                    continue;
                }
                error if error <= 0 || error == libc::ENOENT => {}
                error => return Err(io::Error::from_raw_os_error(error)),
            }
            let entries = keys.chunks_exact(self.key_size).zip(values.chunks_exact(self.value_size));
            entries.take(count as usize).for_each(|(key, value)| each(key, value));
            if -result == libc::ENOENT {
                return Ok(());
            }
            place = Some(next);
        }
    }
}
