//! `xctl doctor`: try everything that `xctl trace` needs on this host, and report what works.

use std::collections::HashMap;
use std::io::{self, Write};

use anyhow::{Error, Result, anyhow};
use serde::Serialize;

use super::{btf_path, check_mounts, check_privilege, default_max_sockets};
use crate::cli::{DoctorOptions, LEAST_SOCKETS, PERF_PAGES};
use crate::error::{Blocked, Exit};
use crate::kernel::{capability, host, libbpf, limits, netns, privilege, symbols};
use crate::model::events::Settings;
use crate::model::hooks::{Hook, HookKind};
use crate::trace::attach::attach_hook;
use crate::trace::check::{CheckedObject, check_object};
use crate::trace::hooks::{self, Attach, HookSet};
use crate::trace::load::{self, load_programs};
use crate::trace::plan::{Request, first_accepted};
use crate::trace::rings;
use crate::trace::session;
use crate::trace::target::{Feature, KernelFeatures, Target, read_types};

/// The outcome of one check.
#[derive(Debug, Serialize)]
struct Finding {
    check: String,
    /// Whether the check found the state that xctl needs. None: nothing depends on the check here, or the check could not be
    /// tried.
    ok: Option<bool>,
    found: String,
    remedy: Option<String>,
}

/// All checks.
#[derive(Debug, Serialize)]
struct Report {
    version: &'static str,
    checks: Vec<Finding>,
    /// The hook set that `--attach auto` takes. None: `xctl trace` cannot run.
    attach: Option<&'static str>,
}

impl Report {
    fn add(&mut self, check: impl Into<String>, ok: Option<bool>, found: impl Into<String>, remedy: Option<String>) {
        self.checks.push(Finding { check: check.into(), ok, found: found.into(), remedy });
    }

    fn yes(&mut self, check: impl Into<String>, found: impl Into<String>) {
        self.add(check, Some(true), found, None);
    }

    /// The error that `trace` would print.
    fn no(&mut self, check: impl Into<String>, error: &Error) {
        let (found, remedy) = words(error);
        self.add(check, Some(false), found, Some(remedy.unwrap_or_else(|| "`xctl trace -v` says more".into())));
    }

