//! If xctl cannot run, it names the missing feature and the remedy, and ends with exit code 3.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use ::xctl::object::{self, Kind};
use ::xctl::trace::target::IN_SOME_KERNELS;
use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::signal::Signal;

use super::doctor;
use super::ends::kprobes;
use super::privilege::{Paranoid, needed};
use crate::host::{KPROBE_PMU, Set, has_symbol, is_guest, tool};
use crate::link::Netns;
use crate::process::{Process, nameless_file};
use crate::tracefs::{has_event, with_private_mounts};
use crate::workers;
use crate::xctl::{Xctl, command, refusal};
use crate::{Family, Outcome, Verdict, tracee, without};

pub const CANNOT_RUN_HERE: i32 = 3;
const REFUSED: i32 = 4;

pub fn no_privilege(_set: Set, _family: Family) -> Outcome {
    let mut nobody = command(&["trace", "--json"])?;
    // a root process that becomes another user loses every capability
    nobody.uid(65534).gid(65534);
    let said = refusal(Process::start("xctl without privilege", nobody)?, CANNOT_RUN_HERE)?;
    for capability in ["cap_bpf", "cap_perfmon"] {
        ensure!(said.to_lowercase().contains(capability), "it does not name {capability}: {said:?}");
    }
    let mut nobody = command(&["doctor", "--json"])?;
    nobody.uid(65534).gid(65534);
    doctor::agrees_with_refusal(nobody, "capabilities", &said)?;
    Ok(Verdict::Passed("names the capabilities".into()))
}

/// One of the capabilities is missing. xctl names this one, and no other.
pub fn one_capability(_set: Set, _family: Family) -> Outcome {
    let all = ["CAP_BPF", "CAP_PERFMON"];
    for missing in all {
        let held: Vec<_> = all.into_iter().filter(|&name| name != missing).collect();
        let by_nobody = |args: &[&str]| workers::by_nobody(&held, &command(args)?);
        let said = refusal(Process::start("xctl", by_nobody(&["trace", "--json"])?)?, CANNOT_RUN_HERE)?;
        ensure!(said.contains(missing), "it does not name {missing}: {said:?}");
        ensure!(!held.iter().any(|name| said.contains(name)), "it names what is there: {said:?}");
        doctor::agrees_with_refusal(by_nobody(&["doctor", "--json"])?, "capabilities", &said)?;
    }
    // CAP_SYS_ADMIN, which is needed to enter another network namespace
    let _other = Netns::new("other")?;
    let sockets = workers::by_nobody(&needed(), &command(&["sockets", "--json"])?)?;
    let said = refusal(Process::start("xctl", sockets)?, CANNOT_RUN_HERE)?;
    ensure!(said.contains("CAP_SYS_ADMIN"), "it does not name CAP_SYS_ADMIN: {said:?}");
    Ok(Verdict::Passed("names the one that is missing".into()))
}

/// A command run by nobody with these capabilities, and with an RLIMIT_MEMLOCK of 64 KiB.
fn little_memlock(capabilities: &[&str], args: &[&str]) -> Result<Command> {
    memlock(64, capabilities, args)
}

/// Like [`little_memlock`], with an RLIMIT_MEMLOCK of this many KiB (the unit of ulimit).
pub fn memlock(kib: u32, capabilities: &[&str], args: &[&str]) -> Result<Command> {
    Ok(limited(&format!("-l {kib}"), &workers::by_nobody(capabilities, &command(args)?)?))
}

/// The command under a limit, which is an argument of ulimit.
fn limited(limit: &str, command: &Command) -> Command {
    let mut limited = tool("sh");
    limited.args(["-c", &format!("ulimit {limit} && exec \"$0\" \"$@\"")]);
    limited.arg(command.get_program()).args(command.get_args());
    limited
}

/// The limit of open files is too low.
pub fn no_files(_set: Set, _family: Family) -> Outcome {
    let few = |args: &[&str]| Ok::<_, anyhow::Error>(limited("-n 12", &command(args)?));
    let said = refusal(Process::start("xctl", few(&["trace", "--json"])?)?, CANNOT_RUN_HERE)?;
    ensure!(said.contains("too many open files") && said.contains("ulimit -n"), "it does not name the limit: {said:?}");
    doctor::agrees_with_refusal(few(&["doctor", "--json"])?, "trace", &said)?;
    Ok(Verdict::Passed("names the limit".into()))
}

