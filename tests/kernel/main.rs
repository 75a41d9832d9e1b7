//! Runs xctl on a real kernel: with real processes and real loss, judged by the kernel's own counters.
//!
//! The tests are one executable: it runs the same on the developer's machine and as the only program of a virtual machine.
//! It needs root, iproute2, and netem or nft to lose packets. Arguments: parts of the names of cases, or `--list`.
//! `--on NAME`: this machine is the virtual machine of that name; without the option, it is the host that builds.
//! machine.rs decides which cases run where.
//! `--all`: runs each case in every set of hooks, on every machine. The name of a case as an argument does the same for
//! this case.
//! `--times N`: runs each case N times, which finds failures that are rare.
//! `--full`: makes as many connections in a virtual machine as elsewhere.
//! `--awake`: tests whether the cases (all, or those named) fail without xctl's hooks, and not whether xctl passes them.

#![forbid(unsafe_code)]

mod actors;
mod altered;
mod awake;
mod cases;
mod claims;
mod counters;
mod crowd;
mod folder;
mod host;
mod link;
mod machine;
mod map;
mod missed;
mod packets;
mod process;
mod router;
mod schema;
mod tcp_info;
mod tracee;
mod tracefs;
mod ways;
mod without;
mod workers;
mod xctl;

use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::time::Instant;

use host::Set;
use machine::{Machine, Runs, may_skip};

/// The IP version that a case runs over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Family::V4 => "ipv4",
            Family::V6 => "ipv6",
        })
    }
}

/// The result of a case that did not fail.
pub enum Verdict {
    /// A note on the run, for the reader of the log.
    Passed(String),
    /// Why this host cannot run the case.
    Skipped(String),
}

/// An error is the case's failure. Its chain says what was being done.
pub type Outcome = anyhow::Result<Verdict>;

/// The IP versions that a case runs over.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Families {
    /// IPv4 alone: the case is about something else.
    V4,
    /// Both: the code that the case tests differs.
    Both,
    /// Both, and the code is the same: only the host that builds runs both.
    Either,
}

impl Families {
    /// The IP versions in this hook set. Only `auto` has IPv6: hook set and IP version do not depend on each other.
    fn of(self, set: Set) -> &'static [Family] {
        match self {
            Families::Both | Families::Either if set == Set::Auto => &[Family::V4, Family::V6],
            _ => &[Family::V4],
        }
    }
}

/// A case, which runs once for each hook set and each of its IP versions.
pub struct Case {
    name: &'static str,
    sets: &'static [Set],
    families: Families,
    runs: Runs,
    run: fn(Set, Family) -> Outcome,
}

