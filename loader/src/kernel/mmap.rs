//! The memory of a perf ring: a control page and 2^n data pages, shared with the kernel.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::{AtomicU64, Ordering};

use libbpf_sys::perf_event_mmap_page;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use crate::ring::Memory;

/// One CPU's ring, mapped. Dropping it unmaps the ring and closes the event.
pub struct Mapped {
    base: NonNull<perf_event_mmap_page>,
    length: NonZeroUsize,
    page: usize,
    event: OwnedFd,
}

// SAFETY: the mapping belongs to this value alone, and nothing in it is tied to a thread.
unsafe impl Send for Mapped {}

impl Mapped {
    /// Map the ring of `event` with `pages` data pages, a power of two.
    ///
    /// # Errors
    /// `EPERM`: the ring exceeds the limit of locked memory (`kernel.perf_event_mlock_kb` and RLIMIT_MEMLOCK).
    /// `EINVAL`: `pages` is not a power of two.
    pub fn new(event: OwnedFd, pages: usize) -> io::Result<Self> {
        let page = page_size();
        let length = pages
            .checked_add(1)
            .and_then(|pages| pages.checked_mul(page))
            .and_then(NonZeroUsize::new)
            .ok_or(io::ErrorKind::InvalidInput)?;
        // The mapping is writable. The kernel therefore waits for the reader's tail, instead of overwriting unread
        // records.
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: this is a new shared mapping at an address of the kernel's choice.
        let base = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, &event, 0) }?;
        Ok(Self { base: base.cast(), length, page, event })
    }

    /// Bytes of memory that the mapping takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.length.get()
    }

    /// The perf event, which is readable when there are records.
    #[must_use]
    pub fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    fn head(&self) -> &AtomicU64 {
        // SAFETY: the control page is mapped and aligned as long as `self` lives. The kernel writes data_head with one
        // 64-bit store, and this program accesses data_head through this atomic alone.
        unsafe { AtomicU64::from_ptr(&raw mut (*self.base.as_ptr()).data_head) }
    }

    fn tail(&self) -> &AtomicU64 {
        // SAFETY: as for the head; this program writes the tail and the kernel reads it.
        unsafe { AtomicU64::from_ptr(&raw mut (*self.base.as_ptr()).data_tail) }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: this is the whole mapping that `new` made, and no reference into it outlives `self`. An error would
        // mean that the arguments are not those of the mapping; nothing better can be done about that.
        let _ = unsafe { munmap(self.base.cast(), self.length.get()) };
    }
}

impl Memory for Mapped {
    fn size(&self) -> usize {
        self.length.get() - self.page
    }

    fn head(&self) -> u64 {
        // This load pairs with the kernel's barrier between writing records and data_head
        // (kernel/events/ring_buffer.c).
        self.head().load(Ordering::Acquire)
    }

    fn tail(&self) -> u64 {
        self.tail().load(Ordering::Relaxed)
    }

    fn set_tail(&mut self, tail: u64) {
        // The release store orders all reads of the records before the kernel may overwrite them.
        self.tail().store(tail, Ordering::Release);
    }

    fn slice(&self, offset: usize, length: usize) -> &[u8] {
        assert!(offset.checked_add(length).is_some_and(|end| end <= self.size()), "read outside the ring");
        // SAFETY: the range lies within the data pages, as just asserted. The ring logic reads only between tail and
        // head. The kernel does not write there until the tail moves, and `set_tail` needs `self` as mutable: no slice
        // lives until then.
        unsafe { slice::from_raw_parts(self.base.as_ptr().cast::<u8>().add(self.page + offset), length) }
    }
}

/// Bytes of a page of memory.
#[must_use]
pub fn page_size() -> usize {
    // SAFETY: sysconf has no preconditions.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).unwrap_or(4096)
}
