//! The memory that this process may use: its limit, and what happens if memory runs out.

use std::alloc::{GlobalAlloc, Layout, System};

use anyhow::{Context, Result};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::source::MAX_FILE;

/// The most memory that this process allocates, in bytes: four times the longest file. A file is kept once, and its
/// parts are found by small tables.
pub const MOST: u64 = 4 * MAX_FILE;

/// Limits the memory that this process may allocate to [`MOST`]. A lower limit stays. The limit (RLIMIT_DATA) does not
/// count shared mappings, such as rings.
///
/// # Errors
/// If the kernel refuses.
pub fn limit() -> Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_DATA).context("cannot ask for the limit of memory (RLIMIT_DATA)")?;
    setrlimit(Resource::RLIMIT_DATA, soft.min(MOST), hard).context("cannot limit memory (RLIMIT_DATA)")
}

/// The C library's allocator, for the `#[global_allocator]`. If memory runs out, Rust alone would abort without saying
/// what to do.
pub struct Allocator {
    /// Ends the process. This function must not allocate.
    pub exhausted: fn() -> !,
}

impl Allocator {
    fn checked(&self, piece: *mut u8) -> *mut u8 {
        if piece.is_null() { (self.exhausted)() } else { piece }
    }
}

// SAFETY: every piece comes from `System` and goes back to it unchanged.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller meets the conditions of this function.
        self.checked(unsafe { System.alloc(layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller meets the conditions of this function.
        self.checked(unsafe { System.alloc_zeroed(layout) })
    }

    unsafe fn dealloc(&self, piece: *mut u8, layout: Layout) {
        // SAFETY: the caller meets the conditions of this function.
        unsafe { System.dealloc(piece, layout) }
    }

    unsafe fn realloc(&self, piece: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller meets the conditions of this function.
        self.checked(unsafe { System.realloc(piece, layout, size) })
    }
}