impl Case {
    /// The name of one run of the case. The name includes the hook set and the IP version if the case has a choice.
    fn name_with(&self, set: Set, family: Family) -> String {
        let mut name = self.name.to_owned();
        if self.sets.len() > 1 {
            name += &format!(" {set}");
        }
        if self.families != Families::V4 {
            name += &format!(" {family}");
        }
        name
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [first, job] = args.as_slice()
        && first == workers::ARGUMENT
    {
        return workers::main(job);
    }
    if args.first().is_some_and(|first| first == actors::ARGUMENT) {
        return actors::main(&args[1..]);
    }
    if let [first, job] = args.as_slice()
        && first == crowd::ARGUMENT
    {
        return crowd::main(job);
    }
    let list = args.iter().any(|arg| arg == "--list");
    let all = args.iter().any(|arg| arg == "--all");
    let on = args.iter().position(|arg| arg == "--on").and_then(|at| args.get(at + 1));
    let machine = on.map_or(Machine::Here, |name| Machine::named(name));
    let times = args.iter().position(|arg| arg == "--times").and_then(|at| args.get(at + 1));
    let is_value = |arg: &String| Some(arg) == on || Some(arg) == times;
    let asks = args.iter().any(|arg| arg == "--times");
    let repeats = if asks { times.and_then(|times| times.parse::<u32>().ok()) } else { Some(1) };
    let Some(repeats) = repeats.filter(|repeats| *repeats > 0) else {
        println!("FAIL  --times takes a number greater than 0");
        return ExitCode::FAILURE;
    };
    // cargo passes options of libtest on (--nocapture, --test-threads=1): none has a meaning here
    let filters: Vec<_> = args.iter().filter(|arg| !arg.starts_with('-') && !is_value(arg)).collect();

    if !list {
        link::sweep();
    }
    if args.iter().any(|arg| arg == "--awake") {
        return awake::main(&filters);
    }
    let (mut passed, mut skipped, mut unsteady) = (0, 0, None);
    let mut failed = Vec::new();
    for case in cases::ALL {
        for (set, family) in
            case.sets.iter().flat_map(|set| case.families.of(*set).iter().map(move |family| (*set, *family)))
        {
            let name = case.name_with(set, family);
            let wanted = if filters.is_empty() {
                // in `auto` the case runs in this set already
                (all || machine.runs(case, set, family)) && !(case.sets.len() > 1 && set.is_taken_by_auto())
            } else {
                filters.iter().any(|filter| name.contains(filter.as_str()))
            };
            if !wanted {
                continue;
            }
            if list {
                println!("{name}");
                continue;
            }
            for _ in 0..repeats {
                let began = Instant::now();
                let mut outcome = attempt(case, set, family);
                // If cases are named, the caller looks for failures, also for rare ones.
                if let Err(error) = &outcome
                    && filters.is_empty()
                    && unsteady.is_none()
                {
                    println!("once  {name}: {error:#}");
                    if let Some(passed) = in_a_row(case, set, family) {
                        unsteady = Some(name.clone());
                        outcome = Ok(passed);
                    }
                }
                let took = began.elapsed().as_secs_f64();
                let mut fail = |line: String| {
                    println!("{line}");
                    failed.push(line);
                };
                match outcome {
                    Ok(Verdict::Passed(note)) => {
                        passed += 1;
                        println!("ok    {name:<36} {took:5.1} s  ({note})");
                    }
                    Ok(Verdict::Skipped(why)) if on.is_none_or(|on| may_skip(on, case.name, &why)) => {
                        skipped += 1;
                        println!("skip  {name}: {why}");
                    }
                    Ok(Verdict::Skipped(why)) => fail(format!("FAIL  {name}: this machine may not skip it: {why}")),
                    Err(error) => fail(format!("FAIL  {name}: {error:#}")),
                }
            }
        }
    }
    // readers of a log start at its end
    for line in &failed {
        println!("again {line}");
    }
    if !list && !filters.is_empty() && passed + failed.len() + skipped == 0 {
        println!("FAIL  no case has such a name: {filters:?}");
        return ExitCode::FAILURE;
    }
    if !list && filters.is_empty() && passed + failed.len() == 0 && nix::unistd::geteuid().is_root() {
        println!("FAIL  every case was skipped");
        return ExitCode::FAILURE;
    }
    if let Some(name) = unsteady {
        println!("unsteady {name}: failed once, then passed {PROOF} times in a row");
    }
    if !list {
        println!("{passed} passed, {} failed, {skipped} skipped", failed.len());
    }
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The number of times in a row that a case must pass after a failure, to be unsteady and not failed. A run may have one
/// unsteady case.
const PROOF: u32 = 3;

/// Runs a case [`PROOF`] times; none: it did not pass each time.
fn in_a_row(case: &Case, set: Set, family: Family) -> Option<Verdict> {
    let mut runs = (0..PROOF).map(|_| attempt(case, set, family));
    let failed = |outcome: &Outcome| !matches!(outcome, Ok(Verdict::Passed(_)));
    match runs.find(failed) {
        Some(outcome) => {
            let why = outcome.map_or_else(|error| format!("{error:#}"), |_| "it was skipped".into());
            println!("twice {}: {why}", case.name_with(set, family));
            None
        }
        None => Some(Verdict::Passed(format!("passed {PROOF} times in a row"))),
    }
}

/// Runs one case. A panic in the case is its failure, not the end of the run.
fn attempt(case: &Case, set: Set, family: Family) -> Outcome {
    if !nix::unistd::geteuid().is_root() {
        return Ok(Verdict::Skipped("needs root: it makes network namespaces and loads BPF".into()));
    }
    if let Some(why) = set.absent() {
        return Ok(Verdict::Skipped(why));
    }
    panic::catch_unwind(AssertUnwindSafe(|| (case.run)(set, family))).unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        Err(anyhow::anyhow!("panicked: {}", said.unwrap_or("(no message)")))
    })
}
