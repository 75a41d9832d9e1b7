//! The choice of hooks for a kernel, from the [table].

mod table;

use anyhow::{Error, Result};

use crate::error::Blocked;
use crate::ledger::figures::CutsSeen;
use crate::model::hooks::Hook;
use crate::model::hooks::HookKind::{Fentry, Fexit, Kprobe, Kretprobe, Lsm, RawTracepoint};
use crate::trace::target::KernelFeatures;
use table::*;

/// The hooks that the user asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attach {
    /// The first set that this kernel accepts, in the order of [`choose`].
    Auto,
    /// Kprobes and kretprobes only.
    Kprobe,
    /// Raw tracepoints only.
    Tracepoint,
    /// Owners by fentry and fexit, retransmits and changes of state by raw tracepoints.
    Fentry,
    /// Owners by kprobes, retransmits by raw tracepoints, changes of state by both.
    Mixed,
    /// As [`Attach::Mixed`], but senders by an LSM program.
    Lsm,
}

impl Attach {
    /// The option's value on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Kprobe => "kprobe",
            Self::Tracepoint => "tracepoint",
            Self::Fentry => "fentry",
            Self::Mixed => "kprobe+tracepoint",
            Self::Lsm => "lsm",
        }
    }
}

/// The remedy, or a part of it, if a set of hooks cannot be used.
pub const TRY_AUTO: &str = "try --attach auto, which takes what there is";

/// A remedy without the advice to try `auto`, for a user who tried it.
fn without_auto(remedy: &str) -> &str {
    remedy.strip_suffix(TRY_AUTO).map_or(remedy, |rest| rest.trim_end_matches(", or "))
}

/// Adapt the remedy of an error: `auto` is no remedy if the user tried `auto`.
#[must_use]
pub fn adapt_remedy(attach: Attach, mut error: Error) -> Error {
    if attach == Attach::Auto
        && let Some(blocked) = error.downcast_mut::<Blocked>()
    {
        let rest = without_auto(&blocked.remedy);
        let rest = if rest.is_empty() { "`xctl doctor` says what stands in the way of each set" } else { rest };
        blocked.remedy = rest.to_owned();
    }
    error
}

/// The hooks that were chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookSet {
    /// The hooks. They are attached by purpose, and in this order within a purpose.
    pub hooks: Vec<Hook>,
    /// The set's name: `kprobe`, `tracepoint`, `fentry+tracepoint`, `kprobe+tracepoint` or `lsm+kprobe+tracepoint`.
    pub name: &'static str,
    /// The programs learn of connect() and listen() from the state tracepoint.
    pub births_by_state: bool,
}

impl HookSet {
    /// Whether this program is in the set.
    #[must_use]
    pub fn has(&self, program: &str) -> bool {
        self.hooks.iter().flat_map(Hook::programs).any(|own| own == program)
    }

    /// Whether the programs see attempts that fail. The return value of the function shows them, and so does the tracepoint
    /// of newer kernels.
    #[must_use]
    pub fn shows_failures(&self) -> bool {
        self.has(RETRANSMIT_ERR.program) || self.has(RETRANSMITS_BY_KPROBE[0].program)
    }

    /// The reasons for cuts of congestion windows that the programs see.
    #[must_use]
    pub fn cuts_seen(&self) -> CutsSeen {
        if self.has(CUTS.program) {
            CutsSeen::All
        } else if CUTS_BY_FENTRY.iter().all(|hook| self.has(hook.program)) {
            CutsSeen::Losses
        } else {
            CutsSeen::None
        }
    }

    /// Whether the programs see all expirations of retransmission timers.
    #[must_use]
    pub fn shows_timeouts(&self) -> bool {
        self.has(SYNACK_TIMEOUTS.program) && self.cuts_seen() != CutsSeen::None
    }

    /// Add the hook for timeouts of SYN-ACKs to a set that uses kprobes or fentry, if the kernel takes fentry programs.
    pub fn add_synack_timeouts(&mut self, kernel: &impl KernelFeatures) {
        let not_only_tracepoints = self.hooks.iter().any(|hook| hook.kind != RawTracepoint);
        let takes_fentry = kernel.has_own_btf() && kernel.has_trampolines() && exists(&SYNACK_TIMEOUTS, kernel);
        if not_only_tracepoints && takes_fentry && self.cuts_seen() != CutsSeen::None {
            self.hooks.push(SYNACK_TIMEOUTS);
        }
    }

