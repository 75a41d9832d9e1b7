//! What xctl prints. Nothing here asks the kernel anything.

pub mod json;
pub mod sockets;
pub mod summary;
pub mod text;

use std::io;

use crate::events::{Retransmit, Send};
use crate::hooks::Plan;
use summary::Summary;

/// What was loaded, once everything is attached.
#[derive(Debug)]
pub struct Ready<'a> {
    /// The hooks in use.
    pub plan: &'a Plan,
    /// The BTF that the object was relocated against.
    pub btf: &'a str,
    /// SHA-256 of the object, in hexadecimal digits.
    pub object_sha256: &'a str,
    /// Capacity of SOCKET_TO_PID.
    pub max_sockets: u32,
    /// Sockets known before the first event.
    pub seeded: usize,
    /// False: everything was only loaded.
    pub attached: bool,
    /// Whether what is in the kernel was proven to be what the object says; none if it could not be compared.
    pub proven: Option<bool>,
}

/// What user space adds to an event.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// When the kernel saw it, ns since 1970, UTC.
    pub realtime_ns: u64,
    /// The owner no longer existed when the event was read.
    pub exited: bool,
}

/// A format to print in.
pub trait Output {
    /// Everything is attached, or loaded if nothing is to be attached.
    ///
    /// # Errors
    /// If standard output does not take it; so for the other three.
    fn ready(&mut self, ready: &Ready<'_>) -> io::Result<()>;
    /// A retransmit.
    ///
    /// # Errors
    /// As for `ready`.
    fn retransmit(&mut self, event: &Retransmit, moment: Moment) -> io::Result<()>;
    /// A send.
    ///
    /// # Errors
    /// As for `ready`.
    fn send(&mut self, event: &Send, moment: Moment) -> io::Result<()>;
    /// The end.
    ///
    /// # Errors
    /// As for `ready`.
    fn summary(&mut self, summary: &Summary) -> io::Result<()>;
    /// Hand over to the reader what was printed so far.
    ///
    /// # Errors
    /// As for `ready`.
    fn flush(&mut self) -> io::Result<()>;
}
