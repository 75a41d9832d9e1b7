//! What the record says of the host: its files tell.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader};

use serde::Serialize;

/// Capabilities by bit, as include/uapi/linux/capability.h names them.
#[rustfmt::skip]
const CAPABILITIES: [&str; 41] = [
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID",
    "CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN",
    "CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
];

const PERFMON: usize = 38;
const BPF: usize = 39;

/// What this process may do, and what it takes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Capabilities {
    /// Effective when the run began; a bit that has no name here is shown as its number.
    pub held: Vec<String>,
    /// What loading and attaching take; CAP_SYS_ADMIN stands for the others, and is the only one before 5.8.
    pub needed: Vec<String>,
}

impl Capabilities {
    /// Ask /proc; none if it does not tell.
    #[must_use]
    pub fn ask() -> Option<Self> {
        let status = fs::read_to_string("/proc/self/status").ok()?;
        let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
        let effective = u64::from_str_radix(effective.trim(), 16).ok()?;
        let last: usize = fs::read_to_string("/proc/sys/kernel/cap_last_cap").ok()?.trim().parse().ok()?;
        let needed: &[_] = if last >= BPF { &[CAPABILITIES[BPF], CAPABILITIES[PERFMON]] } else { &["CAP_SYS_ADMIN"] };
        Some(Self { held: names(effective), needed: needed.iter().map(|name| (*name).to_owned()).collect() })
    }
}

fn names(set: u64) -> Vec<String> {
    let held = (0..64).filter(|bit| set & (1 << bit) != 0);
    held.map(|bit| CAPABILITIES.get(bit).map_or_else(|| bit.to_string(), |name| (*name).to_owned())).collect()
}

/// The kernel's release; empty if it does not tell.
#[must_use]
pub fn release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

/// The addresses of these kernel symbols, of those that the kernel shows to us: an address that is hidden, and a name that
/// several symbols have, is not in it.
#[must_use]
pub fn addresses(symbols: &[String]) -> HashMap<String, u64> {
    match fs::File::open("/proc/kallsyms") {
        Ok(file) => find(symbols, BufReader::new(file)),
        Err(_) => HashMap::new(),
    }
}

fn find(symbols: &[String], mut kallsyms: impl BufRead) -> HashMap<String, u64> {
    let mut found: HashMap<String, Vec<u64>> = HashMap::new();
    let mut line = String::new();
    while let Ok(1..) = kallsyms.read_line(&mut line) {
        // address, kind, name, and a module's in brackets
        let mut words = line.split_ascii_whitespace();
        if let (Some(address), Some(_), Some(name)) = (words.next(), words.next(), words.next())
            && symbols.iter().any(|symbol| symbol == name)
            && let Ok(address) = u64::from_str_radix(address, 16)
        {
            found.entry(name.to_owned()).or_default().push(address);
        }
        line.clear();
    }
    let only = |(name, addresses): (String, Vec<u64>)| match addresses.as_slice() {
        [address] if *address != 0 => Some((name, *address)),
        _ => None,
    };
    found.into_iter().filter_map(only).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn hidden_and_ambiguous_addresses_are_unknown() {
        let kallsyms = b"ffffffff81000000 T tcp_sendmsg\n0000000000000000 T hidden\nffffffff81000010 t twice\n\
                         ffffffff81000020 t twice\nffffffffc0000000 T other\t[module]\n";
        let wanted = ["tcp_sendmsg", "hidden", "twice", "absent"].map(str::to_owned);
        let found = find(&wanted, &kallsyms[..]);
        assert_eq!(found, HashMap::from([("tcp_sendmsg".to_owned(), 0xffff_ffff_8100_0000)]));
    }

    #[test]
    fn capabilities_have_names() {
        assert_eq!(names(1 << 21 | 1 << 39), ["CAP_SYS_ADMIN", "CAP_BPF"]);
        assert_eq!(names(1 << 63), ["63"]);
        assert!(Capabilities::ask().unwrap().needed.iter().all(|name| name.starts_with("CAP_")));
    }
}
