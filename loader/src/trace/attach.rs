//! Attaching one hook, and the reason if that fails.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Error, Result};

use super::hooks;
use super::target::Kprobes;
use crate::error::{Blocked, Exit};
use crate::kernel::loaded::LoadedObject;
use crate::kernel::{bpf, limits, perf, symbols};
use crate::model::hooks::{Hook, HookKind};

/// An attached program. Dropping the value detaches the program.
pub struct Attached {
    hook: Hook,
    /// A kprobe's link, on kernels where links tell how many runs were skipped.
    link: Option<OwnedFd>,
    /// The descriptor of a raw tracepoint, a trampoline, or a kprobe's perf event.
    _held: OwnedFd,
}

impl Attached {
    /// The program's hook.
    #[must_use]
    pub fn hook(&self) -> &Hook {
        &self.hook
    }

    /// The number of runs that the kernel skipped; none if the kernel does not tell.
    ///
    /// # Errors
    /// With the kernel's errno.
    pub fn missed(&self) -> Result<Option<u64>> {
        match (&self.link, self.hook.kind) {
            (Some(link), _) => {
                let missed = bpf::link_missed(link.as_fd());
                missed.map(Some).with_context(|| format!("cannot ask what {} missed", self.hook.target_name()))
            }
            (None, HookKind::Kprobe | HookKind::Kretprobe) => Ok(None),
            // The kernel counts skipped runs with the program (kernel::bpf::ProgramInfo).
            (None, HookKind::RawTracepoint | HookKind::Fentry | HookKind::Fexit | HookKind::Lsm) => Ok(Some(0)),
        }
    }
}

/// Attach one of a hook's programs; none if the hook is optional and this kernel lacks it. A probe's perf event belongs to
/// the first of `cpus` that is online.
///
/// # Errors
/// [`Exit::Host`], naming the blocker.
pub fn attach_hook(
    hook: &Hook,
    program: &str,
    object: &LoadedObject,
    probes: &Kprobes,
    cpus: &[u32],
) -> Result<Option<Attached>> {
    let program = object.program(program)?;
    let attached = match hook.kind {
        HookKind::RawTracepoint => bpf::attach_raw_tracepoint(hook.target, program).map(|held| (held, None)),
        HookKind::Fentry | HookKind::Fexit | HookKind::Lsm => bpf::attach_trampoline(program).map(|held| (held, None)),
        HookKind::Kprobe | HookKind::Kretprobe => {
            let pmu = probes.pmu.ok_or_else(|| hooks::no_kprobes().by_host())?;
            let return_bit = (hook.kind == HookKind::Kretprobe).then_some(pmu.return_bit);
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
            if hook.optional && matches!(why, Why::Absent | Why::NoTrampolines) {
                return Ok(None);
            }
            let Blocked { found, remedy } = why.blocker(hook.kind);
            let found = format!("cannot attach to {}: {found}", hook.target_name());
            return Err(Error::new(error).context(Blocked::new(found, remedy)).context(Exit::Host));
        }
    };
    Ok(Some(Attached { hook: *hook, link, _held: held }))
}

/// The number of functions of this name in the kernel; none if the kernel does not tell.
fn how_many(function: &str) -> Option<usize> {
    symbols::count([function]).ok().and_then(|counts| counts.get(function).copied())
}

/// The reason why a hook was not attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// There is no such function or tracepoint.
    Absent,
    /// There are several functions of that name.
    Ambiguous,
    /// The kernel lists the function among those that probes must not touch.
    Forbidden,
    /// The program reads more arguments than the tracepoint has.
    Arguments,
    NoTrampolines,
    Busy,
    NotPermitted,
    Other,
}

/// The kernel's own errno for "not supported". It was not meant for user space, and has no name there.
const ENOTSUPP: i32 = 524;

impl Why {
    /// The meaning of an errno of an attach call. If an errno has two meanings, the number of functions of that name
    /// (`how_many`) decides.
    fn of(kind: HookKind, errno: Option<i32>, how_many: impl FnOnce() -> Option<usize>) -> Self {
        use HookKind::{Kprobe, Kretprobe, RawTracepoint};
        match (kind, errno) {
            (_, Some(libc::ENOENT)) => Self::Absent,
            (_, Some(libc::EPERM | libc::EACCES)) => Self::NotPermitted,
            (Kprobe | Kretprobe, Some(libc::EADDRNOTAVAIL)) => Self::Ambiguous,
            (Kprobe, Some(libc::EINVAL)) => Self::Forbidden,
            // Before 5.11, a return probe on a missing function gives EINVAL too.
            (Kretprobe, Some(libc::EINVAL)) => match how_many() {
                Some(1..) => Self::Forbidden,
                Some(0) | None => Self::Absent,
            },
            (RawTracepoint, Some(libc::EINVAL)) => Self::Arguments,
            (kind, Some(ENOTSUPP | libc::EINVAL | libc::ENODEV)) if kind.by_trampoline() => Self::NoTrampolines,
            (kind, Some(libc::EBUSY)) if kind.by_trampoline() => Self::Busy,
            _ => Self::Other,
        }
    }

    /// The reason in words, with the remedy.
    fn blocker(self, kind: HookKind) -> Blocked {
        let other_set = |found| Blocked::new(found, hooks::TRY_AUTO);
        match self {
            Self::Absent if kind == HookKind::RawTracepoint => other_set("this kernel has no such tracepoint"),
            Self::Absent => other_set("this kernel has no such function"),
            Self::Ambiguous => other_set("there are several functions of that name"),
            Self::Forbidden => other_set("it may not be probed (/sys/kernel/debug/kprobes/blacklist)"),
            Self::Arguments => Blocked::new(
                "the arguments in the kernel differ from those in the BTF",
                "give the BTF of exactly this kernel with --btf FILE",
            ),
            Self::NoTrampolines => other_set("this kernel has no trampolines for fentry and LSM programs"),
            Self::Busy => other_set("something else patches that function"),
            Self::NotPermitted => Blocked::new("not permitted", limits::perf_remedy()),
            Self::Other => other_set("the kernel refused"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blacklisted_function_is_distinguished_from_a_missing_one() {
        let why = |kind, errno, how_many| Why::of(kind, Some(errno), || how_many);
        for kind in [HookKind::Kprobe, HookKind::Kretprobe] {
            assert_eq!(why(kind, libc::ENOENT, None), Why::Absent);
            assert_eq!(why(kind, libc::EINVAL, Some(1)), Why::Forbidden);
            assert_eq!(why(kind, libc::EADDRNOTAVAIL, Some(2)), Why::Ambiguous);
        }
        assert_eq!(why(HookKind::Kretprobe, libc::EINVAL, Some(0)), Why::Absent);
        assert_eq!(why(HookKind::RawTracepoint, libc::EINVAL, None), Why::Arguments);
    }
}
