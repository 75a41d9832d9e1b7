//! Facts about this host, as its files tell them: CPUs, the kprobe PMU, namespaces, processes. Safe code.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use nix::sys::signal::kill;

use super::clock;
use super::file::read;
use super::source;

const KPROBE_PMU: &str = "/sys/bus/event_source/devices/kprobe";

/// Parse a CPU list such as `0-3,8,10-11`. The list can have gaps.
fn parse_cpu_list(list: &str) -> Option<Vec<u32>> {
    let mut cpus = Vec::new();
    for range in list.trim().split(',').filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        if last > 1 << 16 {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

/// Ids of the online CPUs, ascending; at least one.
///
/// # Errors
/// If sysfs does not tell.
pub fn online_cpus() -> Result<Vec<u32>> {
    const ONLINE: &str = "/sys/devices/system/cpu/online";
    let list = read(ONLINE)?;
    parse_cpu_list(&list)
        .filter(|cpus| !cpus.is_empty())
        .ok_or_else(|| anyhow!("{ONLINE} holds {list:?}, which is not a list of CPUs"))
}

/// Bytes of memory that are available without swapping; none if the kernel does not tell.
#[must_use]
pub fn available_memory() -> Option<u64> {
    let meminfo = read("/proc/meminfo").ok()?;
    let available = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = available.trim().strip_suffix(" kB")?.parse().ok()?;
    kib.checked_mul(1024)
}

/// The file systems with the kernel's own files. Each entry has the mount point, a path that must exist on it, and the
/// command that mounts it.
const FILE_SYSTEMS: [(&str, &str, &str); 2] = [
    ("/proc", "/proc/self/stat", "mount -t proc proc /proc"),
    ("/sys", "/sys/devices/system/cpu/online", "mount -t sysfs sysfs /sys"),
];

/// The first of these file systems that is not mounted, and the command that mounts it.
#[must_use]
pub fn not_mounted() -> Option<(&'static str, &'static str)> {
    let missing = FILE_SYSTEMS.iter().find(|(_, place, _)| !Path::new(place).exists());
    missing.map(|&(root, _, remedy)| (root, remedy))
}

/// The numbers with which perf is asked for a kprobe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KprobePmu {
    /// The value of perf_event_attr.type.
    pub pmu: u32,
    /// The number of the bit in perf_event_attr.config that asks for a return probe.
    pub return_bit: u32,
}

/// The kernel's kprobe PMU; none if the kernel was built without it.
///
/// # Errors
/// If the files of the PMU hold unexpected text.
pub fn kprobe_pmu() -> Result<Option<KprobePmu>> {
    let pmu = Path::new(KPROBE_PMU);
    // A container may have an empty folder at this path.
    if !pmu.join("type").exists() {
        return Ok(None);
    }
    let number = |text: &str| text.trim().parse().ok();
    let kind = read(pmu.join("type"))?;
    let format = read(pmu.join("format/retprobe"))?;
    let pmu = number(&kind).ok_or_else(|| anyhow!("{KPROBE_PMU}/type holds {kind:?}"))?;
    let return_bit = format
        .trim()
        .strip_prefix("config:")
        .and_then(number)
        .filter(|&bit| bit < 64)
        .ok_or_else(|| anyhow!("{KPROBE_PMU}/format/retprobe holds {format:?}"))?;
    Ok(Some(KprobePmu { pmu, return_bit }))
}

/// The kernel's release, as `uname -r` says it.
///
/// # Errors
/// If /proc does not tell.
pub fn release() -> Result<String> {
    Ok(read("/proc/sys/kernel/osrelease")?.trim().to_string())
}

/// The file with this kernel's own types, if there is one. libbpf passes numbers of types to the kernel: the place of a
/// fentry program, and the kind of an iterator. Only the kernel's own BTF has these numbers.
pub fn own_btf() -> Option<PathBuf> {
    source::find(&release().ok()?)
}

/// Whether this process is in the initial PID namespace, whose inode number is fixed (PROC_PID_INIT_INO).
///
/// # Errors
/// If /proc does not tell.
pub fn in_initial_pid_namespace() -> Result<bool> {
    const OWN: &str = "/proc/self/ns/pid";
    const INITIAL: u64 = 0xefff_fffc;
    Ok(fs::metadata(OWN).with_context(|| format!("cannot read {OWN}"))?.ino() == INITIAL)
}

/// The number of TCP sockets of this host, in all its network namespaces.
///
/// # Errors
/// If /proc does not tell.
pub fn tcp_sockets() -> Result<u32> {
    const SOCKSTAT: &str = "/proc/net/sockstat";
    // In `TCP: inuse 2 orphan 0 tw 0 alloc 3 mem 0`, `alloc` is the host's. The other numbers are the namespace's.
    let sockstat = read(SOCKSTAT)?;
    let tcp = sockstat.lines().find_map(|line| line.strip_prefix("TCP: "));
    tcp.and_then(|tcp| tcp.split(' ').skip_while(|&word| word != "alloc").nth(1))
        .and_then(|count| count.parse().ok())
        .ok_or_else(|| anyhow!("{SOCKSTAT} does not tell how many TCP sockets are allocated"))
}

/// Whether the process that started at `born` (ns of CLOCK_BOOTTIME) still exists under this PID. A reused PID belongs
/// to a process that started later. A process that has ended counts as gone, even if its parent has not waited for it
/// yet.
#[must_use]
pub fn is_alive(tgid: u32, born: u64) -> bool {
    match fs::read(format!("/proc/{tgid}/stat")) {
        Ok(stat) => match Stat::parse(&stat) {
            Some(stat) => !stat.ended && stat.may_have_started(born),
            None => true,
        },
        // /proc may hide other users' processes (hidepid). Signal 0 tells all the same whether they exist.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let pid = i32::try_from(tgid).map(nix::unistd::Pid::from_raw);
            pid.is_ok_and(|pid| kill(pid, None) != Err(Errno::ESRCH))
        }
        Err(_) => true,
    }
}

