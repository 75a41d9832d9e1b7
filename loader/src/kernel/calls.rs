//! A recorder of the calls that this process makes, libbpf's included: every bpf(2), every perf_event_open(2), and
//! every ioctl(2) on a perf event.
//!
//! The linker redirects references to `syscall`, `ioctl` and libbpf's `feat_supported` to this module (`--wrap`, see
//! build.rs). Code that refers to the C library's `syscall` gets [`__wrap_syscall`], which calls the real function as
//! `__real_syscall`. While nothing is recorded, a call costs one more comparison. All other system calls never cost
//! more than that.

use std::cell::Cell;
use std::ffi::{c_int, c_long, c_ulong, c_void};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use libbpf_sys as sys;
use nix::errno::Errno;

use super::call::{By, Call, Known, Made, Pointed, Request, Sent, long, word};

/// The receiver of each call as it is made, with the objects behind the file descriptors. A sink must not make such
/// calls itself.
pub type Sink = Box<dyn FnMut(&Call, &Known) + Send>;

struct Recorder {
    sink: Sink,
    known: Known,
}

static ON: AtomicBool = AtomicBool::new(false);
static RECORDER: Mutex<Option<Recorder>> = Mutex::new(None);

thread_local! {
    static ACCOUNT: Cell<By> = const { Cell::new(By::Xctl) };
}

fn recorder() -> MutexGuard<'static, Option<Recorder>> {
    RECORDER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A recording, which ends when this value is dropped.
#[derive(Debug)]
pub struct Recording(());

impl Recording {
    /// Hand every call from now on to `sink`. Only one recording runs at a time.
    #[must_use]
    pub fn begin(kprobe_pmu: Option<u32>, sink: Sink) -> Self {
        let known = Known { kprobe_pmu, ..Known::default() };
        *recorder() = Some(Recorder { sink, known });
        ON.store(true, Ordering::SeqCst);
        Self(())
    }

    /// The program behind `fd`, as it was passed to the kernel.
    #[must_use]
    pub fn sent(&self, fd: i32) -> Option<Sent> {
        match recorder().as_ref()?.known.by_fd.get(&fd)? {
            Made::Program(sent) => Some(sent.clone()),
            _ => None,
        }
    }

    /// The attributes with which the map behind `fd` was created.
    #[must_use]
    pub fn asked(&self, fd: i32) -> Option<Vec<u8>> {
        match recorder().as_ref()?.known.by_fd.get(&fd)? {
            Made::Map(attributes) => Some(attributes.clone()),
            _ => None,
        }
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        ON.store(false, Ordering::SeqCst);
        *recorder() = None;
    }
}

/// While this value lives, the thread's calls have another originator.
pub(super) struct Account(By);

impl Account {
    pub(super) fn of(by: By) -> Self {
        Self(ACCOUNT.replace(by))
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        ACCOUNT.set(self.0);
    }
}

/// The program `r0 = 0; exit`. libbpf loads it outside of its feature probes, to see whether any program can be loaded.
pub(super) const NOTHING: [u8; 16] = [0xb7, 0, 0, 0, 0, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];

/// The most bytes of memory behind a pointer that are copied into the record. Programs have a limit of their own.
const MOST_POINTED: usize = 4096;
/// BPF_COMPLEXITY_LIMIT_INSNS: the kernel refuses a longer program.
const MOST_INSNS: usize = 1_000_000;
const INSN_SIZE: usize = 8;

unsafe extern "C" {
    fn __real_syscall(number: c_long, ...) -> c_long;
    fn __real_ioctl(fd: c_int, request: c_ulong, ...) -> c_int;
    fn __real_feat_supported(cache: *mut c_void, feature: c_int) -> bool;
}

/// Copy `length` bytes at `address`.
///
/// # Safety
/// The bytes can be read, unless the address is 0.
unsafe fn copy(address: u64, length: usize) -> Option<Vec<u8>> {
    // SAFETY: the caller promises that the bytes can be read, and address 0 is excluded.
    (address != 0).then(|| unsafe { std::slice::from_raw_parts(address as *const u8, length) }.to_vec())
}

/// The string at `address`, without its NUL.
///
/// # Safety
/// There is a string at `address`, unless the address is 0.
unsafe fn copy_string(address: u64) -> Option<Vec<u8>> {
    if address == 0 {
        return None;
    }
    let mut bytes = Vec::new();
    while bytes.len() < MOST_POINTED {
        // SAFETY: the string goes on, as none of its bytes so far was the NUL.
        match unsafe { *(address as *const u8).add(bytes.len()) } {
            0 => break,
            byte => bytes.push(byte),
        }
    }
    Some(bytes)
}