pub fn no_btf(_set: Set, _family: Family) -> Outcome {
    with_private_mounts(|| {
        hide("/sys/kernel/btf")?;
        let said = refuses(&[], "btf")?;
        ensure!(said.contains("--btf"), "it does not mention --btf: {said:?}");
        doctor::notes(start(&["doctor", "--json"])?, CANNOT_RUN_HERE, "hooks", "not tried")?;
        Ok(Verdict::Passed("names --btf".into()))
    })
}

/// The BTF of another kernel: a type that is in all kernels has another layout.
pub fn foreign_btf(_set: Set, _family: Family) -> Outcome {
    let mut bytes = types()?;
    let [one, other] = ["skc_daddr", "skc_dport"];
    for (from, to) in [(one, "X________"), (other, one), ("X________", other)] {
        rename(&mut bytes, from, to);
    }
    let btf = Btf::of(other, &bytes)?;
    let said = refuses(&["--btf", &btf.path()], "btf")?;
    let words = [
        "not of this kernel",
        "byte_off of sock->__sk_common.skc_dport is 0 with the given BTF, 12",
        "leave out --btf",
    ];
    ensure!(words.iter().all(|words| said.contains(words)), "it does not say {words:?}: {said:?}");
    let sockets = refusal(start(&["sockets", "--btf", &btf.path()])?, CANNOT_RUN_HERE)?;
    ensure!(sockets == said, "of sockets it says {sockets:?}, of retransmits {said:?}");
    Ok(Verdict::Passed("names a field".into()))
}

/// /proc or /sys is not mounted.
pub fn no_mounts(_set: Set, _family: Family) -> Outcome {
    for (root, remedy) in [("/proc", "mount -t proc"), ("/sys", "mount -t sysfs")] {
        with_private_mounts(|| {
            hide(root)?;
            let said = refuses(&[], "mounts")?;
            ensure!(said.contains(&format!("{root} is not mounted: {remedy}")), "it does not name {root}: {said:?}");
            Ok(())
        })?;
    }
    Ok(Verdict::Passed("names what is to be mounted".into()))
}

/// The kernel has no kprobes, or the folder that describes them is empty.
pub fn no_kprobes(_set: Set, _family: Family) -> Outcome {
    with_private_mounts(|| {
        if Path::new(KPROBE_PMU).exists() {
            hide(KPROBE_PMU)?;
        }
        let said = refusal(start(&["trace", "--json", "--attach", "kprobe"])?, CANNOT_RUN_HERE)?;
        ensure!(said.contains("no kprobe PMU"), "it does not say what is missing: {said:?}");
        if Set::Fentry.absent().is_some() && Set::Tracepoint.absent().is_some() {
            let said = refuses(&[], "trace")?;
            return Ok(Verdict::Passed(format!("nothing is left: {said}")));
        }
        let left = doctor::agrees_on_set(command(&["doctor", "--json"])?, "set kprobe", &said)?;
        let xctl = Xctl::start(Set::Auto, &[])?;
        ensure!(xctl.ready.attach == left, "doctor says that auto takes {left}, and it is {}", xctl.ready.attach);
        let probes: Vec<_> = xctl.ready.hooks.iter().filter(|hook| hook.hook.contains("kprobe")).collect();
        ensure!(probes.is_empty(), "there are none: {probes:?}");
        xctl.stop(Signal::SIGINT)?;
        Ok(Verdict::Passed(format!("auto takes {left}")))
    })
}