    /// Whether the programs see reads of connections.
    #[must_use]
    pub fn sees_readers(&self) -> bool {
        self.has(READER.program)
    }

    /// Whether another hook sees the events for which this hook is skipped. This holds for changes of state, if both kprobe
    /// and tracepoint see them. A kprobe is skipped in a softirq that interrupted another kprobe, but cannot be preempted.
    /// On the newest kernels the tracepoint is never skipped there, but can be preempted.
    #[must_use]
    pub fn is_backed(&self, hook: &Hook) -> bool {
        let both = [STATE.program, STATE_BY_KPROBE.program];
        both.contains(&hook.program) && both.iter().all(|program| self.has(program))
    }
}

/// Choose the hooks: one set, or for `auto` several, the best first. Only attaching shows whether a kernel takes fentry
/// programs. `sends` also asks for one event for each send.
///
/// # Errors
/// [`crate::error::Exit::Host`] if this kernel lacks a feature; the message names the feature and the remedy.
pub fn choose(attach: Attach, sends: bool, kernel: &impl KernelFeatures) -> Result<Vec<HookSet>> {
    let plans = match attach {
        Attach::Kprobe => vec![by_kprobe(kernel)],
        Attach::Tracepoint => vec![by_tracepoint(sends, kernel)],
        Attach::Fentry => vec![by_fentry(sends, kernel)],
        Attach::Mixed => vec![mixed(sends, kernel)],
        Attach::Lsm => vec![by_lsm(kernel)],
        // The LSM program comes first: it is the cheapest that the kernel never skips. It sees sendfile() since 6.5, which
        // removed do_tcp_sendpages, and no LSM program is skipped since 6.2 (bpf_prog_check_recur()). Kprobes come next, though
        // fentry is cheaper. A fentry program can be preempted; until it goes on, the kernel skips it for other tasks on
        // that CPU. A kprobe cannot be preempted. The kprobe set comes last, because kprobes in softirqs can be skipped. It
        // is for BTF without tracepoints (before 5.5).
        Attach::Auto => {
            let sees_all = !exists(&SENDPAGES_BY_KPROBE, kernel);
            let others =
                [mixed(sends, kernel), by_fentry(sends, kernel), by_tracepoint(sends, kernel), by_kprobe(kernel)];
            sees_all.then(|| by_lsm(kernel)).into_iter().chain(others).collect()
        }
    };
    let (mut possible, mut missing) = (Vec::new(), Vec::new());
    for plan in plans {
        match plan {
            Ok(plan) => possible.push(plan),
            Err(why) => missing.push(why),
        }
    }
    match &mut missing[..] {
        _ if !possible.is_empty() => Ok(possible),
        [only] => Err(only.clone().by_host()),
        all => {
            let each_once = |of: fn(&Blocked) -> &str| {
                let mut texts: Vec<&str> = Vec::new();
                for text in all.iter().map(of).filter(|text| !text.is_empty()) {
                    if !texts.contains(&text) {
                        texts.push(text);
                    }
                }
                texts.join("; ")
            };
            Err(Blocked::new(each_once(|one| &one.found), each_once(|one| without_auto(&one.remedy))).by_host())
        }
    }
}

/// Owners by kprobe: the hooks that every kernel has, and those that this kernel needs in addition.
fn owners_by_kprobe(kernel: &impl KernelFeatures) -> Result<Vec<Hook>, Blocked> {
    if !kernel.kprobes() {
        return Err(no_kprobes());
    }
    let mut hooks = OWNERS_BY_KPROBE.to_vec();
    hooks.push(if exists(&ACCEPT_BY_KPROBE, kernel) { ACCEPT_BY_KPROBE } else { ACCEPT_BY_KRETPROBE });
    hooks.extend([SENDPAGES_BY_KPROBE, MPTCP_BY_KPROBE].into_iter().filter(|hook| exists(hook, kernel)));
    Ok(hooks)
}

/// The error of a set that needs kprobes, on a kernel without them.
#[must_use]
pub fn no_kprobes() -> Blocked {
    Blocked::new(
        "this kernel has no kprobe PMU (/sys/bus/event_source/devices/kprobe)",
        format!("use a kernel with CONFIG_KPROBE_EVENTS, or {TRY_AUTO}"),
    )
}

