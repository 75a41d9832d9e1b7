//! The progress of reading the sockets that are open already, on a terminal.

use crate::console::show_progress;

/// The number of sockets between two updates. Reading them takes about 10 ms.
const EVERY: usize = 1 << 12;

/// Note that so many sockets were read.
pub(super) fn note(sockets: usize) {
    if sockets.is_multiple_of(EVERY) {
        show_progress(format_args!("reading open sockets: {sockets}"));
    }
}