/// The memory behind those pointers of a bpf(2) call that are part of the question.
///
/// # Safety
/// The caller is about to make the call, and means the call to succeed. Each pointer that the command reads is null, or
/// leads to as much memory as the command reads.
unsafe fn pointed(command: u32, attributes: &[u8], known: &Known) -> Vec<Pointed> {
    let word = |at| word(attributes, at).unwrap_or(0);
    let long = |at| long(attributes, at).unwrap_or(0);
    let mut found = Vec::new();
    let mut add = |at, bytes: Option<Vec<u8>>| found.extend(bytes.map(|bytes| Pointed { at, bytes }));
    // SAFETY: the caller promises readable memory behind these pointers. The kernel reads these lengths, or more.
    unsafe {
        match command {
            sys::BPF_PROG_LOAD => {
                add(8, copy(long(8), (word(4) as usize).min(MOST_INSNS) * INSN_SIZE));
                add(16, copy_string(long(16)));
            }
            sys::BPF_BTF_LOAD => add(0, copy(long(0), word(16) as usize)),
            sys::BPF_RAW_TRACEPOINT_OPEN => add(0, copy_string(long(0))),
            sys::BPF_MAP_LOOKUP_ELEM
            | sys::BPF_MAP_DELETE_ELEM
            | sys::BPF_MAP_GET_NEXT_KEY
            | sys::BPF_MAP_UPDATE_ELEM => {
                if let Some((key, value)) = known.map_sizes(word(0) as i32) {
                    add(8, copy(long(8), key.min(MOST_POINTED)));
                    if command == sys::BPF_MAP_UPDATE_ELEM {
                        add(16, copy(long(16), value.min(MOST_POINTED)));
                    }
                }
            }
            _ => {}
        }
    }
    found
}

fn account(request: &Request) -> By {
    let by = ACCOUNT.get();
    if let (By::Libbpf, Request::Bpf { command: sys::BPF_PROG_LOAD, pointed, .. }) = (by, request)
        && pointed.first().is_some_and(|pointed| pointed.bytes == NOTHING)
    {
        return By::LibbpfProbe;
    }
    by
}

/// Make the call and record it. Afterwards errno is as the call left it.
fn record(request: impl FnOnce(&Known) -> Request, real: impl FnOnce() -> c_long) -> c_long {
    let request = match recorder().as_ref() {
        Some(recorder) => request(&recorder.known),
        None => return real(),
    };
    let began = Instant::now();
    let result = real();
    let took = began.elapsed();
    let errno = Errno::last_raw();
    let log = if result >= 0 { log_of(&request) } else { None };
    let by = account(&request);
    let call = Call { request, by, result, errno: if result < 0 { errno } else { 0 }, took };
    if let Some(recorder) = recorder().as_mut() {
        (recorder.sink)(&call, &recorder.known);
        remember(&mut recorder.known, &call, log);
    }
    Errno::set_raw(errno);
    result
}

/// The verifier's log of a program that has just been loaded.
fn log_of(request: &Request) -> Option<Vec<u8>> {
    let Request::Bpf { command: sys::BPF_PROG_LOAD, attributes, .. } = request else { return None };
    let (level, size, address) = (word(attributes, 24)?, word(attributes, 28)?, long(attributes, 32)?);
    // SAFETY: if the caller passed this memory as a log with a level, the kernel has accepted it and has ended the log
    // with a NUL.
    if level > 0 && size > 0 { unsafe { copy_string(address) } } else { None }
}

fn remember(known: &mut Known, call: &Call, log: Option<Vec<u8>>) {
    let Some(fd) = i32::try_from(call.result).ok().filter(|fd| *fd >= 0) else { return };
    let made = match &call.request {
        Request::Bpf { command: sys::BPF_MAP_CREATE, attributes, .. } => Made::Map(attributes.clone()),
        Request::Bpf { command: sys::BPF_PROG_LOAD, attributes, pointed } => {
            let insns = pointed.first().map(|pointed| pointed.bytes.clone()).unwrap_or_default();
            Made::Program(Sent { attributes: attributes.clone(), insns, log, took: call.took })
        }
        Request::Bpf { command, .. } => match *command {
            sys::BPF_BTF_LOAD
            | sys::BPF_RAW_TRACEPOINT_OPEN
            | sys::BPF_LINK_CREATE
            | sys::BPF_ITER_CREATE
            | sys::BPF_OBJ_GET
            | sys::BPF_PROG_GET_FD_BY_ID
            | sys::BPF_MAP_GET_FD_BY_ID
            | sys::BPF_BTF_GET_FD_BY_ID
            | sys::BPF_LINK_GET_FD_BY_ID
            | sys::BPF_TOKEN_CREATE => Made::Other,
            _ => return,
        },
        Request::PerfEventOpen { .. } => Made::Other,
        Request::PerfIoctl { .. } => return,
    };
    known.by_fd.insert(fd, made);
}

