//! One hook attached, and what stands in the way where that fails.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Error, Result};

use crate::fault::{Blocked, Exit};
use crate::hooks::{self, Hook, Kind};
use crate::kernel::host::KprobePmu;
use crate::kernel::libbpf::Loaded;
use crate::kernel::{bpf, perf, privilege};

/// How this kernel takes kprobes.
#[derive(Clone, Copy, Debug)]
pub struct Probes {
    /// Its kprobe PMU, if it has one.
    pub pmu: Option<KprobePmu>,
    /// A BPF link tells how many runs of a kprobe were skipped (6.7 and newer).
    pub links_tell_missed: bool,
}

/// A program that is attached until this is dropped.
pub struct Attached {
    hook: Hook,
    /// A kprobe's link where links tell what was missed.
    link: Option<OwnedFd>,
    /// A raw tracepoint, a trampoline, or a kprobe's perf event.
    _held: OwnedFd,
}

impl Attached {
    /// What it is attached by.
    #[must_use]
    pub fn hook(&self) -> &Hook {
        &self.hook
    }

    /// Runs that the kernel skipped; none where it does not tell.
    ///
    /// # Errors
    /// With the kernel's errno.
    pub fn missed(&self) -> Result<Option<u64>> {
        match (&self.link, self.hook.kind) {
            (Some(link), _) => {
                let missed = bpf::link_missed(link.as_fd());
                missed.map(Some).with_context(|| format!("cannot ask what {} missed", self.hook.target_name()))
            }
            (None, Kind::Kprobe | Kind::Kretprobe) => Ok(None),
            // Skipped programs are counted by themselves (kernel::bpf::ProgramInfo).
            (None, Kind::RawTracepoint | Kind::Fentry | Kind::Fexit) => Ok(Some(0)),
        }
    }
}

/// Attach one of a hook's programs; none if the hook is optional and this kernel has not got it. A probe is hung on the
/// first of `cpus` that is online.
///
/// # Errors
/// [`Exit::Host`], naming the blocker.
pub fn attach(hook: &Hook, program: &str, object: &Loaded, probes: &Probes, cpus: &[u32]) -> Result<Option<Attached>> {
    let program = object.program(program)?;
    let attached = match hook.kind {
        Kind::RawTracepoint => bpf::attach_raw_tracepoint(hook.target, program).map(|held| (held, None)),
        Kind::Fentry | Kind::Fexit => bpf::attach_trampoline(program).map(|held| (held, None)),
        Kind::Kprobe | Kind::Kretprobe => {
            let pmu = probes.pmu.ok_or_else(|| hooks::no_kprobes().by_host())?;
            let return_bit = (hook.kind == Kind::Kretprobe).then_some(pmu.return_bit);
            let open = |&cpu| perf::open_probe(&perf::Probe { pmu: pmu.pmu, return_bit, function: hook.target, cpu });
            let is_offline = |event: &io::Result<_>| {
                event.as_ref().is_err_and(|error: &io::Error| error.raw_os_error() == Some(libc::ENODEV))
            };
            let opened = cpus.iter().map(open).find(|event| !is_offline(event));
            opened.unwrap_or_else(|| Err(io::Error::from_raw_os_error(libc::ENODEV))).and_then(|event| {
                let link = if probes.links_tell_missed {
                    Some(bpf::link_perf_event(event.as_fd(), program)?)
                } else {
                    perf::set_program(event.as_fd(), program)?;
                    None
                };
                perf::enable(event.as_fd())?;
                Ok((event, link))
            })
        }
    };
    if let Err(error) = &attached
        && hook.optional
        && is_absent(hook.kind, error)
    {
        return Ok(None);
    }
    let (held, link) = attached.map_err(|error| {
        let Blocked { found, remedy } = blocker(hook.kind, &error);
        let found = format!("cannot attach to {}: {found}", hook.target_name());
        Error::new(error).context(Blocked::new(found, remedy)).context(Exit::Host)
    })?;
    Ok(Some(Attached { hook: *hook, link, _held: held }))
}

/// Whether the kernel said that it has no such function or tracepoint.
fn is_absent(kind: Kind, error: &io::Error) -> bool {
    match error.raw_os_error() {
        Some(libc::ENOENT) => true,
        // A return probe on a missing function gives EINVAL before 5.11.
        Some(libc::EINVAL) => kind == Kind::Kretprobe,
        _ => false,
    }
}

/// The kernel's own errno for what it does not support; it was never meant for user space, which has no name for it.
const ENOTSUPP: i32 = 524;

/// What the errno of an attach call means, and the remedy.
fn blocker(kind: Kind, error: &io::Error) -> Blocked {
    let other_set = |found| Blocked::new(found, "try --attach auto, which takes what there is");
    if is_absent(kind, error) {
        return other_set(match kind {
            Kind::RawTracepoint => "this kernel has no such tracepoint",
            _ => "this kernel has no such function",
        });
    }
    match (kind, error.raw_os_error()) {
        (Kind::RawTracepoint, Some(libc::EINVAL)) => Blocked::new(
            "its arguments are not those in the BTF",
            "give the BTF of exactly this kernel with --btf FILE",
        ),
        (Kind::Fentry | Kind::Fexit, Some(ENOTSUPP | libc::EINVAL | libc::ENODEV)) => {
            other_set("this kernel has no trampolines for fentry programs")
        }
        (Kind::Fentry | Kind::Fexit, Some(libc::EBUSY)) => other_set("something else patches that function"),
        (_, Some(libc::EADDRNOTAVAIL)) => {
            other_set("there are several functions of that name, or it may not be probed")
        }
        (_, Some(libc::EPERM | libc::EACCES)) => Blocked::new("not permitted", privilege::perf_remedy()),
        _ => other_set("the kernel refused"),
    }
}