fn exists(hook: &Hook, kernel: &impl KernelFeatures) -> bool {
    match hook.kind {
        Kprobe | Kretprobe => kernel.has_function(hook.target_name()),
        Fentry | Fexit | Lsm => kernel.function_args(&hook.function()).is_some(),
        RawTracepoint => kernel.tracepoint_args(hook.target_name()).is_some(),
    }
}

fn by_kprobe(kernel: &impl KernelFeatures) -> Result<HookSet, Blocked> {
    let mut hooks = owners_by_kprobe(kernel)?;
    if !hooks.contains(&SENDPAGES_BY_KPROBE) {
        hooks.push(SENDMSG_LOCKED_BY_KPROBE);
    }
    hooks.push(STATE_BY_KPROBE);
    hooks.extend(RETRANSMITS_BY_KPROBE);
    Ok(HookSet { hooks, name: "kprobe", births_by_state: false })
}

/// Owners by kprobe: a kprobe sees a send before its bytes leave, and is never preempted. Retransmits by raw
/// tracepoints, which have a backup if the kernel skips one. If sendfile and kTLS call tcp_sendmsg_locked, every sender
/// does, and one kprobe is enough.
fn mixed(sends: bool, kernel: &impl KernelFeatures) -> Result<HookSet, Blocked> {
    let mut hooks = owners_by_kprobe(kernel)?;
    if !hooks.contains(&SENDPAGES_BY_KPROBE) {
        hooks.retain(|hook| sends || hook.program != SENDS_BY_KPROBE);
        hooks.push(SENDMSG_LOCKED_BY_KPROBE);
    }
    // The tracepoint sees the same events, except those of tasks that preempt it.
    hooks.push(STATE_BY_KPROBE.optional());
    hooks.extend(common_tracepoints(kernel)?);
    Ok(HookSet { hooks, name: "kprobe+tracepoint", births_by_state: false })
}

/// Senders by an LSM program, the rest as in [`mixed`]. A kernel whose list of active LSMs lacks `bpf` attaches the program
/// without an error, and never runs it.
fn by_lsm(kernel: &impl KernelFeatures) -> Result<HookSet, Blocked> {
    let mut hooks = owners_by_kprobe(kernel)?;
    if !kernel.has_own_btf() {
        let found = "LSM programs need the kernel's own BTF (/sys/kernel/btf/vmlinux), which is not here";
        return Err(Blocked::new(found, TRY_AUTO));
    }
    if !exists(&SENDER_BY_LSM, kernel) {
        let found = format!("this kernel has no LSM programs (its BTF has no function {})", SENDER_BY_LSM.function());
        return Err(Blocked::new(found, format!("use a kernel with CONFIG_BPF_LSM, or {TRY_AUTO}")));
    }
    let Some(active) = kernel.active_lsms() else {
        let found = "it is not known which LSMs are active (no /sys/kernel/security/lsm, no lsm_list_modules())";
        let remedy = format!("mount -t securityfs securityfs /sys/kernel/security, or {TRY_AUTO}");
        return Err(Blocked::new(found, remedy));
    };
    if !active.iter().any(|lsm| lsm == "bpf") {
        let active = active.join(",");
        let found = format!("bpf is not among the active LSMs ({active})");
        return Err(Blocked::new(found, format!("boot with lsm={active},bpf, or {TRY_AUTO}")));
    }
    // The LSM program sees these too.
    hooks.retain(|hook| hook.program != SENDS_BY_KPROBE && *hook != MPTCP_BY_KPROBE);
    hooks.extend([SENDER_BY_LSM, STATE_BY_KPROBE.optional()]);
    hooks.extend(common_tracepoints(kernel)?);
    Ok(HookSet { hooks, name: "lsm+kprobe+tracepoint", births_by_state: false })
}

