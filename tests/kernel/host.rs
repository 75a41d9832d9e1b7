//! Features of this kernel, asked from the kernel, so that a case knows whether it can run here.

use std::fmt;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result};

/// The sysfs folder of perf's dynamic kprobe PMU.
pub const KPROBE_PMU: &str = "/sys/bus/event_source/devices/kprobe";

/// A hook set: a value of `xctl --attach`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Set {
    Auto,
    Kprobe,
    Tracepoint,
    Fentry,
    /// `--attach kprobe+tracepoint`, which `auto` takes if it does not take `lsm`.
    Mixed,
    Lsm,
}

impl Set {
    /// Every set. The set with kprobes and kretprobes only comes first.
    pub const ALL: &'static [Set] = &[Set::Kprobe, Set::Auto, Set::Tracepoint, Set::Fentry, Set::Mixed, Set::Lsm];

    /// Why this kernel does not have the set; none if it has the set. The kernel is asked once.
    pub fn absent(self) -> Option<String> {
        static ANSWERS: [OnceLock<Option<String>>; Set::Lsm as usize + 1] =
            [const { OnceLock::new() }; Set::Lsm as usize + 1];
        ANSWERS[self as usize].get_or_init(|| self.ask()).clone()
    }

    /// Whether `auto` takes this set here: `lsm` if the LSM program sees every send, or else kprobes.
    pub fn is_taken_by_auto(self) -> bool {
        match self {
            Set::Lsm => self.absent().is_none() && !has_symbol("do_tcp_sendpages"),
            Set::Mixed => self.absent().is_none() && !Set::Lsm.is_taken_by_auto(),
            _ => false,
        }
    }

    fn ask(self) -> Option<String> {
        match self {
            Set::Kprobe | Set::Mixed => {
                (!Path::new(KPROBE_PMU).exists()).then(|| format!("this kernel has no kprobe PMU ({KPROBE_PMU})"))
            }
            // the two tracepoints that run in the context of the sender; BTF has a typedef for each tracepoint
            Set::Tracepoint => (!has_tracepoint("sock_send_length") && !shows_senders()).then(|| {
                "this kernel has no tracepoint that sees senders (sock_send_length, tcp_sendmsg_locked)".into()
            }),
            // register_fentry() in kernel/bpf/trampoline.c answers ENOTSUPP without direct calls
            Set::Fentry if !has_symbol("register_ftrace_direct") => {
                Some("this kernel has no ftrace direct calls, which fentry needs (register_ftrace_direct)".into())
            }
            Set::Fentry => (!takes_tracing_programs())
                .then(|| "this kernel refuses fentry programs, bpftool's too (program_type tracing)".into()),
            Set::Lsm if !Path::new(KPROBE_PMU).exists() => Set::Kprobe.absent(),
            Set::Lsm if !has_symbol("bpf_lsm_socket_sendmsg") => {
                Some("this kernel has no LSM programs (bpf_lsm_socket_sendmsg)".into())
            }
            Set::Lsm => (!active_lsms().split(',').any(|lsm| lsm == "bpf"))
                .then(|| format!("bpf is not among the active LSMs ({})", active_lsms())),
            Set::Auto => None,
        }
    }
}

/// The kernel's list of active security modules, as securityfs has it.
pub fn active_lsms() -> &'static str {
    static ANSWER: OnceLock<String> = OnceLock::new();
    ANSWER.get_or_init(|| {
        std::fs::read_to_string("/sys/kernel/security/lsm").map(|list| list.trim().to_owned()).unwrap_or_default()
    })
}

impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Set::Auto => "auto",
            Set::Kprobe => "kprobe",
            Set::Tracepoint => "tracepoint",
            Set::Fentry => "fentry",
            Set::Mixed => "kprobe+tracepoint",
            Set::Lsm => "lsm",
        })
    }
}

/// Whether the kernel has the tracepoint that shows a sender before the send (6.16 and newer).
pub fn shows_senders() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| has_tracepoint("tcp_sendmsg_locked"))
}

fn has_tracepoint(name: &str) -> bool {
    let typedef = format!("\0btf_trace_{name}\0");
    // the string section alone would do, but a plain search of 5 MB is quick and needs no parser
    std::fs::read("/sys/kernel/btf/vmlinux")
        .is_ok_and(|btf| btf.windows(typedef.len()).any(|bytes| bytes == typedef.as_bytes()))
}

/// Whether bpftool, an independent loader, can load a program of this type.
fn takes_tracing_programs() -> bool {
    let output = tool("bpftool").args(["-j", "feature", "probe", "kernel"]).output();
    let features = output.ok().and_then(|output| serde_json::from_slice::<serde_json::Value>(&output.stdout).ok());
    features.is_some_and(|features| features["program_types"]["have_tracing_prog_type"] == true)
}

/// Whether the kernel has a function or variable of this name.
pub fn has_symbol(name: &str) -> bool {
    std::fs::read_to_string("/proc/kallsyms")
        .is_ok_and(|symbols| symbols.lines().any(|line| line.split_whitespace().nth(2) == Some(name)))
}

/// The number of CPUs for which the kernel has room (possible CPUs).
pub fn possible_cpus() -> Result<usize> {
    let file = "/sys/devices/system/cpu/possible";
    let ranges = std::fs::read_to_string(file).with_context(|| format!("reading {file}"))?;
    let last = ranges.trim_end().rsplit([',', '-']).next().unwrap_or_default();
    Ok(last.parse::<usize>().with_context(|| format!("{file} says {ranges}"))? + 1)
}

/// Whether this is a PREEMPT_RT kernel.
pub fn is_realtime() -> bool {
    std::fs::read_to_string("/proc/version").is_ok_and(|version| version.contains("PREEMPT_RT"))
}

/// A system tool by its full path. In a guest, busybox may have an applet of the same name earlier in the PATH.
pub fn tool(name: &str) -> Command {
    let path = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(|directory| Path::new(directory).join(name));
    match path.iter().find(|path| path.exists()) {
        Some(path) => Command::new(path),
        None => Command::new(name),
    }
}

/// Whether this is the guest of tests/vm, where no other process has sockets.
pub fn is_guest() -> bool {
    // tests/vm/init sets this variable
    std::env::var_os("vm_tty").is_some()
}

/// The number of connections that a case of many makes: fewer in an emulated machine, unless `--full` asks for all.
pub fn crowd<T>(all: T, in_a_guest: T) -> T {
    if is_guest() && !is_full() { in_a_guest } else { all }
}

/// Whether `--full` was given.
pub fn is_full() -> bool {
    std::env::args().any(|arg| arg == "--full")
}
