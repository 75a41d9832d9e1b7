//! The allocator of xctl's Rust code. Small pieces come from dlmalloc, which keeps what is freed for the next, where musl
//! maps and unmaps a page again and again. Large ones come from the C library, which maps each and gives it back when it
//! is freed, where dlmalloc keeps up to 2 MB: what reading BTF took at the start would stay for the hours that follow.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use dlmalloc::Dlmalloc;

/// From this size on both musl's malloc and glibc's map pages for each piece.
const LARGE: usize = 128 << 10;

/// To be named as the `#[global_allocator]`.
pub struct Heap;

/// Where small pieces come from. dlmalloc's own global one calls musl's `pthread_mutex_lock`, which costs more than dlmalloc.
static SMALL: Mutex<Dlmalloc> = Mutex::new(Dlmalloc::new());

fn small() -> MutexGuard<'static, Dlmalloc> {
    SMALL.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_large(size: usize) -> bool {
    size >= LARGE
}

// SAFETY: a piece is freed and resized by the allocator that gave it: its size alone tells which, and every call has it.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as of the caller.
        unsafe {
            if is_large(layout.size()) { System.alloc(layout) } else { small().malloc(layout.size(), layout.align()) }
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as of the caller.
        unsafe {
            match is_large(layout.size()) {
                true => System.alloc_zeroed(layout),
                false => small().calloc(layout.size(), layout.align()),
            }
        }
    }

    unsafe fn dealloc(&self, piece: *mut u8, layout: Layout) {
        // SAFETY: as of the caller; this allocator gave the piece.
        unsafe {
            match is_large(layout.size()) {
                true => System.dealloc(piece, layout),
                false => small().free(piece, layout.size(), layout.align()),
            }
        }
    }

    unsafe fn realloc(&self, piece: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as of the caller; this allocator gave the piece. Where it changes hands, `size` makes a layout with the
        // same alignment, both pieces hold what is copied, and the old one is freed only when there is a new one.
        unsafe {
            match (is_large(layout.size()), is_large(size)) {
                (true, true) => System.realloc(piece, layout, size),
                (false, false) => small().realloc(piece, layout.size(), layout.align(), size),
                _ => {
                    let to = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
                    if !to.is_null() {
                        ptr::copy_nonoverlapping(piece, to, layout.size().min(size));
                        self.dealloc(piece, layout);
                    }
                    to
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_piece_keeps_its_bytes_wherever_it_moves() {
        let sizes = [1, LARGE - 1, LARGE, LARGE + 1, 3 * LARGE, LARGE, LARGE - 1, 7];
        let mut layout = Layout::from_size_align(sizes[0], 16).unwrap();
        // SAFETY: the layout is the one that the piece has at the time, and only what was written is read.
        unsafe {
            let mut piece = Heap.alloc_zeroed(layout);
            for pair in sizes.windows(2) {
                for at in 0..pair[0] {
                    piece.add(at).write((at % 251) as u8);
                }
                piece = Heap.realloc(piece, layout, pair[1]);
                layout = Layout::from_size_align(pair[1], 16).unwrap();
                assert!((0..pair[0].min(pair[1])).all(|at| piece.add(at).read() == (at % 251) as u8), "{pair:?}");
                assert_eq!(piece.addr() % 16, 0);
            }
            Heap.dealloc(piece, layout);
        }
    }
}
