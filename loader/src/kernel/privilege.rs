//! What this process may do, what stands in the way of it, and how to give up what is no longer needed.

use std::fmt;
use std::io;

use anyhow::{Context, Result, anyhow, ensure};
use nix::errno::Errno;
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

use super::host::read;
use super::symbols;
use crate::fault::{Blocked, Exit};

/// A Linux capability (include/uapi/linux/capability.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    /// Its bit.
    pub bit: u32,
    /// Its name, as setcap and systemd write it.
    pub name: &'static str,
    /// What xctl needs it for.
    pub purpose: &'static str,
}

const fn capability(bit: u32, name: &'static str, purpose: &'static str) -> Capability {
    Capability { bit, name, purpose }
}

/// To enter a network namespace; before 5.8 also for what BPF and PERFMON are for now, and it still stands for both.
pub const SYS_ADMIN: Capability = capability(
    21,
    "CAP_SYS_ADMIN",
    "where kernel.perf_event_paranoid is 3; to enter network namespaces (xctl sockets; --seed proc, --verify where only a \
     mount leads to one)",
);
/// To load programs.
pub const BPF: Capability = capability(39, "CAP_BPF", "to load programs and maps");
/// To attach them.
pub const PERFMON: Capability =
    capability(38, "CAP_PERFMON", "to attach them, read kernel memory in them, open perf rings");
/// To see into other users' processes.
pub const SYS_PTRACE: Capability =
    capability(19, "CAP_SYS_PTRACE", "to see other users' processes in /proc (--seed proc, --verify, xctl sockets)");
/// To read their directories.
pub const DAC_READ_SEARCH: Capability = capability(
    2,
    "CAP_DAC_READ_SEARCH",
    "to list other users' open files in /proc (--seed proc), and find namespaces that are mounted in their folders \
     (--seed proc, --verify, xctl sockets)",
);
/// To rename in other users' folders.
pub const DAC_OVERRIDE: Capability =
    capability(1, "CAP_DAC_OVERRIDE", "to give the record its final name in another user's folder (--record)");
/// To rename in folders where only a file's owner may (/tmp).
pub const FOWNER: Capability =
    capability(3, "CAP_FOWNER", "to give the record its final name in a folder like /tmp (--record with --user)");
/// To become another user.
pub const SETUID: Capability = capability(7, "CAP_SETUID", "to become another user (--user)");
/// To have that user's group, and no other.
pub const SETGID: Capability = capability(6, "CAP_SETGID", "to have another user's group (--user)");
/// To be shown addresses in /proc/kallsyms.
pub const SYSLOG: Capability = capability(34, "CAP_SYSLOG", "to know the addresses of hooks (--record)");
/// To lock more memory than RLIMIT_MEMLOCK, for rings.
pub const IPC_LOCK: Capability =
    capability(14, "CAP_IPC_LOCK", "for rings beyond kernel.perf_event_mlock_kb and RLIMIT_MEMLOCK (--perf-pages)");
/// To raise RLIMIT_MEMLOCK, for maps.
pub const SYS_RESOURCE: Capability = capability(
    24,
    "CAP_SYS_RESOURCE",
    "before Linux 5.11: to raise RLIMIT_MEMLOCK, which maps and programs count against",
);

/// Those that loading and attaching do not always need.
pub const OPTIONAL: [Capability; 10] =
    [SYS_RESOURCE, IPC_LOCK, SYS_PTRACE, DAC_READ_SEARCH, SYS_ADMIN, SETUID, SETGID, DAC_OVERRIDE, FOWNER, SYSLOG];

/// A set of capabilities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities(u64);

impl Capabilities {
    /// None.
    pub const NONE: Self = Self(0);

    /// These.
    #[must_use]
    pub fn of(list: &[Capability]) -> Self {
        Self(list.iter().fold(0, |bits, capability| bits | 1 << capability.bit))
    }

    /// Whether this one is among them.
    #[must_use]
    pub fn has(self, capability: Capability) -> bool {
        self.0 & 1 << capability.bit != 0
    }

