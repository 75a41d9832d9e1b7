//! The programs of an object that libbpf has prepared. Several threads hand them to the kernel: the kernel checks programs of
//! privileged users side by side, and the check is most of a start.

use std::cmp::Reverse;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io;
use std::num::NonZero;
use std::os::fd::{FromRawFd, OwnedFd};
use std::slice;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, Builder};

use libbpf_sys as sys;

use super::call::By;
use super::calls::Account;
use crate::object::sort;

/// The size of a program's log. The verifier's statistics are a few lines.
const LOG_BYTES: usize = 64 * 1024;

/// A program that is ready for the kernel: relocated, and followed by the functions that it calls.
pub(super) struct Prepared<'a> {
    pub(super) name: CString,
    pub(super) program_type: sys::bpf_prog_type,
    pub(super) attach_type: sys::bpf_attach_type,
    /// The number of the type that the program attaches to; 0 for none.
    pub(super) attach_btf_id: u32,
    pub(super) insns: &'a [sys::bpf_insn],
    pub(super) func_info: &'a [sys::bpf_func_info],
    pub(super) line_info: &'a [sys::bpf_line_info],
    pub(super) log_level: u32,
}

/// The license and the types, which all programs of an object share.
pub(super) struct Common<'a> {
    pub(super) license: &'a CStr,
    /// The descriptor of the object's types; negative for none.
    pub(super) btf_fd: c_int,
}

fn load(program: &Prepared<'_>, common: &Common<'_>) -> io::Result<OwnedFd> {
    let mut log = if program.log_level == 0 { vec![] } else { vec![0_u8; LOG_BYTES] };
    let mut options = sys::bpf_prog_load_opts {
        sz: size_of::<sys::bpf_prog_load_opts>() as _,
        expected_attach_type: program.attach_type,
        attach_btf_id: program.attach_btf_id,
        log_level: program.log_level,
        log_size: log.len() as u32,
        ..Default::default()
    };
    if !log.is_empty() {
        options.log_buf = log.as_mut_ptr().cast::<c_char>();
    }
    if let Ok(fd) = u32::try_from(common.btf_fd) {
        options.prog_btf_fd = fd;
        options.func_info = program.func_info.as_ptr().cast::<c_void>();
        options.func_info_cnt = program.func_info.len() as u32;
        options.func_info_rec_size = size_of::<sys::bpf_func_info>() as u32;
        options.line_info = program.line_info.as_ptr().cast::<c_void>();
        options.line_info_cnt = program.line_info.len() as u32;
        options.line_info_rec_size = size_of::<sys::bpf_line_info>() as u32;
    }
    let _account = Account::of(By::Libbpf);
    // SAFETY: all pointers lead to memory that outlives the call, and the lengths are theirs.
    let fd = unsafe {
        sys::bpf_prog_load(
            program.program_type,
            program.name.as_ptr(),
            common.license.as_ptr(),
            program.insns.as_ptr(),
            program.insns.len() as _,
            &mut options,
        )
    };
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(-fd));
    }
    // SAFETY: the call has made this descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The most threads: the longest programs need that many, and each check takes memory of the kernel.
const MOST_THREADS: usize = 4;

/// Load all programs. On success the descriptors are in the order of the programs. With `at_once`, a thread for each CPU that the
/// process may use, but at most [`MOST_THREADS`], takes the longest program that is left. Otherwise, or if no other thread can be
/// made, this thread loads all.
///
/// # Errors
/// The place of a program that the kernel refused, and the kernel's errno. Then none stays loaded.
pub(super) fn load_all(
    programs: &[Prepared<'_>],
    common: &Common<'_>,
    at_once: bool,
) -> Result<Vec<OwnedFd>, (usize, io::Error)> {
    match load_by_threads(programs, common, if at_once { MOST_THREADS } else { 1 }) {
        // One check at a time takes less memory.
        Err((_, error)) if at_once && error.raw_os_error() == Some(libc::ENOMEM) => {
            load_by_threads(programs, common, 1)
        }
        result => result,
    }
}

fn load_by_threads(
    programs: &[Prepared<'_>],
    common: &Common<'_>,
    most: usize,
) -> Result<Vec<OwnedFd>, (usize, io::Error)> {
    let mut longest_first: Vec<usize> = (0..programs.len()).collect();
    sort::by_key(&mut longest_first, |&index| Reverse(programs[index].insns.len()));
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::with_capacity(programs.len()));
    let take = || {
        while let Some(&index) = longest_first.get(next.fetch_add(1, Ordering::Relaxed)) {
            let result = load(&programs[index], common);
            if result.is_err() {
                next.store(programs.len(), Ordering::Relaxed); // the rest is of no use
            }
            results.lock().unwrap_or_else(PoisonError::into_inner).push((index, result));
        }
    };
    thread::scope(|scope| {
        let cpus = thread::available_parallelism().map_or(1, NonZero::get);
        for _ in 1..cpus.min(most) {
            if Builder::new().spawn_scoped(scope, take).is_err() {
                break;
            }
        }
        take();
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    sort::by_key(&mut results, |(index, _)| *index);
    results.into_iter().map(|(index, result)| result.map_err(|error| (index, error))).collect()
}

/// As a slice; empty if libbpf has none.
///
/// # Safety
/// If `first` is not null, `count` elements begin there, and live unchanged for `'a`.
pub(super) unsafe fn elements<'a, T>(first: *const T, count: u32) -> &'a [T] {
    // SAFETY: the caller promises the elements.
    if first.is_null() { &[] } else { unsafe { slice::from_raw_parts(first, count as usize) } }
}
