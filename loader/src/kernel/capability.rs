//! The Linux capabilities that xctl uses, with their purposes; and sets of capabilities.

use std::fmt;

/// A Linux capability (include/uapi/linux/capability.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    /// The number of the capability's bit.
    pub bit: u32,
    /// The capability's name, as setcap and systemd write it.
    pub name: &'static str,
    /// The purpose for which xctl needs the capability.
    pub purpose: &'static str,
}

const fn capability(bit: u32, purpose: &'static str) -> Capability {
    Capability { bit, name: NAMES[bit as usize], purpose }
}

/// The names of capabilities by bit, as in include/uapi/linux/capability.h.
#[rustfmt::skip]
const NAMES: [&str; 41] = [
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID",
    "CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN",
    "CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
];

/// Entering a network namespace takes CAP_SYS_ADMIN. Before 5.8 CAP_SYS_ADMIN was needed for the operations that
/// CAP_BPF and CAP_PERFMON permit now, and CAP_SYS_ADMIN still includes both.
pub const SYS_ADMIN: Capability = capability(
    21,
    "where kernel.perf_event_paranoid is 3; to enter network namespaces (xctl sockets; --seed proc, --verify where only a \
     mount leads to one)",
);
/// Loading programs takes CAP_BPF.
pub const BPF: Capability = capability(39, "to load programs and maps");
/// Attaching programs takes CAP_PERFMON.
pub const PERFMON: Capability = capability(38, "to attach them, read kernel memory in them, open perf rings");
/// Seeing into other users' processes takes CAP_SYS_PTRACE.
pub const SYS_PTRACE: Capability =
    capability(19, "to see other users' processes in /proc (--seed proc, --verify, xctl sockets)");
/// Reading the directories of other users' processes takes CAP_DAC_READ_SEARCH.
pub const DAC_READ_SEARCH: Capability = capability(
    2,
    "to list other users' open files in /proc (--seed proc), and find namespaces that are mounted in their folders \
     (--seed proc, --verify, xctl sockets)",
);
/// Renaming in other users' folders takes CAP_DAC_OVERRIDE.
pub const DAC_OVERRIDE: Capability =
    capability(1, "to rename and remove files in another user's folder (--record, --metrics-file, --metrics unix:)");
/// Renaming in a folder where only a file's owner may (/tmp) takes CAP_FOWNER.
pub const FOWNER: Capability = capability(
    3,
    "to rename and remove files in a folder like /tmp (--record, --metrics-file, --metrics unix:; with --user)",
);
/// Becoming another user takes CAP_SETUID.
pub const SETUID: Capability = capability(7, "to become another user (--user)");
/// Having the group of that user, and no other group, takes CAP_SETGID.
pub const SETGID: Capability = capability(6, "to have another user's group (--user)");
/// Reading addresses in /proc/kallsyms takes CAP_SYSLOG.
pub const SYSLOG: Capability = capability(34, "to read the addresses of hooks (--record)");
/// Locking more memory than RLIMIT_MEMLOCK, for rings, takes CAP_IPC_LOCK.
pub const IPC_LOCK: Capability =
    capability(14, "for rings beyond kernel.perf_event_mlock_kb and RLIMIT_MEMLOCK (--perf-pages)");
/// Raising RLIMIT_MEMLOCK, for maps, takes CAP_SYS_RESOURCE.
pub const SYS_RESOURCE: Capability =
    capability(24, "before Linux 5.11: to raise RLIMIT_MEMLOCK, which maps and programs count against");

/// Taking capabilities out of the bounding set takes CAP_SETPCAP.
pub const SETPCAP: Capability = capability(8, "to take capabilities out of the bounding set for good");

/// The capabilities that loading and attaching do not always need.
pub const OPTIONAL: [Capability; 10] =
    [SYS_RESOURCE, IPC_LOCK, SYS_PTRACE, DAC_READ_SEARCH, SYS_ADMIN, SETUID, SETGID, DAC_OVERRIDE, FOWNER, SYSLOG];

/// A set of capabilities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities(pub u64);

impl Capabilities {
    /// The empty set.
    pub const NONE: Self = Self(0);

    /// The set of these capabilities.
    #[must_use]
    pub fn of(list: &[Capability]) -> Self {
        Self(list.iter().fold(0, |bits, capability| bits | 1 << capability.bit))
    }

    /// Whether the set has this capability.
    #[must_use]
    pub fn has(self, capability: Capability) -> bool {
        self.0 & 1 << capability.bit != 0
    }

    /// The capabilities that are in both sets.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The names of the capabilities in the set. A capability without a known name is shown as its bit's number.
    #[must_use]
    pub fn names(self) -> Vec<String> {
        let bits = (0..64).filter(|bit| self.0 & 1 << bit != 0);
        bits.map(|bit| NAMES.get(bit).map_or_else(|| bit.to_string(), |&name| name.to_owned())).collect()
    }

    /// Whether the set is empty.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// The capabilities that xctl uses.
impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = [BPF, PERFMON].into_iter().chain(OPTIONAL);
        let names: Vec<_> = known.filter(|&one| self.has(one)).map(|one| one.name).collect();
        if names.is_empty() { f.write_str("none") } else { f.write_str(&names.join(" ")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_written_as_its_names() {
        let set = Capabilities::of(&[PERFMON, BPF]);
        assert_eq!(set.to_string(), "CAP_BPF CAP_PERFMON");
        assert_eq!(Capabilities(1 << 21 | 1 << 63).names(), ["CAP_SYS_ADMIN", "63"]);
        assert!(set.has(BPF) && !set.has(SYS_ADMIN) && set.and(Capabilities::of(&[SYS_ADMIN])).is_empty());
        assert_eq!(Capabilities::NONE.to_string(), "none");
    }
}