fn by_fentry(sends: bool, kernel: &impl KernelFeatures) -> Result<HookSet, Blocked> {
    if !kernel.has_own_btf() {
        let found = "fentry programs need the kernel's own BTF (/sys/kernel/btf/vmlinux), which is not here";
        return Err(Blocked::new(found, TRY_AUTO));
    }
    if !kernel.has_trampolines() {
        let found = "this kernel has no trampolines for fentry programs (struct bpf_trampoline is not in the BTF)";
        return Err(Blocked::new(found, format!("use Linux 5.5 or newer, or {TRY_AUTO}")));
    }
    let accept = match kernel.function_args(ACCEPT_4_BY_FEXIT.target_name()) {
        Some(4) => ACCEPT_4_BY_FEXIT,
        _ => ACCEPT_2_BY_FEXIT,
    };
    let mut hooks = vec![SENDER_BY_FENTRY, CONNECT_BY_FENTRY, LISTEN_BY_FENTRY, LISTEN_AGAIN_BY_FENTRY, accept];
    if sends {
        hooks.push(SENDS_BY_FENTRY);
    }
    if let Some(hook) = hooks.iter().find(|hook| !exists(hook, kernel)) {
        let found = format!("this kernel's BTF has no function {}", hook.target_name());
        return Err(Blocked::new(found, TRY_AUTO));
    }
    hooks.extend([SENDPAGES_BY_FENTRY, MPTCP_BY_FENTRY].into_iter().filter(|hook| exists(hook, kernel)));
    hooks.extend(common_tracepoints(kernel)?);
    Ok(HookSet { hooks, name: "fentry+tracepoint", births_by_state: false })
}

fn by_tracepoint(sends: bool, kernel: &impl KernelFeatures) -> Result<HookSet, Blocked> {
    let mut hooks: Vec<Hook> = [SENDER, SEND_LENGTH].into_iter().filter(|hook| exists(hook, kernel)).collect();
    if hooks.is_empty() {
        return Err(Blocked::new(
            "this kernel has no tracepoint that shows who sends (tcp_sendmsg_locked, sock_send_length)",
            "use Linux 6.3 or newer, or a kernel with kprobes",
        ));
    }
    if sends && !hooks.contains(&SEND_LENGTH) {
        return Err(Blocked::new(
            "this kernel has no tracepoint sock_send_length, without which sends cannot be counted",
            "leave out --events",
        ));
    }
    hooks.extend(common_tracepoints(kernel)?);
    Ok(HookSet { hooks, name: "tracepoint", births_by_state: true })
}

/// The tracepoints that also run in softirqs. Each has a backup program, so that the kernel skips none of its events.
fn common_tracepoints(kernel: &impl KernelFeatures) -> Result<Vec<Hook>, Blocked> {
    let arguments = |hook: &Hook| {
        kernel.tracepoint_args(hook.target_name()).ok_or_else(|| {
            let found = format!("this kernel's BTF has no tracepoint {}", hook.target_name());
            Blocked::new(found, "use Linux 4.16 or newer")
        })
    };
    arguments(&STATE)?;
    arguments(&SYNACK)?;
    let retransmit = if arguments(&RETRANSMIT)? >= 3 { RETRANSMIT_ERR } else { RETRANSMIT };
    let reader = exists(&READER, kernel).then_some(READER);
    Ok([STATE, retransmit, SYNACK].into_iter().chain(reader).chain(cuts(kernel)).collect())
}

/// The hooks that see cuts of congestion windows. No set depends on them.
fn cuts(kernel: &impl KernelFeatures) -> Vec<Hook> {
    let by_fentry = || CUTS_BY_FENTRY.into_iter().filter(|hook| exists(hook, kernel)).collect();
    match exists(&CUTS, kernel) {
        true => vec![CUTS],
        false if kernel.has_own_btf() && kernel.has_trampolines() => by_fentry(),
        false => vec![],
    }
}

/// The hook that sees packets which this host drops. It belongs to no set: it runs for every packet that is dropped, of every
/// protocol, so the user has to ask for it.
///
/// # Errors
/// If the kernel's BTF does not show the tracepoint.
pub fn drops(kernel: &impl KernelFeatures) -> Result<Hook> {
    match kernel.tracepoint_args(DROPS.target_name()) {
        Some(3..) => Ok(DROPS_REASON),
        Some(_) => Ok(DROPS),
        None => {
            let found = format!("this kernel's BTF has no tracepoint {}", DROPS.target_name());
            Err(Blocked::new(found, "leave out --drops").by_host())
        }
    }
}

#[cfg(test)]
mod tests;
