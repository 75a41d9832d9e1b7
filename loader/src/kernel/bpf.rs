//! The bpf(2) calls that attach programs and read from the kernel, made directly.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libbpf_sys as sys;

use super::calls::NOTHING;

/// The bpf(2) system call.
///
/// # Safety
/// The attributes hold the fields that `command` reads. The memory that they point to outlives the call.
unsafe fn bpf(command: sys::bpf_cmd, attributes: &mut sys::bpf_attr) -> io::Result<i64> {
    // SAFETY: the size is that of the attributes; the caller answers for their content.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<sys::bpf_attr>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Like [`bpf`], for a command that makes a descriptor.
///
/// # Safety
/// As for [`bpf`], and `command` makes a descriptor.
unsafe fn make(command: sys::bpf_cmd, attributes: &mut sys::bpf_attr) -> io::Result<OwnedFd> {
    // SAFETY: as the caller promises.
    let fd = unsafe { bpf(command, attributes) }?;
    // SAFETY: the kernel has just returned this descriptor, and nothing else uses it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn zeroed() -> sys::bpf_attr {
    // The kernel refuses attributes with a non-zero byte in a field that the command does not use.
    sys::bpf_attr::default()
}

/// Attach a program to a raw tracepoint. The program stays attached until the descriptor is closed.
///
/// # Errors
/// `ENOENT`: this kernel has no such tracepoint. `EINVAL`: the tracepoint has fewer arguments than the program reads.
pub fn attach_raw_tracepoint(name: &std::ffi::CStr, program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut attributes = zeroed();
    attributes.raw_tracepoint.name = name.as_ptr() as u64;
    attributes.raw_tracepoint.prog_fd = program.as_raw_fd() as u32;
    // SAFETY: the name is NUL-terminated and outlives the call, and the descriptor is that of a program.
    unsafe { make(sys::BPF_RAW_TRACEPOINT_OPEN, &mut attributes) }
}

/// Attach a program to the kernel function that it was loaded for (fentry, fexit, LSM). The program stays attached until the
/// descriptor is closed.
///
/// # Errors
/// `ENOTSUPP` (524), `EINVAL` or `ENODEV`: this kernel has no trampolines. `EBUSY`: something else patches the
/// function.
pub fn attach_trampoline(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut attributes = zeroed();
    attributes.raw_tracepoint.prog_fd = program.as_raw_fd() as u32;
    // SAFETY: without a name the command attaches a tracing program to its own target; the descriptor is a program's.
    unsafe { make(sys::BPF_RAW_TRACEPOINT_OPEN, &mut attributes) }
}

/// The kinds of programs that [`try_trampoline`] tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trampoline {
    /// At the entry of a function.
    Fentry,
    /// At a hook of the security modules.
    Lsm,
}

/// Whether the kernel takes a program of this kind: load one that does nothing, and attach it to a function for a moment.
/// The function is the type with this number in the kernel's own BTF.
///
/// # Errors
/// The kernel's errno, of loading or of attaching.
pub fn try_trampoline(kind: Trampoline, function: u32) -> io::Result<()> {
    let mut attributes = zeroed();
    (attributes.__bindgen_anon_3.prog_type, attributes.__bindgen_anon_3.expected_attach_type) = match kind {
        Trampoline::Fentry => (sys::BPF_PROG_TYPE_TRACING, sys::BPF_TRACE_FENTRY),
        Trampoline::Lsm => (sys::BPF_PROG_TYPE_LSM, sys::BPF_LSM_MAC),
    };
    attributes.__bindgen_anon_3.attach_btf_id = function;
    attributes.__bindgen_anon_3.insns = NOTHING.as_ptr() as u64;
    attributes.__bindgen_anon_3.insn_cnt = (NOTHING.len() / 8) as u32;
    attributes.__bindgen_anon_3.license = c"GPL".as_ptr() as u64;
    // SAFETY: the instructions and the license outlive the call, and all else is zero.
    let program = unsafe { bpf(sys::BPF_PROG_LOAD, &mut attributes) }?;
    // SAFETY: the kernel has just returned this descriptor, and nothing else uses it.
    let program = unsafe { OwnedFd::from_raw_fd(program as i32) };
    attach_trampoline(program.as_fd()).map(drop)
}

/// Run a program whenever a perf event happens, through a link. The link of a kprobe tells how many runs were skipped,
/// on newer kernels ([`link_missed`]). The program is detached when the descriptor is closed.
///
/// # Errors
/// The kernel's errno.
pub fn link_perf_event(event: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut attributes = zeroed();
    attributes.link_create.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
    attributes.link_create.__bindgen_anon_2.target_fd = event.as_raw_fd() as u32;
    attributes.link_create.attach_type = sys::BPF_PERF_EVENT;
    // SAFETY: the descriptors are a program's and a perf event's, and all else is zero.
    unsafe { make(sys::BPF_LINK_CREATE, &mut attributes) }
}

