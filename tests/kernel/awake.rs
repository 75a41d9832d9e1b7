//! Checks that the cases can fail. Without a hook, or without a check, the case about it must fail and say why.

use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

use crate::host::Set;
use crate::xctl::{Xctl, with_object};
use crate::{Family, Verdict, attempt, cases, without};

/// The part of the object that is taken away.
enum What {
    /// Programs that serve one purpose on one kernel or another. None of them does anything then.
    Programs(&'static [&'static str]),
    /// A check that programs make: its name, and a function that makes the object without it.
    Check(&'static str, fn() -> Vec<u8>),
}

use What::{Check, Programs};

struct Taken {
    what: What,
    /// The case that must fail.
    case: &'static str,
    /// The case must fail in these sets. In other sets another hook serves the same purpose.
    sets: &'static [Set],
    /// The message of the failure must contain one of these.
    says: &'static [&'static str],
}

const fn taken(programs: &'static [&'static str], case: &'static str, says: &'static [&'static str]) -> Taken {
    Taken { what: Programs(programs), case, sets: Set::ALL, says }
}

const fn check(
    name: &'static str,
    object: fn() -> Vec<u8>,
    case: &'static str,
    says: &'static [&'static str],
) -> Taken {
    Taken { what: Check(name, object), case, sets: Set::ALL, says }
}

impl Taken {
    const fn only(self, sets: &'static [Set]) -> Taken {
        Taken { sets, ..self }
    }
}

// the owner in a record, if no hook saw the owner's send, connect() and so on
const UNKNOWN: &[&str] = &["owner: Unknown"];
const CONNECTED: &[&str] = &["owner: Connect"];
const SENT: &[&str] = &["it has sent"];
const CLOSER: &[&str] = &["accepted, and closed by another must be", "accepted, and closed by another, Worker must be"];
const MISSING: &[&str] = &["the kernel counted"];
const DEAD: &[&str] = &["remembered after their end", "remembered after its end"];

const SENDERS: &[&str] = &[
    "lsm_sendmsg",
    "kp_sendmsg",
    "kp_sendmsg_locked",
    "fe_sendmsg_locked",
    "fe2_sendmsg_locked",
    "tp_sendmsg",
    "tp_send_length",
];
const PAGES: &[&str] = &["kp_sendpages", "fe_sendpages", "fe2_sendpages"];
const MPTCP: &[&str] = &["lsm_sendmsg", "kp_mptcp_sendmsg", "fe_mptcp_sendmsg", "fe2_mptcp_sendmsg", "tp_send_length"];
const CONNECT: &[&str] = &["kp_connect", "fe_connect", "fe2_connect"];
const LISTEN: &[&str] = &["kp_listen", "fe_listen", "fe2_listen"];
const ACCEPT: &[&str] =
    &["kp_accept", "kp_accept_return", "fe_accept_4", "fe2_accept_4", "fe_accept_2", "fe2_accept_2"];
const LISTEN_AGAIN: &[&str] = &["kp_listen_again", "fe_listen_again", "fe2_listen_again"];
const READERS: &[&str] = &["tp_read", "tp2_read"];
const STATES: &[&str] = &["kp_state", "tp_state", "tp2_state"];
const ACCEPT_AND_STATES: &[&str] = &["kp_accept", "kp_accept_return", "kp_state", "tp_state", "tp2_state"];
const RETRANSMITS: &[&str] =
    &["tp_retransmit", "tp2_retransmit", "tp_retransmit_err", "tp2_retransmit_err", "kp_retransmit", "kp_inner"];