/// `bpf` is not among the active LSMs, or nothing tells which are active: by the kernel's own list, and by others in its
/// place. A kernel without `bpf` in its list attaches LSM programs without an error, and never runs them.
pub fn no_lsm(_set: Set, _family: Family) -> Outcome {
    const SECURITY: &str = "/sys/kernel/security";
    const MODULES: &str = "lockdown,capability,bpfilter";
    let attach = ["trace", "--json", "--attach", "lsm"];
    if Set::Kprobe.absent().is_some() {
        let said = refusal(start(&attach)?, CANNOT_RUN_HERE)?;
        ensure!(said.contains("no kprobe PMU"), "it does not say what is missing: {said:?}");
        return Ok(Verdict::Passed(said.trim().into()));
    }
    let mut told = Vec::new();
    if let Some(why) = Set::Lsm.absent() {
        let said = refusal(start(&attach)?, CANNOT_RUN_HERE)?;
        ensure!(said.contains(&why), "it does not say {why:?}: {said:?}");
        told.push(said.trim().to_owned());
    }
    with_private_mounts(|| {
        hide(SECURITY)?;
        // since 6.8 a system call tells, too
        if has_symbol("__x64_sys_lsm_list_modules") || has_symbol("__arm64_sys_lsm_list_modules") {
            if Set::Lsm.absent().is_none() {
                Xctl::start(Set::Lsm, &[])?.stop(Signal::SIGINT)?;
                told.push("asks the system call".into());
            }
        } else {
            let said = refusal(start(&attach)?, CANNOT_RUN_HERE)?;
            let words = ["not known which LSMs are active", "mount -t securityfs"];
            ensure!(words.iter().all(|words| said.contains(words)), "it does not say {words:?}: {said:?}");
            told.push(said.trim().to_owned());
        }
        std::fs::write(format!("{SECURITY}/lsm"), MODULES).context("another list")?;
        let said = refusal(start(&attach)?, CANNOT_RUN_HERE)?;
        for words in [format!("among the active LSMs ({MODULES})"), format!("boot with lsm={MODULES},bpf")] {
            ensure!(said.contains(&words), "it does not say {words:?}: {said:?}");
        }
        let left = doctor::agrees_on_set(command(&["doctor", "--json"])?, "set lsm", &said)?;
        let xctl = Xctl::start(Set::Auto, &[])?;
        ensure!([&left, &xctl.ready.attach] == ["kprobe+tracepoint"; 2], "doctor: {left}: {}", xctl.ready.attach);
        xctl.stop(Signal::SIGINT)?;
        Ok(())
    })?;
    Ok(Verdict::Passed(told.join("; ")))
}

/// The BTF lacks a tracepoint or function: once a needed one, once an optional one.
pub fn no_symbol(_set: Set, _family: Family) -> Outcome {
    let (needed, set) = (Btf::without("btf_trace_tcp_retransmit_synack")?, with_tracepoints().to_string());
    let btf = needed.path();
    let said = refusal(start(&["trace", "--json", "--attach", &set, "--btf", &btf])?, CANNOT_RUN_HERE)?;
    ensure!(said.contains("no tracepoint tcp_retransmit_synack"), "it does not name the tracepoint: {said:?}");
    if Set::Kprobe.absent().is_none() {
        let left = doctor::agrees_on_set(command(&["doctor", "--json", "--btf", &btf])?, &format!("set {set}"), &said)?;
        let xctl = Xctl::start(Set::Auto, &["--btf", &btf])?;
        ensure!([&left, &xctl.ready.attach] == ["kprobe"; 2], "doctor: {left}, trace: {}", xctl.ready.attach);
        xctl.stop(Signal::SIGINT)?;
    } else {
        refuses(&["--btf", &btf], "trace")?;
    }

    let hooks = |args: &[&str]| -> Result<Vec<(String, String)>> {
        let mut xctl = Xctl::start(with_tracepoints(), args)?;
        let hooks = std::mem::take(&mut xctl.ready.hooks);
        xctl.stop(Signal::SIGINT)?;
        Ok(hooks.into_iter().map(|hook| (hook.hook, hook.target)).collect())
    };
    let has = |hooks: &[(String, String)]| hooks.iter().any(|(_, target)| target == "mptcp_sendmsg");
    let all = hooks(&[])?;
    if Set::Mixed.absent().is_none() {
        // old pahole leaves all functions or the static ones out of BTF: xctl then asks the kernel
        for everywhere in ["tcp_sendmsg", "tcp_v4_init_sock"] {
            let silent = Btf::without_all(&[&[everywhere][..], &IN_SOME_KERNELS].concat())?;
            let found = hooks(&["--btf", &silent.path()])?;
            ensure!(found == all, "where the BTF has no {everywhere} it hooks {found:?}, else {all:?}");
        }
    }
    if !has(&all) {
        return Ok(Verdict::Passed("names the tracepoint; there is no MPTCP here anyway".into()));
    }
    let optional = Btf::without("mptcp_sendmsg")?;
    let found = hooks(&["--btf", &optional.path()])?;
    ensure!(!has(&found), "hooked what is not there: {found:?}");
    Ok(Verdict::Passed("names the tracepoint; does without MPTCP".into()))
}

