//! The table of hooks, and which of them this kernel gets.

use std::ffi::CStr;

use anyhow::{Error, Result};
use serde::Serialize;

use crate::fault::Blocked;

/// How a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// At the entry of a kernel function.
    Kprobe,
    /// At its return.
    Kretprobe,
    /// At the entry of a kernel function, through a trampoline.
    Fentry,
    /// At its return, likewise.
    Fexit,
    /// At a raw tracepoint.
    RawTracepoint,
}

impl Kind {
    /// Its name, as records have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Kprobe => "kprobe",
            Kretprobe => "kretprobe",
            Fentry => "fentry",
            Fexit => "fexit",
            RawTracepoint => "raw_tracepoint",
        }
    }
}

/// What a hook is for. Attached in this order, and taken away in the reverse one: no owner is remembered whose socket's end
/// goes unseen, and who asks for owners finds all that are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To learn of a socket's end, which its owner is forgotten at.
    End,
    /// To learn who owns a socket.
    Owner,
    /// To see what goes out again.
    Retransmit,
}

/// A counter of the runs in which a second program stood in for the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StandIn {
    /// Of what goes out again: the second does nothing else.
    Retransmit,
    /// Of changes of state: both do all the work.
    State,
}

/// One program and the place where it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    /// How it is attached.
    pub kind: Kind,
    /// The kernel function or tracepoint.
    pub target: &'static CStr,
    /// The program's name in the object.
    pub program: &'static str,
    /// What it is for.
    pub purpose: Purpose,
    /// A program that does the work where the kernel skips the first: the same kind, the same place, attached after it.
    pub second: Option<&'static str>,
    /// Where the second counts the runs that it alone has seen; none: it does not count them.
    pub stands_in: Option<StandIn>,
    /// Only trying shows whether this kernel has the function, which is no loss where it has not.
    pub optional: bool,
}

impl Hook {
    /// [`Hook::target`] as text.
    #[must_use]
    pub fn target_name(&self) -> &'static str {
        self.target.to_str().unwrap_or_default()
    }

    const fn new(purpose: Purpose, kind: Kind, target: &'static CStr, program: &'static str) -> Self {
        Self { kind, target, program, purpose, second: None, stands_in: None, optional: false }
    }

    const fn owner(kind: Kind, target: &'static CStr, program: &'static str) -> Self {
        Self::new(Purpose::Owner, kind, target, program)
    }

    const fn end(kind: Kind, target: &'static CStr, program: &'static str) -> Self {
        Self::new(Purpose::End, kind, target, program)
    }

    const fn retransmit(kind: Kind, target: &'static CStr, program: &'static str) -> Self {
        Self::new(Purpose::Retransmit, kind, target, program)
    }
}

impl Hook {
    const fn with_second(self, program: &'static str) -> Self {
        Self { second: Some(program), ..self }
    }

    const fn with_stand_in(self, program: &'static str, counter: StandIn) -> Self {
        Self { second: Some(program), stands_in: Some(counter), ..self }
    }

    const fn optional(self) -> Self {
        Self { optional: true, ..self }
    }

    /// Its programs, in the order in which they are attached.
    pub fn programs(&self) -> impl Iterator<Item = &'static str> + use<> {
        std::iter::once(self.program).chain(self.second)
    }
}

use Kind::{Fentry, Fexit, Kprobe, Kretprobe, RawTracepoint};

