//! The table of hooks, and which of them this kernel gets.

use std::ffi::CStr;
use std::fmt;

use anyhow::{Result, anyhow};
use serde::Serialize;

use crate::fault::Exit;

/// How a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// At the entry of a kernel function.
    Kprobe,
    /// At its return.
    Kretprobe,
    /// At a raw tracepoint.
    RawTracepoint,
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
}

impl Hook {
    /// [`Hook::target`] as text.
    #[must_use]
    pub fn target_name(&self) -> &'static str {
        self.target.to_str().unwrap_or_default()
    }
}

const fn kprobe(target: &'static CStr, program: &'static str) -> Hook {
    Hook { kind: Kind::Kprobe, target, program }
}

const fn kretprobe(target: &'static CStr, program: &'static str) -> Hook {
    Hook { kind: Kind::Kretprobe, target, program }
}

const fn tracepoint(target: &'static CStr, program: &'static str) -> Hook {
    Hook { kind: Kind::RawTracepoint, target, program }
}

/// Who owns a socket: by sending, connect(), listen(), accept(). In process context.
const OWNERS_BY_KPROBE: [Hook; 4] = [
    kprobe(c"tcp_sendmsg", "kp_sendmsg"),
    kprobe(c"tcp_connect", "kp_connect"),
    kprobe(c"inet_csk_listen_start", "kp_listen"),
    kretprobe(c"inet_csk_accept", "kp_accept_return"),
];
/// A socket's end, and who closes it.
const STATE_BY_KPROBE: Hook = kprobe(c"tcp_set_state", "kp_state");
/// What goes out again.
const RETRANSMITS_BY_KPROBE: [Hook; 4] = [
    kprobe(c"__tcp_retransmit_skb", "kp_retransmit"),
    kretprobe(c"__tcp_retransmit_skb", "kp_retransmit_return"),
    kprobe(c"tcp_rtx_synack", "kp_synack"),
    kretprobe(c"tcp_rtx_synack", "kp_synack_return"),
];

/// A socket's end, who closes it, and, where nothing better shows them, connect() and listen().
const STATE: Hook = tracepoint(c"inet_sock_set_state", "tp_state");
/// A sender, before its bytes leave (7.2 and some older).
const SENDER: Hook = tracepoint(c"tcp_sendmsg_locked", "tp_sendmsg");
/// A sender, when its call returns (6.3 and newer).
const SEND_LENGTH: Hook = tracepoint(c"sock_send_length", "tp_send_length");
const RETRANSMIT: Hook = tracepoint(c"tcp_retransmit_skb", "tp_retransmit");
/// The same tracepoint where it tells whether the attempt failed.
const RETRANSMIT_ERR: Hook = tracepoint(c"tcp_retransmit_skb", "tp_retransmit_err");
const SYNACK: Hook = tracepoint(c"tcp_retransmit_synack", "tp_synack");

/// What the user asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attach {
    /// For each purpose the best that this kernel offers.
    Auto,
    /// Kprobes and kretprobes only.
    Kprobe,
    /// Raw tracepoints only.
    Tracepoint,
}

/// What this kernel offers, as it says itself.
pub trait Offer {
    /// Whether it has a kprobe PMU.
    fn kprobes(&self) -> bool;
    /// How many arguments a raw tracepoint has; none: there is no such tracepoint.
    fn tracepoint_args(&self, name: &str) -> Option<usize>;
}

/// The hooks that were chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// In the order in which they are attached: what learns owners first, what asks for them last.
    pub hooks: Vec<Hook>,
    /// How to name the choice: `kprobe`, `tracepoint`, or `kprobe+tracepoint`.
    pub name: &'static str,
    /// connect() and listen() are seen through the state tracepoint.
    pub births_by_state: bool,
}

impl Plan {
    /// Whether the plan loads this program.
    #[must_use]
    pub fn has(&self, program: &str) -> bool {
        self.hooks.iter().any(|hook| hook.program == program)
    }

    /// Whether runs of its programs can be skipped by the kernel: a kprobe that fires while another one runs on the same
    /// CPU is. Owner probes run in process context, where no other probe of ours can be running; those on what softirq
    /// runs can.
    #[must_use]
    pub fn can_miss(&self) -> bool {
        self.has(STATE_BY_KPROBE.program)
    }
}

/// What stands in the way of a choice.
struct Missing(String);

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Choose the hooks for what the user asked. `sends` also asks for one event for each send.
///
/// # Errors
/// [`Exit::Host`] if this kernel has not what it takes; the message names it and the remedy.
pub fn choose(attach: Attach, sends: bool, kernel: &impl Offer) -> Result<Plan> {
    let plan = match attach {
        Attach::Kprobe => by_kprobe(kernel),
        Attach::Tracepoint => by_tracepoint(sends, kernel),
        Attach::Auto => mixed(kernel).or_else(|no_kprobes| {
            by_tracepoint(sends, kernel).map_err(|no_tracepoints| Missing(format!("{no_kprobes}; {no_tracepoints}")))
        }),
    };
    plan.map_err(|missing| anyhow!("{missing}").context(Exit::Host))
}

