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

/// How many bytes of data the map of type RINGBUF holds.
///
/// # Errors
/// With the kernel's errno.
pub fn ring_size(map: BorrowedFd<'_>) -> io::Result<usize> {
    let mut info = sys::bpf_map_info::default();
    let mut size = size_of::<sys::bpf_map_info>() as u32;
    // SAFETY: `size` is that of `info`, which asks for no strings.
    let result = unsafe { sys::bpf_map_get_info_by_fd(map.as_raw_fd(), &mut info, &mut size) };
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(info.max_entries as usize) }
}

/// How many runs of a kprobe the kernel has skipped, since another kprobe was running on that CPU
/// (`bpf_link_info.perf_event.kprobe.missed`, 6.7 and newer).
///
/// # Errors
/// With the kernel's errno.
pub fn link_missed(link: BorrowedFd<'_>) -> io::Result<u64> {
    let mut info = sys::bpf_link_info::default();
    let mut size = size_of::<sys::bpf_link_info>() as u32;
    // SAFETY: `size` is that of `info`, which asks for no strings: its pointers are null.
    let result = unsafe { sys::bpf_link_get_info_by_fd(link.as_raw_fd(), &mut info, &mut size) };
    if result < 0 {
        return Err(io::Error::from_raw_os_error(-result));
    }
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