/// Who owns a socket: by sending, connect(), listen(). In process context, as accept().
const OWNERS_BY_KPROBE: [Hook; 3] = [
    Hook::owner(Kprobe, c"tcp_sendmsg", "kp_sendmsg"),
    Hook::owner(Kprobe, c"tcp_connect", "kp_connect"),
    Hook::owner(Kprobe, c"inet_csk_listen_start", "kp_listen"),
];
/// accept() at its end, however many processes are waiting in it.
const ACCEPT_BY_KPROBE: Hook = Hook::owner(Kprobe, c"security_sock_graft", "kp_accept");
/// The same for kernels without that function; those calls are missed that are more than its `maxactive` at a time.
const ACCEPT_BY_KRETPROBE: Hook = Hook::owner(Kretprobe, c"inet_csk_accept", "kp_accept_return");
/// Of these the one that sees each call of send() once, for send events.
const SENDS_BY_KPROBE: &str = "kp_sendmsg";
/// Senders that do not pass tcp_sendmsg: sendfile and kTLS until 6.4.
const SENDPAGES_BY_KPROBE: Hook = Hook::owner(Kprobe, c"do_tcp_sendpages", "kp_sendpages");
/// kTLS from 6.5 on, where sendfile passes tcp_sendmsg.
const SENDMSG_LOCKED_BY_KPROBE: Hook = Hook::owner(Kprobe, c"tcp_sendmsg_locked", "kp_sendmsg_locked");
/// MPTCP, whose process sends on the parent socket.
const MPTCP_BY_KPROBE: Hook = Hook::owner(Kprobe, c"mptcp_sendmsg", "kp_mptcp_sendmsg");
/// A socket's end, and who closes it; MPTCP's too, for which tcp_set_state is not called. A function of its own since 4.16,
/// called across files (net/ipv4/af_inet.c): only a kernel optimized as a whole may lack it.
const STATE_BY_KPROBE: Hook = Hook::end(Kprobe, c"inet_sk_state_store", "kp_state");
/// What goes out again. Entries are attached after returns and taken away before them: a return without its entry is told,
/// and an entry that waits for no return would be taken for a part of what its task does next.
const RETRANSMITS_BY_KPROBE: [Hook; 8] = [
    Hook::retransmit(Kretprobe, c"tcp_retransmit_skb", "kp_retransmit_return"),
    Hook::retransmit(Kretprobe, c"__tcp_retransmit_skb", "kp_inner_return"),
    // What a compiler split off it: in Debian's 6.12 for arm64, where a loss probe calls this and not the whole function.
    Hook::retransmit(Kretprobe, c"__tcp_retransmit_skb.part.0", "kp_inner_return").optional(),
    Hook::retransmit(Kretprobe, c"tcp_rtx_synack", "kp_synack_return"),
    Hook::retransmit(Kprobe, c"tcp_retransmit_skb", "kp_retransmit"),
    Hook::retransmit(Kprobe, c"__tcp_retransmit_skb", "kp_inner"),
    Hook::retransmit(Kprobe, c"__tcp_retransmit_skb.part.0", "kp_inner").optional(),
    Hook::retransmit(Kprobe, c"tcp_rtx_synack", "kp_synack"),
];

/// Every sender but MPTCP's: tcp_sendmsg and kTLS from 6.5 on pass here.
const SENDER_BY_FENTRY: Hook =
    Hook::owner(Fentry, c"tcp_sendmsg_locked", "fe_sendmsg_locked").with_second("fe2_sendmsg_locked");
/// Once for each call, for send events.
const SENDS_BY_FENTRY: Hook = Hook::owner(Fentry, c"tcp_sendmsg", "fe_sendmsg");
const SENDPAGES_BY_FENTRY: Hook = Hook::owner(Fentry, c"do_tcp_sendpages", "fe_sendpages").with_second("fe2_sendpages");
const MPTCP_BY_FENTRY: Hook =
    Hook::owner(Fentry, c"mptcp_sendmsg", "fe_mptcp_sendmsg").with_second("fe2_mptcp_sendmsg");
const CONNECT_BY_FENTRY: Hook = Hook::owner(Fentry, c"tcp_connect", "fe_connect").with_second("fe2_connect");
const LISTEN_BY_FENTRY: Hook = Hook::owner(Fentry, c"inet_csk_listen_start", "fe_listen").with_second("fe2_listen");
/// The return value comes after the arguments, of which there are four, or two since 6.10.
const ACCEPT_4_BY_FEXIT: Hook = Hook::owner(Fexit, c"inet_csk_accept", "fe_accept_4").with_second("fe2_accept_4");
const ACCEPT_2_BY_FEXIT: Hook = Hook::owner(Fexit, c"inet_csk_accept", "fe_accept_2").with_second("fe2_accept_2");

