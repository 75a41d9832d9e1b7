//! Are the cases awake? Without a hook, or without a check, the case that is about it must fail.

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use crate::host::Set;
use crate::process::nameless_file;
use crate::xctl::{Xctl, load};
use crate::{Family, Verdict, attempt, cases, without};

/// Programs that serve one purpose on one kernel or another, and the case that must fail where none of them does
/// anything. `only`: in the other sets something else serves it.
struct Taken {
    programs: &'static [&'static str],
    case: &'static str,
    only: Option<Set>,
}

const fn taken(programs: &'static [&'static str], case: &'static str) -> Taken {
    Taken { programs, case, only: None }
}

const HOOKS: &[Taken] = &[
    taken(&["kp_sendmsg", "kp_sendmsg_locked"], "senders"),
    taken(&["kp_sendpages"], "senders"),
    taken(&["kp_mptcp_sendmsg"], "mptcp"),
    taken(&["kp_connect"], "lost_syn"),
    taken(&["kp_listen"], "listeners"),
    taken(&["kp_accept", "kp_accept_return"], "listeners"),
    taken(&["kp_accept", "kp_accept_return"], "io_uring"),
    taken(&["kp_accept"], "crowded_accept"),
    Taken { only: Some(Set::Kprobe), ..taken(&["kp_state"], "churn") },
    Taken { only: Some(Set::Fentry), ..taken(&["tp_state", "tp2_state"], "blocked_accept") },
    Taken { only: Some(Set::Tracepoint), ..taken(&["tp_state", "tp2_state"], "blocked_accept") },
    taken(&["fe_sendmsg_locked", "fe2_sendmsg_locked"], "senders"),
    taken(&["fe_sendpages", "fe2_sendpages"], "senders"),
    taken(&["fe_mptcp_sendmsg", "fe2_mptcp_sendmsg"], "mptcp"),
    taken(&["fe_connect", "fe2_connect"], "lost_syn"),
    taken(&["fe_listen", "fe2_listen"], "listeners"),
    taken(&["fe_accept_4", "fe2_accept_4", "fe_accept_2", "fe2_accept_2"], "listeners"),
    taken(&["tp_sendmsg", "tp2_sendmsg", "tp_send_length"], "senders"),
    taken(&["tp_send_length", "tp_mptcp_send_length"], "mptcp"),
    Taken { only: Some(Set::Tracepoint), ..taken(&["tp_state", "tp2_state"], "lost_syn") },
    Taken {
        only: Some(Set::Auto),
        ..taken(&["tp_retransmit", "tp2_retransmit", "tp_retransmit_err", "tp2_retransmit_err"], "kinds")
    },
    Taken { only: Some(Set::Auto), ..taken(&["tp_synack", "tp2_synack"], "kinds") },
    taken(&["kp_retransmit", "kp_inner"], "kinds"),
    taken(&["kp_inner"], "kinds"),
    taken(&["kp_synack"], "kinds"),
];

/// Runs them all, in every set that this kernel has.
pub fn main() -> ExitCode {
    let (mut awake, mut asleep) = (0, 0);
    for set in Set::ALL.iter().filter(|set| set.absent().is_none()) {
        let loaded = match loaded(*set) {
            Ok(loaded) => loaded,
            Err(error) => {
                println!("FAIL  {set}: {error:#}");
                asleep += 1;
                continue;
            }
        };
        let mut judge = |what: &str, case, object: &[u8]| match sleeps(case, *set, object) {
            Ok(why) => {
                awake += usize::from(why.is_some());
                println!(
                    "{}  {case} {set} without {what}: {}",
                    if why.is_some() { "awake" } else { "skip " },
                    why.unwrap_or_default()
                );
            }
            Err(error) => {
                asleep += 1;
                println!("FAIL  {case} {set} without {what}: {error:#}");
            }
        };
        for Taken { programs, case, only } in HOOKS {
            let programs: Vec<_> =
                programs.iter().copied().filter(|program| loaded.iter().any(|own| own == program)).collect();
            if !programs.is_empty() && only.is_none_or(|only| only == *set) {
                judge(&programs.join(", "), case, &without::programs(&programs));
            }
        }
        for case in ["sockmap", "ktls_worker"] {
            // kTLS sends below the socket, where the hook of these kernels sees no process and no worker
            if case == "ktls_worker" && *set == Set::Tracepoint && loaded.iter().any(|own| own == "tp_send_length") {
                continue;
            }
            judge("the check for threads of the kernel", case, &without::kernel_threads());
        }
    }
    println!("{awake} awake, {asleep} asleep");
    if asleep == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The programs that the set has on this kernel.
fn loaded(set: Set) -> Result<Vec<String>> {
    let xctl = Xctl::start(set, &[])?;
    let programs = xctl.ready.hooks.iter().map(|hook| hook.program.clone()).collect();
    xctl.stop(Signal::SIGINT)?;
    Ok(programs)
}

/// Why the case fails with this object; none if it does not run here. An error if it passes.
fn sleeps(case: &str, set: Set, object: &[u8]) -> Result<Option<String>> {
    let case = cases::ALL.iter().find(|other| other.name == case).context("no such case")?;
    let (_file, path) = nameless_file(object)?;
    load(Some(path));
    let outcome = attempt(case, set, Family::V4);
    load(None);
    match outcome {
        Err(error) => {
            let why = format!("{error:#}");
            // of another kind: it must be the case that fails, not the object
            ensure!(!why.contains("exit status"), "xctl failed: {why}");
            Ok(Some(why.chars().take(150).collect()))
        }
        Ok(Verdict::Skipped(_)) => Ok(None),
        Ok(Verdict::Passed(note)) => anyhow::bail!("it passed: {note}"),
    }
}
