//! Moments as text, by the C library's calendar.

const NS: u64 = 1_000_000_000;

/// A moment, in nanoseconds since 1970, as RFC 3339 has it: UTC, with nanoseconds.
pub fn rfc3339(realtime_ns: u64) -> String {
    let seconds = (realtime_ns / NS) as _;
    // SAFETY: a struct of numbers and a pointer that may be null.
    let mut tm: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both are there for as long as the call takes. It fails where a year has no room in an int; 64 bits of
    // nanoseconds end in 2554.
    unsafe { libc::gmtime_r(&raw const seconds, &raw mut tm) };
    let (year, month) = (tm.tm_year + 1900, tm.tm_mon + 1);
    let (day, hour, minute, second) = (tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:09}Z", realtime_ns % NS)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn times_are_those_of_another_implementation() {
        // A leap day, ends of years and centuries, and steps that hit every month and hour.
        let steps = (0..u64::MAX / 1000).step_by(97_654_321_987_654).take(180);
        let dates = [0, 951_827_696, 951_782_400 + 86_399, 4_102_444_799, 4_107_542_400, 1_709_208_000];
        for time in dates.map(|seconds| seconds * NS + 1).into_iter().chain(steps).chain([u64::MAX]) {
            let expected = humantime::format_rfc3339_nanos(UNIX_EPOCH + Duration::from_nanos(time)).to_string();
            assert_eq!(rfc3339(time), expected, "{time}");
        }
    }
}
