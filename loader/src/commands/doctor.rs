//! `xctl doctor`: what this host offers, found out by trying.

use std::collections::HashMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Error, Result, anyhow};
use serde::Serialize;

use super::{btf_path, check_mounts, check_privilege, default_max_sockets};
use crate::attach;
use crate::cli::{LEAST_SOCKETS, PERF_PAGES};
use crate::events::Settings;
use crate::fault::{Blocked, Exit};
use crate::hooks::{self, Attach, Hook, Kind, Plan};
use crate::kernel::libbpf;
use crate::kernel::{host, netns, privilege, symbols};
use crate::tracer::{self, Audit, Checked, Kernel, Shown, Sizes, Tracer};

/// Options of `xctl doctor`.
#[derive(Debug)]
pub struct Args {
    /// One JSON document instead of text.
    pub json: bool,
    /// Another BTF than the kernel's own.
    pub btf: Option<PathBuf>,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Record {
    check: String,
    /// Whether it is as xctl needs it; none: it decides nothing here, or could not be tried.
    ok: Option<bool>,
    found: String,
    remedy: Option<String>,
}

/// All of it.
#[derive(Debug, Serialize)]
struct Report {
    version: &'static str,
    checks: Vec<Record>,
    /// The hook set that `--attach auto` takes; none: it cannot run.
    attach: Option<&'static str>,
}

impl Report {
    fn add(&mut self, check: impl Into<String>, ok: Option<bool>, found: impl Into<String>, remedy: Option<String>) {
        self.checks.push(Record { check: check.into(), ok, found: found.into(), remedy });
    }

    fn yes(&mut self, check: impl Into<String>, found: impl Into<String>) {
        self.add(check, Some(true), found, None);
    }

    /// What `trace` would say, in its words.
    fn no(&mut self, check: impl Into<String>, error: &Error) {
        let (found, remedy) = words(error);
        self.add(check, Some(false), found, Some(remedy.unwrap_or_else(|| "`xctl trace -v` says more".into())));
    }

    /// Nothing depends on it here.
    fn note(&mut self, check: impl Into<String>, found: impl Into<String>) {
        self.add(check, None, found, None);
    }