/// A set that sees retransmits by tracepoints.
fn with_tracepoints() -> Set {
    if Set::Mixed.absent().is_none() { Set::Mixed } else { Set::Tracepoint }
}

/// The kernel has neither kprobes nor fentry nor tracepoints that show senders.
pub fn no_hooks(_set: Set, _family: Family) -> Outcome {
    with_private_mounts(|| {
        if Path::new(KPROBE_PMU).exists() {
            hide(KPROBE_PMU)?;
        }
        let names = ["tcp_connect", "btf_trace_sock_send_length", "btf_trace_tcp_sendmsg_locked"];
        let btf = Btf::without_all(&names)?;
        let said = refuses(&["--btf", &btf.path()], "trace")?;
        for words in ["no kprobe PMU", "no function tcp_connect", "no tracepoint that shows who sends", "Linux 6.3"] {
            ensure!(said.contains(words), "it does not say {words:?}: {said:?}");
        }
        ensure!(!said.contains("--attach auto"), "that is what was tried: {said:?}");
        Ok(Verdict::Passed(said.trim().into()))
    })
}

/// The kernel's answer to an attach call decides, whatever object and BTF say. One object reads an argument that the
/// tracepoint does not have. One BTF has a function, and one a tracepoint, that the kernel does not have. An object without
/// a needed program is refused earlier.
pub fn not_attached(_set: Set, _family: Family) -> Outcome {
    let set = with_tracepoints().to_string();
    let (_file, object) = nameless_file(&without::argument("tp_synack"))?;
    let said = refusal(start(&["trace", "--json", "--attach", &set, "--object", &object])?, CANNOT_RUN_HERE)?;
    let words = "cannot attach to tcp_retransmit_synack: the arguments in the kernel differ from those in the BTF";
    ensure!(said.contains(words) && said.contains("--btf FILE"), "it does not say {words:?}: {said:?}");

    let (_file, object) = nameless_file(&without::name("tp_synack"))?;
    let said = refusal(start(&["trace", "--json", "--attach", &set, "--object", &object])?, REFUSED)?;
    ensure!(said.contains("it has no program tp_synack"), "it does not name the program: {said:?}");

    let mut seen = 2;
    let mut claimed = vec![];
    let function = ["do_tcp_sendpages", "mptcp_sendmsg"].into_iter().find(|name| !has_symbol(name));
    if let (Some(function), None) = (function, Set::Mixed.absent()) {
        claimed.push((Set::Mixed, Kind::Func, function));
    }
    // this tracepoint exists since 6.3
    if !has_event("sock_send_length")? {
        claimed.push((Set::Tracepoint, Kind::Typedef, "sock_send_length"));
    }
    if !claimed.is_empty() {
        seen += refused_hooks(&claimed)?;
    }
    if Set::Mixed.absent().is_none() {
        seen += refused_probes()?;
    }
    Ok(Verdict::Passed(format!("{seen} refusals")))
}

