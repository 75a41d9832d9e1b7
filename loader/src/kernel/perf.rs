//! perf_event_open(2), for kprobes and for rings, and its ioctls.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libbpf_sys as sys;

/// Linux has the same number on x86_64 and aarch64: `_IO('$', 0)` and `_IOW('$', 8, __u32)`; libbpf-sys does not have
/// them, as bindgen cannot evaluate the macros.
mod ioctls {
    nix::ioctl_write_int_bad!(enable, nix::request_code_none!(b'$', 0));
    nix::ioctl_write_int!(set_bpf, b'$', 8);
}

/// perf_event_open(2) for all processes on one CPU.
fn open(attributes: &sys::perf_event_attr, cpu: u32) -> io::Result<OwnedFd> {
    const ANY_PROCESS: libc::pid_t = -1;
    const NO_GROUP: i32 = -1;
    // SAFETY: the attributes are initialised, carry their own size, and what they point to outlives the call.
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
    // SAFETY: the kernel has just returned this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn attributes() -> sys::perf_event_attr {
    sys::perf_event_attr { size: size_of::<sys::perf_event_attr>() as u32, ..Default::default() }
}

/// Let an event happen: programs run, records are written.
///
/// # Errors
/// With the kernel's errno.
pub fn enable(event: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the argument is a set of flags (PERF_IOC_FLAG_GROUP), though the request's number says that there is none.
    unsafe { ioctls::enable(event.as_raw_fd(), 0) }?;
    Ok(())
}

/// Run a program whenever the event happens, until the event is closed.
///
/// # Errors
/// With the kernel's errno.
pub fn set_program(event: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the argument is the descriptor of a program, which the kernel takes a reference to.
    unsafe { ioctls::set_bpf(event.as_raw_fd(), program.as_raw_fd() as _) }?;
    Ok(())
}

/// Where a probe goes.
#[derive(Clone, Copy, Debug)]
pub struct Probe<'a> {
    /// `type` of the kprobe PMU, from sysfs.
    pub pmu: u32,
    /// The bit of `config` that asks for a return probe, from sysfs; none: at the function's entry.
    pub return_bit: Option<u32>,
    /// The kernel function.
    pub function: &'a CStr,
    /// An online CPU. The probe runs on all of them; perf wants one to hang it on.
    pub cpu: u32,
}

/// A perf event for a kernel function, disabled and without a program.
///
/// # Errors
/// `ENOENT` (return probes before 5.11: `EINVAL`): no such function. `EADDRNOTAVAIL`: several of that name. `EINVAL`: it may
/// not be probed (`check_kprobe_address_safe`). `EACCES`, `EPERM`: privilege.
pub fn open_probe(probe: &Probe<'_>) -> io::Result<OwnedFd> {
    let mut attributes = attributes();
    attributes.type_ = probe.pmu;
    attributes.config = probe.return_bit.map_or(0, |bit| 1 << bit);
    attributes.__bindgen_anon_3.kprobe_func = probe.function.as_ptr() as u64;
    attributes.__bindgen_anon_4.probe_offset = 0;
    open(&attributes, probe.cpu)
}

/// The event whose ring bpf_perf_event_output() on `cpu` writes to, waking a reader at every record.
///
/// # Errors
/// With the kernel's errno; `ENODEV` if the CPU is offline.
pub fn open_ring(cpu: u32) -> io::Result<OwnedFd> {
    let mut attributes = attributes();
    attributes.type_ = sys::PERF_TYPE_SOFTWARE;
    attributes.config = sys::PERF_COUNT_SW_BPF_OUTPUT.into();
    attributes.sample_type = sys::PERF_SAMPLE_RAW.into();
    attributes.__bindgen_anon_1.sample_period = 1;
    attributes.__bindgen_anon_2.wakeup_events = 1;
    open(&attributes, cpu)
}
