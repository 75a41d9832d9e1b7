//! What xctl tells people besides its output, on standard error. That may be anything: a full disk, a pipe that nobody
//! reads. So it is no failure if it cannot be told, and no panic, as in the standard library's macros.

use std::fmt::Display;
use std::io::Write;

use crate::kernel::wait::Stderr;

/// A line.
pub fn say(line: impl Display) {
    say_all(&format!("xctl: {line}\n"));
}

/// Any text.
pub fn say_all(text: &str) {
    let _ = Stderr.write_all(text.as_bytes());
}
