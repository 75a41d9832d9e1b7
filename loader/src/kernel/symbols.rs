//! What the kernel says about its own functions. Safe code.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader};

use anyhow::{Context, Result};

use super::host::read;

/// How many functions of each of these names the kernel has. A kprobe can only go to a name that is there once.
///
/// # Errors
/// If /proc/kallsyms cannot be read.
pub fn count<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<HashMap<&'a str, usize>> {
    const KALLSYMS: &str = "/proc/kallsyms";
    let mut counts: HashMap<_, _> = names.into_iter().map(|name| (name, 0)).collect();
    let mut file = BufReader::new(File::open(KALLSYMS).with_context(|| format!("cannot read {KALLSYMS}"))?);
    let mut line = Vec::new();
    while file.read_until(b'\n', &mut line).with_context(|| format!("cannot read {KALLSYMS}"))? > 0 {
        if let Some(count) = function(&line).and_then(|name| counts.get_mut(name)) {
            *count += 1;
        }
        line.clear();
    }
    Ok(counts)
}

/// The name in a line such as `0000000000000000 T tcp_sendmsg`, if it is of code (t, T, w, W).
fn function(line: &[u8]) -> Option<&str> {
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace().skip(1);
    let kind = words.next()?;
    matches!(kind, "t" | "T" | "w" | "W").then(|| words.next()).flatten()
}

/// The functions that may not be probed; none if debugfs does not tell.
#[must_use]
pub fn blacklist() -> Option<Vec<String>> {
    let text = read("/sys/kernel/debug/kprobes/blacklist").ok()?;
    // 0xffffffff81001234-0xffffffff81001278	name
    Some(text.lines().filter_map(|line| line.split_ascii_whitespace().nth(1)).map(str::to_string).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_code_is_a_function() {
        assert_eq!(function(b"ffffffff81a0 T tcp_sendmsg\n"), Some("tcp_sendmsg"));
        assert_eq!(function(b"0000000000000000 t x\t[module]\n"), Some("x"));
        assert_eq!(function(b"0000000000000000 D tcp_prot\n"), None);
        assert_eq!(function(b"odd"), None);
    }

    #[test]
    fn this_kernel_has_one_tcp_sendmsg() {
        let counts = count(["tcp_sendmsg", "no_such_function"]).unwrap();
        assert_eq!(counts["no_such_function"], 0);
        assert!(counts["tcp_sendmsg"] >= 1);
    }
}