fn by_kprobe(kernel: &impl Offer) -> Result<Plan, Missing> {
    if !kernel.kprobes() {
        return Err(Missing(
            "this kernel has no kprobe PMU (/sys/bus/event_source/devices/kprobe): it needs CONFIG_KPROBE_EVENTS, or try \
             --attach tracepoint"
                .into(),
        ));
    }
    let hooks = OWNERS_BY_KPROBE.iter().chain([&STATE_BY_KPROBE]).chain(&RETRANSMITS_BY_KPROBE).copied().collect();
    Ok(Plan { hooks, name: "kprobe", births_by_state: false })
}

/// Owners by kprobe, which sees a send before its bytes leave; the rest by raw tracepoints, which are never skipped.
fn mixed(kernel: &impl Offer) -> Result<Plan, Missing> {
    if !kernel.kprobes() {
        return Err(Missing("this kernel has no kprobe PMU".into()));
    }
    let hooks = OWNERS_BY_KPROBE.iter().copied().chain(softirq_tracepoints(kernel)?).collect();
    Ok(Plan { hooks, name: "kprobe+tracepoint", births_by_state: false })
}

fn by_tracepoint(sends: bool, kernel: &impl Offer) -> Result<Plan, Missing> {
    let offers = |hook: &Hook| kernel.tracepoint_args(hook.target_name()).is_some();
    let mut hooks: Vec<Hook> = Vec::new();
    if offers(&SENDER) {
        hooks.push(SENDER);
    }
    if (hooks.is_empty() || sends) && offers(&SEND_LENGTH) {
        hooks.push(SEND_LENGTH);
    }
    if hooks.is_empty() {
        return Err(Missing(
            "this kernel has no tracepoint that shows who sends (tcp_sendmsg_locked, sock_send_length): it takes Linux 6.3 \
             or newer, or a kernel with kprobes"
                .into(),
        ));
    }
    if sends && !hooks.contains(&SEND_LENGTH) {
        return Err(Missing(
            "this kernel has no tracepoint sock_send_length, without which sends cannot be counted: leave out --events"
                .into(),
        ));
    }
    hooks.extend(softirq_tracepoints(kernel)?);
    Ok(Plan { hooks, name: "tracepoint", births_by_state: true })
}

fn softirq_tracepoints(kernel: &impl Offer) -> Result<[Hook; 3], Missing> {
    let arguments = |hook: &Hook| {
        kernel.tracepoint_args(hook.target_name()).ok_or_else(|| {
            Missing(format!("this kernel's BTF has no tracepoint {}: it takes Linux 4.16 or newer", hook.target_name()))
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

    struct Kernel {
        kprobes: bool,
        tracepoints: Vec<(&'static str, usize)>,
    }

    impl Offer for Kernel {
        fn kprobes(&self) -> bool {
            self.kprobes
        }
        fn tracepoint_args(&self, name: &str) -> Option<usize> {
            self.tracepoints.iter().find(|(known, _)| *known == name).map(|(_, args)| *args)
        }
    }

    fn kernel(kprobes: bool, more: &[(&'static str, usize)]) -> Kernel {
        let mut tracepoints = vec![("inet_sock_set_state", 3), ("tcp_retransmit_synack", 2)];
        tracepoints.extend(more);
        Kernel { kprobes, tracepoints }
    }

    #[test]
    fn auto_takes_kprobes_for_owners_and_tracepoints_for_the_rest() {
        let plan = choose(Attach::Auto, false, &kernel(true, &[("tcp_retransmit_skb", 2)])).unwrap();
        assert_eq!(plan.name, "kprobe+tracepoint");
        assert!(plan.has("kp_sendmsg") && plan.has("tp_retransmit") && !plan.has("kp_retransmit"));
        assert!(!plan.births_by_state && !plan.can_miss());
    }

    #[test]
    fn the_arguments_of_the_tracepoint_decide_not_the_version() {
        let with_err = kernel(true, &[("tcp_retransmit_skb", 3)]);
        assert!(choose(Attach::Auto, false, &with_err).unwrap().has("tp_retransmit_err"));
    }

    #[test]
    fn without_kprobes_auto_is_the_tracepoint_set() {
        let no_kprobes = kernel(false, &[("tcp_retransmit_skb", 2), ("sock_send_length", 3)]);
        let plan = choose(Attach::Auto, false, &no_kprobes).unwrap();
        assert_eq!(plan, choose(Attach::Tracepoint, false, &no_kprobes).unwrap());
        assert!(plan.births_by_state && plan.has("tp_send_length"));
        let error = choose(Attach::Kprobe, false, &no_kprobes).unwrap_err();
        assert_eq!(Exit::code_of(&error), 3);
    }

    #[test]
    fn senders_come_from_the_earlier_tracepoint_and_send_events_from_the_later() {
        let both = kernel(false, &[("tcp_retransmit_skb", 3), ("sock_send_length", 3), ("tcp_sendmsg_locked", 4)]);
        let quiet = choose(Attach::Tracepoint, false, &both).unwrap();
        assert!(quiet.has("tp_sendmsg") && !quiet.has("tp_send_length"));
        let sends = choose(Attach::Tracepoint, true, &both).unwrap();
        assert!(sends.has("tp_sendmsg") && sends.has("tp_send_length"));
    }

    #[test]
    fn nothing_that_shows_senders_is_said_so() {
        let error = choose(Attach::Auto, false, &kernel(false, &[("tcp_retransmit_skb", 2)])).unwrap_err();
        assert_eq!(Exit::code_of(&error), 3);
        let text = format!("{error:#}");
        assert!(text.contains("kprobe PMU") && text.contains("sock_send_length"), "{text}");
    }
}