/// The clock tick in which /proc counts (USER_HZ), in ns.
const TICK: u64 = 10_000_000;

/// The start time of a process, in ns of CLOCK_BOOTTIME, rounded down to a clock tick of 10 ms; none if the text of the
/// kernel has an unknown format.
///
/// # Errors
/// `NotFound`: there is no such process.
pub fn started(tgid: u32) -> io::Result<Option<u64>> {
    let stat = fs::read(format!("/proc/{tgid}/stat"))?;
    Ok(Stat::parse(&stat).map(|stat| stat.started / TICK * TICK))
}

/// The start time as in [`started()`], once the clock tick of the start is over. From then on no other process can have
/// the same PID and the same tick.
#[must_use]
pub fn started_for_good(tgid: u32) -> Option<u64> {
    // In a time namespace the start may be in the next tick of the host's clock.
    const OVER: u64 = 2 * TICK;
    loop {
        let born = started(tgid).ok()??;
        let age = clock::boottime_ns().ok()?.saturating_sub(born);
        if age >= OVER {
            return Some(born);
        }
        thread::sleep(Duration::from_nanos(OVER - age));
    }
}

/// The fields of /proc/PID/stat that matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    /// All threads of the process have exited.
    ended: bool,
    /// The start time, in ns of CLOCK_BOOTTIME. The process started at this time or less than a tick later.
    started: u64,
}

impl Stat {
    fn parse(stat: &[u8]) -> Option<Self> {
        // The name, field 2, may hold any character, and ends with the last parenthesis.
        let stat = String::from_utf8_lossy(stat);
        let mut fields = stat.rsplit_once(") ")?.1.split(' ');
        // Field 3 is the state of the main thread. Field 20 is the number of threads; the main thread counts until its
        // parent has waited for it. Field 22 is the start time in clock ticks.
        let state = fields.next()?;
        let threads: u64 = fields.nth(16)?.parse().ok()?;
        let ticks: u64 = fields.nth(1)?.parse().ok()?;
        let ended = matches!(state, "Z" | "X" | "x") && threads <= 1;
        Some(Self { ended, started: clock::boottime_of_host(ticks.checked_mul(TICK)?) })
    }

    /// In a time namespace whose offset is not a whole number of ticks, the start may be in either of two ticks of the
    /// host's clock.
    fn may_have_started(self, born: u64) -> bool {
        let born = born / TICK * TICK;
        born >= self.started / TICK * TICK && born < self.started.saturating_add(TICK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists_may_have_gaps() {
        assert_eq!(parse_cpu_list("0-2,5,7-8\n"), Some(vec![0, 1, 2, 5, 7, 8]));
        assert_eq!(parse_cpu_list("3\n"), Some(vec![3]));
        assert_eq!(parse_cpu_list("0-x"), None);
        assert_eq!(parse_cpu_list("0-99999999"), None);
    }

    #[test]
    fn this_process_is_alive_and_its_pid_was_not_always_its_own() {
        let stat = fs::read_to_string("/proc/self/stat").unwrap();
        let ticks: u64 = stat.rsplit_once(") ").unwrap().1.split(' ').nth(19).unwrap().parse().unwrap();
        let born = ticks * 10_000_000;
        assert!(is_alive(std::process::id(), born));
        assert!(!is_alive(std::process::id(), born + 10_000_000));
        assert!(!is_alive(u32::MAX, born));
    }

    #[test]
    fn a_known_start_time_lies_in_a_tick_that_has_passed() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let born = started_for_good(child.id());
        let now = clock::boottime_ns().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(born.is_some_and(|born| born + TICK <= now), "{born:?}, {now}");
        assert_eq!(started_for_good(u32::MAX), None);
    }

    #[test]
    fn a_process_has_ended_when_its_last_thread_has() {
        let stat = |state: &str, threads: u32| {
            let text = format!("7 (a) Z 1) {state} 1 7 7 0 -1 4227084 0 0 0 0 0 0 0 0 20 0 {threads} 0 500 0 0\n");
            Stat::parse(text.as_bytes()).unwrap()
        };
        assert_eq!(stat("S", 1), Stat { ended: false, started: 5_000_000_000 });
        assert!(stat("Z", 1).ended && stat("X", 1).ended);
        // The main thread is gone, and another thread lives on.
        assert!(!stat("Z", 2).ended);
        assert_eq!(Stat::parse(b"7 (a) S 1"), None);
    }

    #[test]
    fn a_start_between_two_ticks_may_be_in_either() {
        let stat = |started| Stat { ended: false, started };
        let may = |started, born| stat(started).may_have_started(born * TICK);
        assert!(may(5 * TICK, 5) && !may(5 * TICK, 4) && !may(5 * TICK, 6));
        assert!(may(5 * TICK + 1, 5) && may(5 * TICK + 1, 6) && !may(5 * TICK + 1, 7) && !may(5 * TICK + 1, 4));
    }
}
