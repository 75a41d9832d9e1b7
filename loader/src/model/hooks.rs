//! A hook: a program of the object and the place where it runs.

use std::ffi::CStr;

use serde::Serialize;

use HookKind::{Fentry, Fexit, Kprobe, Kretprobe, Lsm, RawTracepoint};

/// The way in which a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HookKind {
    /// At the entry of a kernel function.
    Kprobe,
    /// At the return of a kernel function.
    Kretprobe,
    /// At the entry of a kernel function, through a trampoline.
    Fentry,
    /// At the return of a kernel function, through a trampoline.
    Fexit,
    /// At a hook of the security modules, through a trampoline.
    Lsm,
    /// At a raw tracepoint.
    RawTracepoint,
}

impl HookKind {
    /// The kind's name, as records write it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Kprobe => "kprobe",
            Kretprobe => "kretprobe",
            Fentry => "fentry",
            Fexit => "fexit",
            Lsm => "lsm",
            RawTracepoint => "raw_tracepoint",
        }
    }

    /// Whether programs of this kind run through a trampoline. They attach by the number of a type.
    #[must_use]
    pub fn by_trampoline(self) -> bool {
        matches!(self, Fentry | Fexit | Lsm)
    }
}

/// The purpose of a hook. Hooks are attached in the order of these variants, and detached in the reverse order. So an owner is
/// remembered only while the end of its socket is seen, and an owner is asked for only while owners are remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The hook sees that a socket closes. The socket's owner is then forgotten.
    End,
    /// The hook learns the owner of a socket.
    Owner,
    /// The hook sees retransmitted segments, cuts of congestion windows, or dropped packets.
    Retransmit,
}

/// A counter in the map LOST: how often a backup program did the work of a first program that the kernel skipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackupRuns {
    /// Retransmits and cuts of congestion windows. If the first program ran, the backup does nothing.
    Retransmit,
    /// Drops, in the same way.
    Drop,
    /// Changes of state. Both programs handle each change, and one of them writes the account of an end.
    State,
}

/// One program and the place where it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    /// The way in which the program is attached.
    pub kind: HookKind,
    /// The kernel function, tracepoint or hook of the security modules.
    pub target: &'static CStr,
    /// The program's name in the object.
    pub program: &'static str,
    /// The purpose of the hook.
    pub purpose: Purpose,
    /// A program of the same kind at the same place, which runs after the first. The backup does the work if the kernel
    /// skips the first program.
    pub backup: Option<&'static str>,
    /// The counter of the runs that only the backup saw; none if the backup does not count them.
    pub counted_in: Option<BackupRuns>,
    /// Whether a kernel may lack the function without any loss. Only an attempt to attach shows whether the function
    /// exists.
    pub optional: bool,
}

impl Hook {
    /// [`Hook::target`] as text.
    #[must_use]
    pub fn target_name(&self) -> &'static str {
        self.target.to_str().unwrap_or_default()
    }

    /// The kernel function that is probed, or that runs the programs of a tracepoint or of a hook of the security modules.
    #[must_use]
    pub fn function(&self) -> String {
        let target = self.target_name();
        match self.kind {
            RawTracepoint => format!("__traceiter_{target}"),
            Lsm => format!("bpf_lsm_{target}"),
            Kprobe | Kretprobe | Fentry | Fexit => target.to_owned(),
        }
    }

    pub(crate) const fn new(purpose: Purpose, kind: HookKind, target: &'static CStr, program: &'static str) -> Self {
        Self { kind, target, program, purpose, backup: None, counted_in: None, optional: false }
    }

    pub(crate) const fn owner(kind: HookKind, target: &'static CStr, program: &'static str) -> Self {
        Self::new(Purpose::Owner, kind, target, program)
    }

    pub(crate) const fn end(kind: HookKind, target: &'static CStr, program: &'static str) -> Self {
        Self::new(Purpose::End, kind, target, program)
    }

    pub(crate) const fn retransmit(kind: HookKind, target: &'static CStr, program: &'static str) -> Self {
        Self::new(Purpose::Retransmit, kind, target, program)
    }
}

impl Hook {
    pub(crate) const fn with_backup(self, program: &'static str) -> Self {
        Self { backup: Some(program), ..self }
    }

    pub(crate) const fn with_counted_backup(self, program: &'static str, counter: BackupRuns) -> Self {
        Self { backup: Some(program), counted_in: Some(counter), ..self }
    }

    pub(crate) const fn optional(self) -> Self {
        Self { optional: true, ..self }
    }

    /// The hook's programs, in the order in which they are attached. The kernel runs the backup last. It runs the programs of a
    /// tracepoint in the order in which they were attached, and those of a trampoline in the reverse order
    /// (bpf_trampoline_link_prog(): hlist_add_head()).
    pub fn programs(&self) -> impl Iterator<Item = &'static str> + use<> {
        let both = [Some(self.program), self.backup];
        let [first, second] = if self.kind.by_trampoline() { [both[1], both[0]] } else { both };
        first.into_iter().chain(second)
    }
}