const TAKEN: &[Taken] = &[
    taken(SENDERS, "senders", CONNECTED),
    taken(SENDERS, "handed_over", CONNECTED),
    taken(SENDERS, "shared_fd", CONNECTED),
    taken(SENDERS, "exited_owner", SENT),
    taken(PAGES, "senders", CONNECTED),
    taken(MPTCP, "mptcp", CONNECTED),
    taken(SENDERS, "io_uring", CONNECTED),
    taken(CONNECT, "io_uring", UNKNOWN),
    taken(STATES, "io_uring", UNKNOWN).only(&[Set::Tracepoint]),
    taken(MPTCP, "mptcp_subflows", CONNECTED),
    taken(CONNECT, "lost_syn", UNKNOWN),
    taken(LISTEN, "listeners", UNKNOWN),
    taken(LISTEN, "shared_port", UNKNOWN),
    taken(READERS, "closers", UNKNOWN).only(&[Set::Auto, Set::Tracepoint, Set::Fentry, Set::Mixed]),
    taken(LISTEN_AGAIN, "listens_again", &["the child listens must be"]).only(&[
        Set::Kprobe,
        Set::Auto,
        Set::Fentry,
        Set::Mixed,
    ]),
    taken(ACCEPT, "listeners", CLOSER),
    taken(ACCEPT, "io_uring", CLOSER),
    taken(&["kp_accept"], "crowded_accept", CLOSER),
    taken(&["kp_accept_return"], "accept_return", CLOSER).only(&[Set::Kprobe]),
    // the state changes of this set show connect() and listen(), too
    taken(STATES, "lost_syn", UNKNOWN).only(&[Set::Tracepoint]),
    taken(STATES, "shared_port", UNKNOWN).only(&[Set::Tracepoint]),
    taken(STATES, "blocked_accept", UNKNOWN).only(&[Set::Fentry, Set::Tracepoint]),
    taken(ACCEPT_AND_STATES, "blocked_accept", UNKNOWN).only(&[Set::Kprobe, Set::Auto, Set::Mixed]),
    taken(STATES, "tuple_in_use", DEAD),
    taken(STATES, "churn", DEAD).only(&[Set::Fentry]),
    taken(STATES, "mptcp", DEAD),
    taken(RETRANSMITS, "kinds", MISSING),
    taken(&["kp_inner"], "kinds", MISSING),
    taken(&["tp_synack", "tp2_synack", "kp_synack"], "kinds", MISSING),
    taken(&["it_seed"], "already_open", &["seeded 0"]).only(&[Set::Auto]),
    check("the check for threads of the kernel", without::kernel_threads, "sockmap", &["a worker forwards must be"]),
    // the sets `tracepoint` and `lsm` see senders at the socket, and kTLS sends below it: they see no worker
    check(
        "the check for threads of the kernel",
        without::kernel_threads,
        "ktls_worker",
        &["after a worker sent must be"],
    )
    .only(&[Set::Kprobe, Set::Fentry, Set::Mixed]),
    check("the check for sockets of the kernel", without::kernel_sockets, "kernel_mount", &["must be Kernel"]),
    check("the check for sockets of the kernel", without::kernel_sockets, "mptcp_subflows", &["must be Kernel"]),
    check("a look at who sends", without::same_process, "handed_over", &["then the parent must be"]),
    check("a look at who sends", without::same_process, "shared_fd", &["then the parent must be"]),
    check("the time when a process began", without::start_times, "reused_pid", &["its process lives"])
        .only(&[Set::Auto]),
    check("a look at whose entry it is", without::own_entries, "tuple_in_use", UNKNOWN),
];

/// Tries all entries, or those about the named cases, in every set that this kernel has. A case that does not run here
/// proves nothing, and is reported as skipped.
pub fn main(names: &[&String]) -> ExitCode {
    let (mut awake, mut asleep, mut skipped) = (0, 0, 0);
    for set in Set::ALL.iter().copied().filter(|set| set.absent().is_none() && !set.is_taken_by_auto()) {
        let loaded = match loaded(set) {
            Ok(loaded) => loaded,
            Err(error) => {
                println!("FAIL  {set}: {error:#}");
                asleep += 1;
                continue;
            }
        };
        for Taken { what, case, says, .. } in TAKEN.iter().filter(|taken| taken.sets.contains(&set)) {
            if !names.is_empty() && !names.iter().any(|name| case.contains(name.as_str())) {
                continue;
            }
            let (name, object) = match what {
                Programs(programs) => {
                    let mut own = programs.to_vec();
                    own.retain(|program| loaded.iter().any(|loaded| loaded == program));
                    if own.is_empty() {
                        continue;
                    }
                    (own.join(", "), without::programs(&own))
                }
                Check(name, object) => ((*name).to_owned(), object()),
            };
            match fails(case, set, &object, says) {
                Ok(Ok(why)) => {
                    awake += 1;
                    println!("awake {case} {set} without {name}: {why}");
                }
                Ok(Err(why)) => {
                    skipped += 1;
                    println!("skip  {case} {set} {}: {why}", Family::V4);
                }
                Err(error) => {
                    asleep += 1;
                    println!("FAIL  {case} {set} without {name}: {error:#}");
                }
            }
        }
    }
    println!("{awake} passed, {asleep} failed, {skipped} skipped");
    if asleep == 0 && awake + skipped > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The programs that the set loads on this kernel.
fn loaded(set: Set) -> Result<Vec<String>> {
    let xctl = Xctl::start(set, &[])?;
    let mut programs: Vec<_> = xctl.ready.hooks.iter().map(|hook| hook.program.clone()).collect();
    // this program has no hook: xctl runs it once
    programs.push("it_seed".into());
    xctl.stop(Signal::SIGINT)?;
    Ok(programs)
}

/// Returns how the case fails with this object, as it must, or why it does not run here. An error if the case passes, or
/// fails in another way.
fn fails(case: &str, set: Set, object: &[u8], says: &[&str]) -> Result<Result<String, String>> {
    let case = cases::ALL.iter().find(|other| other.name == case).context("no such case")?;
    match with_object(object, || attempt(case, set, Family::V4)) {
        Err(error) => {
            let why = format!("{error:#}");
            let found = says.iter().find_map(|one| why.find(one));
            ensure!(found.is_some(), "it says none of {says:?}, but: {why}");
            Ok(Ok(why.chars().skip(found.unwrap_or(0).saturating_sub(60)).take(150).collect()))
        }
        Ok(Verdict::Skipped(why)) => Ok(Err(why)),
        Ok(Verdict::Passed(note)) => bail!("it passed: {note}"),
    }
}
