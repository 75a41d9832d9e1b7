//! Messages to people, on standard error. Standard error may be anything: a full disk, a pipe that nobody reads. So a message
//! that cannot be written is no failure. The standard library's macros would panic.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock};

use crate::kernel::{memory, terminal, wait::Stderr};

/// Print a message of one line or several. Messages have names of untrusted files in them, and must not steer a terminal.
pub fn say(line: impl Display) {
    say_all(&format!("xctl: {}\n", harmless(line.to_string())));
}

fn harmless(text: String) -> String {
    let steers = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if text.contains(steers) { text.replace(steers, "\u{fffd}") } else { text }
}

/// The most bytes of messages that wait for the end of a full-screen view.
const HELD: usize = 1 << 16;

/// The messages of the time of a full-screen view, which would vanish on it.
static WAITING: Mutex<String> = Mutex::new(String::new());

/// Print the messages that waited for the end of a full-screen view.
pub fn say_held() {
    let text = WAITING.lock().map(|mut waiting| std::mem::take(&mut *waiting)).unwrap_or_default();
    if !text.is_empty() {
        say_all(&text);
    }
}

/// The sequence that goes back to the beginning of a terminal's line, and erases the line.
pub const ERASE: &str = "\r\x1b[K";

/// Whether standard error is a terminal whose last line may be a status, which a message replaces.
static HAS_STATUS: AtomicBool = AtomicBool::new(false);

/// Note that standard output, a terminal, shows a status line from now on. This asks the kernel whether standard error is a
/// terminal, too.
pub fn expect_status() {
    HAS_STATUS.store(io::stderr().is_terminal(), Ordering::Relaxed);
}

/// Show how far a long step is, on the last line of standard error, if that is a terminal which can erase it. The next message takes
/// its place. A terminal that was stopped (Ctrl-S) does not get it.
pub fn show_progress(line: impl Display) {
    if terminal::moves_cursor(&io::stderr()) && Stderr.has_room() {
        HAS_STATUS.store(true, Ordering::Relaxed);
        let _ = Stderr.write_all(format!("{ERASE}xctl: {line}").as_bytes());
    }
}

/// Erase the progress, if there is one.
pub fn end_progress() {
    if HAS_STATUS.swap(false, Ordering::Relaxed) {
        let _ = Stderr.write_all(ERASE.as_bytes());
    }
}

/// Print any text. On a terminal with a full-screen view it waits for the end of the view.
pub fn say_all(text: &str) {
    if terminal::is_taken()
        && io::stderr().is_terminal()
        && let Ok(mut waiting) = WAITING.lock()
        && waiting.len() + text.len() < HELD
    {
        waiting.push_str(text);
        return;
    }
    if HAS_STATUS.load(Ordering::Relaxed) {
        let _ = Stderr.write_all(ERASE.as_bytes());
    }
    let _ = match goes_to_journal() {
        true => Stderr.write_all(as_warnings(text).as_bytes()),
        false => Stderr.write_all(text.as_bytes()),
    };
}

/// Say that memory ran out, and end with exit code 1. Nothing is allocated.
pub fn out_of_memory() -> ! {
    terminal::leave();
    let _ = Stderr.write_all(OUT_OF_MEMORY.as_bytes());
    std::process::exit(1)
}

const _: () = assert!(memory::MOST == 1024 << 20, "the message names the limit");

const OUT_OF_MEMORY: &str = "xctl: out of memory: this run needs more than 1024 MiB, or than its own limits allow \
                             (ulimit -d, ulimit -v); raise the limits, or use a smaller file\n";

/// Whether standard error is the journal's (systemd.exec(5), JOURNAL_STREAM).
fn goes_to_journal() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        let Ok(journal) = std::env::var("JOURNAL_STREAM") else { return false };
        let stderr = std::fs::metadata("/proc/self/fd/2");
        stderr.is_ok_and(|stderr| journal == format!("{}:{}", stderr.dev(), stderr.ino()))
    })
}

/// Give each line the level `warning` (sd-daemon(3)). Records on standard output have none: the level tells both apart.
fn as_warnings(text: &str) -> String {
    text.lines().map(|line| format!("<4>{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_in_the_journal_has_a_level() {
        assert_eq!(as_warnings("xctl: one\n  two\n"), "<4>xctl: one\n<4>  two\n");
    }

    #[test]
    fn control_characters_are_replaced_and_other_text_stays() {
        let log = "0: R1=ctx()\n\t1: (95) exit \u{e9}".to_owned();
        assert_eq!(harmless(log.clone()), log);
        assert_eq!(harmless("map \u{1b}[2Jx\u{9b}y\r".to_owned()), "map \u{fffd}[2Jx\u{fffd}y\u{fffd}");
    }
}
