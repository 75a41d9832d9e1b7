//! Every bpf(2) and perf_event_open(2) call and every ioctl(2) of perf events that this process makes, libbpf's too, seen
//! where it is made.
//!
//! The linker leads references to `syscall`, `ioctl` and libbpf's `feat_supported` here (`--wrap`, see build.rs): code that
//! wants the C library's `syscall` gets [`__wrap_syscall`], which has the real one as `__real_syscall`. While nobody
//! records, and for all other system calls always, that costs a comparison.

use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::{c_int, c_long, c_ulong, c_void};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use libbpf_sys as sys;
use nix::errno::Errno;
use serde::Serialize;

/// On whose account a call is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum By {
    /// xctl decided to make it.
    Xctl,
    /// libbpf did, to load the object.
    Libbpf,
    /// libbpf did, to find out what this kernel can do. Nothing of the object is in it.
    LibbpfProbe,
}

/// What a pointer among the attributes led to when the call was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pointed {
    /// Where in the attributes the pointer is, in bytes.
    pub at: usize,
    /// What was there.
    pub bytes: Vec<u8>,
}

/// A call's arguments, as they were before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// bpf(2)
    Bpf {
        /// `enum bpf_cmd`
        command: u32,
        /// As many bytes of `union bpf_attr` as the caller gave.
        attributes: Vec<u8>,
        /// What its pointers led to, where that says what is being asked.
        pointed: Vec<Pointed>,
    },
    /// perf_event_open(2)
    PerfEventOpen {
        /// `struct perf_event_attr`, as many bytes as its `size` says.
        attributes: Vec<u8>,
        /// A kprobe's function.
        pointed: Vec<Pointed>,
        /// -1: every process.
        pid: i32,
        /// -1: every CPU.
        cpu: i32,
        /// -1: in no group.
        group: i32,
        /// `PERF_FLAG_*`
        flags: u64,
    },
    /// ioctl(2) of a perf event.
    PerfIoctl {
        /// The event.
        fd: i32,
        /// `PERF_EVENT_IOC_*`
        request: u64,
        /// What it means depends on the request.
        argument: u64,
    },
}

/// A call that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// What was asked.
    pub request: Request,
    /// On whose account.
    pub by: By,
    /// What the kernel returned; -1 is a failure.
    pub result: i64,
    /// Why it failed, else 0.
    pub errno: i32,
    /// How long it took.
    pub took: Duration,
}

/// What a file descriptor stands for that a recorded call made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Made {
    /// A map, and the attributes of its making.
    Map(Vec<u8>),
    /// A program.
    Program(Sent),
    /// Something else.
    Other,
}

/// What the kernel was given as a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// The attributes of the call that loaded it.
    pub attributes: Vec<u8>,
    /// Instructions, 8 bytes each.
    pub insns: Vec<u8>,
    /// What the verifier wrote into its log, if one was asked for.
    pub log: Option<Vec<u8>>,
    /// How long the kernel took to verify, compile and install it.
    pub took: Duration,
}

/// Takes each call as it is made, with what is known of file descriptors. It must not make such calls itself.
pub type Sink = Box<dyn FnMut(&Call, &Known) + Send>;

/// What file descriptors stand for.
#[derive(Debug, Default)]
pub struct Known {
    by_fd: HashMap<i32, Made>,
    /// `type` of the kprobe PMU: the events that have a function's name.
    kprobe_pmu: Option<u32>,
}

impl Known {
    /// The name that a map or program was given, as far as the kernel keeps it; none for what was not made under a name.
    #[must_use]
    pub fn name(&self, fd: i32) -> Option<String> {
        let (attributes, at) = match self.by_fd.get(&fd)? {
            Made::Map(attributes) => (attributes, 28),
            Made::Program(sent) => (&sent.attributes, 48),
            Made::Other => return None,
        };
        let name = attributes.get(at..at + sys::BPF_OBJ_NAME_LEN as usize)?;
        let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
        let name = name.get(..end).filter(|name| !name.is_empty())?;
        Some(String::from_utf8_lossy(name).into_owned())
    }

    fn map_sizes(&self, fd: i32) -> Option<(usize, usize)> {
        match self.by_fd.get(&fd)? {
            Made::Map(attributes) => Some((word(attributes, 4)? as usize, word(attributes, 8)? as usize)),
            _ => None,
        }
    }
}

/// 32 bits at byte `at`, if they are there.
#[must_use]
pub fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

/// 64 bits at byte `at`, if they are there.
#[must_use]
pub fn long(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8)?.try_into().ok().map(u64::from_ne_bytes)
}

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

/// Recording, until this is dropped.
#[derive(Debug)]
pub struct Recording(());

impl Recording {
    /// Hand every call from now on to `sink`. There is one recording at a time.
    #[must_use]
    pub fn begin(kprobe_pmu: Option<u32>, sink: Sink) -> Self {
        let known = Known { kprobe_pmu, ..Known::default() };
        *recorder() = Some(Recorder { sink, known });
        ON.store(true, Ordering::SeqCst);
        Self(())
    }

    /// What the kernel was given for the program behind `fd`.
    #[must_use]
    pub fn sent(&self, fd: i32) -> Option<Sent> {
        match recorder().as_ref()?.known.by_fd.get(&fd)? {
            Made::Program(sent) => Some(sent.clone()),
            _ => None,
        }
    }