/// The replacement of the C library's `syscall` for the code of this binary. The function takes the largest number of
/// arguments that a system call has. An argument that the caller did not pass is whatever its register holds, here as
/// in the real function.
///
/// # Safety
/// The conditions of the system call hold.
#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap_syscall(
    number: c_long,
    a: c_long,
    b: c_long,
    c: c_long,
    d: c_long,
    e: c_long,
    f: c_long,
) -> c_long {
    // SAFETY: the caller answers for the arguments, which are passed on as they came.
    let real = || unsafe { __real_syscall(number, a, b, c, d, e, f) };
    if !ON.load(Ordering::Relaxed) {
        return real();
    }
    match number {
        libc::SYS_bpf => record(
            |known| {
                // SAFETY: the caller passes `c` bytes of attributes at `b`; the kernel reads as many.
                let attributes = unsafe { copy(b as u64, (c as u32 as usize).min(MOST_POINTED)) }.unwrap_or_default();
                // SAFETY: the caller is libbpf or this folder. Both pass valid pointers to calls that they mean to
                // succeed.
                let pointed = unsafe { pointed(a as u32, &attributes, known) };
                Request::Bpf { command: a as u32, attributes, pointed }
            },
            real,
        ),
        libc::SYS_perf_event_open => record(
            |known| {
                // SAFETY: the attributes begin with their type and their size, which the kernel reads first.
                let head = unsafe { copy(a as u64, 8) }.unwrap_or_default();
                let size = (word(&head, 4).unwrap_or(0) as usize).min(MOST_POINTED);
                // SAFETY: the kernel reads this number of bytes next.
                let attributes = unsafe { copy(a as u64, size) }.unwrap_or_default();
                let is_kprobe = known.kprobe_pmu.is_some() && word(&attributes, 0) == known.kprobe_pmu;
                let function = long(&attributes, CONFIG1).filter(|_| is_kprobe);
                // SAFETY: if a kprobe has an address in this field, it is the address of the function's name.
                let function = function.and_then(|address| unsafe { copy_string(address) });
                let pointed = function.map(|bytes| Pointed { at: CONFIG1, bytes }).into_iter().collect();
                let (pid, cpu, group) = (b as i32, c as i32, d as i32);
                Request::PerfEventOpen { attributes, pointed, pid, cpu, group, flags: e as u64 }
            },
            real,
        ),
        libc::SYS_dup3 => {
            let result = real();
            // libbpf creates a map under any descriptor and then moves the map to the descriptor that libbpf reserved.
            if result >= 0
                && let Some(recorder) = recorder().as_mut()
                && let Some(made) = recorder.known.by_fd.get(&(a as i32)).cloned()
            {
                recorder.known.by_fd.insert(b as i32, made);
            }
            result
        }
        _ => real(),
    }
}

/// `kprobe_func` in `struct perf_event_attr`.
const CONFIG1: usize = 56;

/// The replacement of the C library's `ioctl` for the code of this binary.
///
/// # Safety
/// The conditions of the request hold.
#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap_ioctl(fd: c_int, request: c_ulong, argument: c_long) -> c_int {
    /// Bits 8 to 15 of a request name the subsystem that it belongs to.
    const PERF_EVENT: c_ulong = b'$' as c_ulong;
    // SAFETY: the caller answers for the arguments, which are passed on as they came.
    let real = || unsafe { __real_ioctl(fd, request, argument) };
    if !ON.load(Ordering::Relaxed) || (request >> 8) & 0xff != PERF_EVENT {
        return real();
    }
    // A request has 32 bits, and musl takes it as an int. The upper half of the register is undefined.
    let request = Request::PerfIoctl { fd, request: (request as u32).into(), argument: argument as u64 };
    record(|_| request, || real().into()) as c_int
}

/// The replacement of libbpf's `feat_supported`, which tells whether the kernel has a feature. libbpf asks the kernel
/// at the first call.
///
/// # Safety
/// The conditions of libbpf's function hold.
#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap_feat_supported(cache: *mut c_void, feature: c_int) -> bool {
    let _account = Account::of(By::LibbpfProbe);
    // SAFETY: the caller's arguments are passed on as they came.
    unsafe { __real_feat_supported(cache, feature) }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The attributes as the kernel receives them.
    pub(crate) fn bytes_of(attributes: &sys::bpf_attr) -> Vec<u8> {
        // SAFETY: the length is that of the attributes. All bytes are initialised, since the structure was zeroed as a
        // whole.
        unsafe { copy(std::ptr::from_ref(attributes) as u64, size_of::<sys::bpf_attr>()) }.unwrap_or_default()
    }
}
