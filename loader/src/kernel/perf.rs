//! perf_event_open(2), for kprobes and for rings, and its ioctls.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libbpf_sys as sys;

/// The numbers of the ioctls are the same on x86_64 and aarch64: `_IO('$', 0)`, `_IO('$', 5)` and `_IOW('$', 8, __u32)`.
/// libbpf-sys lacks them, as bindgen cannot evaluate the macros.
mod ioctls {
    nix::ioctl_write_int_bad!(enable, nix::request_code_none!(b'$', 0));
    nix::ioctl_write_int_bad!(set_output, nix::request_code_none!(b'$', 5));
    nix::ioctl_write_int!(set_bpf, b'$', 8);
}

/// perf_event_open(2) for all processes on one CPU.
fn open(attributes: &sys::perf_event_attr, cpu: u32) -> io::Result<OwnedFd> {
    const ANY_PROCESS: libc::pid_t = -1;
    const NO_GROUP: i32 = -1;
    // SAFETY: the attributes are initialised and carry their own size. The memory that they point to outlives the call.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            std::ptr::from_ref(attributes),
            ANY_PROCESS,
            cpu,
            NO_GROUP,
            libc::c_ulong::from(sys::PERF_FLAG_FD_CLOEXEC),
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned this descriptor, and nothing else uses it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn attributes() -> sys::perf_event_attr {
    sys::perf_event_attr { size: size_of::<sys::perf_event_attr>() as u32, ..Default::default() }
}

/// Enable an event. From then on, its program runs and its records are written.
///
/// # Errors
/// The kernel's errno.
pub fn enable(event: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the argument is a set of flags (PERF_IOC_FLAG_GROUP), though the request's number says that there is no
    // argument.
    unsafe { ioctls::enable(event.as_raw_fd(), 0) }?;
    Ok(())
}

/// Run a program whenever the event happens, until the event is closed.
///
/// # Errors
/// The kernel's errno.
pub fn set_program(event: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the argument is the descriptor of a program, and the kernel takes a reference to the program.
    unsafe { ioctls::set_bpf(event.as_raw_fd(), program.as_raw_fd() as _) }?;
    Ok(())
}

/// The place of a probe.
#[derive(Clone, Copy, Debug)]
pub struct Probe<'a> {
    /// The `type` of the kprobe PMU, from sysfs.
    pub pmu: u32,
    /// The number of the bit of `config` that asks for a return probe, from sysfs. None: the probe is at the function's
    /// entry.
    pub return_bit: Option<u32>,
    /// The kernel function.
    pub function: &'a CStr,
    /// An online CPU. The probe runs on all CPUs, but perf needs one CPU for the event.
    pub cpu: u32,
}

/// Open a perf event for a kernel function, disabled and without a program.
///
/// # Errors
/// `ENOENT` (return probes before 5.11: `EINVAL`): there is no such function. `EADDRNOTAVAIL`: several functions have
/// the name. `EINVAL`: the function may not be probed (`check_kprobe_address_safe`). `EACCES`, `EPERM`: a privilege is
/// missing.
pub fn open_probe(probe: &Probe<'_>) -> io::Result<OwnedFd> {
    let mut attributes = attributes();
    attributes.type_ = probe.pmu;
    attributes.config = probe.return_bit.map_or(0, |bit| 1 << bit);
    attributes.__bindgen_anon_3.kprobe_func = probe.function.as_ptr() as u64;
    attributes.__bindgen_anon_4.probe_offset = 0;
    open(&attributes, probe.cpu)
}

/// Let an event write its records into the ring of `owner`, which is mapped. Both events are of one CPU.
///
/// # Errors
/// The kernel's errno.
pub fn write_into(event: BorrowedFd<'_>, owner: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the argument is the descriptor of an event, and the kernel takes a reference to the event's ring.
    unsafe { ioctls::set_output(event.as_raw_fd(), owner.as_raw_fd()) }?;
    Ok(())
}

/// Open an event of `cpu` through which bpf_perf_event_output() writes into a ring. A ring that belongs to an event wakes
/// its reader each time that `wake` more bytes were written. None: the event wakes the reader with each of its records.
///
/// # Errors
/// The kernel's errno; `ENODEV` if the CPU is offline.
pub fn open_ring(cpu: u32, wake: Option<u32>) -> io::Result<OwnedFd> {
    let mut attributes = attributes();
    attributes.type_ = sys::PERF_TYPE_SOFTWARE;
    attributes.config = sys::PERF_COUNT_SW_BPF_OUTPUT.into();
    attributes.sample_type = sys::PERF_SAMPLE_RAW.into();
    attributes.__bindgen_anon_1.sample_period = 1;
    match wake {
        Some(bytes) => {
            attributes.set_watermark(1);
            attributes.__bindgen_anon_2.wakeup_watermark = bytes;
        }
        None => attributes.__bindgen_anon_2.wakeup_events = 1,
    }
    open(&attributes, cpu)
}