    fn add_result(&mut self, check: impl Into<String>, result: Result<String>) {
        match result {
            Ok(found) => self.yes(check, found),
            Err(error) => self.no(check, &error),
        }
    }
}

/// What an error found, and its remedy.
fn words(error: &Error) -> (String, Option<String>) {
    let class: Option<&Exit> = error.downcast_ref();
    let blocked: Option<&Blocked> = error.downcast_ref();
    let own = |text: &String| class.is_none_or(|class| *text != class.to_string());
    let cause = |text: &String| blocked.is_none_or(|blocked| *text != blocked.to_string());
    let mut chain: Vec<_> = error.chain().map(|cause| cause.to_string()).filter(own).filter(cause).collect();
    if let Some(blocked) = blocked {
        chain.insert(0, blocked.found.clone());
    }
    // What libbpf adds decides only where the object is at fault: else the errno has said it.
    let lines = if class == Some(&Exit::Object) { usize::MAX } else { 1 };
    let text: Vec<_> = chain.iter().flat_map(|text| text.lines().take(lines)).map(str::trim).collect();
    (text.join(": "), blocked.map(|blocked| blocked.remedy.clone()))
}

/// Run the command.
///
/// # Errors
/// [`Exit::Host`] if this host cannot run `xctl trace`.
pub fn run(args: &Args, out: &mut impl Write) -> Result<()> {
    libbpf::collect_messages(false);
    let report = examine(args)?;
    if args.json {
        serde_json::to_writer_pretty(&mut *out, &report).map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        text(&report, out)?;
    }
    out.flush()?;
    match report.attach {
        Some(_) => Ok(()),
        None => Err(anyhow!("`xctl trace` would fail, as said above").context(Exit::Host)),
    }
}

fn text(report: &Report, out: &mut impl Write) -> io::Result<()> {
    let width = report.checks.iter().map(|record| record.check.len()).max().unwrap_or(0);
    for Record { check, ok, found, remedy } in &report.checks {
        let mark = match ok {
            Some(true) => "yes",
            Some(false) => "NO",
            None => "-",
        };
        writeln!(out, "{mark:<4} {check:<width$}  {found}")?;
        if let Some(remedy) = remedy {
            writeln!(out, "     {:<width$}  -> {remedy}", "")?;
        }
    }
    match report.attach {
        Some(set) => writeln!(out, "\n--attach auto takes {set}"),
        None => writeln!(out, "\n--attach auto takes nothing: this host cannot run it"),
    }
}

fn examine(args: &Args) -> Result<Report> {
    let (bytes, _) = super::object(None)?;
    let object = tracer::check_object(&bytes)?;
    let btf = &btf_path(args.btf.as_deref());
    let mut report = Report { version: env!("CARGO_PKG_VERSION"), checks: Vec::new(), attach: None };
    if let Err(error) = check_mounts() {
        report.no("mounts", &error);
        return Ok(report);
    }
    report.note("kernel", host::release()?);
    let kernel = Kernel::ask(btf).and_then(|kernel| kernel.check(btf, &object).map(|()| kernel));
    let kernel = match kernel {
        Ok(kernel) => {
            report.yes("btf", btf.display().to_string());
            Some(kernel)
        }
        Err(error) => {
            report.no("btf", &error);
            None
        }
    };
    may_we(&mut report, kernel.as_ref())?;
    where_are_we(&mut report);
    rings(&mut report, PERF_PAGES);
    let Some(kernel) = kernel else {
        report.note("hooks", "not tried: which there are, the BTF tells");
        return Ok(report);
    };
    if let Err(error) = check_privilege() {
        report.note("hooks", format!("not tried: {}", words(&error).0));
        return Ok(report);
    }
    sets(&mut report, &object, &kernel, btf);
    // The real thing, all of it, for a moment.
    let attempt = hooks::choose(Attach::Auto, false, &kernel).and_then(|plans| {
        let sizes = Sizes { max_sockets: default_max_sockets()?, perf_pages: PERF_PAGES, seed: None };
        Tracer::start(&object, plans, &kernel, btf, settings(), sizes, &mut Audit::default())
            .map_err(|error| hooks::refused(Attach::Auto, error))
    });
    match attempt {
        Ok(tracer) => {
            report.yes("trace", format!("runs; {} sockets were open already", tracer.seeded.sockets));
            report.attach = Some(tracer.plan.name);
        }
        Err(error) => report.no("trace", &error),
    }
    Ok(report)
}

/// What `xctl trace` without options sets: programs that are told to report nothing are not the same programs.
fn settings() -> Settings {
    Settings { retransmits: 1, births_by_state: 1, by_inode: 1, ..Settings::default() }
}

/// Privilege, and what the host makes depend on it.
fn may_we(report: &mut Report, kernel: Option<&Kernel>) -> Result<()> {
    let held = privilege::effective()?;
    let allowed = check_privilege();
    let unprivileged = allowed.is_err();
    report.add_result("capabilities", allowed.map(|()| held.to_string()));
    for capability in privilege::OPTIONAL {
        let found = if held.has(capability) { "held" } else { "not held" };
        report.note(capability.name, format!("{found}; {}", capability.purpose));
    }
    match privilege::lockdown().as_deref() {
        Some("confidentiality") => {
            report.add("lockdown", Some(false), "confidentiality", Some(privilege::LOCKED_DOWN.into()));
        }
        Some(mode) => report.yes("lockdown", mode),
        None => report.note("lockdown", "the kernel does not tell: it has none, or securityfs is not mounted"),
    }
    for (name, path) in [
        ("unprivileged_bpf_disabled", "/proc/sys/kernel/unprivileged_bpf_disabled"),
        ("perf_event_paranoid", "/proc/sys/kernel/perf_event_paranoid"),
    ] {
        match std::fs::read_to_string(path) {
            // Only some kernels know a level 3: the rings below tell.
            Ok(value) if unprivileged || (value.trim() == "3" && !held.has(privilege::SYS_ADMIN)) => {
                report.note(name, value.trim());
            }
            Ok(value) => report.yes(name, format!("{}, which does not matter with these capabilities", value.trim())),
            Err(error) => report.note(name, error.to_string()),
        }
    }
    // Until 5.10 a map remembers what it was charged.
    let counts = kernel.map(|kernel| kernel.shows(Shown::ChargedMaps));
    let limit = privilege::memlock_limit();
    let limit_text = limit.map_or("unlimited".into(), |bytes| format!("{} KiB", bytes / 1024));
    match (counts, limit) {
        (Some(true), Some(bytes)) if !held.has(privilege::SYS_RESOURCE) => {
            // Whether it is enough, the attempt below tells.
            report.add("memlock", None, limit_text, Some(privilege::memlock_remedy(bytes)));
        }
        (Some(true), _) => report.yes("memlock", format!("{limit_text}, and may be raised")),
        (Some(false), _) => report.yes("memlock", format!("{limit_text}; this kernel does not count maps against it")),
        (None, _) => report.note("memlock", limit_text),
    }
    match std::fs::read_to_string("/proc/sys/net/core/bpf_jit_enable").as_deref().map(str::trim) {
        Ok("0") => {
            report.add(
                "jit",
                None,
                "0: programs are interpreted, which is slow",
                Some("sysctl net.core.bpf_jit_enable=1".into()),
            );
        }
        Ok(value) => report.yes("jit", value),
        Err(error) => report.note("jit", error.to_string()),
    }
    Ok(())
}

/// Which part of the host this process sees.
fn where_are_we(report: &mut Report) {
    match host::in_initial_pid_namespace() {
        Ok(true) => report.yes("pid_namespace", "the initial one: every process can be seen"),
        Ok(false) => report.add(
            "pid_namespace",
            None,
            "not the initial one: only its own processes can be found as owners of sockets that are open already",
            Some("run it in the host's PID namespace (docker run --pid=host)".into()),
        ),
        Err(error) => report.note("pid_namespace", format!("{error:#}")),
    }
    let own = host::netns_inode("/proc/self/ns/net");
    match (own, netns::all()) {
        (Ok(own), Ok(all)) => {
            let others = all.iter().filter(|netns| netns.inode != own).count();
            report.yes(
                "network_namespace",
                format!("{own}, and {others} others to be found; programs see all of the host's"),
            );
        }
        (Err(error), _) | (_, Err(error)) => report.note("network_namespace", format!("{error:#}")),
    }
}

/// A ring for each CPU, as tracing maps them.
fn rings(report: &mut Report, pages: usize) {
    let mapped = host::online_cpus().and_then(|cpus| {
        tracer::fits(cpus.len(), pages)?;
        let rings: Result<Vec<_>> = cpus.iter().map(|&cpu| tracer::map_ring(cpu, pages)).collect();
        Ok((cpus.len(), rings?.iter().map(crate::kernel::mmap::Mapped::bytes).sum::<usize>()))
    });
    let what = |(cpus, bytes)| format!("{cpus} CPUs online, a ring for each, {} KiB together", bytes / 1024);
    report.add_result("perf_rings", mapped.map(what));
}

/// Every hook of every set, and every set.
fn sets(report: &mut Report, object: &Checked<'_>, kernel: &Kernel, btf: &Path) {
    let plans = [Attach::Mixed, Attach::Fentry, Attach::Tracepoint, Attach::Kprobe]
        .map(|set| (set.name(), hooks::choose(set, false, kernel).map(|mut plans| plans.remove(0))));
    let mut all: Vec<Hook> = Vec::new();
    for hook in plans.iter().filter_map(|(_, plan)| plan.as_ref().ok()).flat_map(|plan| &plan.hooks) {
        if !all.contains(hook) {
            all.push(*hook);
        }
    }
    let results = try_hooks(&all, object, kernel, btf);
    let is_probe = |hook: &&Hook| matches!(hook.kind, Kind::Kprobe | Kind::Kretprobe);
    let counts = symbols::count(all.iter().filter(is_probe).map(Hook::target_name)).unwrap_or_default();
    let blacklist = symbols::blacklist();
    for (hook, result) in all.iter().zip(&results) {
        let check = format!("{} {}", hook.kind.name(), hook.target_name());
        let found = details(hook, kernel, &counts, blacklist.as_deref());
        match result {
            Ok(true) => report.yes(check, found),
            Ok(false) => report.note(check, format!("this kernel has not got it, and does without ({found})")),
            Err(error) => {
                report.no(check, error);
                if let Some(record) = report.checks.last_mut().filter(|_| !found.is_empty()) {
                    record.found = format!("{} ({found})", record.found);
                }
            }
        }
    }
    for (name, plan) in plans {
        let works = plan.and_then(|plan| works(&plan, &all, &results));
        report.add_result(format!("set {name}"), works.map(|hooks| format!("all {hooks} hooks")));
    }
}

/// How many hooks a plan has, if all of them work.
fn works(plan: &Plan, all: &[Hook], results: &[Result<bool>]) -> Result<usize> {
    let failed = all.iter().zip(results).find(|(hook, result)| result.is_err() && plan.hooks.contains(hook));
    match failed {
        None => {
            let absent =
                |hook: &Hook| all.iter().zip(results).any(|(one, result)| one == hook && matches!(result, Ok(false)));
            Ok(plan.hooks.iter().filter(|hook| !absent(hook)).count())
        }
        Some((hook, _)) => {
            let found = format!("{} {} does not work", hook.kind.name(), hook.target_name());
            Err(Blocked::new(found, "see there").by_host())
        }
    }
}

/// What the kernel says about a hook's place.
fn details(hook: &Hook, kernel: &Kernel, counts: &HashMap<&str, usize>, blacklist: Option<&[String]>) -> String {
    use crate::hooks::Offer;
    let name = hook.target_name();
    match hook.kind {
        Kind::RawTracepoint => {
            let arguments = kernel.tracepoint_args(name);
            arguments.map_or("not in the BTF".into(), |count| format!("arguments: {count}"))
        }
        Kind::Fentry | Kind::Fexit => {
            let arguments = kernel.function_args(name);
            arguments.map_or("not in the BTF".into(), |count| format!("arguments: {count}"))
        }
        Kind::Kprobe | Kind::Kretprobe => {
            let count = counts.get(name).map_or("not known how often".into(), usize::to_string);
            let forbidden = blacklist.is_some_and(|list| list.iter().any(|entry| entry == name));
            format!("{count} in kallsyms{}", if forbidden { ", and blacklisted" } else { "" })
        }
    }
}

/// Attach each hook for a moment. They are loaded together where the kernel takes them together, else kind by kind, else
/// one by one, so that one that is refused says nothing about another. False: optional, and not there.
fn try_hooks(all: &[Hook], object: &Checked<'_>, kernel: &Kernel, btf: &Path) -> Vec<Result<bool>> {
    let load = |hooks: &[Hook]| {
        let wanted = |program: &str| hooks.iter().flat_map(Hook::programs).any(|own| own == program);
        tracer::load(object, wanted, btf, &settings(), LEAST_SOCKETS, kernel.shows(Shown::RingBuffers))
    };
    let together = load(all).ok();
    let trampolines = |hook: &Hook| matches!(hook.kind, Kind::Fentry | Kind::Fexit);
    let (by_trampoline, others): (Vec<_>, Vec<_>) = all.iter().copied().partition(trampolines);
    let halves = match together {
        Some(_) => (None, None),
        None => (load(&by_trampoline).ok(), load(&others).ok()),
    };
    let attempt = |hook: &Hook| {
        let alone;
        let half = if trampolines(hook) { &halves.0 } else { &halves.1 };
        let loaded = match together.as_ref().or(half.as_ref()) {
            Some(loaded) => loaded,
            None => {
                alone = load(&[*hook])?;
                &alone
            }
        };
        let cpus = host::online_cpus()?;
        let mut attached = true;
        for program in hook.programs() {
            attached &= attach::attach(hook, program, loaded, kernel.probes(), &cpus)?.is_some();
        }
        Ok(attached)
    };
    all.iter().map(attempt).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_the_error_without_its_class() {
        let refused = io::Error::from_raw_os_error(libc::EPERM);
        let error = Error::new(refused).context(Blocked::new("cannot map it", "take less")).context(Exit::Host);
        let (found, remedy) = words(&error);
        assert_eq!(found, "cannot map it: Operation not permitted (os error 1)");
        assert_eq!(remedy.as_deref(), Some("take less"));
        let (found, remedy) = words(&anyhow!("two\n  lines").context(Exit::Object));
        assert_eq!((found.as_str(), remedy), ("two: lines", None));
    }

    #[test]
    fn whatever_is_wrong_has_a_remedy() {
        let mut report = Report { version: "", checks: Vec::new(), attach: None };
        report.no("known", &Blocked::new("found", "do this").by_host());
        report.no("unknown", &anyhow!("what nobody thought of"));
        let remedies: Vec<_> = report.checks.iter().map(|record| record.remedy.as_deref()).collect();
        assert_eq!(remedies, [Some("do this"), Some("`xctl trace -v` says more")]);
    }
}