/// Probes on functions that may not be probed, on names that several functions have, and on one that does not exist.
/// Returns the number of refusals.
fn refused_probes() -> Result<u32> {
    const LISTEN: &str = "inet_csk_listen_start";
    const STATE: &str = "inet_sk_state_store";
    let kallsyms = std::fs::read_to_string("/proc/kallsyms").context("reading which functions there are")?;
    let mut counts = BTreeMap::<&str, u32>::new();
    for line in kallsyms.lines() {
        if let [_, "t" | "T", name] = line.split_whitespace().collect::<Vec<_>>()[..] {
            *counts.entry(name).or_default() += 1;
        }
    }
    let fits = |name: &str| name.len() <= LISTEN.len() && !name.contains('.');
    let forbidden = kprobes("blacklist")?;
    let forbidden = forbidden.iter().find(|name| fits(name) && counts.get(name.as_str()) == Some(&1));
    let forbidden = forbidden.context("no function may not be probed")?;
    let several = counts.iter().find(|(name, count)| fits(name) && **count > 1);
    let several = *several.context("no two functions have one name")?.0;
    let mut seen = 0;
    for (set, ours, name, errno, words) in [
        (Set::Mixed, LISTEN, &**forbidden, Errno::EINVAL, "it may not be probed (/sys/kernel/debug/kprobes/blacklist)"),
        (Set::Mixed, LISTEN, several, Errno::EADDRNOTAVAIL, "there are several functions of that name"),
        (Set::Kprobe, STATE, "inet_sk_state_gone", Errno::ENOENT, "this kernel has no such function"),
    ] {
        let (answered, status, said) = probe_instead(set, ours, name, errno)?;
        // older kernels take the first of several functions
        if !answered && errno == Errno::EADDRNOTAVAIL {
            continue;
        }
        // xctl reads the name for its message from the altered memory, so the message has the new name
        let words = [format!("cannot attach to {name}"), format!(": {words}: "), "--attach auto".to_owned()];
        let right = status.code() == Some(CANNOT_RUN_HERE) && words.iter().all(|words| said.contains(words));
        ensure!(answered && right, "{name}: {status}, and it does not say {words:?}: {said:?}");
        seen += 1;
    }
    // if a tracepoint shows the same event, xctl runs without the probe
    let (answered, status, said) = probe_instead(Set::Mixed, STATE, "inet_sk_state_gone", Errno::ENOENT)?;
    ensure!(answered && status.success(), "without {STATE}: {status}, {said:?}");
    Ok(seen)
}

/// Replaces the name of a probed function by another on its way to the kernel; none of xctl's functions is refused in this way.
/// Returns whether the kernel answered with `errno`, xctl's exit status, and its standard error.
fn probe_instead(set: Set, ours: &str, name: &str, errno: Errno) -> Result<(bool, ExitStatus, String)> {
    const FUNCTION: usize = 56;
    let args = ["trace", "--json", "--attach", &set.to_string(), "--duration", "0.1"];
    let mut altered = false;
    let (mut process, calls) = tracee::watch("xctl", &command(&args)?, |call, memory| {
        if call.name == "perf_event_open" && !altered && call.long(FUNCTION) != 0 {
            let at = call.long(FUNCTION);
            if tracee::read(memory, at, ours.len() + 1)? == format!("{ours}\0").as_bytes() {
                memory.write_all_at(format!("{name}\0").as_bytes(), at).context("altering its memory")?;
                altered = true;
            }
        }
        Ok(())
    })?;
    let (_, status, said) = (process.rest()?, process.wait()?, process.errors());
    ensure!(altered, "it asked for no probe of {ours}: {said:?}");
    let refused = |call: &tracee::Call| call.name == "perf_event_open" && call.result == -(errno as i64);
    Ok((calls.iter().any(refused), status, said))
}

/// The BTF has functions and tracepoints that the kernel does not have. The set that uses each cannot be attached, and doctor
/// finds the same fault with the same hook. Returns the number of refusals.
fn refused_hooks(claimed: &[(Set, Kind, &str)]) -> Result<u32> {
    let btf = Btf::claiming(claimed.iter().map(|(_, kind, name)| (*kind, *name)))?;
    let btf = btf.path();
    let report = doctor::report(command(&["doctor", "--json", "--btf", &btf])?)?;
    for (set, kind, name) in claimed {
        let (hook, what) = match kind {
            Kind::Typedef => ("raw_tracepoint", "tracepoint"),
            _ => ("kprobe", "function"),
        };
        let trace = start(&["trace", "--json", "--attach", &set.to_string(), "--btf", &btf])?;
        let said = refusal(trace, CANNOT_RUN_HERE)?;
        let words = format!("cannot attach to {name}: this kernel has no such {what}");
        ensure!(said.contains(&words) && said.contains("--attach auto"), "it does not say {words:?}: {said:?}");
        report.finds(&format!("{hook} {name}"), &words)?;
    }
    Ok(u32::try_from(claimed.len())?)
}

/// A file with the kernel's BTF in which names are changed. It is removed when dropped.
pub struct Btf(PathBuf);