/// A socket's end, who closes it, and, where nothing better shows them, connect() and listen().
const STATE: Hook =
    Hook::end(RawTracepoint, c"inet_sock_set_state", "tp_state").with_stand_in("tp2_state", StandIn::State);
/// A sender, before its bytes leave (6.16 and newer).
const SENDER: Hook = Hook::owner(RawTracepoint, c"tcp_sendmsg_locked", "tp_sendmsg").with_second("tp2_sendmsg");
/// A sender, when its call returns (6.3 and newer).
const SEND_LENGTH: Hook = Hook::owner(RawTracepoint, c"sock_send_length", "tp_send_length");
/// A sender of MPTCP, where [`SENDER`] shows the others.
const MPTCP_SEND_LENGTH: Hook = Hook::owner(RawTracepoint, c"sock_send_length", "tp_mptcp_send_length");
const RETRANSMIT: Hook = Hook::retransmit(RawTracepoint, c"tcp_retransmit_skb", "tp_retransmit")
    .with_stand_in("tp2_retransmit", StandIn::Retransmit);
/// The same tracepoint where it tells whether the attempt failed.
const RETRANSMIT_ERR: Hook = Hook::retransmit(RawTracepoint, c"tcp_retransmit_skb", "tp_retransmit_err")
    .with_stand_in("tp2_retransmit_err", StandIn::Retransmit);
const SYNACK: Hook = Hook::retransmit(RawTracepoint, c"tcp_retransmit_synack", "tp_synack")
    .with_stand_in("tp2_synack", StandIn::Retransmit);

/// What the user asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attach {
    /// For each purpose the best that this kernel offers.
    Auto,
    /// Kprobes and kretprobes only.
    Kprobe,
    /// Raw tracepoints only.
    Tracepoint,
    /// Owners by fentry and fexit, the rest by raw tracepoints.
    Fentry,
    /// Owners by kprobes, the rest by raw tracepoints.
    Mixed,
}

impl Attach {
    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Kprobe => "kprobe",
            Self::Tracepoint => "tracepoint",
            Self::Fentry => "fentry",
            Self::Mixed => "kprobe+tracepoint",
        }
    }
}

/// What this kernel offers, as it says itself.
pub trait Offer {
    /// Whether it has a kprobe PMU.
    fn kprobes(&self) -> bool;
    /// How many arguments a raw tracepoint has; none: there is no such tracepoint.
    fn tracepoint_args(&self, name: &str) -> Option<usize>;
    /// How many arguments a kernel function has; none: its BTF does not know it.
    fn function_args(&self, name: &str) -> Option<usize>;
    /// Whether it has one of [`IN_SOME_KERNELS`], also where its BTF knows no functions.
    fn has_function(&self, name: &str) -> bool;
    /// Whether its own types are to be found on this host.
    fn has_own_btf(&self) -> bool;
    /// Whether it has the trampolines of fentry programs (5.5 and newer).
    fn has_trampolines(&self) -> bool;
}

/// Functions that a choice depends on.
pub const IN_SOME_KERNELS: [&str; 3] = ["security_sock_graft", "do_tcp_sendpages", "mptcp_sendmsg"];

/// The remedy, or a part of it, where one set of hooks cannot be used.
pub const TRY_AUTO: &str = "try --attach auto, which takes what there is";

/// What is left of a remedy where `auto` was asked for, and did not help.
fn without_auto(remedy: &str) -> &str {
    remedy.strip_suffix(TRY_AUTO).map_or(remedy, |rest| rest.trim_end_matches(", or "))
}

