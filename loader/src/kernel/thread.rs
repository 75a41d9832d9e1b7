//! Work for a second CPU.

use std::panic::resume_unwind;
use std::thread::{self, Builder};

/// Run two functions at once, `aside` in a thread of its own. If no thread can be made, `aside` runs afterwards.
pub fn at_once<A: Send, B>(aside: impl Fn() -> A + Sync, here: impl FnOnce() -> B) -> (A, B) {
    thread::scope(|scope| {
        let thread = Builder::new().spawn_scoped(scope, &aside);
        let here = here();
        let aside = match thread {
            Ok(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
            Err(_) => aside(),
        };
        (aside, here)
    })
}