impl Btf {
    pub fn without(name: &str) -> Result<Btf> {
        Btf::without_all(&[name])
    }

    /// The BTF without any of these names.
    pub fn without_all(names: &[&str]) -> Result<Btf> {
        let mut bytes = types()?;
        for name in names {
            rename(&mut bytes, name, &format!("X{}", &name[1..]));
        }
        Btf::of(names[0], &bytes)
    }

    /// The BTF with these functions and tracepoints, whose names are taken from others of the same length.
    fn claiming<'n>(claimed: impl Iterator<Item = (Kind, &'n str)>) -> Result<Btf> {
        let mut bytes = types()?;
        for (kind, name) in claimed {
            let prefix = if kind == Kind::Typedef { "btf_trace_" } else { "" };
            let name = format!("{prefix}{name}");
            let types = object::Btf::parse(&bytes).context("the kernel's BTF")?;
            let fits = |other: &&str| other.len() == name.len() && other.starts_with(prefix) && !other.contains("tcp_");
            let of_kind = types.ids().filter(|id| types.kind(*id) == kind).map(|id| types.name(id));
            let other = of_kind.into_iter().find(fits).context("no name of that length")?.to_owned();
            rename(&mut bytes, &other, &name);
        }
        Btf::of("claimed", &bytes)
    }

    fn of(name: &str, bytes: &[u8]) -> Result<Btf> {
        let path = std::env::temp_dir().join(format!("xctl-without-{name}-{}.btf", std::process::id()));
        std::fs::write(&path, bytes).with_context(|| format!("writing {}", path.display()))?;
        Ok(Btf(path))
    }

    pub fn path(&self) -> String {
        self.0.display().to_string()
    }
}

fn types() -> Result<Vec<u8>> {
    std::fs::read("/sys/kernel/btf/vmlinux").context("reading the kernel's BTF")
}

/// Replaces each string `name` by `other`, which has the same length. A kernel without MPTCP has no name of it.
fn rename(bytes: &mut [u8], name: &str, other: &str) {
    let text = format!("\0{name}\0");
    while let Some(at) = bytes.windows(text.len()).position(|window| window == text.as_bytes()) {
        bytes[at + 1..at + 1 + name.len()].copy_from_slice(other.as_bytes());
    }
}

