//! Settings of this host that limit a process with the right capabilities too: lockdown, user namespaces,
//! `kernel.perf_event_paranoid`, RLIMIT_MEMLOCK and RLIMIT_NOFILE; and their remedies.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::capability::{SYS_ADMIN, SYS_RESOURCE};
use super::file::read;
use super::privilege::effective;
use super::symbols;

/// The lockdown level of the kernel: `none`, `integrity` or `confidentiality`; none if the kernel does not tell.
#[must_use]
pub fn lockdown() -> Option<String> {
    let text = read("/sys/kernel/security/lockdown").ok()?;
    let (_, rest) = text.split_once('[')?;
    rest.split_once(']').map(|(mode, _)| mode.to_string())
}

fn is_locked_down() -> bool {
    lockdown().as_deref() == Some("confidentiality")
}

/// The current limits of the memory that rings take.
#[must_use]
pub fn ring_limits() -> String {
    let memlock = memlock_limit().map_or("unlimited".into(), |bytes| format!("{} KiB", bytes / 1024));
    let own = read("/proc/sys/kernel/perf_event_mlock_kb");
    let own = own.as_deref().map_or("?", str::trim);
    format!("kernel.perf_event_mlock_kb is {own} for each CPU, RLIMIT_MEMLOCK {memlock}; or give CAP_IPC_LOCK")
}

/// The soft RLIMIT_MEMLOCK in bytes; none if the limit is unlimited or unknown.
#[must_use]
pub fn memlock_limit() -> Option<u64> {
    let limits = read("/proc/self/limits").ok()?;
    // The line is `Max locked memory         8388608              8388608              bytes`.
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The usual causes of a refusal to load that apply to this host, with the remedy.
#[must_use]
pub fn load_blockers() -> Vec<String> {
    let mut causes = Vec::new();
    if read("/proc/self/uid_map").is_ok_and(|map| !is_initial(&map)) {
        causes.push(
            "this is not the initial user namespace, and only capabilities in the initial one count: run xctl on the host".into(),
        );
    }
    if is_locked_down() {
        causes.push(LOCKED_DOWN.into());
    }
    // This function counted maps against RLIMIT_MEMLOCK, until 5.10.
    const CHARGE: &str = "bpf_map_charge_init";
    let counts = || symbols::count([CHARGE]).is_ok_and(|counts| counts[CHARGE] > 0);
    let may_raise = effective().is_ok_and(|held| held.has(SYS_RESOURCE));
    if let Some(bytes) = memlock_limit().filter(|_| !may_raise && counts()) {
        causes.push(memlock_remedy(bytes));
    }
    causes
}

/// Whether this map of user ids is that of the initial user namespace, which maps every id to itself.
fn is_initial(map: &str) -> bool {
    map.split_ascii_whitespace().eq(["0", "0", "4294967295"])
}

/// The remedy if perf is not permitted.
#[must_use]
pub fn perf_remedy() -> String {
    let paranoid = read("/proc/sys/kernel/perf_event_paranoid").ok().and_then(|value| value.trim().parse::<i32>().ok());
    let all_powerful = effective().is_ok_and(|held| held.has(SYS_ADMIN));
    if is_locked_down() {
        return LOCKED_DOWN.into();
    }
    match paranoid {
        // Distributions have added this level.
        Some(level @ 3..) if !all_powerful => format!(
            "kernel.perf_event_paranoid is {level}, and at that level this kernel may require CAP_SYS_ADMIN: set the level to 2, or give CAP_SYS_ADMIN"
        ),
        _ => "give CAP_PERFMON (CAP_SYS_ADMIN before 5.8), and use a kernel that is not locked down".into(),
    }
}

/// The remedy for a kernel whose lockdown level is too high.
pub const LOCKED_DOWN: &str = "the kernel is locked down (lockdown=confidentiality), so that no program may read its \
                               memory: boot it with lockdown=integrity, or none";

/// The remedy if maps count against RLIMIT_MEMLOCK.
#[must_use]
pub fn memlock_remedy(limit: u64) -> String {
    format!(
        "RLIMIT_MEMLOCK is {} KiB, and maps count against that limit: raise it (ulimit -l), or give CAP_SYS_RESOURCE",
        limit / 1024
    )
}

/// Let this process open as many files as its hard limit permits. An error leaves the limit as it is: opening one file too
/// many then fails by itself.
pub fn raise_open_files() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_initial_user_namespace_maps_everybody() {
        assert!(is_initial("         0          0 4294967295\n"));
        assert!(!is_initial("         0       1000          1\n") && !is_initial(""));
    }
}
