//! The memory of a ring that all CPUs share: the reader's page, the writer's page, and the data. The kernel maps the
//! data twice in a row.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use libbpf_sys as sys;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::bpf;
use super::mmap::page_size;
use crate::ring::Memory;
use crate::ring::shared::SharedMemory;

/// A shared ring, mapped; dropping it unmaps the ring.
pub struct SharedRing {
    /// The reader's page, with the position up to which this program has read.
    consumer: NonNull<u8>,
    /// The writer's page, with the position up to which the kernel has written. The data start one page later.
    producer: NonNull<u8>,
    page: NonZeroUsize,
    /// Bytes of the mapping of the writer's page and the data.
    length: NonZeroUsize,
    size: usize,
}

// SAFETY: the mappings belong to this value alone, and nothing in them is tied to a thread.
unsafe impl Send for SharedRing {}

impl SharedRing {
    /// Map the ring of this map.
    ///
    /// # Errors
    /// The kernel's errno; `InvalidInput` if the map is no ring.
    pub fn new(map: BorrowedFd<'_>) -> io::Result<Self> {
        let info = bpf::map_info(map)?;
        if info.map_type != sys::BPF_MAP_TYPE_RINGBUF {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let size = info.max_entries as usize;
        let page = NonZeroUsize::new(page_size()).ok_or(io::ErrorKind::InvalidInput)?;
        let length = size.checked_add(page.get()).and_then(NonZeroUsize::new).ok_or(io::ErrorKind::InvalidInput)?;
        let both = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: this is a new shared mapping of the reader's page, at an address of the kernel's choice.
        let consumer = unsafe { mmap(None, page, both, MapFlags::MAP_SHARED, map, 0) }?;
        let offset = page.get() as libc::off_t;
        // SAFETY: this is likewise a new mapping, of the writer's page and the data after it, which may only be read.
        match unsafe { mmap(None, length, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, map, offset) } {
            Ok(producer) => Ok(Self { consumer: consumer.cast(), producer: producer.cast(), page, length, size }),
            Err(error) => {
                // SAFETY: this is the whole mapping that was just made. Nothing better can be done about an error.
                let _ = unsafe { munmap(consumer, page.get()) };
                Err(error.into())
            }
        }
    }

    fn data(&self, offset: usize, length: usize) -> *const u8 {
        assert!(offset.checked_add(length).is_some_and(|end| end <= self.size), "read outside the ring");
        // SAFETY: the range lies within the data, which begin one page after the writer's page.
        unsafe { self.producer.as_ptr().add(self.page.get() + offset) }
    }

    fn position(&self, at: NonNull<u8>) -> &AtomicU64 {
        // SAFETY: both positions are the first 8 bytes of a page that is mapped as long as `self` lives.
        unsafe { &*at.as_ptr().cast::<AtomicU64>() }
    }
}

impl Drop for SharedRing {
    fn drop(&mut self) {
        // SAFETY: these are the whole mappings that `new` made, and no reference into them outlives `self`. An error
        // would mean that the arguments are not those of the mappings; nothing better can be done about that.
        let _ = unsafe { munmap(self.consumer.cast(), self.page.get()) };
        // SAFETY: as above.
        let _ = unsafe { munmap(self.producer.cast(), self.length.get()) };
    }
}

impl Memory for SharedRing {
    fn size(&self) -> usize {
        self.size
    }

    fn head(&self) -> u64 {
        self.position(self.producer).load(Ordering::Acquire)
    }

    fn tail(&self) -> u64 {
        self.position(self.consumer).load(Ordering::Relaxed)
    }

    fn set_tail(&mut self, tail: u64) {
        // The release store orders all reads of the records before the kernel may overwrite them.
        self.position(self.consumer).store(tail, Ordering::Release);
    }

    fn slice(&self, offset: usize, length: usize) -> &[u8] {
        let data = self.data(offset, length);
        // SAFETY: the range is mapped, as `data` asserted. The ring logic reads only finished records between tail and
        // head. The kernel does not write there until the tail moves, and `set_tail` needs `self` as mutable: no slice
        // lives until then.
        unsafe { slice::from_raw_parts(data, length) }
    }
}

impl SharedMemory for SharedRing {
    fn header(&self, offset: usize) -> u32 {
        let data = self.data(offset, size_of::<u32>()).cast::<AtomicU32>();
        // SAFETY: the address is mapped, as `data` asserted. The address is aligned, since records begin at multiples
        // of 8. The kernel writes the length with an exchange when the record is finished (bpf_ringbuf_commit); this
        // load pairs with that exchange.
        unsafe { &*data }.load(Ordering::Acquire)
    }
}