impl Drop for Btf {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// xctl may not lock the memory of its rings; or there is no memory for rings.
pub fn no_ring_memory(_set: Set, _family: Family) -> Outcome {
    if std::fs::read_to_string("/proc/sys/kernel/perf_event_paranoid")?.trim() == "-1" {
        return Ok(Verdict::Skipped("kernel.perf_event_paranoid is -1: rings may take any memory".into()));
    }
    let _paranoid = Paranoid::at_most_2()?;
    let mut said = String::new();
    // until 5.10 maps need the same limit, and a user who may trace may raise it
    if !has_symbol("bpf_map_charge_init") {
        let limited = little_memlock(&needed(), &["trace", "--json", "--perf-pages", "4096"])?;
        said = refusal(Process::start("xctl", limited)?, CANNOT_RUN_HERE)?;
        for words in ["ring of CPU 0, 4096 pages", "--perf-pages", "RLIMIT_MEMLOCK 64 KiB", "CAP_IPC_LOCK"] {
            ensure!(said.contains(words), "it does not say {words:?}: {said:?}");
        }
    }
    with_private_mounts(|| {
        let little = std::env::temp_dir().join(format!("xctl-meminfo-{}", std::process::id()));
        std::fs::write(&little, "MemTotal: 9000 kB\nMemAvailable: 100 kB\n").context("writing a meminfo")?;
        let bound = mount(Some(&little), "/proc/meminfo", None::<&str>, MsFlags::MS_BIND, None::<&str>);
        let _ = std::fs::remove_file(&little);
        bound.context("hiding /proc/meminfo")?;
        let said = refuses(&[], "perf_rings")?;
        ensure!(said.contains("64 pages for ") && said.contains("--perf-pages"), "it does not say how much: {said:?}");
        Ok(())
    })?;
    Ok(Verdict::Passed(said.trim().into()))
}

/// kernel.perf_event_paranoid is 3, a level that only CAP_SYS_ADMIN passes.
pub fn paranoid(_set: Set, _family: Family) -> Outcome {
    if std::fs::read_to_string("/proc/sys/kernel/perf_event_paranoid")?.trim() != "3" {
        return Ok(Verdict::Skipped("kernel.perf_event_paranoid is not 3, as it is only on Debian's kernels".into()));
    }
    let by_nobody = |args: &[&str]| workers::by_nobody(&needed(), &command(args)?);
    let said = refusal(Process::start("xctl", by_nobody(&["trace", "--json"])?)?, CANNOT_RUN_HERE)?;
    ensure!(said.contains("kernel.perf_event_paranoid is 3"), "it does not say what is in the way: {said:?}");
    doctor::agrees_with_refusal(by_nobody(&["doctor", "--json"])?, "perf_rings", &said)?;
    Ok(Verdict::Passed("names kernel.perf_event_paranoid".into()))
}

/// xctl runs as root of its own user namespace, which has no privilege in the kernel's view.
pub fn user_namespace(_set: Set, _family: Family) -> Outcome {
    let inside = |args: &[&str]| -> Result<Command> {
        let xctl = command(args)?;
        let mut unshare = tool("unshare");
        unshare.args(["-U", "-r"]).arg(xctl.get_program()).args(xctl.get_args());
        Ok(unshare)
    };
    if !tool("unshare").args(["-U", "-r", "true"]).status().is_ok_and(|status| status.success()) {
        return Ok(Verdict::Skipped("this host lets nobody make user namespaces".into()));
    }
    let said = refusal(Process::start("xctl", inside(&["trace", "--json"])?)?, CANNOT_RUN_HERE)?;
    ensure!(said.contains("not the initial user namespace"), "it does not name it: {said:?}");
    doctor::agrees_with_refusal(inside(&["doctor", "--json"])?, "trace", &said)?;
    Ok(Verdict::Passed("names the user namespace".into()))
}

/// No program may read the kernel's memory (lockdown). This is the last case, since nothing undoes lockdown.
pub fn lockdown(_set: Set, _family: Family) -> Outcome {
    const SECURITY: &str = "/sys/kernel/security";
    if !is_guest() {
        return Ok(Verdict::Skipped("locks the kernel down: only in a virtual machine of tests/vm".into()));
    }
    with_private_mounts(|| {
        std::fs::write(format!("{SECURITY}/lockdown"), "confidentiality").context("locking the kernel down")?;
        for set in [Set::Kprobe, Set::Fentry, Set::Lsm].into_iter().filter(|set| set.absent().is_none()) {
            let attach = set.to_string();
            let said = refusal(start(&["trace", "--json", "--attach", &attach])?, CANNOT_RUN_HERE)?;
            ensure!(said.contains("lockdown=confidentiality"), "--attach {set} does not name lockdown: {said:?}");
        }
        let said = refusal(start(&["trace", "--json"])?, CANNOT_RUN_HERE)?;
        for words in ["lockdown=confidentiality", "lockdown=integrity"] {
            ensure!(said.contains(words), "it does not say {words}: {said:?}");
        }
        let report = doctor::agrees_with_refusal(command(&["doctor", "--json"])?, "trace", &said)?;
        report.finds("lockdown", "confidentiality")
    })?;
    // the kernel does not show its lockdown mode
    let said = refusal(start(&["trace", "--json"])?, CANNOT_RUN_HERE)?;
    ensure!(said.contains("lockdown=confidentiality"), "it does not name lockdown: {said:?}");
    Ok(Verdict::Passed("names lockdown".into()))
}

/// Checks that both commands refuse with these arguments: trace for the reason that doctor finds. Returns the message of
/// trace.
fn refuses(args: &[&str], culprit: &str) -> Result<String> {
    let said = refusal(start(&[&["trace", "--json"], args].concat())?, CANNOT_RUN_HERE)?;
    doctor::agrees_with_refusal(command(&[&["doctor", "--json"], args].concat())?, culprit, &said)?;
    Ok(said)
}

fn start(args: &[&str]) -> Result<Process> {
    Process::start("xctl", command(args)?)
}

/// Hides everything in the folder by an empty mount.
fn hide(folder: &str) -> Result<()> {
    mount(Some("none"), folder, Some("tmpfs"), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("hiding {folder}"))
}