/// The error of attaching what was asked for, with a remedy that is not what was tried.
#[must_use]
pub fn refused(attach: Attach, mut error: Error) -> Error {
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
pub struct Plan {
    /// In the order in which they are attached.
    pub hooks: Vec<Hook>,
    /// How to name the choice: `kprobe`, `tracepoint`, `fentry+tracepoint` or `kprobe+tracepoint`.
    pub name: &'static str,
    /// connect() and listen() are seen through the state tracepoint.
    pub births_by_state: bool,
}

impl Plan {
    /// Whether the plan loads this program.
    #[must_use]
    pub fn has(&self, program: &str) -> bool {
        self.hooks.iter().flat_map(Hook::programs).any(|own| own == program)
    }

    /// Whether attempts that fail are seen: the return of the function tells, and newer kernels' tracepoint.
    #[must_use]
    pub fn shows_failures(&self) -> bool {
        self.has(RETRANSMIT_ERR.program) || self.has(RETRANSMITS_BY_KPROBE[0].program)
    }

    /// Whether what this hook is skipped for is seen by another: changes of state by kprobe and by tracepoint. A kprobe is
    /// not run in a softirq that interrupted another, but cannot be preempted; with the tracepoint it is the other way
    /// round on the newest kernels.
    #[must_use]
    pub fn is_backed(&self, hook: &Hook) -> bool {
        let both = [STATE.program, STATE_BY_KPROBE.program];
        both.contains(&hook.program) && both.iter().all(|program| self.has(program))
    }
}

/// Choose the hooks for what the user asked: one plan, or for `auto` several, the best first, since only attaching shows
/// whether a kernel takes fentry programs. `sends` also asks for one event for each send.
///
/// # Errors
/// [`Exit::Host`] if this kernel has not what it takes; the message names it and the remedy.
pub fn choose(attach: Attach, sends: bool, kernel: &impl Offer) -> Result<Vec<Plan>> {
    let plans = match attach {
        Attach::Kprobe => vec![by_kprobe(kernel)],
        Attach::Tracepoint => vec![by_tracepoint(sends, kernel)],
        Attach::Fentry => vec![by_fentry(sends, kernel)],
        Attach::Mixed => vec![mixed(sends, kernel)],
        // Kprobes first, though fentry is cheaper: a fentry program can be preempted, and is skipped for whoever runs
        // on that CPU meanwhile; a kprobe cannot. Last what shows retransmits by kprobes, which can be skipped: for BTF that
        // does not show tracepoints (before 5.5).
        Attach::Auto => {
            vec![mixed(sends, kernel), by_fentry(sends, kernel), by_tracepoint(sends, kernel), by_kprobe(kernel)]
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

/// Owners by kprobe: the mission's own, and what this kernel needs besides.
fn owners_by_kprobe(kernel: &impl Offer) -> Result<Vec<Hook>, Blocked> {
    if !kernel.kprobes() {
        return Err(no_kprobes());
    }
    let mut hooks = OWNERS_BY_KPROBE.to_vec();
    hooks.push(if exists(&ACCEPT_BY_KPROBE, kernel) { ACCEPT_BY_KPROBE } else { ACCEPT_BY_KRETPROBE });
    hooks.extend([SENDPAGES_BY_KPROBE, MPTCP_BY_KPROBE].into_iter().filter(|hook| exists(hook, kernel)));
    Ok(hooks)
}

/// Whatever needs kprobes on a kernel without.
#[must_use]
pub fn no_kprobes() -> Blocked {
    Blocked::new(
        "this kernel has no kprobe PMU (/sys/bus/event_source/devices/kprobe)",
        format!("it needs CONFIG_KPROBE_EVENTS, or {TRY_AUTO}"),
    )
}

fn exists(hook: &Hook, kernel: &impl Offer) -> bool {
    match hook.kind {
        Kprobe | Kretprobe => kernel.has_function(hook.target_name()),
        Fentry | Fexit => kernel.function_args(hook.target_name()).is_some(),
        RawTracepoint => kernel.tracepoint_args(hook.target_name()).is_some(),
    }
}

fn by_kprobe(kernel: &impl Offer) -> Result<Plan, Blocked> {
    let mut hooks = owners_by_kprobe(kernel)?;
    if !hooks.contains(&SENDPAGES_BY_KPROBE) {
        hooks.push(SENDMSG_LOCKED_BY_KPROBE);
    }
    hooks.push(STATE_BY_KPROBE);
    hooks.extend(RETRANSMITS_BY_KPROBE);
    Ok(Plan { hooks, name: "kprobe", births_by_state: false })
}

/// Owners by kprobe, which sees a send before its bytes leave and is never preempted; the rest by raw tracepoints, whose
/// events are never skipped. Where sendfile and kTLS pass tcp_sendmsg_locked, so does all else, and one kprobe is enough.
fn mixed(sends: bool, kernel: &impl Offer) -> Result<Plan, Blocked> {
    let mut hooks = owners_by_kprobe(kernel)?;
    if !hooks.contains(&SENDPAGES_BY_KPROBE) {
        hooks.retain(|hook| sends || hook.program != SENDS_BY_KPROBE);
        hooks.push(SENDMSG_LOCKED_BY_KPROBE);
    }
    // the tracepoint sees the same, but for whoever preempts it
    hooks.push(STATE_BY_KPROBE.optional());
    hooks.extend(common_tracepoints(kernel)?);
    Ok(Plan { hooks, name: "kprobe+tracepoint", births_by_state: false })
}

fn by_fentry(sends: bool, kernel: &impl Offer) -> Result<Plan, Blocked> {
    if !kernel.has_own_btf() {
        let found = "fentry programs need the kernel's own BTF (/sys/kernel/btf/vmlinux), which is not here";
        return Err(Blocked::new(found, TRY_AUTO));
    }
    if !kernel.has_trampolines() {
        let found = "this kernel has no trampolines for fentry programs (struct bpf_trampoline is not in the BTF)";
        return Err(Blocked::new(found, format!("it takes Linux 5.5 or newer, or {TRY_AUTO}")));
    }
    let accept = match kernel.function_args(ACCEPT_4_BY_FEXIT.target_name()) {
        Some(4) => ACCEPT_4_BY_FEXIT,
        _ => ACCEPT_2_BY_FEXIT,
    };
    let mut hooks = vec![SENDER_BY_FENTRY, CONNECT_BY_FENTRY, LISTEN_BY_FENTRY, accept];
    if sends {
        hooks.push(SENDS_BY_FENTRY);
    }
    if let Some(hook) = hooks.iter().find(|hook| !exists(hook, kernel)) {
        let found = format!("this kernel's BTF has no function {}", hook.target_name());
        return Err(Blocked::new(found, TRY_AUTO));
    }
    hooks.extend([SENDPAGES_BY_FENTRY, MPTCP_BY_FENTRY].into_iter().filter(|hook| exists(hook, kernel)));
    hooks.extend(common_tracepoints(kernel)?);
    Ok(Plan { hooks, name: "fentry+tracepoint", births_by_state: false })
}

fn by_tracepoint(sends: bool, kernel: &impl Offer) -> Result<Plan, Blocked> {
    let mut hooks: Vec<Hook> = Vec::new();
    if exists(&SENDER, kernel) {
        hooks.push(SENDER);
    }
    if (hooks.is_empty() || sends) && exists(&SEND_LENGTH, kernel) {
        hooks.push(SEND_LENGTH);
    }
    if hooks.is_empty() {
        return Err(Blocked::new(
            "this kernel has no tracepoint that shows who sends (tcp_sendmsg_locked, sock_send_length)",
            "it takes Linux 6.3 or newer, or a kernel with kprobes",
        ));
    }
    if sends && !hooks.contains(&SEND_LENGTH) {
        return Err(Blocked::new(
            "this kernel has no tracepoint sock_send_length, without which sends cannot be counted",
            "leave out --events",
        ));
    }
    let mptcp = exists(&MPTCP_BY_KPROBE, kernel) && exists(&MPTCP_SEND_LENGTH, kernel);
    if mptcp && !hooks.contains(&SEND_LENGTH) {
        hooks.push(MPTCP_SEND_LENGTH);
    }
    hooks.extend(common_tracepoints(kernel)?);
    Ok(Plan { hooks, name: "tracepoint", births_by_state: true })
}

/// The tracepoints on what softirq runs, each with a second program, so that none of its events is skipped.
fn common_tracepoints(kernel: &impl Offer) -> Result<[Hook; 3], Blocked> {
    let arguments = |hook: &Hook| {
        kernel.tracepoint_args(hook.target_name()).ok_or_else(|| {
            let found = format!("this kernel's BTF has no tracepoint {}", hook.target_name());
            Blocked::new(found, "it takes Linux 4.16 or newer")
        })
    };
    arguments(&STATE)?;
    arguments(&SYNACK)?;
    let retransmit = if arguments(&RETRANSMIT)? >= 3 { RETRANSMIT_ERR } else { RETRANSMIT };
    Ok([STATE, retransmit, SYNACK])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::fault::Exit;

    struct Kernel {
        kprobes: bool,
        own_btf: bool,
        trampolines: bool,
        tracepoints: Vec<(&'static str, usize)>,
        functions: Vec<(&'static str, usize)>,
    }

    fn find(list: &[(&str, usize)], name: &str) -> Option<usize> {
        list.iter().find(|(known, _)| *known == name).map(|(_, args)| *args)
    }

    impl Offer for Kernel {
        fn kprobes(&self) -> bool {
            self.kprobes
        }
        fn tracepoint_args(&self, name: &str) -> Option<usize> {
            find(&self.tracepoints, name)
        }
        fn function_args(&self, name: &str) -> Option<usize> {
            find(&self.functions, name)
        }
        fn has_function(&self, name: &str) -> bool {
            assert!(IN_SOME_KERNELS.contains(&name));
            self.function_args(name).is_some()
        }
        fn has_own_btf(&self) -> bool {
            self.own_btf
        }
        fn has_trampolines(&self) -> bool {
            self.trampolines
        }
    }

    fn kernel(kprobes: bool, more: &[(&'static str, usize)]) -> Kernel {
        let mut tracepoints = vec![("inet_sock_set_state", 3), ("tcp_retransmit_synack", 2)];
        tracepoints.extend(more);
        Kernel { kprobes, own_btf: true, trampolines: true, tracepoints, functions: vec![("security_sock_graft", 2)] }
    }

    fn first(attach: Attach, sends: bool, kernel: &Kernel) -> Plan {
        choose(attach, sends, kernel).unwrap().remove(0)
    }

    #[test]
    fn auto_prefers_kprobes_and_falls_back() {
        let mut kernel = kernel(true, &[("tcp_retransmit_skb", 2), ("sock_send_length", 3)]);
        kernel.functions = vec![
            ("tcp_sendmsg_locked", 3),
            ("tcp_sendmsg", 3),
            ("tcp_connect", 1),
            ("inet_csk_listen_start", 1),
            ("inet_csk_accept", 4),
        ];
        let names: Vec<_> = choose(Attach::Auto, false, &kernel).unwrap().iter().map(|plan| plan.name).collect();
        assert_eq!(names, ["kprobe+tracepoint", "fentry+tracepoint", "tracepoint", "kprobe"]);
        kernel.trampolines = false;
        let names: Vec<_> = choose(Attach::Auto, false, &kernel).unwrap().iter().map(|plan| plan.name).collect();
        assert_eq!(names, ["kprobe+tracepoint", "tracepoint", "kprobe"]);
        let error = choose(Attach::Fentry, false, &kernel).unwrap_err();
        assert_eq!(Exit::code_of(&error), 3);
        assert!(format!("{error:#}").contains("bpf_trampoline"), "{error:#}");
        kernel.trampolines = true;
        let plan = first(Attach::Fentry, true, &kernel);
        assert!(plan.has("fe_accept_4") && plan.has("fe_sendmsg") && !plan.has("fe_sendpages"));
        kernel.functions.pop();
        kernel.functions.extend([("inet_csk_accept", 2), ("do_tcp_sendpages", 5), ("mptcp_sendmsg", 3)]);
        let plan = first(Attach::Fentry, false, &kernel);
        assert!(plan.has("fe_accept_2") && !plan.has("fe_sendmsg"));
        assert!(plan.has("fe_sendpages") && plan.has("fe_mptcp_sendmsg"));
    }

    #[test]
    fn accept_is_seen_at_its_return_only_where_nothing_else_shows_it() {
        let mut kernel = kernel(true, &[("tcp_retransmit_skb", 3)]);
        let plan = first(Attach::Auto, false, &kernel);
        assert!(plan.has("kp_accept") && !plan.has("kp_accept_return"));
        kernel.functions.clear();
        let plan = first(Attach::Auto, false, &kernel);
        assert!(plan.has("kp_accept_return") && !plan.has("kp_accept"));
    }

    #[test]
    fn without_the_kernels_own_btf_there_is_no_fentry() {
        let mut kernel = kernel(true, &[("tcp_retransmit_skb", 2), ("sock_send_length", 3)]);
        kernel.own_btf = false;
        let names: Vec<_> = choose(Attach::Auto, false, &kernel).unwrap().iter().map(|plan| plan.name).collect();
        assert_eq!(names, ["kprobe+tracepoint", "tracepoint", "kprobe"]);
        let error = choose(Attach::Fentry, false, &kernel).unwrap_err();
        assert_eq!(Exit::code_of(&error), 3);
        assert!(format!("{error:#}").contains("kernel's own BTF"), "{error:#}");
    }

    #[test]
    fn owners_are_attached_before_retransmits() {
        let kernel = kernel(true, &[("tcp_retransmit_skb", 2), ("sock_send_length", 3)]);
        for attach in [Attach::Auto, Attach::Kprobe, Attach::Tracepoint] {
            for plan in choose(attach, true, &kernel).unwrap() {
                let purposes: Vec<_> = plan.hooks.iter().map(|hook| hook.purpose == Purpose::Retransmit).collect();
                assert!(purposes.is_sorted() && purposes.contains(&true), "{plan:?}");
            }
        }
    }

    #[test]
    fn auto_takes_kprobes_for_owners_and_tracepoints_for_the_rest() {
        let plan = first(Attach::Auto, false, &kernel(true, &[("tcp_retransmit_skb", 2)]));
        assert_eq!(plan.name, "kprobe+tracepoint");
        assert!(plan.has("kp_sendmsg_locked") && plan.has("tp_retransmit") && !plan.has("kp_retransmit"));
        assert!(!plan.births_by_state);
    }

    #[test]
    fn the_arguments_of_the_tracepoint_decide_not_the_version() {
        let with_err = kernel(true, &[("tcp_retransmit_skb", 3)]);
        assert!(first(Attach::Auto, false, &with_err).has("tp_retransmit_err"));
    }

    #[test]
    fn without_kprobes_auto_is_the_tracepoint_set() {
        let no_kprobes = kernel(false, &[("tcp_retransmit_skb", 2), ("sock_send_length", 3)]);
        let plan = first(Attach::Auto, false, &no_kprobes);
        assert_eq!(plan, first(Attach::Tracepoint, false, &no_kprobes));
        assert!(plan.births_by_state && plan.has("tp_send_length"));
        let error = choose(Attach::Kprobe, false, &no_kprobes).unwrap_err();
        assert_eq!(Exit::code_of(&error), 3);
    }

    #[test]
    fn senders_come_from_the_earlier_tracepoint_and_send_events_from_the_later() {
        let both = kernel(false, &[("tcp_retransmit_skb", 3), ("sock_send_length", 3), ("tcp_sendmsg_locked", 4)]);
        let quiet = first(Attach::Tracepoint, false, &both);
        assert!(quiet.has("tp_sendmsg") && !quiet.has("tp_send_length"));
        let sends = first(Attach::Tracepoint, true, &both);
        assert!(sends.has("tp_sendmsg") && sends.has("tp_send_length"));
    }

    #[test]
    fn where_there_is_mptcp_its_senders_are_seen_in_every_set() {
        let mut kernel = kernel(true, &[("tcp_retransmit_skb", 3), ("sock_send_length", 3), ("tcp_sendmsg_locked", 4)]);
        let with = |kernel: &Kernel, attach, program| first(attach, false, kernel).has(program);
        assert!(!with(&kernel, Attach::Tracepoint, "tp_mptcp_send_length"));
        kernel.functions.push(("mptcp_sendmsg", 3));
        assert!(with(&kernel, Attach::Tracepoint, "tp_mptcp_send_length"));
        assert!(with(&kernel, Attach::Auto, "kp_mptcp_sendmsg"));
        assert!(with(&kernel, Attach::Kprobe, "kp_mptcp_sendmsg"));
        let sends = first(Attach::Tracepoint, true, &kernel);
        assert!(sends.has("tp_send_length") && !sends.has("tp_mptcp_send_length"));
    }

    #[test]
    fn the_end_of_a_socket_is_backed_by_a_kprobe_where_it_can_be() {
        let kernel = kernel(true, &[("tcp_retransmit_skb", 3)]);
        let mut plan = first(Attach::Auto, false, &kernel);
        let of = |plan: &Plan, program| *plan.hooks.iter().find(|hook| hook.program == program).unwrap();
        assert!(plan.is_backed(&of(&plan, "tp_state")) && plan.is_backed(&of(&plan, "kp_state")));
        assert!(!plan.is_backed(&of(&plan, "kp_connect")) && of(&plan, "kp_state").optional);
        plan.hooks.retain(|hook| hook.program != "kp_state");
        assert!(!plan.is_backed(&of(&plan, "tp_state")));
        let alone = first(Attach::Kprobe, false, &kernel);
        assert!(!of(&alone, "kp_state").optional && !alone.is_backed(&of(&alone, "kp_state")));
    }

    #[test]
    fn where_the_btf_shows_no_tracepoints_auto_takes_kprobes_alone() {
        let kernel = Kernel { tracepoints: vec![], ..kernel(true, &[]) };
        let plans = choose(Attach::Auto, false, &kernel).unwrap();
        assert_eq!(plans, [first(Attach::Kprobe, false, &kernel)]);
    }

    #[test]
    fn auto_is_no_remedy_where_it_was_tried() {
        let error = || Blocked::new("something else patches that function", TRY_AUTO).by_host();
        assert!(format!("{:#}", refused(Attach::Fentry, error())).contains(TRY_AUTO));
        let text = format!("{:#}", refused(Attach::Auto, error()));
        assert!(text.contains("xctl doctor") && !text.contains(TRY_AUTO), "{text}");
    }

    #[test]
    fn nothing_that_shows_senders_is_said_so() {
        let error = choose(Attach::Auto, false, &kernel(false, &[("tcp_retransmit_skb", 2)])).unwrap_err();
        assert_eq!(Exit::code_of(&error), 3);
        let text = format!("{error:#}");
        assert!(text.contains("kprobe PMU") && text.contains("sock_send_length"), "{text}");
        // each thing once, and not to try what was asked for
        assert_eq!(text.matches("CONFIG_KPROBE_EVENTS").count(), 1, "{text}");
        assert!(!text.contains("--attach auto"), "{text}");
    }
}