    /// The attributes with which the map behind `fd` was made.
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

/// While this lives, the thread's calls are on another account.
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

/// What libbpf loads to see whether anything can be loaded: `r0 = 0; exit`. It does so outside of its feature probes.
const NOTHING: [u8; 16] = [0xb7, 0, 0, 0, 0, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];

/// Longest memory that is copied for the record, but for programs.
const MOST_POINTED: usize = 4096;
/// BPF_COMPLEXITY_LIMIT_INSNS: a kernel takes no longer program.
const MOST_INSNS: usize = 1_000_000;
const INSN_SIZE: usize = 8;

unsafe extern "C" {
    fn __real_syscall(number: c_long, ...) -> c_long;
    fn __real_ioctl(fd: c_int, request: c_ulong, ...) -> c_int;
    fn __real_feat_supported(cache: *mut c_void, feature: c_int) -> bool;
}

/// `length` bytes at `address`.
///
/// # Safety
/// They are there, unless the address is 0.
unsafe fn copy(address: u64, length: usize) -> Option<Vec<u8>> {
    // SAFETY: as the caller promises, and address 0 is excluded.
    (address != 0).then(|| unsafe { std::slice::from_raw_parts(address as *const u8, length) }.to_vec())
}

/// The string at `address`, without its NUL.
///
/// # Safety
/// There is one, unless the address is 0.
unsafe fn copy_string(address: u64) -> Option<Vec<u8>> {
    if address == 0 {
        return None;
    }
    let mut bytes = Vec::new();
    while bytes.len() < MOST_POINTED {
        // SAFETY: no byte before this one was the last.
        match unsafe { *(address as *const u8).add(bytes.len()) } {
            0 => break,
            byte => bytes.push(byte),
        }
    }
    Some(bytes)
}

/// What the pointers of a bpf(2) call lead to, where that says what is being asked.
///
/// # Safety
/// The call is about to be made by code that means it to succeed: pointers that the command reads are null, or lead to as
/// much memory as it reads.
unsafe fn pointed(command: u32, attributes: &[u8], known: &Known) -> Vec<Pointed> {
    let word = |at| word(attributes, at).unwrap_or(0);
    let long = |at| long(attributes, at).unwrap_or(0);
    let mut found = Vec::new();
    let mut add = |at, bytes: Option<Vec<u8>>| found.extend(bytes.map(|bytes| Pointed { at, bytes }));
    // SAFETY: all of them as the caller promises; the lengths are those that the kernel reads, or less.
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

/// Makes the call and records it. errno is afterwards as the call left it.
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
    // SAFETY: the kernel has taken this memory for a log, if it was given some with a level, and ended that with a NUL.
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

/// What the C library's `syscall` is to code of this binary. It takes as many arguments as a system call has at most; those
/// that the caller did not give are whatever is in their registers, here as in the real one.
///
/// # Safety
/// That of the system call.
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
                // SAFETY: the caller gives `c` bytes of attributes at `b`; the kernel reads as many.
                let attributes = unsafe { copy(b as u64, (c as u32 as usize).min(MOST_POINTED)) }.unwrap_or_default();
                // SAFETY: the caller is libbpf or this folder, which mean what they ask.
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
                // SAFETY: that is how many bytes the kernel reads then.
                let attributes = unsafe { copy(a as u64, size) }.unwrap_or_default();
                let is_kprobe = known.kprobe_pmu.is_some() && word(&attributes, 0) == known.kprobe_pmu;
                let function = long(&attributes, CONFIG1).filter(|_| is_kprobe);
                // SAFETY: where a kprobe has an address there, it is that of the function's name.
                let function = function.and_then(|address| unsafe { copy_string(address) });
                let pointed = function.map(|bytes| Pointed { at: CONFIG1, bytes }).into_iter().collect();
                let (pid, cpu, group) = (b as i32, c as i32, d as i32);
                Request::PerfEventOpen { attributes, pointed, pid, cpu, group, flags: e as u64 }
            },
            real,
        ),
        libc::SYS_dup3 => {
            let result = real();
            // libbpf makes a map under any number and then moves it to the one that it reserved.
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

/// What the C library's `ioctl` is to code of this binary.
///
/// # Safety
/// That of the request.
#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap_ioctl(fd: c_int, request: c_ulong, argument: c_long) -> c_int {
    /// Bits 8 to 15 of a request say whose it is.
    const PERF_EVENT: c_ulong = b'$' as c_ulong;
    // SAFETY: the caller answers for the arguments, which are passed on as they came.
    let real = || unsafe { __real_ioctl(fd, request, argument) };
    if !ON.load(Ordering::Relaxed) || (request >> 8) & 0xff != PERF_EVENT {
        return real();
    }
    // A number of 32 bits, which musl takes as an int: what the upper half of the register holds means nothing.
    let request = Request::PerfIoctl { fd, request: (request as u32).into(), argument: argument as u64 };
    record(|_| request, || real().into()) as c_int
}

/// Whether the kernel has a feature, as libbpf finds out: the first time it asks the kernel.
///
/// # Safety
/// That of libbpf's function.
#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap_feat_supported(cache: *mut c_void, feature: c_int) -> bool {
    let _account = Account::of(By::LibbpfProbe);
    // SAFETY: the caller's arguments, passed on as they came.
    unsafe { __real_feat_supported(cache, feature) }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Attributes as the kernel gets them.
    pub(crate) fn bytes_of(attributes: &sys::bpf_attr) -> Vec<u8> {
        // SAFETY: as many bytes as there are, all of them initialised: it was zeroed as a whole.
        unsafe { copy(std::ptr::from_ref(attributes) as u64, size_of::<sys::bpf_attr>()) }.unwrap_or_default()
    }
}