    /// Those that are in both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// As the kernel has it: 1 << the capability's bit.
    #[must_use]
    pub fn bits(self) -> u64 {
        self.0
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = [BPF, PERFMON].into_iter().chain(OPTIONAL);
        let names: Vec<_> = known.filter(|&one| self.has(one)).map(|one| one.name).collect();
        if names.is_empty() { f.write_str("none") } else { f.write_str(&names.join(" ")) }
    }
}

/// `struct __user_cap_header_struct`, version 3: two words of data.
#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

/// `struct __user_cap_data_struct`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const VERSION_3: u32 = 0x2008_0522;

fn get() -> io::Result<[Data; 2]> {
    let mut header = Header { version: VERSION_3, pid: 0 };
    let mut data = [Data::default(); 2];
    // SAFETY: version 3 fills in two words of data for the calling thread; both structures are the kernel's own.
    let result = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(data) }
}

fn set(effective: Capabilities, permitted: Capabilities, inheritable: Capabilities) -> io::Result<()> {
    let mut header = Header { version: VERSION_3, pid: 0 };
    let word = |shift: u32| Data {
        effective: (effective.0 >> shift) as u32,
        permitted: (permitted.0 >> shift) as u32,
        inheritable: (inheritable.0 >> shift) as u32,
    };
    let data = [word(0), word(32)];
    // SAFETY: version 3 reads two words of data for the calling thread; both structures are the kernel's own.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// prctl(2) with one number, or two.
fn prctl(option: libc::c_int, first: libc::c_ulong, second: libc::c_ulong) -> io::Result<()> {
    const UNUSED: libc::c_ulong = 0;
    // SAFETY: the options that this file passes take numbers, no pointers.
    let result = unsafe { libc::prctl(option, first, second, UNUSED, UNUSED) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The capabilities in force for the calling thread.
///
/// # Errors
/// If the kernel does not tell.
pub fn effective() -> Result<Capabilities> {
    let [low, high] = get().context("cannot ask for this process's capabilities")?;
    Ok(Capabilities(u64::from(low.effective) | u64::from(high.effective) << 32))
}

/// To take capabilities out of the bounding set.
const SETPCAP: Capability = capability(8, "CAP_SETPCAP", "to give up for good what no program may be given any more");

/// Give up all capabilities of the calling thread but these for good; where that is permitted, also for whatever it may
/// execute.
///
/// # Errors
/// If it has not got one of them.
pub fn keep_only(keep: Capabilities) -> Result<()> {
    if effective()?.has(SETPCAP) {
        for bit in (0..64).filter(|bit| keep.0 & 1 << bit == 0) {
            match prctl(libc::PR_CAPBSET_DROP, bit, 0) {
                // No capability has this number, nor any that follow.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
                result => result.with_context(|| format!("cannot give up capability {bit} for good"))?,
            }
        }
    }
    set(keep, keep, Capabilities::NONE).context("cannot give up capabilities")
}

/// Whether something works without any capability. Those that are held are back in force afterwards.
///
/// # Errors
/// If they cannot be lowered or raised again.
pub fn works_without<T, E>(what: impl FnOnce() -> Result<T, E>) -> Result<bool> {
    let held = effective()?;
    set(Capabilities::NONE, held, Capabilities::NONE).context("cannot lower capabilities")?;
    let works = what().is_ok();
    set(held, held, Capabilities::NONE).context("cannot raise capabilities again")?;
    Ok(works)
}

/// Let programs that the calling thread executes have these too, though their user is not root ("ambient").
///
/// # Errors
/// If it has not got one of them itself.
pub fn hand_on(capabilities: Capabilities) -> Result<()> {
    set(capabilities, capabilities, capabilities).context("cannot make capabilities inheritable")?;
    for bit in (0..64).filter(|bit| capabilities.0 & 1 << bit != 0) {
        prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as libc::c_ulong, bit)
            .with_context(|| format!("cannot hand on capability {bit}"))?;
    }
    Ok(())
}

/// From now on executing a program never gives more privilege than this process has.
///
/// # Errors
/// If the kernel refuses.
pub fn no_new_privileges() -> Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).context("cannot set no_new_privs")
}

/// A user to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    /// Its number.
    pub uid: u32,
    /// That of its group.
    pub gid: u32,
}

