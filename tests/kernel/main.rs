//! xctl on a real kernel: real processes, real loss, and the kernel's own counters as the judge.
//!
//! One executable, so that it runs the same on the developer's machine and as the only program of a virtual machine.
//! It needs root, iproute2, and a way to lose packets (netem or nft). Arguments: parts of the names of cases, or `--list`.
//! `--auto`: of the sets only `auto`, but for the lossy link, the kinds by kprobe, and tracepoints that few kernels have.
//! `--kernel`: only what depends on the kernel's version; `--between`: of that not what the oldest and the newest show.
//! `--full`: as many connections in a virtual machine as elsewhere.
//! `--awake`: not whether xctl passes the cases, but whether they fail without its hooks; of the cases named, if any are.

#![forbid(unsafe_code)]

mod actors;
mod altered;
mod awake;
mod cases;
mod claims;
mod counters;
mod crowd;
mod host;
mod link;
mod map;
mod missed;
mod process;
mod schema;
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

/// Which IP a case runs over.
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

/// How a case ended, when it did not fail.
pub enum Verdict {
    /// What was seen, for the reader of the log.
    Passed(String),
    /// Why this host cannot run it.
    Skipped(String),
}

/// An error is the case's failure, with the chain of what was being done.
pub type Outcome = anyhow::Result<Verdict>;

/// The families that a case runs over.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Families {
    /// IPv4 alone: the case is about something else.
    V4,
    /// Both, in every hook set.
    Both,
    /// IPv4 in every hook set, and IPv6 in one: which set it is and which family have nothing to do with each other.
    BothInAuto,
}

impl Families {
    fn of(self, set: Set) -> &'static [Family] {
        match self {
            Families::Both => &[Family::V4, Family::V6],
            Families::BothInAuto if set == Set::Auto => &[Family::V4, Family::V6],
            _ => &[Family::V4],
        }
    }
}

/// What a case is about.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum About {
    /// What the kernel does, which differs from one version to the next.
    Kernel,
    /// How it takes what is loaded: old kernels one way, new ones another.
    Era,
    /// What the host has and xctl makes of it, whichever kernel it is.
    Host,
}

/// A case, to be run once for each hook set and each of its families.
pub struct Case {
    name: &'static str,
    sets: &'static [Set],
    families: Families,
    run: fn(Set, Family) -> Outcome,
    about: About,
}

impl Case {
    /// Whether `--auto` asks for it in this set: where the case has no choice, where it is about the set, where the functions
    /// that kprobes are on depend on how the kernel was compiled, or where the tracepoints are those of few kernels (6.3 to
    /// 6.15; on one machine, which shows it for all).
    fn is_for_auto(&self, set: Set) -> bool {
        let for_every_set = self.name == "lossy_link" || (self.name, set) == ("kinds", Set::Kprobe);
        let few_have_it = cfg!(target_arch = "x86_64") && set == Set::Tracepoint && !host::shows_senders();
        set == Set::Auto || self.sets.len() == 1 || for_every_set || few_have_it
    }

    /// The name of one run of it: what there is a choice of is part of it.
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
    let auto = args.iter().any(|arg| arg == "--auto");
    let kernel = args.iter().any(|arg| arg == "--kernel");
    let between = args.iter().any(|arg| arg == "--between");
    // cargo passes libtest's flags on (--nocapture, --test-threads=1): none means anything here
    let filters: Vec<_> = args.iter().filter(|arg| !arg.starts_with('-')).collect();

    if !list {
        link::sweep();
    }
    if args.iter().any(|arg| arg == "--awake") {
        return awake::main(&filters);
    }
    let (mut passed, mut skipped) = (0, 0);
    let mut failed = Vec::new();
    for case in cases::ALL {
        for (set, family) in
            case.sets.iter().flat_map(|set| case.families.of(*set).iter().map(move |family| (*set, *family)))
        {
            if auto && !case.is_for_auto(set) {
                continue;
            }
            if kernel && (case.about == About::Host || between && case.about == About::Era) {
                continue;
            }
            let name = case.name_with(set, family);
            if !filters.is_empty() && !filters.iter().any(|filter| name.contains(filter.as_str())) {
                continue;
            }
            if list {
                println!("{name}");
                continue;
            }
            let began = Instant::now();
            let outcome = attempt(case, set, family);
            let took = began.elapsed().as_secs_f64();
            match outcome {
                Ok(Verdict::Passed(note)) => {
                    passed += 1;
                    println!("ok    {name:<36} {took:5.1} s  ({note})");
                }
                Ok(Verdict::Skipped(why)) => {
                    skipped += 1;
                    println!("skip  {name}: {why}");
                }
                Err(error) => {
                    let line = format!("FAIL  {name}: {error:#}");
                    println!("{line}");
                    failed.push(line);
                }
            }
        }
    }
    // a log's reader starts at its end
    for line in &failed {
        println!("again {line}");
    }
    if !list && !filters.is_empty() && passed + failed.len() + skipped == 0 {
        println!("FAIL  no case has such a name: {filters:?}");
        return ExitCode::FAILURE;
    }
    if !list {
        println!("{passed} passed, {} failed, {skipped} skipped", failed.len());
    }
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs one case; a panic in it is its failure, not the end of the run.
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