/// The number of runs of a kprobe that the kernel has skipped, since another kprobe was running on that CPU
/// (`bpf_link_info.perf_event.kprobe.missed`, 6.7 and newer).
///
/// # Errors
/// The kernel's errno.
pub fn link_missed(link: BorrowedFd<'_>) -> io::Result<u64> {
    let mut info = sys::bpf_link_info::default();
    // SAFETY: the descriptor and the structure are a link's. The structure asks for no strings: its pointers are null.
    unsafe { object_info(link, &mut info) }?;
    // SAFETY: the link is one of a kprobe, so the kernel filled in this member; all its fields are numbers.
    Ok(unsafe { info.__bindgen_anon_1.perf_event.__bindgen_anon_1.kprobe.missed })
}

/// Run an iterator program over all objects of its kind. Reading the file runs the program and returns the output of
/// the program. The program is detached when the file is closed.
///
/// # Errors
/// `EINVAL`: this kernel does not have that iterator.
pub fn iterate(program: BorrowedFd<'_>) -> io::Result<File> {
    iterate_again(attach_iterator(program)?.as_fd())
}

/// Attach an iterator program, for [`iterate_again`].
///
/// # Errors
/// `EINVAL`: this kernel does not have that iterator.
pub fn attach_iterator(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut attributes = zeroed();
    attributes.link_create.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
    attributes.link_create.attach_type = sys::BPF_TRACE_ITER;
    // SAFETY: the descriptor is a program's, and all else is zero.
    unsafe { make(sys::BPF_LINK_CREATE, &mut attributes) }
}

/// Begin an iteration in the calling thread's network namespace. Reading the file runs the program.
///
/// # Errors
/// The kernel's errno.
pub fn iterate_again(link: BorrowedFd<'_>) -> io::Result<File> {
    let mut attributes = zeroed();
    attributes.iter_create.link_fd = link.as_raw_fd() as u32;
    // SAFETY: the descriptor is the link's, and all else is zero.
    unsafe { make(sys::BPF_ITER_CREATE, &mut attributes) }.map(File::from)
}

/// Run a raw tracepoint program once with these arguments (5.10 and newer). Returns what the program returns.
///
/// # Errors
/// `EINVAL`: this kernel does not run such programs on request.
pub fn run(program: BorrowedFd<'_>, arguments: &[u8]) -> io::Result<u32> {
    let mut attributes = zeroed();
    attributes.test.prog_fd = program.as_raw_fd() as u32;
    attributes.test.ctx_in = arguments.as_ptr() as u64;
    attributes.test.ctx_size_in = arguments.len() as u32;
    // SAFETY: the kernel reads the arguments, whose length is given, and all else is zero.
    unsafe { bpf(sys::BPF_PROG_TEST_RUN, &mut attributes) }?;
    // SAFETY: the kernel has written this member.
    Ok(unsafe { attributes.test }.retval)
}

/// Put `value` under `key`.
///
/// # Safety
/// `key` and `value` point to as many bytes as the map's key and value have.
unsafe fn update_raw(map: BorrowedFd<'_>, key: *const u8, value: *const u8, flags: u32) -> io::Result<()> {
    let mut attributes = zeroed();
    attributes.__bindgen_anon_2.map_fd = map.as_raw_fd() as u32;
    attributes.__bindgen_anon_2.key = key as u64;
    attributes.__bindgen_anon_2.__bindgen_anon_1.value = value as u64;
    attributes.__bindgen_anon_2.flags = flags.into();
    // SAFETY: as the caller promises.
    unsafe { bpf(sys::BPF_MAP_UPDATE_ELEM, &mut attributes) }.map(drop)
}

/// Let bpf_perf_event_output() on `cpu` write into `ring`. The index of a perf event array is the CPU's id.
///
/// # Errors
/// The kernel's errno.
pub fn set_ring(events: BorrowedFd<'_>, cpu: u32, ring: BorrowedFd<'_>) -> io::Result<()> {
    let value = ring.as_raw_fd() as u32;
    // SAFETY: the keys and values of a perf event array are 32-bit numbers.
    unsafe { update_raw(events, std::ptr::from_ref(&cpu).cast(), std::ptr::from_ref(&value).cast(), sys::BPF_ANY) }
}

/// Let bpf_perf_event_output() on `cpu` write nowhere again.
///
/// # Errors
/// The kernel's errno.
pub fn unset_ring(events: BorrowedFd<'_>, cpu: u32) -> io::Result<()> {
    let mut attributes = zeroed();
    attributes.__bindgen_anon_2.map_fd = events.as_raw_fd() as u32;
    attributes.__bindgen_anon_2.key = std::ptr::from_ref(&cpu) as u64;
    // SAFETY: the keys of a perf event array are 32-bit numbers.
    unsafe { bpf(sys::BPF_MAP_DELETE_ELEM, &mut attributes) }.map(drop)
}