impl User {
    /// From a name or number, and the text of /etc/passwd. A number that is not there has a group of the same number.
    ///
    /// # Errors
    /// If there is no such name.
    pub fn find(wanted: &str, passwd: &str) -> Result<Self> {
        // name:password:UID:GID:comment:home:shell
        let mut users = passwd.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let (uid, gid) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
            Some((name, Self { uid, gid }))
        });
        let number: Option<u32> = wanted.parse().ok();
        match (users.find(|(name, user)| *name == wanted || Some(user.uid) == number), number) {
            (Some((_, user)), _) => Ok(user),
            // chown(2) and setresuid(2) know it as "leave it as it is".
            (None, Some(uid)) if uid != u32::MAX => Ok(Self { uid, gid: uid }),
            (None, _) => Err(anyhow!("/etc/passwd has no user {wanted}")),
        }
    }

    /// Become this user, with no other groups than its own, and keep the capabilities that are held.
    ///
    /// # Errors
    /// [`Exit::Host`] without CAP_SETUID and CAP_SETGID.
    pub fn become_it(self) -> Result<()> {
        let held = effective()?;
        let what = || format!("cannot become user {}", self.uid);
        prctl(libc::PR_SET_KEEPCAPS, 1, 0).with_context(what)?;
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        let ids = || {
            setgroups(&[])?;
            setresgid(gid, gid, gid)?;
            setresuid(uid, uid, uid)
        };
        ids().map_err(|error| match error {
            Errno::EPERM => {
                let blocked = Blocked::new(what(), format!("it needs {} and {}", SETUID.name, SETGID.name));
                anyhow!(error).context(blocked).context(Exit::Host)
            }
            _ => anyhow!(error).context(what()),
        })?;
        // What became ineffective with the change is still permitted.
        set(held, held, Capabilities::NONE).with_context(what)?;
        ensure!(nix::unistd::geteuid() == uid, "the kernel did not make this process one of user {uid}");
        Ok(())
    }
}

/// What would show this process other users' processes and folders, and what these lead to. None: it has it.
///
/// # Errors
/// If the kernel does not tell.
pub fn to_see_others() -> Result<Option<String>> {
    let held = effective()?;
    let missing = [SYS_PTRACE, DAC_READ_SEARCH].into_iter().filter(|&one| !held.has(one));
    let names: Vec<_> = missing.map(|one| one.name).collect();
    Ok((!names.is_empty()).then(|| format!("give {}", names.join(" and "))))
}

/// The capabilities that loading and attaching need and this process lacks. CAP_SYS_ADMIN stands for both others, and is
/// the only one on a kernel that does not know them.
///
/// # Errors
/// If the kernel does not tell.
pub fn missing() -> Result<Vec<Capability>> {
    let (held, needed) = (effective()?, needed()?);
    if held.has(SYS_ADMIN) {
        return Ok(Vec::new());
    }
    Ok(needed.iter().copied().filter(|&capability| !held.has(capability)).collect())
}

/// The capabilities that loading and attaching take on this kernel, if one has not CAP_SYS_ADMIN.
///
/// # Errors
/// If the kernel does not tell.
pub fn needed() -> Result<&'static [Capability]> {
    let last: u32 = read("/proc/sys/kernel/cap_last_cap")?.trim().parse().context("cap_last_cap is not a number")?;
    Ok(if last >= BPF.bit { &[BPF, PERFMON] } else { &[SYS_ADMIN] })
}

/// How far the kernel is locked down: `none`, `integrity` or `confidentiality`; none if it does not tell.
#[must_use]
pub fn lockdown() -> Option<String> {
    let text = read("/sys/kernel/security/lockdown").ok()?;
    let (_, rest) = text.split_once('[')?;
    rest.split_once(']').map(|(mode, _)| mode.to_string())
}

fn is_locked_down() -> bool {
    lockdown().as_deref() == Some("confidentiality")
}

/// The limits of the memory that rings take, as they are.
#[must_use]
pub fn ring_limits() -> String {
    let memlock = memlock_limit().map_or("unlimited".into(), |bytes| format!("{} KiB", bytes / 1024));
    let own = read("/proc/sys/kernel/perf_event_mlock_kb");
    let own = own.as_deref().map_or("?", str::trim);
    format!("kernel.perf_event_mlock_kb is {own} for each CPU, RLIMIT_MEMLOCK {memlock}; or give CAP_IPC_LOCK")
}

