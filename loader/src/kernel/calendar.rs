//! Times as text, by the C library's calendar.

const NS: u64 = 1_000_000_000;

/// The length of a time as text: `2023-11-14T22:13:20.123456789Z`. 64 bits of nanoseconds end in 2554, so a year has four
/// digits.
const LENGTH: usize = 30;
/// The places of the nanoseconds.
const FRACTION: std::ops::Range<usize> = 20..29;

/// Writes times as RFC 3339 does: UTC, with nanoseconds. The times of a second differ only in their nanoseconds, so the
/// calendar is asked once a second.
#[derive(Debug)]
pub struct Calendar {
    /// The second of the text, since 1970.
    second: u64,
    text: [u8; LENGTH],
}

impl Default for Calendar {
    fn default() -> Self {
        Self { second: 0, text: *b"1970-01-01T00:00:00.000000000Z" }
    }
}

impl Calendar {
    /// A time, in nanoseconds since 1970, as text.
    pub fn rfc3339(&mut self, realtime_ns: u64) -> &str {
        let second = realtime_ns / NS;
        if second != self.second {
            self.second = second;
            self.ask(second);
        }
        put(&mut self.text[FRACTION], realtime_ns % NS);
        // All bytes are ASCII.
        str::from_utf8(&self.text).unwrap_or_default()
    }

    fn ask(&mut self, second: u64) {
        let seconds = second as _;
        // SAFETY: the structure consists of numbers and a pointer that may be null.
        let mut tm: libc::tm = unsafe { std::mem::zeroed() };
        // SAFETY: both variables live for as long as the call. The call fails only if the year does not fit an int.
        unsafe { libc::gmtime_r(&raw const seconds, &raw mut tm) };
        let parts = [(0..4, tm.tm_year + 1900), (5..7, tm.tm_mon + 1), (8..10, tm.tm_mday)];
        let of_day = [(11..13, tm.tm_hour), (14..16, tm.tm_min), (17..19, tm.tm_sec)];
        for (place, number) in parts.into_iter().chain(of_day) {
            put(&mut self.text[place], number as u64);
        }
    }
}

/// Write a number in decimal digits, with zeros in front.
fn put(to: &mut [u8], mut number: u64) {
    for digit in to.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn times_equal_those_of_another_implementation() {
        // These dates have a leap day and ends of years and centuries. These steps reach every month and hour.
        let steps = (0..u64::MAX / 1000).step_by(97_654_321_987_654).take(180);
        let dates = [0, 951_827_696, 951_782_400 + 86_399, 4_102_444_799, 4_107_542_400, 1_709_208_000];
        let dates = dates.map(|seconds| seconds * NS + 1);
        // These times come without a change of the second.
        let again = dates.map(|time| time + 7);
        let mut calendar = Calendar::default();
        for time in dates.into_iter().zip(again).flat_map(<[u64; 2]>::from).chain(steps).chain([u64::MAX]) {
            let expected = humantime::format_rfc3339_nanos(UNIX_EPOCH + Duration::from_nanos(time)).to_string();
            assert_eq!(calendar.rfc3339(time), expected, "{time}");
        }
    }
}
