//! The reason why the kernel or libbpf refused the object: the cause, the remedy, and the decisive lines of the verifier's
//! log.

use std::fmt::Write as _;

use anyhow::{Error, anyhow};

use crate::error::{Blocked, Exit};
use crate::kernel::limits;

/// Whether the verifier said that no helper reads kernel memory. libbpf takes the older helper if the kernel refuses a
/// trivial program with the newer one. A kernel has neither only while it is locked down (LOCKDOWN_BPF_READ_KERNEL), even if
/// the kernel does not report the lockdown.
pub(super) fn may_not_read(messages: &str) -> bool {
    let refused = |line: &str| line.starts_with("unknown func ") || line.contains(" cannot use helper ");
    messages.lines().any(|line| refused(line) && line.contains(" bpf_probe_read"))
}

/// The class of a failure to load, and the remedy.
pub(super) fn class_and_remedy(errno: Option<i32>) -> (Exit, Blocked) {
    let by_host = |found, remedy| (Exit::Host, Blocked::new(found, remedy));
    match errno {
        Some(libc::EPERM) => (Exit::Host, not_permitted()),
        Some(libc::ENOMEM) => {
            by_host("the kernel has no memory for the programs and maps", "use a smaller --max-sockets, or free memory")
        }
        Some(libc::EMFILE) => by_host("too many open files to load the object", "raise the limit (ulimit -n)"),
        Some(libc::ENFILE) => by_host("the host has too many open files to load the object", "raise fs.file-max"),
        _ => (
            Exit::Object,
            Blocked::new(
                "the object was not loaded",
                "`xctl inspect` says whether the object fits this kernel's types",
            ),
        ),
    }
}

/// The reason why a load is not permitted. EPERM says little, so this names the usual causes that this host shows.
fn not_permitted() -> Blocked {
    let mut causes = limits::load_blockers();
    if causes.is_empty() {
        causes.push("possible causes are lockdown, a security module and a memory limit".into());
    }
    Blocked::new("the kernel does not permit loading the object", causes.join("; "))
}

/// Add the decisive lines of libbpf's and the verifier's messages.
pub(super) fn explain(error: Error, messages: &str) -> Error {
    match decisive(messages) {
        lines if lines.is_empty() => error,
        lines => anyhow!("{error:#}\n{lines}\n(-v shows the whole log)"),
    }
}

/// The end of the verifier's log, which names the refused instruction, and libbpf's last message; without the statistics.
fn decisive(messages: &str) -> String {
    const LINES: usize = 6;
    let noise = |line: &&str| {
        line.is_empty()
            || line.starts_with("processed ")
            || line.starts_with("verification time")
            || line.starts_with("stack depth")
            || line.contains("PROG LOAD LOG")
    };
    let lines: Vec<_> = messages.lines().map(str::trim_end).filter(|line| !noise(line)).collect();
    let mut text = String::new();
    for line in &lines[lines.len().saturating_sub(LINES)..] {
        let _ = writeln!(text, "  {line}");
    }
    text.truncate(text.trim_end().len());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_decisive_lines_of_a_verifier_log_are_shown() {
        let log = "libbpf: prog 'x': -- BEGIN PROG LOAD LOG --\n0: (b7) r0 = 1\n; return 0;\n1: (79) r1 = *(u64 *)(r1 \
                   +8)\ninvalid bpf_context access off=8 size=8\nprocessed 2 insns (limit 1000000)\n-- END PROG LOAD LOG \
                   --\nlibbpf: prog 'x': failed to load: -13\n";
        let text = decisive(log);
        assert!(text.contains("invalid bpf_context access") && text.ends_with("failed to load: -13"), "{text}");
        assert!(!text.contains("processed"), "{text}");
        assert_eq!(decisive(""), "");
    }

    #[test]
    fn a_locked_down_kernel_is_distinguished_from_a_bad_object() {
        assert!(may_not_read("59: (85) call bpf_probe_read#4\nunknown func bpf_probe_read#4\n"));
        assert!(may_not_read("program of this type cannot use helper bpf_probe_read_kernel#113\n"));
        assert!(!may_not_read("59: (85) call bpf_probe_read#4\nunknown func bpf_loop#181\n"));
    }
}
