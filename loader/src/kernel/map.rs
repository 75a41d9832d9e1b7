//! What is in a map: reading and changing it. How many bytes a key and a value have is what the kernel says, and not what
//! the object should have said.

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use anyhow::{Context, Result};
use libbpf_sys as sys;

use super::bpf;

/// A map that is in the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Map<'fd> {
    fd: BorrowedFd<'fd>,
    key_size: usize,
    /// Of a per-CPU map: of all CPUs' values.
    value_size: usize,
}

/// CPUs that the kernel can ever have: the number of values in an element of a per-CPU map.
pub(crate) fn possible_cpus() -> Result<usize> {
    // SAFETY: no arguments; reads a file in sysfs.
    let count = unsafe { sys::libbpf_num_possible_cpus() };
    usize::try_from(count).map_err(|_| io::Error::from_raw_os_error(-count)).context("cannot count possible CPUs")
}

/// That many bytes were asked for, and the map has another number.
fn same(what: &str, of_map: usize, given: usize) -> io::Result<()> {
    match of_map == given {
        true => Ok(()),
        false => {
            let differ = format!("the {what} in the kernel's map has {of_map} bytes, not {given}");
            Err(io::Error::new(io::ErrorKind::InvalidInput, differ))
        }
    }
}

impl<'fd> Map<'fd> {
    /// Ask the kernel about the map behind a descriptor.
    ///
    /// # Errors
    /// If it does not tell.
    pub fn new(fd: BorrowedFd<'fd>) -> Result<Self> {
        let info = bpf::map_info(fd).context("cannot ask about a map")?;
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

    /// Bytes of a value: of a per-CPU map of all CPUs' values, each padded to 8 bytes.
    #[must_use]
    pub fn value_size(&self) -> usize {
        self.value_size
    }

    /// Read the value of `key` into `value`: of a per-CPU map all CPUs' values, each padded to 8 bytes.
    ///
    /// # Errors
    /// With the kernel's errno; `NotFound` if there is no such key, `InvalidInput` if these are not the map's sizes.
    pub fn lookup(&self, key: &[u8], value: &mut [u8]) -> io::Result<()> {
        same("key", self.key_size, key.len())?;
        same("value", self.value_size, value.len())?;
        // SAFETY: the kernel reads a key and writes a value; the buffers have these sizes.
        let result = unsafe {
            sys::bpf_map_lookup_elem(self.fd.as_raw_fd(), key.as_ptr().cast(), value.as_mut_ptr().cast::<c_void>())
        };
        if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(()) }
    }

    /// Put a value under a key that has none; false if it has one.
    ///
    /// # Errors
    /// With the kernel's errno; `E2BIG`: the map is full. `InvalidInput` if these are not the map's sizes.
    pub fn insert(&self, key: &[u8], value: &[u8]) -> io::Result<bool> {
        same("key", self.key_size, key.len())?;
        same("value", self.value_size, value.len())?;
        let flags = sys::BPF_NOEXIST.into();
        // SAFETY: the kernel reads a key and a value; the buffers have these sizes.
        let result =
            unsafe { sys::bpf_map_update_elem(self.fd.as_raw_fd(), key.as_ptr().cast(), value.as_ptr().cast(), flags) };
        match -result {
            error if error <= 0 => Ok(true),
            libc::EEXIST => Ok(false),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// Remove a key with its value; nothing happens if it is not there.
    ///
    /// # Errors
    /// With the kernel's errno; `InvalidInput` if this is not the size of the map's keys.
    pub fn remove(&self, key: &[u8]) -> io::Result<()> {
        same("key", self.key_size, key.len())?;
        // SAFETY: the kernel reads a key; the buffer has its size.
        let result = unsafe { sys::bpf_map_delete_elem(self.fd.as_raw_fd(), key.as_ptr().cast()) };
        match -result {
            error if error <= 0 || error == libc::ENOENT => Ok(()),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// The key after `key`, in an order of the map's own; the first for none.
    ///
    /// # Errors
    /// With the kernel's errno; `InvalidInput` if these are not the sizes of the map's keys.
    pub fn next_key(&self, key: Option<&[u8]>, next: &mut [u8]) -> io::Result<bool> {
        same("key", self.key_size, key.map_or(self.key_size, <[u8]>::len))?;
        same("key", self.key_size, next.len())?;
        let key = key.map_or(ptr::null(), <[u8]>::as_ptr);
        // SAFETY: the kernel reads one key and writes one; the buffers have that size. Null asks for the first.
        let result =
            unsafe { sys::bpf_map_get_next_key(self.fd.as_raw_fd(), key.cast(), next.as_mut_ptr().cast::<c_void>()) };
        match -result {
            error if error <= 0 => Ok(true),
            libc::ENOENT => Ok(false),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }
}
