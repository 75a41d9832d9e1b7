//! The kernel's functions that cut congestion windows.

use crate::console::say;
use crate::kernel::symbols;
use crate::model::events::Settings;

/// The addresses by which the programs tell apart `ecn`, `local` and `probe`. Reading them takes time, so they are read only if
/// cuts are printed.
#[must_use]
pub fn callers(settings: Settings) -> Settings {
    // Where tcp_try_to_open() does not exist, it is a part of its only caller.
    let functions = ["__tcp_transmit_skb", "tcp_try_to_open", "tcp_fastretrans_alert", "tcp_ack"];
    let found =
        symbols::ranges(functions).and_then(|[transmit, open, alert, ack]| Some((transmit?, open.or(alert)?, ack?)));
    let Some((transmit, marks, ack)) = found else {
        say(
            "the addresses of TCP's functions are not in /proc/kallsyms, so `ecn`, `local` and `probe` are not told apart; where the \
             kernel hides addresses, CAP_SYSLOG helps",
        );
        return settings;
    };
    let (transmit_from, transmit_to) = transmit;
    let (marks_from, marks_to) = marks;
    let (ack_from, ack_to) = ack;
    Settings { transmit_from, transmit_to, marks_from, marks_to, ack_from, ack_to, ..settings }
}
