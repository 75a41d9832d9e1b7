//! The host's clocks, also from inside a time namespace, where the kernel adds offsets to what it tells: records carry the
//! host's times, and processes are known by the host's time of their start. Safe code.

use std::fs;
use std::sync::OnceLock;

use anyhow::{Context, Result};
use nix::time::{ClockId, clock_gettime};

/// What this process's time namespace adds to clocks, in ns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Offsets {
    monotonic: i64,
    boottime: i64,
}

impl Offsets {
    /// From the text of /proc/self/timens_offsets: of each clock its name, seconds, and nanoseconds, which are never
    /// negative.
    fn parse(text: &str) -> Self {
        let of = |clock: &str| -> Option<i64> {
            let line = text.lines().find_map(|line| line.strip_prefix(clock))?;
            let mut numbers = line.split_ascii_whitespace().map(str::parse::<i64>);
            let (seconds, ns) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
            seconds.checked_mul(1_000_000_000)?.checked_add(ns)
        };
        Self { monotonic: of("monotonic").unwrap_or(0), boottime: of("boottime").unwrap_or(0) }
    }

    /// None are where the kernel has no time namespaces (before 5.6). They cannot change any more: somebody is in there.
    fn own() -> Self {
        static OWN: OnceLock<Offsets> = OnceLock::new();
        *OWN.get_or_init(|| {
            fs::read_to_string("/proc/self/timens_offsets").map_or(Self::default(), |it| Self::parse(&it))
        })
    }
}

/// The host's CLOCK_BOOTTIME where this namespace's is `ns`.
#[must_use]
pub fn boottime_of_host(ns: u64) -> u64 {
    ns.wrapping_sub_signed(Offsets::own().boottime)
}

/// The host's CLOCK_MONOTONIC, in nanoseconds: the clock of `bpf_ktime_get_ns()`.
///
/// # Errors
/// If the kernel does not tell.
pub fn monotonic_ns() -> Result<u64> {
    Ok(now(ClockId::CLOCK_MONOTONIC)?.wrapping_sub_signed(Offsets::own().monotonic))
}

/// CLOCK_REALTIME, in nanoseconds since 1970, UTC. It has no offset.
///
/// # Errors
/// If the kernel does not tell.
pub fn realtime_ns() -> Result<u64> {
    now(ClockId::CLOCK_REALTIME)
}

/// A clock, in nanoseconds.
fn now(clock: ClockId) -> Result<u64> {
    let time = clock_gettime(clock).context("cannot read a clock")?;
    let ns = i128::from(time.tv_sec()) * 1_000_000_000 + i128::from(time.tv_nsec());
    u64::try_from(ns).context("a clock before its epoch")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_seconds_and_nanoseconds() {
        let text = "monotonic          -2 500000000\nboottime      86400         0\n";
        assert_eq!(Offsets::parse(text), Offsets { monotonic: -1_500_000_000, boottime: 86_400_000_000_000 });
        assert_eq!(Offsets::parse("monotonic           0         0\n"), Offsets::default());
        assert_eq!(Offsets::parse("boottime x 1\nmonotonic 9223372036854775807 0\n"), Offsets::default());
    }
}