    /// Add a check on which nothing depends here.
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

/// The two parts of an error: the finding, and its remedy.
fn words(error: &Error) -> (String, Option<String>) {
    let class: Option<&Exit> = error.downcast_ref();
    let blocked: Option<&Blocked> = error.downcast_ref();
    let own = |text: &String| class.is_none_or(|class| *text != class.to_string());
    let cause = |text: &String| blocked.is_none_or(|blocked| *text != blocked.to_string());
    let mut chain: Vec<_> = error.chain().map(|cause| cause.to_string()).filter(own).filter(cause).collect();
    if let Some(blocked) = blocked {
        chain.insert(0, blocked.found.clone());
    }
    // libbpf's messages matter only if the object is at fault. Otherwise the errno says enough.
    let lines = if class == Some(&Exit::Object) { usize::MAX } else { 1 };
    let text: Vec<_> = chain.iter().flat_map(|text| text.lines().take(lines)).map(str::trim).collect();
    (text.join(": "), blocked.map(|blocked| blocked.remedy.clone()))
}

/// Run the command.
///
/// # Errors
/// [`Exit::Host`] if this host cannot run `xctl trace`.
pub fn run(options: &DoctorOptions, out: &mut impl Write) -> Result<()> {
    libbpf::collect_messages(false);
    let report = examine(options)?;
    if options.json {
        serde_json::to_writer_pretty(&mut *out, &report).map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        text(&report, out)?;
    }
    out.flush()?;
    match report.attach {
        Some(_) => Ok(()),
        None => Err(anyhow!("`xctl trace` would fail: see the checks marked NO").context(Exit::Host)),
    }
}

fn text(report: &Report, out: &mut impl Write) -> io::Result<()> {
    let width = report.checks.iter().map(|record| record.check.len()).max().unwrap_or(0);
    for Finding { check, ok, found, remedy } in &report.checks {
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

fn examine(options: &DoctorOptions) -> Result<Report> {
    let (bytes, _) = super::object(None)?;
    let object = check_object(&bytes)?;
    let btf = &btf_path(options.btf.as_deref());
    let mut report = Report { version: env!("CARGO_PKG_VERSION"), checks: Vec::new(), attach: None };
    if let Err(error) = check_mounts() {
        report.no("mounts", &error);
        return Ok(report);
    }
    report.note("kernel", host::release()?);
    let target = read_types(btf)
        .and_then(|types| Target::ask(btf, types, &object))
        .and_then(|target| target.check(&object).map(|()| target));
    let target = match target {
        Ok(target) => {
            report.yes("btf", btf.display().to_string());
            Some(target)
        }
        Err(error) => {
            report.no("btf", &error);
            None
        }
    };
    check_privileges(&mut report, target.as_ref())?;
    check_namespaces(&mut report);
    check_rings(&mut report, PERF_PAGES);
    let Some(target) = target else {
        report.note("hooks", "not tried: without BTF the hooks are unknown");
        return Ok(report);
    };
    if let Err(error) = check_privilege() {
        report.note("hooks", format!("not tried: {}", words(&error).0));
        return Ok(report);
    }
    check_sets(&mut report, &object, &target);
    // Do the same as `xctl trace`, for a moment.
    let attempt = default_max_sockets().and_then(|max_sockets| {
        let request =
            Request { attach: Attach::Auto, settings: settings(), max_sockets, perf_pages: PERF_PAGES, seed: None };
        let start = |plan| session::attach(load::load(&object, plan, &target)?, target.kprobe_support(), &mut |_| ());
        let running = request.plans(&target).and_then(|plans| first_accepted(plans, start));
        running.map_err(|error| hooks::adapt_remedy(Attach::Auto, error))
    });
    match attempt {
        Ok(running) => {
            report.yes("trace", format!("runs; {} sockets were open already", running.seeded.sockets));
            report.attach = Some(running.set.name);
        }
        Err(error) => report.no("trace", &error),
    }
    Ok(report)
}

/// The settings for trying hooks. `births_by_state` and `by_inode` are on, so that the verifier also checks the code
/// that they enable. `xctl trace` takes these two from its plan.
fn settings() -> Settings {
    Settings { retransmits: 1, births_by_state: 1, by_inode: 1, ..Settings::default() }
}

/// Check the capabilities, and the settings of this host that decide which capabilities are needed.
fn check_privileges(report: &mut Report, target: Option<&Target>) -> Result<()> {
    let held = privilege::effective()?;
    let allowed = check_privilege();
    let unprivileged = allowed.is_err();
    report.add_result("capabilities", allowed.map(|()| held.to_string()));
    for capability in capability::OPTIONAL {
        let found = if held.has(capability) { "held" } else { "not held" };
        report.note(capability.name, format!("{found}; {}", capability.purpose));
    }
    match limits::lockdown().as_deref() {
        Some("confidentiality") => {
            report.add("lockdown", Some(false), "confidentiality", Some(limits::LOCKED_DOWN.into()));
        }
        Some(mode) => report.yes("lockdown", mode),
        None => report.note("lockdown", "the kernel does not tell: it has none, or securityfs is not mounted"),
    }
    for (name, path) in [
        ("unprivileged_bpf_disabled", "/proc/sys/kernel/unprivileged_bpf_disabled"),
        ("perf_event_paranoid", "/proc/sys/kernel/perf_event_paranoid"),
    ] {
        match std::fs::read_to_string(path) {
            // Only some kernels have a level 3. Opening the rings below shows its effect.
            Ok(value) if unprivileged || (value.trim() == "3" && !held.has(capability::SYS_ADMIN)) => {
                report.note(name, value.trim());
            }
            Ok(value) => report.yes(name, format!("{}, which does not matter with these capabilities", value.trim())),
            Err(error) => report.note(name, error.to_string()),
        }
    }
    // Until 5.10 a map remembers the memory charged for it.
    let counts = target.map(|target| target.shows(Feature::ChargedMaps));
    let limit = limits::memlock_limit();
    let limit_text = limit.map_or("unlimited".into(), |bytes| format!("{} KiB", bytes / 1024));
    match (counts, limit) {
        (Some(true), Some(bytes)) if !held.has(capability::SYS_RESOURCE) => {
            // The attempt below shows whether the limit is enough.
            report.add("memlock", None, limit_text, Some(limits::memlock_remedy(bytes)));
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

/// Check the namespaces that this process sees.
fn check_namespaces(report: &mut Report) {
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
    let own = netns::find("/proc/self/ns/net");
    match (own, netns::all()) {
        (Ok(own), Ok(all)) => {
            let others = all.iter().filter(|netns| netns.inode != own).count();
            report.yes(
                "network_namespace",
                format!("{own}, and {others} others were found; programs see all of the host's"),
            );
        }
        (Err(error), _) | (_, Err(error)) => report.note("network_namespace", format!("{error:#}")),
    }
}

/// Map a ring for each CPU, as tracing does.
fn check_rings(report: &mut Report, pages: usize) {
    let mapped = host::online_cpus().and_then(|cpus| {
        rings::fits(cpus.len(), pages)?;
        let mapped: Result<Vec<_>> = cpus.iter().map(|&cpu| rings::map_ring(cpu, pages)).collect();
        Ok((cpus.len(), mapped?.iter().map(|(ring, _)| ring.bytes()).sum::<usize>()))
    });
    let what = |(cpus, bytes)| format!("{cpus} CPUs online, a ring for each, {} KiB together", bytes / 1024);
    report.add_result("perf_rings", mapped.map(what));
}

/// Check every hook of every set, and every set.
fn check_sets(report: &mut Report, object: &CheckedObject<'_>, target: &Target) {
    let plans = [Attach::Lsm, Attach::Mixed, Attach::Fentry, Attach::Tracepoint, Attach::Kprobe]
        .map(|set| (set.name(), hooks::choose(set, false, target).map(|mut sets| sets.remove(0))));
    let mut all: Vec<Hook> = Vec::new();
    for hook in plans.iter().filter_map(|(_, plan)| plan.as_ref().ok()).flat_map(|plan| &plan.hooks) {
        if !all.contains(hook) {
            all.push(*hook);
        }
    }
    let results = try_hooks(&all, object, target);
    let is_probe = |hook: &&Hook| matches!(hook.kind, HookKind::Kprobe | HookKind::Kretprobe);
    let counts = symbols::count(all.iter().filter(is_probe).map(Hook::target_name)).unwrap_or_default();
    let blacklist = symbols::blacklist();
    for (hook, result) in all.iter().zip(&results) {
        let check = format!("{} {}", hook.kind.name(), hook.target_name());
        let found = details(hook, target, &counts, blacklist.as_deref());
        match result {
            Ok(true) => report.yes(check, found),
            Ok(false) => report.note(check, format!("not in this kernel, which does not need it ({found})")),
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

/// The number of hooks in a set, if all of them work.
fn works(plan: &HookSet, all: &[Hook], results: &[Result<bool>]) -> Result<usize> {
    let failed = all.iter().zip(results).find(|(hook, result)| result.is_err() && plan.hooks.contains(hook));
    match failed {
        None => {
            let absent =
                |hook: &Hook| all.iter().zip(results).any(|(one, result)| one == hook && matches!(result, Ok(false)));
            Ok(plan.hooks.iter().filter(|hook| !absent(hook)).count())
        }
        Some((hook, _)) => {
            let found = format!("{} {} does not work", hook.kind.name(), hook.target_name());
            Err(Blocked::new(found, "see the line of that hook").by_host())
        }
    }
}

/// The kernel's own facts about the function or tracepoint of a hook.
fn details(hook: &Hook, target: &Target, counts: &HashMap<&str, usize>, blacklist: Option<&[String]>) -> String {
    let name = hook.target_name();
    match hook.kind {
        HookKind::RawTracepoint => {
            let arguments = target.tracepoint_args(name);
            arguments.map_or("not in the BTF".into(), |count| format!("arguments: {count}"))
        }
        HookKind::Fentry | HookKind::Fexit | HookKind::Lsm => {
            let arguments = target.function_args(&hook.function());
            arguments.map_or("not in the BTF".into(), |count| format!("arguments: {count}"))
        }
        HookKind::Kprobe | HookKind::Kretprobe => {
            let count = counts.get(name).map_or("not known how often".into(), usize::to_string);
            let forbidden = blacklist.is_some_and(|list| list.iter().any(|entry| entry == name));
            format!("{count} in kallsyms{}", if forbidden { ", and blacklisted" } else { "" })
        }
    }
}

/// Attach each hook for a moment. Hooks are loaded together if the kernel takes them together, else kind by kind, else one
/// by one. So the refusal of one hook says nothing about another. False: the hook is optional, and the kernel lacks it.
fn try_hooks(all: &[Hook], object: &CheckedObject<'_>, target: &Target) -> Vec<Result<bool>> {
    let options = load::Options {
        settings: settings(),
        max_sockets: LEAST_SOCKETS,
        shared_ring: target.shows(Feature::RingBuffers),
        statistics: false,
        at_once: true,
    };
    let load = |hooks: &[Hook]| {
        let wanted = |program: &str| hooks.iter().flat_map(Hook::programs).any(|own| own == program);
        load_programs(object, wanted, target, &options)
    };
    let together = load(all).ok();
    let trampolines = |hook: &Hook| hook.kind.by_trampoline();
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
            attached &= attach_hook(hook, program, loaded, target.kprobe_support(), &cpus)?.is_some();
        }
        Ok(attached)
    };
    all.iter().map(attempt).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn found_and_remedy_come_from_the_error_without_its_class() {
        let refused = io::Error::from_raw_os_error(libc::EPERM);
        let error = Error::new(refused).context(Blocked::new("cannot map it", "take less")).context(Exit::Host);
        let (found, remedy) = words(&error);
        assert_eq!(found, "cannot map it: Operation not permitted (os error 1)");
        assert_eq!(remedy.as_deref(), Some("take less"));
        let (found, remedy) = words(&anyhow!("two\n  lines").context(Exit::Object));
        assert_eq!((found.as_str(), remedy), ("two: lines", None));
    }

    #[test]
    fn every_failed_check_has_a_remedy() {
        let mut report = Report { version: "", checks: Vec::new(), attach: None };
        report.no("known", &Blocked::new("found", "do this").by_host());
        report.no("unknown", &anyhow!("what nobody thought of"));
        let remedies: Vec<_> = report.checks.iter().map(|record| record.remedy.as_deref()).collect();
        assert_eq!(remedies, [Some("do this"), Some("`xctl trace -v` says more")]);
    }
}
