//! The host's clocks, also from inside a time namespace, where the kernel adds offsets to the clocks. Records carry the
//! host's times, and a process is identified by the host's time of its start. Safe code.

use std::fs;
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};
use nix::time::{ClockId, clock_getres, clock_gettime};

/// The offsets that this process's time namespace adds to the clocks, in ns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Offsets {
    monotonic: i64,
    boottime: i64,
}

impl Offsets {
    /// Parse the text of /proc/self/timens_offsets. A line has a clock's name, its seconds, and its nanoseconds, which
    /// are never negative.
    fn parse(text: &str) -> Self {
        let of = |clock: &str| -> Option<i64> {
            let line = text.lines().find_map(|line| line.strip_prefix(clock))?;
            let mut numbers = line.split_ascii_whitespace().map(str::parse::<i64>);
            let (seconds, ns) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
            seconds.checked_mul(1_000_000_000)?.checked_add(ns)
        };
        Self { monotonic: of("monotonic").unwrap_or(0), boottime: of("boottime").unwrap_or(0) }
    }

    /// The offsets of this process; zero where the kernel has no time namespaces (before 5.6). The offsets are read
    /// once: the kernel fixes the offsets of a time namespace as soon as a process is in it.
    fn own() -> Self {
        static OWN: OnceLock<Offsets> = OnceLock::new();
        *OWN.get_or_init(|| {
            fs::read_to_string("/proc/self/timens_offsets").map_or(Self::default(), |it| Self::parse(&it))
        })
    }
}

/// The host's CLOCK_BOOTTIME at the time when this namespace's CLOCK_BOOTTIME is `ns`.
#[must_use]
pub fn boottime_of_host(ns: u64) -> u64 {
    ns.wrapping_sub_signed(Offsets::own().boottime)
}

/// The host's CLOCK_BOOTTIME, in nanoseconds. The kernel writes start times of processes in this clock.
///
/// # Errors
/// If the clock cannot be read.
pub fn boottime_ns() -> Result<u64> {
    Ok(boottime_of_host(now(ClockId::CLOCK_BOOTTIME)?))
}

/// The host's CLOCK_MONOTONIC, in nanoseconds. This is the clock of `bpf_ktime_get_ns()`.
///
/// # Errors
/// If the clock cannot be read.
pub fn monotonic_ns() -> Result<u64> {
    Ok(now(ClockId::CLOCK_MONOTONIC)?.wrapping_sub_signed(Offsets::own().monotonic))
}

/// CLOCK_REALTIME, in nanoseconds since 1970, UTC. Time namespaces add no offset to this clock.
///
/// # Errors
/// If the clock cannot be read.
pub fn realtime_ns() -> Result<u64> {
    now(ClockId::CLOCK_REALTIME)
}

/// The number of jiffies in a second (CONFIG_HZ). A coarse clock has the resolution of one jiffy (TICK_NSEC).
///
/// # Errors
/// If the kernel does not tell.
pub fn jiffies_per_second() -> Result<u64> {
    let tick = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE).context("cannot ask for a clock's resolution")?;
    let ns = u64::try_from(tick.tv_nsec()).unwrap_or(0);
    ensure!(tick.tv_sec() == 0 && ns > 0, "a clock has the resolution of {tick}, which is no jiffy");
    Ok((1_000_000_000 + ns / 2) / ns)
}

/// Read a clock, in nanoseconds.
fn now(clock: ClockId) -> Result<u64> {
    let time = clock_gettime(clock).context("cannot read a clock")?;
    let ns = i128::from(time.tv_sec()) * 1_000_000_000 + i128::from(time.tv_nsec());
    u64::try_from(ns).context("a clock shows a negative time")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_has_one_of_the_usual_numbers_of_jiffies() {
        assert!(matches!(jiffies_per_second(), Ok(100 | 250 | 300 | 1000)));
    }

    #[test]
    fn offsets_are_seconds_and_nanoseconds() {
        let text = "monotonic          -2 500000000\nboottime      86400         0\n";
        assert_eq!(Offsets::parse(text), Offsets { monotonic: -1_500_000_000, boottime: 86_400_000_000_000 });
        assert_eq!(Offsets::parse("monotonic           0         0\n"), Offsets::default());
        assert_eq!(Offsets::parse("boottime x 1\nmonotonic 9223372036854775807 0\n"), Offsets::default());
    }
}
