//! What xctl tells people besides its output, on standard error. That may be anything: a full disk, a pipe that nobody
//! reads. So it is no failure if it cannot be told, and no panic, as in the standard library's macros.

use std::fmt::Display;
use std::io::Write;

use crate::kernel::wait::Stderr;

/// A line, or several: messages have names of untrusted files in them, and must not steer a terminal.
pub fn say(line: impl Display) {
    say_all(&format!("xctl: {}\n", harmless(line.to_string())));
}

fn harmless(text: String) -> String {
    let steers = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if text.contains(steers) { text.replace(steers, "\u{fffd}") } else { text }
}

/// Any text.
pub fn say_all(text: &str) {
    let _ = Stderr.write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_a_terminal_is_left_out_and_the_rest_stays() {
        let log = "0: R1=ctx()\n\t1: (95) exit \u{e9}".to_owned();
        assert_eq!(harmless(log.clone()), log);
        assert_eq!(harmless("map \u{1b}[2Jx\u{9b}y\r".to_owned()), "map \u{fffd}[2Jx\u{fffd}y\u{fffd}");
    }
}
