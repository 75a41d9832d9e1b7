//! The progress of reading the sockets that are open already, on a terminal.

use crate::console::show_progress;

/// The sockets between two signs: those of some 10 milliseconds.
const EVERY: usize = 1 << 12;

/// Note that so many sockets were read.
pub(super) fn note(sockets: usize) {
    if sockets.is_multiple_of(EVERY) {
        show_progress(format_args!("reading the sockets that are open already: {sockets}"));
    }
}
