//! One hook attached, and what stands in the way where that fails.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Error, Result};

use crate::fault::{Blocked, Exit};
use crate::hooks::{self, Hook, Kind};
use crate::kernel::host::KprobePmu;
use crate::kernel::libbpf::Loaded;
use crate::kernel::{bpf, perf, privilege, symbols};

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
    let (held, link) = match attached {
        Ok(attached) => attached,
        Err(error) => {
            let why = Why::of(hook.kind, error.raw_os_error(), || how_many(hook.target_name()));
            if hook.optional && why == Why::Absent {
                return Ok(None);
            }
            let Blocked { found, remedy } = why.blocker(hook.kind);
            let found = format!("cannot attach to {}: {found}", hook.target_name());
            return Err(Error::new(error).context(Blocked::new(found, remedy)).context(Exit::Host));
        }
    };
    Ok(Some(Attached { hook: *hook, link, _held: held }))
}

/// How many functions of this name the kernel has; none if it does not tell.
fn how_many(function: &str) -> Option<usize> {
    symbols::count([function]).ok().and_then(|counts| counts.get(function).copied())
}

/// Why a hook was not attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// There is no such function or tracepoint.
    Absent,
    /// There are several functions of that name.
    Ambiguous,
    /// The function is on the kernel's list of those that probes must not touch.
    Forbidden,
    /// A tracepoint's program reads more arguments than there are.
    Arguments,
    NoTrampolines,
    Busy,
    NotPermitted,
    Other,
}

/// The kernel's own errno for what it does not support; it was never meant for user space, which has no name for it.
const ENOTSUPP: i32 = 524;

impl Why {
    /// What the errno of an attach call means. `how_many` functions of that name there are decides where it means two things.
    fn of(kind: Kind, errno: Option<i32>, how_many: impl FnOnce() -> Option<usize>) -> Self {
        use Kind::{Fentry, Fexit, Kprobe, Kretprobe, RawTracepoint};
        match (kind, errno) {
            (_, Some(libc::ENOENT)) => Self::Absent,
            (_, Some(libc::EPERM | libc::EACCES)) => Self::NotPermitted,
            (Kprobe | Kretprobe, Some(libc::EADDRNOTAVAIL)) => Self::Ambiguous,
            (Kprobe, Some(libc::EINVAL)) => Self::Forbidden,
            // A return probe on a missing function gives it too, before 5.11.
            (Kretprobe, Some(libc::EINVAL)) => match how_many() {
                Some(1..) => Self::Forbidden,
                Some(0) | None => Self::Absent,
            },
            (RawTracepoint, Some(libc::EINVAL)) => Self::Arguments,
            (Fentry | Fexit, Some(ENOTSUPP | libc::EINVAL | libc::ENODEV)) => Self::NoTrampolines,
            (Fentry | Fexit, Some(libc::EBUSY)) => Self::Busy,
            _ => Self::Other,
        }
    }

    /// In words, with the remedy.
    fn blocker(self, kind: Kind) -> Blocked {
        let other_set = |found| Blocked::new(found, hooks::TRY_AUTO);
        match self {
            Self::Absent if kind == Kind::RawTracepoint => other_set("this kernel has no such tracepoint"),
            Self::Absent => other_set("this kernel has no such function"),
            Self::Ambiguous => other_set("there are several functions of that name"),
            Self::Forbidden => other_set("it may not be probed (/sys/kernel/debug/kprobes/blacklist)"),
            Self::Arguments => Blocked::new(
                "its arguments are not those in the BTF",
                "give the BTF of exactly this kernel with --btf FILE",
            ),
            Self::NoTrampolines => other_set("this kernel has no trampolines for fentry programs"),
            Self::Busy => other_set("something else patches that function"),
            Self::NotPermitted => Blocked::new("not permitted", privilege::perf_remedy()),
            Self::Other => other_set("the kernel refused"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_that_may_not_be_probed_is_told_from_one_that_is_not_there() {
        let why = |kind, errno, how_many| Why::of(kind, Some(errno), || how_many);
        for kind in [Kind::Kprobe, Kind::Kretprobe] {
            assert_eq!(why(kind, libc::ENOENT, None), Why::Absent);
            assert_eq!(why(kind, libc::EINVAL, Some(1)), Why::Forbidden);
            assert_eq!(why(kind, libc::EADDRNOTAVAIL, Some(2)), Why::Ambiguous);
        }
        assert_eq!(why(Kind::Kretprobe, libc::EINVAL, Some(0)), Why::Absent);
        assert_eq!(why(Kind::RawTracepoint, libc::EINVAL, None), Why::Arguments);
    }
}