/// The soft RLIMIT_MEMLOCK in bytes; none: unlimited, or not known.
#[must_use]
pub fn memlock_limit() -> Option<u64> {
    let limits = read("/proc/self/limits").ok()?;
    // Max locked memory         8388608              8388608              bytes
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// What this host shows of the usual causes for which the kernel refuses to load, with the remedy.
#[must_use]
pub fn load_blockers() -> Vec<String> {
    let mut causes = Vec::new();
    if read("/proc/self/uid_map").is_ok_and(|map| !is_initial(&map)) {
        causes.push(
            "this is not the initial user namespace, and only that one's capabilities count: run it on the host".into(),
        );
    }
    if is_locked_down() {
        causes.push(LOCKED_DOWN.into());
    }
    // What counted maps against RLIMIT_MEMLOCK, until 5.10.
    const CHARGE: &str = "bpf_map_charge_init";
    let counts = || symbols::count([CHARGE]).is_ok_and(|counts| counts[CHARGE] > 0);
    let may_raise = effective().is_ok_and(|held| held.has(SYS_RESOURCE));
    if let Some(bytes) = memlock_limit().filter(|_| !may_raise && counts()) {
        causes.push(memlock_remedy(bytes));
    }
    causes
}

/// Whether this map of user ids is that of the initial user namespace: all of them, as they are.
fn is_initial(map: &str) -> bool {
    map.split_ascii_whitespace().eq(["0", "0", "4294967295"])
}

/// The remedy where perf is not permitted.
#[must_use]
pub fn perf_remedy() -> String {
    let paranoid = read("/proc/sys/kernel/perf_event_paranoid").ok().and_then(|value| value.trim().parse::<i32>().ok());
    let all_powerful = effective().is_ok_and(|held| held.has(SYS_ADMIN));
    if is_locked_down() {
        return LOCKED_DOWN.into();
    }
    match paranoid {
        // A level that distributions have added.
        Some(level @ 3..) if !all_powerful => format!(
            "kernel.perf_event_paranoid is {level}, where this kernel may want CAP_SYS_ADMIN: set it to 2, or give that"
        ),
        _ => "it needs CAP_PERFMON (CAP_SYS_ADMIN before 5.8), and a kernel that is not locked down".into(),
    }
}

/// The remedy for a kernel that is locked down too far.
pub const LOCKED_DOWN: &str = "the kernel is locked down (lockdown=confidentiality), so that no program may read its \
                               memory: boot it with lockdown=integrity, or none";

/// The remedy where maps count against RLIMIT_MEMLOCK.
#[must_use]
pub fn memlock_remedy(limit: u64) -> String {
    format!(
        "RLIMIT_MEMLOCK is {} KiB, and maps count against it: raise it (ulimit -l), or give CAP_SYS_RESOURCE",
        limit / 1024
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_user_is_a_name_or_a_number() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\n#odd\nnobody:x:65534:65533:nobody:/:/bin/sh\n";
        let nobody = User { uid: 65534, gid: 65533 };
        assert_eq!(User::find("nobody", passwd).unwrap(), nobody);
        assert_eq!(User::find("65534", passwd).unwrap(), nobody);
        assert_eq!(User::find("17", passwd).unwrap(), User { uid: 17, gid: 17 });
        for wrong in ["nobod", "", "-1", "4294967295", "x"] {
            assert!(User::find(wrong, passwd).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_in_force_is_what_proc_says() {
        let status = read("/proc/thread-self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
        assert_eq!(effective().unwrap(), Capabilities(u64::from_str_radix(line.trim(), 16).unwrap()));
    }

    #[test]
    fn the_initial_user_namespace_maps_everybody() {
        assert!(is_initial("         0          0 4294967295\n"));
        assert!(!is_initial("         0       1000          1\n") && !is_initial(""));
    }

    #[test]
    fn a_set_is_written_as_its_names() {
        let set = Capabilities::of(&[PERFMON, BPF]);
        assert_eq!(set.to_string(), "CAP_BPF CAP_PERFMON");
        assert!(set.has(BPF) && !set.has(SYS_ADMIN) && set.and(Capabilities::of(&[SYS_ADMIN])).is_empty());
        assert_eq!(Capabilities::NONE.to_string(), "none");
    }
}
