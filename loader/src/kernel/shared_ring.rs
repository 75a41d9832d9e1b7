//! The memory of a ring that all CPUs share: the reader's page, the writer's page, and the data, which the kernel maps
//! twice in a row.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use libbpf_sys as sys;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::bpf;
use super::mmap::page_size;
use crate::ring::Memory;
use crate::ring::shared::SharedMemory;

/// Such a ring, mapped; unmapped when dropped.
pub struct SharedRing {
    /// How far we have read.
    consumer: NonNull<u8>,
    /// How far the kernel has written, and a page later the data.
    producer: NonNull<u8>,
    page: NonZeroUsize,
    /// Of the producer's page and the data.
    length: NonZeroUsize,
    size: usize,
}

// SAFETY: the mappings belong to this value alone, and nothing in them is tied to a thread.
unsafe impl Send for SharedRing {}

impl SharedRing {
    /// Map the ring of this map.
    ///
    /// # Errors
    /// With the kernel's errno; `InvalidInput` if the map is no ring.
    pub fn new(map: BorrowedFd<'_>) -> io::Result<Self> {
        let info = bpf::map_info(map)?;
        if info.map_type != sys::BPF_MAP_TYPE_RINGBUF {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let size = info.max_entries as usize;
        let page = NonZeroUsize::new(page_size()).ok_or(io::ErrorKind::InvalidInput)?;
        let length = size.checked_add(page.get()).and_then(NonZeroUsize::new).ok_or(io::ErrorKind::InvalidInput)?;
        let both = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new shared mapping of the reader's page, at an address of the kernel's choice.
        let consumer = unsafe { mmap(None, page, both, MapFlags::MAP_SHARED, map, 0) }?;
        let offset = page.get() as libc::off_t;
        // SAFETY: likewise, of the page and the data that follow, which may only be read.
        match unsafe { mmap(None, length, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, map, offset) } {
            Ok(producer) => Ok(Self { consumer: consumer.cast(), producer: producer.cast(), page, length, size }),
            Err(error) => {
                // SAFETY: the whole mapping that was just made. There is nothing better to do about an error.
                let _ = unsafe { munmap(consumer, page.get()) };
                Err(error.into())
            }
        }
    }

    fn data(&self, offset: usize, length: usize) -> *const u8 {
        assert!(offset.checked_add(length).is_some_and(|end| end <= self.size), "read outside the ring");
        // SAFETY: the range lies within the data, which begin one page after the producer's.
        unsafe { self.producer.as_ptr().add(self.page.get() + offset) }
    }

    fn position(&self, at: NonNull<u8>) -> &AtomicU64 {
        // SAFETY: both positions are the first 8 bytes of a page that is mapped as long as `self` lives.
        unsafe { &*at.as_ptr().cast::<AtomicU64>() }
    }
}

impl Drop for SharedRing {
    fn drop(&mut self) {
        // SAFETY: these are the whole mappings that `new` made, and no reference into them outlives `self`.
        // An error would mean that the arguments are not those of the mappings: there is nothing better to do about it.
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
        // What was read is read before the kernel may overwrite it.
        self.position(self.consumer).store(tail, Ordering::Release);
    }

    fn copy(&self, offset: usize, to: &mut [u8]) {
        let data = self.data(offset, to.len());
        // SAFETY: the range is mapped, as `data` asserted. The ring logic reads only finished records between tail and
        // head, which the kernel does not write until the tail moves.
        unsafe { ptr::copy_nonoverlapping(data, to.as_mut_ptr(), to.len()) };
    }
}

impl SharedMemory for SharedRing {
    fn header(&self, offset: usize) -> u32 {
        let data = self.data(offset, size_of::<u32>()).cast::<AtomicU32>();
        // SAFETY: mapped, as `data` asserted, and aligned, since records begin at multiples of 8. The kernel writes it with
        // an exchange when the record is finished (bpf_ringbuf_commit), with which this pairs.
        unsafe { &*data }.load(Ordering::Acquire)
    }
}
