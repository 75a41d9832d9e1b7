//! What the record says of this process's capabilities.

use serde::Serialize;

use crate::kernel::privilege;

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

/// What this process may do, and what it takes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Capabilities {
    /// Effective when the run began; a bit that has no name here is shown as its number.
    pub held: Vec<String>,
    /// What loading and attaching take; CAP_SYS_ADMIN stands for CAP_BPF and CAP_PERFMON, and is there in place of them
    /// before 5.8. Until 5.10 CAP_SYS_RESOURCE too, which a large RLIMIT_MEMLOCK makes up for.
    pub needed: Vec<String>,
}

impl Capabilities {
    /// Ask the kernel; none if it does not tell.
    #[must_use]
    pub fn ask() -> Option<Self> {
        let needed = privilege::needed().ok()?.iter().map(|one| one.name.to_owned());
        Some(Self { held: names(privilege::effective().ok()?.bits()), needed: needed.collect() })
    }

    /// On this kernel maps count against RLIMIT_MEMLOCK.
    pub fn take_memlock(&mut self) {
        self.needed.push(privilege::SYS_RESOURCE.name.to_owned());
    }
}

fn names(set: u64) -> Vec<String> {
    let held = (0..64).filter(|bit| set & (1 << bit) != 0);
    held.map(|bit| CAPABILITIES.get(bit).map_or_else(|| bit.to_string(), |name| (*name).to_owned())).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn capabilities_have_names() {
        assert_eq!(names(1 << 21 | 1 << 39), ["CAP_SYS_ADMIN", "CAP_BPF"]);
        assert_eq!(names(1 << 63), ["63"]);
        assert!(Capabilities::ask().unwrap().needed.iter().all(|name| name.starts_with("CAP_")));
    }
}