/// The kernel's information about a program (`struct bpf_prog_info`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProgramInfo {
    /// The program's id.
    pub id: u32,
    /// `enum bpf_prog_type`
    pub program_type: u32,
    /// The kernel's own hash of the instructions, as they were loaded.
    pub tag: [u8; 8],
    /// Bytes of instructions after verification.
    pub xlated: u32,
    /// Bytes of machine code; 0: the program is interpreted.
    pub jited: u32,
    /// The time of loading, in ns of CLOCK_BOOTTIME.
    pub load_time: u64,
    /// Instructions that the verifier processed; an instruction counts every time that the verifier visits it (5.16 and
    /// newer; 0 before).
    pub verified: u32,
    /// The ids of the maps that the program uses, or that were bound to the program.
    pub map_ids: Vec<u32>,
    /// Runs that were skipped, since the program was already running on that CPU. Before 5.12 kernels neither count nor
    /// skip.
    pub skipped: u64,
}

/// The kernel's information about a map (`struct bpf_map_info`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MapInfo {
    /// The map's id.
    pub id: u32,
    /// `enum bpf_map_type`
    pub map_type: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// The most entries that the map can hold.
    pub max_entries: u32,
    /// `BPF_F_*`
    pub flags: u32,
}

/// BPF_OBJ_GET_INFO_BY_FD: fills as much of `info` as this kernel knows.
///
/// # Safety
/// `T` is the structure that the kernel fills in for such a descriptor. Its pointers lead to as much memory as it says.
unsafe fn object_info<T>(fd: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    let mut attributes = zeroed();
    attributes.info.bpf_fd = fd.as_raw_fd() as u32;
    attributes.info.info_len = size_of::<T>() as u32;
    attributes.info.info = std::ptr::from_mut(info) as u64;
    // SAFETY: the kernel writes at most `info_len` bytes to `info`; the caller answers for the rest.
    unsafe { bpf(sys::BPF_OBJ_GET_INFO_BY_FD, &mut attributes) }.map(drop)
}

/// Ask the kernel about a program.
///
/// # Errors
/// The kernel's errno.
pub fn program_info(program: BorrowedFd<'_>) -> io::Result<ProgramInfo> {
    let mut map_ids = vec![0; 64]; // the most that a program can use (MAX_USED_MAPS)
    let mut info = sys::bpf_prog_info {
        nr_map_ids: map_ids.len() as u32,
        map_ids: map_ids.as_mut_ptr() as u64,
        ..Default::default()
    };
    // SAFETY: the descriptor and the structure are a program's. The structure asks for the map ids alone, and has room
    // for as many as it says.
    unsafe { object_info(program, &mut info) }?;
    map_ids.truncate(info.nr_map_ids as usize);
    Ok(ProgramInfo {
        id: info.id,
        program_type: info.type_,
        tag: info.tag,
        xlated: info.xlated_prog_len,
        jited: info.jited_prog_len,
        load_time: info.load_time,
        verified: info.verified_insns,
        map_ids,
        skipped: info.recursion_misses,
    })
}

/// The instructions of a program after verification, `length` bytes ([`ProgramInfo::xlated`]); none if the kernel does
/// not show them.
///
/// # Errors
/// The kernel's errno.
pub fn translated(program: BorrowedFd<'_>, length: u32) -> io::Result<Option<Vec<u8>>> {
    let mut insns = vec![0; length as usize];
    let mut info = sys::bpf_prog_info {
        xlated_prog_len: length,
        xlated_prog_insns: insns.as_mut_ptr() as u64,
        ..Default::default()
    };
    // SAFETY: the descriptor and the structure are a program's. The structure asks for these instructions alone, and
    // has room for as many bytes as it says.
    unsafe { object_info(program, &mut info) }?;
    Ok((info.xlated_prog_insns != 0 && info.xlated_prog_len == length).then_some(insns))
}

/// Ask the kernel about a map.
///
/// # Errors
/// The kernel's errno.
pub fn map_info(map: BorrowedFd<'_>) -> io::Result<MapInfo> {
    let mut info = sys::bpf_map_info::default();
    // SAFETY: the descriptor and the structure are a map's, and the structure has no pointers.
    unsafe { object_info(map, &mut info) }?;
    Ok(MapInfo {
        id: info.id,
        map_type: info.type_,
        key_size: info.key_size,
        value_size: info.value_size,
        max_entries: info.max_entries,
        flags: info.map_flags,
    })
}
