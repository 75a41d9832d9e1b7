//! The bpf(2) calls that attach and read, made directly.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libbpf_sys as sys;

/// bpf(2).
///
/// # Safety
/// The attributes hold what `command` asks for; what they point to outlives the call.
unsafe fn bpf(command: sys::bpf_cmd, attributes: &mut sys::bpf_attr) -> io::Result<i64> {
    // SAFETY: the size is that of the attributes; the caller answers for their content.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<sys::bpf_attr>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn zeroed() -> sys::bpf_attr {
    // The kernel refuses attributes with anything but zero in what a command does not use.
    sys::bpf_attr::default()
}

/// Attach a program to a raw tracepoint. It stays attached until the descriptor is closed.
///
/// # Errors
/// `ENOENT`: this kernel has no such tracepoint. `EINVAL`: it has fewer arguments than the program reads.
pub fn attach_raw_tracepoint(name: &std::ffi::CStr, program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut attributes = zeroed();
    attributes.raw_tracepoint.name = name.as_ptr() as u64;
    attributes.raw_tracepoint.prog_fd = program.as_raw_fd() as u32;
    // SAFETY: the name is NUL-terminated and outlives the call, and the descriptor is that of a program.
    let fd = unsafe { bpf(sys::BPF_RAW_TRACEPOINT_OPEN, &mut attributes) }?;
    // SAFETY: the kernel has just returned this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Attach a program to the kernel function that it was loaded for (fentry, fexit). It stays attached until the descriptor
/// is closed.
///
/// # Errors
/// `ENOTSUPP` (524), `EINVAL` or `ENODEV`: this kernel has no trampolines. `EBUSY`: something else patches the function.
pub fn attach_trampoline(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut attributes = zeroed();
    attributes.raw_tracepoint.prog_fd = program.as_raw_fd() as u32;
    // SAFETY: without a name the command attaches a tracing program to its own target; the descriptor is a program's.
    let fd = unsafe { bpf(sys::BPF_RAW_TRACEPOINT_OPEN, &mut attributes) }?;
    // SAFETY: the kernel has just returned this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Run a program whenever a perf event happens, through a link: for kprobes newer kernels tell through it how many runs
/// were skipped ([`link_missed`]). Detached when the descriptor is closed.
///
/// # Errors
/// With the kernel's errno.
pub fn link_perf_event(event: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut attributes = zeroed();
    attributes.link_create.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
    attributes.link_create.__bindgen_anon_2.target_fd = event.as_raw_fd() as u32;
    attributes.link_create.attach_type = sys::BPF_PERF_EVENT;
    // SAFETY: the descriptors are a program's and a perf event's, and all else is zero.
    let link = unsafe { bpf(sys::BPF_LINK_CREATE, &mut attributes) }?;
    // SAFETY: the kernel has just returned this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(link as i32) })
}

/// How many runs of a kprobe the kernel has skipped, since another kprobe was running on that CPU
/// (`bpf_link_info.perf_event.kprobe.missed`, 6.7 and newer).
///
/// # Errors
/// With the kernel's errno.
pub fn link_missed(link: BorrowedFd<'_>) -> io::Result<u64> {
    let mut info = sys::bpf_link_info::default();
    // SAFETY: it is a link's, and asks for no strings: its pointers are null.
    unsafe { object_info(link, &mut info) }?;
    // SAFETY: the link is one of a kprobe, so this is what the kernel filled in; all of it is numbers.
    Ok(unsafe { info.__bindgen_anon_1.perf_event.__bindgen_anon_1.kprobe.missed })
}

/// Run an iterator program over everything that it is for. Reading the file runs it; what it reads is what the program
/// wrote. The program is detached when the file is closed.
///
/// # Errors
/// `EINVAL`: this kernel does not have that iterator.
pub fn iterate(program: BorrowedFd<'_>) -> io::Result<std::fs::File> {
    let mut attributes = zeroed();
    attributes.link_create.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
    attributes.link_create.attach_type = sys::BPF_TRACE_ITER;
    // SAFETY: the descriptor is a program's, and all else is zero.
    let link = unsafe { bpf(sys::BPF_LINK_CREATE, &mut attributes) }?;
    // SAFETY: the kernel has just returned this descriptor, and nobody else knows it.
    let link = unsafe { OwnedFd::from_raw_fd(link as i32) };
    let mut attributes = zeroed();
    attributes.iter_create.link_fd = link.as_raw_fd() as u32;
    // SAFETY: the descriptor is the link's, and all else is zero.
    let file = unsafe { bpf(sys::BPF_ITER_CREATE, &mut attributes) }?;
    // SAFETY: the kernel has just returned this descriptor, and nobody else knows it.
    Ok(unsafe { std::fs::File::from_raw_fd(file as i32) })
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
/// With the kernel's errno.
pub fn set_ring(events: BorrowedFd<'_>, cpu: u32, ring: BorrowedFd<'_>) -> io::Result<()> {
    let value = ring.as_raw_fd() as u32;
    // SAFETY: the keys and values of a perf event array are 32-bit numbers.
    unsafe { update_raw(events, std::ptr::from_ref(&cpu).cast(), std::ptr::from_ref(&value).cast(), sys::BPF_ANY) }
}

/// Let it write nowhere again.
///
/// # Errors
/// With the kernel's errno.
pub fn unset_ring(events: BorrowedFd<'_>, cpu: u32) -> io::Result<()> {
    let mut attributes = zeroed();
    attributes.__bindgen_anon_2.map_fd = events.as_raw_fd() as u32;
    attributes.__bindgen_anon_2.key = std::ptr::from_ref(&cpu) as u64;
    // SAFETY: the keys of a perf event array are 32-bit numbers.
    unsafe { bpf(sys::BPF_MAP_DELETE_ELEM, &mut attributes) }.map(drop)
}

/// What the kernel says of a program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProgramInfo {
    /// Its number.
    pub id: u32,
    /// `enum bpf_prog_type`
    pub program_type: u32,
    /// The kernel's own hash of the instructions that it was given.
    pub tag: [u8; 8],
    /// Bytes of instructions after verification.
    pub xlated: u32,
    /// Bytes of machine code; 0: it is interpreted.
    pub jited: u32,
    /// When it was loaded, ns of CLOCK_BOOTTIME.
    pub load_time: u64,
    /// Instructions that the verifier went through, each time that it did (5.16 and newer; 0 before).
    pub verified: u32,
    /// The maps that it uses, or that were bound to it.
    pub map_ids: Vec<u32>,
    /// Runs that were skipped, since it was running on that CPU already (before 5.12 kernels neither count nor skip).
    pub skipped: u64,
}

/// What the kernel says of a map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MapInfo {
    /// Its number.
    pub id: u32,
    /// `enum bpf_map_type`
    pub map_type: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Entries that it has room for.
    pub max_entries: u32,
    /// `BPF_F_*`
    pub flags: u32,
}

/// BPF_OBJ_GET_INFO_BY_FD: fills as much of `info` as this kernel knows.
///
/// # Safety
/// `T` is what the kernel fills in for such a descriptor, and its pointers lead to as much memory as it says.
unsafe fn object_info<T>(fd: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    let mut attributes = zeroed();
    attributes.info.bpf_fd = fd.as_raw_fd() as u32;
    attributes.info.info_len = size_of::<T>() as u32;
    attributes.info.info = std::ptr::from_mut(info) as u64;
    // SAFETY: the kernel writes at most `info_len` bytes to `info`; the caller answers for the rest.
    unsafe { bpf(sys::BPF_OBJ_GET_INFO_BY_FD, &mut attributes) }.map(drop)
}

/// What the kernel says of a program.
///
/// # Errors
/// With the kernel's errno.
pub fn program_info(program: BorrowedFd<'_>) -> io::Result<ProgramInfo> {
    let mut map_ids = vec![0; 64]; // the most that a program can use (MAX_USED_MAPS)
    let mut info = sys::bpf_prog_info {
        nr_map_ids: map_ids.len() as u32,
        map_ids: map_ids.as_mut_ptr() as u64,
        ..Default::default()
    };
    // SAFETY: it is a program's; of what can be asked for only the map ids are, and there is room for as many as it says.
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

/// What the verifier made of a program, `length` bytes ([`ProgramInfo::xlated`]); none if the kernel does not show it.
///
/// # Errors
/// With the kernel's errno.
pub fn translated(program: BorrowedFd<'_>, length: u32) -> io::Result<Option<Vec<u8>>> {
    let mut insns = vec![0; length as usize];
    let mut info = sys::bpf_prog_info {
        xlated_prog_len: length,
        xlated_prog_insns: insns.as_mut_ptr() as u64,
        ..Default::default()
    };
    // SAFETY: it is a program's; of what can be asked for only these instructions are, and there is room for as many bytes
    // as it says.
    unsafe { object_info(program, &mut info) }?;
    Ok((info.xlated_prog_insns != 0 && info.xlated_prog_len == length).then_some(insns))
}

/// What the kernel says of a map.
///
/// # Errors
/// With the kernel's errno.
pub fn map_info(map: BorrowedFd<'_>) -> io::Result<MapInfo> {
    let mut info = sys::bpf_map_info::default();
    // SAFETY: it is a map's, and nothing in it points anywhere.
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
